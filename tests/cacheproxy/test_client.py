"""The helper for redis-py, and the examples that use it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import redis
import redis.asyncio

from nexus.cacheproxy.client import AsyncTags, Tags, nexus_tags

from .proxy import ROOT, Proxy


def test_tags_and_results_that_are_kept(proxy: Proxy):
    with proxy.client() as client:
        tags = nexus_tags(client)
        assert isinstance(tags, Tags)
        calls: list[int] = []

        @tags.cached("p:{number}", seconds=60, tags=["ps", "p-{0}"])
        def product(number: int, currency: str = "EUR") -> list[object]:
            """Document."""
            calls.append(number)
            return [number, currency]

        assert product(1) == product(number=1) == product(1, currency="EUR") == [1, "EUR"]
        assert product(2) == [2, "EUR"]
        assert calls == [1, 2]
        assert product.__doc__ == "Document."
        assert 0 < client.pttl("p:1") <= 60_000
        assert tags.invalidate("p-1") == 1
        assert product(1) == [1, "EUR"]
        assert calls == [1, 2, 1]
        assert tags.tag("ps", "other", "p:1") == 1
        assert tags.untag("ps", "other") == 1
        assert tags.invalidate("ps", "p-1") == 2
        assert (tags.tag("ps"), tags.untag("ps"), tags.invalidate()) == (0, 0, 0)
        with pytest.raises(TypeError):
            tags.cached("x", seconds=1)(object)()
        with pytest.raises(ValueError, match="above 0"):
            tags.cached("x", seconds=0)(lambda: 1)()


def test_a_value_loaded_across_an_invalidation_is_not_kept(proxy: Proxy):
    with proxy.client() as client:
        tags = nexus_tags(client)
        versions = iter(["old", "new", "newest"])

        def load(number: int) -> str:
            version = next(versions)
            if version == "old":
                tags.invalidate("t")
                assert cached(number) == "new"  # another load, that is kept
            return version

        cached = tags.cached("k:{0}", seconds=60, tags=["t"])(load)
        assert cached(1) == "old"
        assert cached(1) == "new"
        assert client.zrange("tag:t", 0, -1) == [b"k:1"]
        tags.invalidate("t")
        assert cached(1) == "newest"


async def test_the_same_with_asyncio(proxy: Proxy):
    async with redis.asyncio.Redis(host=proxy.host, port=proxy.port) as client:
        tags = nexus_tags(client)
        assert isinstance(tags, AsyncTags)
        calls = []

        @tags.cached("b:{0}", seconds=60, tags=["bs"])
        async def basket(user: str) -> str:
            calls.append(user)
            return user

        assert await basket("a") == await basket("a") == "a"
        assert calls == ["a"]
        assert await tags.tag("bs", "c") == 1
        assert await tags.untag("bs", "c") == 1
        assert await tags.invalidate("bs") == 1
        assert await basket("a") == "a"
        assert calls == ["a", "a"]
        assert [await tags.tag("x"), await tags.untag("x"), await tags.invalidate()] == [0, 0, 0]


def test_a_redis_without_nexus_says_so(redis_server: object):
    client = redis.Redis.from_url(redis_server.url)  # type: ignore[attr-defined]
    with client, pytest.raises(redis.ResponseError, match="unknown command 'NEXUS'"):
        nexus_tags(client).invalidate("t")


@pytest.mark.parametrize(
    ("name", "last"),
    [
        ("tags.py", "all products at once: 2 keys deleted"),
        ("tags_asyncio.py", "one call more, loaded 2 times"),
    ],
)
def test_examples(proxy: Proxy, name: str, last: str):
    done = subprocess.run(
        [sys.executable, str(Path(ROOT, "examples", name)), f"redis://127.0.0.1:{proxy.port}"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == last
