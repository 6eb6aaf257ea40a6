"""NEXUS TAG, UNTAG, INVALIDATE against the real Redis."""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Iterator

import pytest
import redis

from nexus.cacheproxy.dial import Identity
from nexus.cacheproxy.tags import PIECE, invalidate_request

from .proxy import Proxy, Raw, encode, eventually


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
    keys = [f"k{number}" for number in range(2 * PIECE + 7)]
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
    # The move, the pieces, the small tag's rest; TAG itself.
    assert calls == (1 + 3 + 1 + 1 if kind == "zset" else 1 + 5 + 1)
    assert sorted(direct.keys("*")) in ([b"other"], [b"nexus:tags", b"other"])


def _left_by_a_dead_proxy(server: object, tag: bytes, token: bytes) -> None:
    """What a proxy has done that died behind the first command of an invalidation."""
    request = bytes(invalidate_request([tag], 0, token, Identity(None, None)))
    with Raw(server.host, server.port) as raw:  # type: ignore[attr-defined]
        raw.write(request)
        assert raw.reply() == b"*2\r\n:0\r\n:1\r\n"


def test_what_a_dead_proxy_left_is_finished_by_the_next(
    tagging: Proxy, direct: redis.Redis, redis_server: object
):
    direct.mset({"a": 1, "b": 2, "c": 3})
    for name, key in ((b"one", "a"), (b"two", "b")):
        direct.zadd("tag:t", {key: 1})
        _left_by_a_dead_proxy(redis_server, b"t", name)
    with tagging.raw() as raw:
        raw.ask("NEXUS", "TAG", "t", "c")
        assert direct.exists("a", "b", "c") == 3
        assert raw.ask("NEXUS", "INVALIDATE", "t") == b":3\r\n"
        assert direct.exists("a", "b", "c") == 0
        # A tag that nobody invalidates any more: any other tag's business finishes it.
        direct.set("a", 1)
        direct.zadd("tag:u", {"a": 1})
        _left_by_a_dead_proxy(redis_server, b"u", b"x")
        direct.zadd("nexus:tags", {"u": 1})
        raw.ask("NEXUS", "TAG", "other", "k")
        raw.ask("NEXUS", "TAG", "other", "k")
    assert direct.exists("a", "nexus:gone:u") == 0
    assert direct.keys("nexus:gone:*") == []


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


@pytest.fixture
def limited(tagging: Proxy, direct: redis.Redis) -> Iterator[Raw]:
    """A client whose user may do everything, but only with ``mine:*`` and the tags ``mine*``."""
    keys = ("~mine:*", "~tag:mine*", "~nexus:gone:mine*", "~nexus:tags")
    # Nobody's name again: Redis cuts the connections of a user that is deleted.
    user = f"mine-{secrets.token_hex(4)}"
    direct.execute_command("ACL", "SETUSER", user, "reset", "on", ">pw", *keys, "+@all")
    with tagging.raw() as raw:
        assert raw.ask("AUTH", user, "pw") == b"+OK\r\n"
        yield raw
    direct.execute_command("ACL", "DELUSER", user)


def refused(reply: bytes) -> bool:
    return reply.startswith(b"-NOPERM") or b"can't access at least one of the keys" in reply


@pytest.mark.parametrize("kind", ["zset", "set"])
def test_a_user_tags_only_its_own_keys(limited: Raw, direct: redis.Redis, kind: str):
    def members() -> set[bytes]:
        return set(
            direct.smembers("tag:mine") if kind == "set" else direct.zrange("tag:mine", 0, -1)
        )

    direct.mset({"mine:1": 1, "mine:2": 1, "yours:1": 1})
    if kind == "set":
        direct.sadd("tag:mine", "mine:0")
    else:
        direct.zadd("tag:mine", {"mine:0": 1e15})
    assert refused(limited.ask("NEXUS", "TAG", "mine", "yours:1"))
    assert refused(limited.ask("NEXUS", "TAG", "mine", "mine:1", "yours:1", "mine:2"))
    assert refused(limited.ask("NEXUS", "TAG", "yours", "mine:1"))
    assert members() == {b"mine:0"}
    assert direct.exists("tag:yours") == 0
    assert limited.ask("NEXUS", "TAG", "mine", "mine:1", "mine:2") == b":2\r\n"
    # Nor does it take others' keys out of a tag, so that nobody finds them any more.
    direct.sadd("tag:mine", "yours:1") if kind == "set" else direct.zadd("tag:mine", {"yours:1": 1})
    assert refused(limited.ask("NEXUS", "UNTAG", "mine", "mine:1", "yours:1"))
    # One of others' that is due for a look is in nobody's way.
    assert limited.ask("NEXUS", "TAG", "mine", "mine:3") == b":1\r\n"
    assert members() == {b"mine:0", b"mine:1", b"mine:2", b"mine:3", b"yours:1"}
    assert limited.ask("NEXUS", "UNTAG", "mine", "mine:0", "mine:3") == b":2\r\n"


@pytest.mark.parametrize("kind", ["zset", "set"])
def test_a_user_invalidates_only_what_it_may_delete(limited: Raw, direct: redis.Redis, kind: str):
    direct.mset({"mine:1": 1, "yours:1": 1})
    members = ["mine:1", "yours:1"]
    direct.sadd("tag:mine2", "mine:1")
    if kind == "set":
        direct.sadd("tag:mine", *members)
    else:
        direct.zadd("tag:mine", dict.fromkeys(members, 1))
    assert refused(limited.ask("NEXUS", "INVALIDATE", "mine2", "mine"))
    assert refused(limited.ask("NEXUS", "INVALIDATE", "yours"))
    assert direct.exists("mine:1", "yours:1", "tag:mine", "tag:mine2") == 4
    assert limited.ask("NEXUS", "INVALIDATE", "mine2") == b":1\r\n"
    assert direct.exists("yours:1", "tag:mine", "mine:1") == 2


@pytest.mark.parametrize("kind", ["zset", "set"])
def test_nor_in_pieces_nor_by_somebody_elses_hand(
    limited: Raw, tagging: Proxy, direct: redis.Redis, kind: str
):
    # Above what goes at once, and few enough for one piece: of a set, pieces are drawn.
    keys = [f"mine:{number}" for number in range(80)] + ["yours:1"]
    direct.mset(dict.fromkeys(keys, 1))
    if kind == "set":
        direct.sadd("tag:mine", *keys)
    else:
        direct.zadd("tag:mine", dict.fromkeys(keys, 1))
    assert refused(limited.ask("NEXUS", "INVALIDATE", "mine"))
    assert refused(limited.ask("NEXUS", "INVALIDATE", "mine"))
    with tagging.raw() as raw:
        # TAG finishes what its own user has begun, not what another was refused.
        for _ in range(3):
            direct.zadd("nexus:tags", {"mine": 1})
            raw.ask("NEXUS", "TAG", "other", "k")
        assert direct.exists("yours:1") == 1
        # No member was lost over it: whoever may delete them all still does.
        assert raw.ask("NEXUS", "INVALIDATE", "mine") == b":81\r\n"
    assert direct.exists(*keys) == 0
    assert direct.keys("nexus:gone:*") == []


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
