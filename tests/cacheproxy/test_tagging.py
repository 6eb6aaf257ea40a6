"""Keys that join tags as they are written, by the policy, whichever way the write travels."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import redis

from nexus.cacheproxy.tagging import written_keys

from .proxy import Proxy, encode, eventually

POLICY = """\
policies:
  - match: GET
    keys: "product:*"
    tags: ["products", "product-{1}"]
  - match: [SET, HSET]
    keys: "user:*:cart"
    tags: ["carts"]
"""


@pytest.fixture(scope="module")
def tagging(
    backend: str, redis_server: object, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Proxy]:
    path = tmp_path_factory.mktemp("tagging") / "policy.yaml"
    path.write_text(POLICY)
    proxy = Proxy(redis_server.url, "--policy", str(path), backend=backend)  # type: ignore[attr-defined]
    yield proxy
    proxy.stop()


@pytest.fixture
def direct(redis_server: object) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(redis_server.url, protocol=2) as client:  # type: ignore[attr-defined]
        client.flushall()
        yield client


def members(direct: redis.Redis, tag: str) -> set[bytes]:
    return set(direct.zrange(f"tag:{tag}", 0, -1))


def test_a_write_joins_its_tags_and_is_found_by_invalidating(tagging: Proxy, direct: redis.Redis):
    with tagging.raw() as raw:
        raw.write(
            encode("SET", "product:1", "a", "EX", 100)
            + encode("SET", "other", 1)
            + encode("MSET", "product:2", "b", "x", "y", "product:3", "c")
            + encode("HSET", "user:7:cart", "f", "v")
            + encode("GET", "product:1")
        )
        assert raw.replies(5) == [b"+OK\r\n"] * 3 + [b":1\r\n", b"$1\r\na\r\n"]
        assert members(direct, "products") == {b"product:1", b"product:2", b"product:3"}
        assert members(direct, "product-2") == {b"product:2"}
        assert members(direct, "carts") == {b"user:7:cart"}
        assert raw.ask("NEXUS", "INVALIDATE", "products") == b":3\r\n"
        assert raw.ask("GET", "product:1") == b"$-1\r\n"
    assert direct.exists("other", "x", "user:7:cart") == 3


def test_a_rule_for_one_command_is_not_for_others(tagging: Proxy, direct: redis.Redis):
    with tagging.raw() as raw:
        raw.ask("APPEND", "user:1:cart", "x")
        raw.ask("SET", "user:2:cart", "x")
        raw.ask("COPY", "user:2:cart", "product:9")
        raw.ask("RENAME", "user:2:cart", "product:8")
    assert members(direct, "carts") == {b"user:2:cart"}
    assert members(direct, "products") == {b"product:9", b"product:8"}


@pytest.mark.parametrize("pieces", [1, 2])
def test_a_transaction_tags_before_it_writes(tagging: Proxy, direct: redis.Redis, pieces: int):
    parts = [
        encode("MULTI") + encode("SET", "product:1", "a"),
        encode("SET", "product:2", "b") + encode("EXEC") + encode("GET", "product:2"),
    ]
    with tagging.raw() as raw:
        if pieces == 1:
            raw.write(b"".join(parts))
        else:
            raw.write(parts[0])
            assert raw.replies(2) == [b"+OK\r\n", b"+QUEUED\r\n"]
            raw.write(parts[1])
        replies = raw.replies(5 if pieces == 1 else 3)
        assert replies[-2:] == [b"*2\r\n+OK\r\n+OK\r\n", b"$1\r\nb\r\n"]
        assert members(direct, "products") == {b"product:1", b"product:2"}
        # One that is discarded tags nothing.
        for command in ("MULTI", "SET product:3 c", "DISCARD", "MULTI", "EXEC"):
            raw.ask(*command.split())
    assert members(direct, "products") == {b"product:1", b"product:2"}


def test_writes_on_a_connection_of_its_own_and_big_ones(tagging: Proxy, direct: redis.Redis):
    with tagging.raw() as raw:
        assert raw.ask("WATCH", "k") == b"+OK\r\n"
        assert raw.ask("SET", "product:1", "a") == b"+OK\r\n"
        assert raw.ask("UNWATCH") == b"+OK\r\n"
        assert raw.ask("SET", "product:2", "b" * 300_000) == b"+OK\r\n"
        assert raw.ask("STRLEN", "product:2") == b":300000\r\n"
        raw.write(b"SET product:3 c\r\n")
        assert raw.reply() == b"+OK\r\n"
    assert members(direct, "products") == {b"product:1", b"product:2", b"product:3"}


def test_what_redis_refuses_to_tag_is_counted_and_the_write_goes_on(
    tagging: Proxy, direct: redis.Redis
):
    before = int(tagging.stats()["tags_refused"])
    direct.set("tag:products", "not a tag")
    with tagging.raw() as raw:
        assert raw.ask("SET", "product:1", "a") == b"+OK\r\n"
    assert eventually(lambda: int(tagging.stats()["tags_refused"]) == before + 1)
    assert eventually(lambda: "redis refuses to tag written keys" in tagging.log)


def test_switched_off_nothing_is_tagged(tagging: Proxy, direct: redis.Redis):
    with tagging.raw() as raw:
        assert raw.ask("NEXUS", "POLICY", "OFF") == b"+OK\r\n"
        raw.ask("SET", "product:1", "a")
        assert members(direct, "products") == set()
        assert raw.ask("NEXUS", "POLICY", "ON") == b"+OK\r\n"
        raw.ask("SET", "product:1", "a")
    assert members(direct, "products") == {b"product:1"}


@pytest.mark.parametrize(
    ("command", "keys"),
    [
        ("SET a 1", ["a"]),
        ("mset a 1 b 2", ["a", "b"]),
        ("BITOP AND d a b", ["d"]),
        ("COPY a b REPLACE", ["b"]),
        ("ZUNIONSTORE d 2 a b", ["d"]),
        ("DEL a", []),
        ("GET a", []),
        ("SET", []),
    ],
)
def test_keys_that_a_command_stores_under(command: str, keys: list[str]):
    args = [word.encode() for word in command.split()]
    assert list(written_keys(args)) == [key.encode() for key in keys]
