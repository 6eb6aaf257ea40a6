"""What a client was sent to load is not stored once somebody else has written the key."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import redis

from .proxy import Proxy, Raw, eventually

NIL, OK = b"$-1\r\n", b"+OK\r\n"
LEASE_TTL = 60.0
POLICY = """\
policies:
  - match: GET
    keys: "late:*"
    near_cache: never
    stampede: {mode: lease, lease_ttl_ms: 300, stale_fill_guard: true}
  - match: GET
    keys: "open:*"
    near_cache: always
    stampede: {mode: lease}
  - match: GET
    keys: "early:*"
    near_cache: always
    hot: {extend_seconds: 0}
    stampede: {mode: lease, early_refresh: true, stale_fill_guard: true}
  - match: GET
    near_cache: always
    stampede: {mode: lease, lease_wait_ms: 10000, lease_ttl_ms: 60000, stale_fill_guard: true}
"""


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("guard") / "policy.yaml"
    path.write_text(POLICY)
    return path


@pytest.fixture(scope="module")
def guarded(backend: str, redis_server: object, policy: Path) -> Iterator[Proxy]:
    proxy = Proxy(redis_server.url, "--policy", str(policy), backend=backend)  # type: ignore[attr-defined]
    yield proxy
    proxy.stop()


@pytest.fixture
def direct(redis_server: object) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(redis_server.url, protocol=2) as client:  # type: ignore[attr-defined]
        client.flushall()
        yield client


def holder(proxy: Proxy, key: str) -> Raw:
    """A client that was sent to load ``key``."""
    raw = proxy.raw()
    assert eventually(lambda: "guard:this client's next SET" in granted(raw, key), 20)
    return raw


def granted(raw: Raw, key: str) -> str:
    assert raw.ask("GET", key) == NIL
    return explained(raw, "GET", key)


def explained(raw: Raw, *command: str) -> str:
    return raw.ask("NEXUS", "EXPLAIN", *command).decode()


def stat(proxy: Proxy, name: str) -> int:
    return int(proxy.stats()[name])


FILLS = [
    ("SET", "k", "old"),
    ("SET", "k", "old", "EX", 60),
    ("SET", "k", "old", "px", 60_000),
    ("SET", "k", "old", "EXAT", 33_000_000_000),
    ("SET", "k", "old", "KEEPTTL"),
    ("SETEX", "k", 60, "old"),
    ("psetex", "k", 60_000, "old"),
]


@pytest.mark.parametrize("fill", FILLS, ids=lambda fill: " ".join(map(str, fill)))
def test_a_fill_is_not_stored_after_a_write_past_the_proxy(
    guarded: Proxy, direct: redis.Redis, fill: tuple[str | int, ...]
):
    refused = stat(guarded, "lease_fills_refused")
    with holder(guarded, "k") as raw:
        direct.set("k", "new")
        assert raw.ask(*fill) == OK
        assert direct.get("k") == b"new"
        assert raw.ask("GET", "k") == b"$3\r\nnew\r\n"
        # Only the fill is kept out, not what the client writes next.
        assert raw.ask("SET", "k", "newer") == OK
        assert direct.get("k") == b"newer"
    assert eventually(lambda: stat(guarded, "lease_fills_refused") == refused + 1)


@pytest.mark.parametrize("fill", FILLS, ids=lambda fill: " ".join(map(str, fill)))
def test_a_fill_in_time_is_stored_as_it_is(
    guarded: Proxy, direct: redis.Redis, fill: tuple[str | int, ...]
):
    stored = stat(guarded, "lease_fills_stored")
    with holder(guarded, "k") as raw, guarded.raw() as waiter:
        waiter.send("GET", "k")
        assert raw.ask(*fill) == OK
        assert waiter.reply() == b"$3\r\nold\r\n"
        assert (direct.ttl("k") > 0) == any(isinstance(word, int) for word in fill)
    assert eventually(lambda: stat(guarded, "lease_fills_stored") == stored + 1)
    assert eventually(lambda: not direct.exists("nexus:lease:k"))


def test_it_is_kept_out_also_where_the_other_write_is_gone_again(
    guarded: Proxy, direct: redis.Redis
):
    with holder(guarded, "k") as raw:
        direct.set("k", "new")
        direct.delete("k")
        assert eventually(
            lambda: "it was written since the miss" in explained(raw, "SET", "k", "x")
        )
        assert raw.ask("SET", "k", "old") == OK
        assert not direct.exists("k")


def test_removing_what_is_not_there_counts_as_a_write(guarded: Proxy, direct: redis.Redis):
    """Redis tells nobody of it, and yet it is how applications invalidate."""
    for removal in (("DEL", "x", "k"), ("UNLINK", "k"), ("GETDEL", "k")):
        with holder(guarded, "k") as raw, guarded.raw() as other, guarded.raw() as waiter:
            waiter.send("GET", "k")
            other.ask(*removal)
            assert raw.ask("SET", "k", "old") == OK
            assert not direct.exists("k")
            assert waiter.reply() == NIL  # the next to load, at once
            assert waiter.ask("SET", "k", "new") == OK
            assert direct.get("k") == b"new"
            direct.delete("k")


def test_over_workers_and_proxies(
    proxy_factory: Callable[..., Proxy], redis_server: object, policy: Path, direct: redis.Redis
):
    url = redis_server.url  # type: ignore[attr-defined]
    one = proxy_factory(url, "--policy", str(policy), "--workers", "2")
    two = proxy_factory(url, "--policy", str(policy))
    others = [one.raw() for _ in range(8)] + [two.raw()]
    for number, other in enumerate(others):
        key = f"k{number}"
        with holder(one, key) as raw:
            other.ask("DEL", key)
            assert raw.ask("SET", key, "old") == OK
            assert not direct.exists(key)
        with holder(one, f"{key}-b") as raw:
            other.ask("SET", f"{key}-b", "new")
            assert raw.ask("SET", f"{key}-b", "old") == OK
            assert direct.get(f"{key}-b") == b"new"
        other.close()


def test_another_connection_is_somebody_else(guarded: Proxy, direct: redis.Redis):
    """Of the same pool or not, nobody can tell: its write is stored, and the holder's is not."""
    with holder(guarded, "k") as raw, guarded.raw() as second:
        assert second.ask("SET", "k", "new") == OK
        assert raw.ask("SET", "k", "old") == OK
        assert direct.get("k") == b"new"


def test_in_a_pipeline_every_reply_is_in_its_place(guarded: Proxy, direct: redis.Redis):
    with holder(guarded, "k") as raw:
        direct.set("k", "new")
        for command in (("SET", "a", 1), ("SET", "k", "old"), ("GET", "k"), ("INCR", "a")):
            raw.send(*command)
        assert raw.replies(4) == [OK, OK, b"$3\r\nnew\r\n", b":2\r\n"]
    with holder(guarded, "j") as raw:
        raw.ask("HELLO", 3)  # another connection to Redis: no guard there any more
        assert raw.ask("GET", "j") == b"_\r\n"
        direct.set("j", "new")
        assert raw.ask("SET", "j", "old") == OK
        assert direct.get("j") == b"old"


def test_what_tells_what_was_there_is_not_guarded(guarded: Proxy, direct: redis.Redis):
    with holder(guarded, "k") as raw:
        direct.set("k", "new")
        assert raw.ask("SET", "k", "old", "NX") == NIL
        assert raw.ask("SET", "k", "mine", "GET") == b"$3\r\nnew\r\n"
        assert direct.get("k") == b"mine"
    direct.delete("k")
    with holder(guarded, "k") as raw:
        assert raw.ask("SET", "k", "old", "EX", "soon").startswith(b"-ERR value is not an integer")
        assert raw.ask("SET", "k").startswith(b"-ERR wrong number of arguments")


def test_nor_is_a_transaction(guarded: Proxy, direct: redis.Redis):
    for whole in (True, False):
        with holder(guarded, "k") as raw:
            direct.set("k", "new")
            for command in (("MULTI",), ("SET", "k", "old"), ("EXEC",)):
                raw.send(*command)
                if not whole:
                    assert raw.reply() in (OK, b"+QUEUED\r\n", b"*1\r\n+OK\r\n")
            if whole:
                assert raw.replies(3) == [OK, b"+QUEUED\r\n", b"*1\r\n+OK\r\n"]
            assert direct.get("k") == b"old"
        direct.delete("k")


def test_who_knows_more_by_then_is_not_kept_out(guarded: Proxy, direct: redis.Redis):
    with holder(guarded, "k") as raw:
        direct.set("k", "new")
        assert raw.ask("GET", "k") == b"$3\r\nnew\r\n"
        assert raw.ask("SET", "k", "based on it") == OK
        assert direct.get("k") == b"based on it"
    direct.delete("k")
    with holder(guarded, "k") as raw:
        assert raw.ask("APPEND", "k", "a") == b":1\r\n"
        assert raw.ask("SET", "k", "b") == OK
        assert direct.get("k") == b"b"


def test_the_guard_ends_with_the_lease(guarded: Proxy, direct: redis.Redis):
    with holder(guarded, "late:1") as raw:
        direct.set("late:1", "new")
        assert eventually(lambda: "not sent to load" in explained(raw, "SET", "late:1", "x"))
        assert raw.ask("SET", "late:1", "whatever") == OK
        assert direct.get("late:1") == b"whatever"


def test_rules_without_it_are_as_ever(guarded: Proxy, direct: redis.Redis):
    with guarded.raw() as raw:
        assert raw.ask("GET", "open:1") == NIL
        direct.set("open:1", "new")
        assert raw.ask("SET", "open:1", "old") == OK
        assert direct.get("open:1") == b"old"


def test_users_need_a_right_and_are_counted_without(guarded: Proxy, direct: redis.Redis):
    direct.execute_command(
        "ACL", "SETUSER", "some", "on", ">some", "~k*", "+@all", "-@dangerous", "resetchannels"
    )
    direct.execute_command(
        "ACL", "SETUSER", "all", "on", ">all", "~k*", "~nexus:lease:*", "+@all", "-@dangerous"
    )
    try:
        for user, left in (("some", b"old"), ("all", b"new")):
            with guarded.raw() as raw:
                assert raw.ask("AUTH", user, user) == OK
                assert eventually(lambda: "next SET" in granted(raw, "k"), 20)
                assert eventually(lambda: raw.ask("PING") == b"+PONG\r\n")
                direct.set("k", "new")
                assert raw.ask("SET", "k", "old") == OK
                assert direct.get("k") == left, user
                direct.delete("k")
        assert eventually(lambda: stat(guarded, "lease_fills_unguarded") > 0)
    finally:
        direct.execute_command("ACL", "DELUSER", "some", "all")


def test_early_refresh_is_guarded_too(guarded: Proxy, direct: redis.Redis):
    """The holder is sent while the value is there, so that it is there says nothing."""
    with guarded.raw() as raw:
        for other, left in ((None, b"loaded"), ("new", b"new")):
            for number in range(20):
                key = f"early:{left.decode()}:{number}"
                direct.set(key, "value", px=1500)
                assert eventually(lambda: raw.ask("GET", key) == NIL)  # noqa: B023
                if direct.exists(key):
                    break
                # Not early. A slow load teaches to be so.
                time.sleep(0.4)
                assert raw.ask("SET", key, "slow", "EX", 60) == OK
            else:
                pytest.fail("never sent to load while the value was there")
            if other is not None:
                direct.set(key, other)
                said = "it was written since the miss"
                assert eventually(lambda: said in explained(raw, "SET", key, "x"))  # noqa: B023
            assert raw.ask("SET", key, "loaded", "EX", 60) == OK
            assert direct.get(key) == left
