"""NEXUS TAG, UNTAG, INVALIDATE against the real Redis."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest
import redis

from nexus.cacheproxy.tags import CHUNK

from .proxy import Proxy, encode, eventually


@pytest.fixture(scope="module")
def tagging(backend: str, redis_server: object) -> Iterator[Proxy]:
    """Two workers that delete at most 50 keys at once."""
    proxy = Proxy(
        redis_server.url,  # type: ignore[attr-defined]
        *("--workers", "2"),
        backend=backend,
        NEXUS_CACHEPROXY_TAGS__ATOMIC_MAX_MEMBERS="50",
    )
    yield proxy
    proxy.stop()


@pytest.fixture
def direct(redis_server: object) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(redis_server.url, protocol=2) as client:  # type: ignore[attr-defined]
        client.flushall()
        client.script_flush()
        yield client


def test_a_tags_keys_are_deleted_together_and_counted(tagging: Proxy, direct: redis.Redis):
    direct.mset({"a": 1, "b": 2, "c": 3})
    with tagging.raw() as raw:
        assert raw.ask("NEXUS", "TAG", "t", "a", "b", "gone") == b":3\r\n"
        assert raw.ask("NEXUS", "TAG", "t", "b", "c") == b":1\r\n"
        assert raw.ask("NEXUS", "UNTAG", "t", "c", "x") == b":1\r\n"
        assert raw.ask("NEXUS", "INVALIDATE", "t") == b":2\r\n"
        assert raw.ask("NEXUS", "INVALIDATE", "t", "none") == b":0\r\n"
    assert direct.keys("*") == [b"c"]


def test_the_clients_order_and_database_hold(tagging: Proxy, direct: redis.Redis):
    with tagging.raw() as raw:
        assert raw.ask("SELECT", 3) == b"+OK\r\n"
        raw.write(
            encode("SET", "a", 1)
            + encode("NEXUS", "TAG", "t", "a")
            + encode("GET", "a")
            + encode("NEXUS", "INVALIDATE", "t")
            + encode("GET", "a")
            + encode("SET", "a", 2)
            + encode("NEXUS", "NONE")
        )
        assert raw.replies(6) == [
            b"+OK\r\n",
            b":1\r\n",
            b"$1\r\n1\r\n",
            b":1\r\n",
            b"$-1\r\n",
            b"+OK\r\n",
        ]
        assert raw.reply().startswith(b"-ERR unknown subcommand")
        assert raw.ask("DBSIZE") == b":1\r\n"
    assert direct.dbsize() == 0


def test_a_set_that_somebody_else_made_is_a_tag(tagging: Proxy, direct: redis.Redis):
    direct.mset({"a": 1, "b": 2})
    direct.sadd("tag:s", "a")
    with tagging.raw() as raw:
        assert raw.ask("NEXUS", "TAG", "s", "b") == b":1\r\n"
        assert direct.smembers("tag:s") == {b"a", b"b"}
        assert raw.ask("NEXUS", "INVALIDATE", "s") == b":2\r\n"
        direct.set("tag:wrong", 1)
        for command in (("TAG", "wrong", "a"), ("UNTAG", "wrong", "a"), ("INVALIDATE", "wrong")):
            assert raw.ask("NEXUS", *command).startswith(b"-WRONGTYPE tag:wrong holds a string")
    assert direct.keys("*") == [b"tag:wrong"]


@pytest.mark.parametrize("kind", ["zset", "set"])
def test_a_big_tag_is_moved_away_and_deleted_in_pieces(
    tagging: Proxy, direct: redis.Redis, kind: str
):
    keys = [f"k{number}" for number in range(2 * CHUNK + 7)]
    direct.mset(dict.fromkeys(keys, 1) | {"other": 1})
    if kind == "set":
        direct.sadd("tag:big", *keys)
    direct.config_resetstat()
    with tagging.raw() as raw:
        if kind == "zset":
            assert raw.ask("NEXUS", "TAG", "big", *keys) == b":%d\r\n" % len(keys)
        raw.write(encode("NEXUS", "INVALIDATE", "big", "small") + encode("DBSIZE"))
        assert raw.reply() == b":%d\r\n" % len(keys)
    assert direct.exists(*keys) == 0
    calls = direct.info("commandstats")["cmdstat_eval"]["calls"]
    assert calls == 5 + (kind == "zset")  # the move, three pieces, the small tag's rest
    assert sorted(direct.keys("*")) in ([b"other"], [b"nexus:tags", b"other"])


def test_what_a_dead_proxy_left_is_finished_by_the_next(tagging: Proxy, direct: redis.Redis):
    direct.mset({"a": 1, "b": 2, "c": 3})
    for name, key in (("one", "a"), ("two", "b")):
        direct.zadd(f"nexus:gone:t:{name}", {key: 1})
        direct.rpush("nexus:gone:t", f"nexus:gone:t:{name}")
    with tagging.raw() as raw:
        raw.ask("NEXUS", "TAG", "t", "c")
        assert raw.ask("NEXUS", "INVALIDATE", "t") == b":3\r\n"
        assert direct.exists("a", "b", "c") == 0
        # A tag that nobody invalidates any more: any other tag's business finishes it.
        direct.set("a", 1)
        direct.zadd("nexus:gone:u:x", {"a": 1})
        direct.rpush("nexus:gone:u", "nexus:gone:u:x")
        direct.zadd("nexus:tags", {"u": 1})
        raw.ask("NEXUS", "TAG", "other", "k")
        raw.ask("NEXUS", "TAG", "other", "k")
    assert direct.exists("a", "nexus:gone:u", "nexus:gone:u:x") == 0


def test_membership_ends_with_the_key_and_not_before(tagging: Proxy, direct: redis.Redis):
    direct.set("short", 1, px=30)
    direct.set("prolonged", 1, px=30)
    direct.set("stays", 1)
    with tagging.raw() as raw:
        assert raw.ask("NEXUS", "TAG", "t", "short", "prolonged", "stays") == b":3\r\n"
        direct.expire("prolonged", 1000)
        assert eventually(lambda: not direct.exists("short"))
        time.sleep(0.05)
        raw.ask("NEXUS", "TAG", "t", "new")
        assert set(direct.zrange("tag:t", 0, -1)) == {b"prolonged", b"stays", b"new"}
        # A tag that nobody writes to any more is emptied by what is done to others.
        direct.set("last", 1, px=20)
        raw.ask("NEXUS", "TAG", "quiet", "last")
        time.sleep(0.05)
        direct.zadd("nexus:tags", {"quiet": 1})
        raw.ask("NEXUS", "TAG", "t", "new")
        assert direct.exists("tag:quiet") == 0
        assert direct.zscore("nexus:tags", "quiet") is None
        assert raw.ask("NEXUS", "INVALIDATE", "t") == b":2\r\n"
    assert direct.exists("prolonged", "stays") == 0


def test_a_user_invalidates_only_what_it_may_delete(tagging: Proxy, direct: redis.Redis):
    direct.execute_command(
        "ACL", "SETUSER", "mine", "on", ">pw", "~mine:*", "~tag:mine*", "~nexus:*", "+@all"
    )
    try:
        direct.mset({"mine:1": 1, "yours:1": 1})
        direct.zadd("tag:mine", {"mine:1": 1, "yours:1": 1})
        with tagging.raw() as raw:
            assert raw.ask("AUTH", "mine", "pw") == b"+OK\r\n"
            assert b"NOPERM" in raw.ask("NEXUS", "INVALIDATE", "mine") or direct.exists("yours:1")
            assert b"NOPERM" in raw.ask("NEXUS", "TAG", "yours", "mine:1") or not direct.exists(
                "tag:yours"
            )
        assert direct.exists("yours:1") == 1
    finally:
        direct.execute_command("ACL", "DELUSER", "mine")


def test_wrong_calls_say_what_was_expected(tagging: Proxy):
    with tagging.raw() as raw:
        assert b"expected NEXUS TAG <tag> <key>" in raw.ask("NEXUS", "TAG", "t")
        assert b"expected NEXUS INVALIDATE <tag>" in raw.ask("NEXUS", "INVALIDATE")


def test_a_half_closed_client_gets_its_reply(tagging: Proxy, direct: redis.Redis):
    keys = [f"k{number}" for number in range(100)]
    direct.mset(dict.fromkeys(keys, 1))
    with tagging.raw() as raw:
        raw.write(encode("NEXUS", "TAG", "t", *keys) + encode("NEXUS", "INVALIDATE", "t"))
        raw.sock.shutdown(1)
        assert raw.rest() == b":100\r\n:100\r\n"


def test_numbers_are_in_the_statistics(tagging: Proxy, direct: redis.Redis):
    time.sleep(0.4)  # what the tests before did is published by then, in both workers
    before = tagging.stats()
    direct.set("a", 1)
    with tagging.raw() as raw:
        raw.ask("NEXUS", "TAG", "t", "a", "b")
        raw.ask("NEXUS", "INVALIDATE", "t")

    def grown(name: str) -> int:
        return int(tagging.stats()[name]) - int(before[name])

    assert eventually(lambda: grown("invalidated_keys") == 1)
    assert (grown("tagged_keys"), grown("invalidations")) == (2, 1)


def test_others_are_served_while_a_big_tag_goes(tagging: Proxy, direct: redis.Redis):
    # Not a matter of milliseconds here: between two pieces everybody's commands run.
    keys = [f"k{number}" for number in range(20_000)]
    direct.mset(dict.fromkeys(keys, 1))
    direct.zadd("tag:big", dict.fromkeys(keys, 1))
    seen: list[int] = []
    stop = threading.Event()

    def watch() -> None:
        with tagging.raw() as raw:
            while not stop.is_set():
                seen.append(int(raw.ask("DBSIZE")[1:]))

    thread = threading.Thread(target=watch)
    thread.start()
    assert eventually(lambda: len(seen) > 5)
    with tagging.raw() as raw:
        assert raw.ask("NEXUS", "INVALIDATE", "big") == b":20000\r\n"
    stop.set()
    thread.join()
    assert len({size for size in seen if 10 < size < 20_000}) >= 2
