"""The proof of `make prove-stampede`, small, and what a lease does that the proof does not show."""

from __future__ import annotations

import asyncio
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import redis
from support.servers import RedisServer

from proofs.crowd import Plan
from proofs.stampede import Case, Options, cases, prove

from .proxy import Proxy, Raw, encode, eventually

pytestmark = pytest.mark.evidence

BACKENDS = {"c": "compiled", "py": "pure"}
KEY = "product:1"
NIL = b"$-1\r\n"
WAIT, TTL = 0.6, 2.0
POLICY = f"""\
policies:
  - match: GET
    keys: "product:*"
    near_cache: always
    stampede: {{mode: lease, lease_wait_ms: {WAIT * 1000:.0f}, lease_ttl_ms: {TTL * 1000:.0f}}}
  - match: GET
    keys: "stale:*"
    near_cache: always
    stampede: {{mode: lease, lease_wait_ms: 200, stale_if_error_seconds: 60}}
  - match: GET
    keys: "passing:*"
    near_cache: never
    hot: {{extend_seconds: 0}}
    stampede: {{mode: lease, lease_wait_ms: 200, early_refresh: true, stale_if_error_seconds: 60}}
  - match: GET
    keys: "early:*"
    near_cache: always
    hot: {{extend_seconds: 0}}
    stampede: {{mode: lease, lease_wait_ms: 30000, lease_ttl_ms: 60000, early_refresh: true}}
"""


def test_one_loader_call_whoever_asks_where(backend: str, redis_factory: object, tmp_path: Path):
    assert redis_factory
    known = {case.name: case for case in cases()}
    slow = known["default wait, loader of 3 s"]
    chosen = [
        replace(known["two proxies"], workers=2, name="two proxies of two workers"),
        known["holder killed while loading"],
        replace(slow, wait_ms=150, plan=replace(slow.plan, load_seconds=0.5)),
    ]
    options = Options(60, processes=2, backend=BACKENDS[backend])
    result = asyncio.run(prove(options, tmp_path, chosen))
    assert result.passed, result.numbers
    late = result.numbers["cases"][2]
    assert late["loader_calls"] == 60
    assert late["stats"]["lease_waits_released_late"] == 59


@pytest.mark.once
def test_the_harness_sees_a_stampede(redis_factory: object, tmp_path: Path):
    assert redis_factory
    alone = Case("redis alone", proxies=0, loads=(1,), plan=Plan(0, 0))
    result = asyncio.run(prove(Options(20, processes=1), tmp_path, [alone]))
    assert not result.passed
    assert result.numbers["cases"][0]["loader_calls"] == 20


# -- one proxy, by hand


@pytest.fixture(scope="module")
def leased(backend: str, redis_server: object, tmp_path_factory: object) -> Iterator[Proxy]:
    policy = tmp_path_factory.mktemp("leases") / "policy.yaml"  # type: ignore[attr-defined]
    policy.write_text(POLICY)
    proxy = Proxy(redis_server.url, "--policy", str(policy), backend=backend)  # type: ignore[attr-defined]
    yield proxy
    proxy.stop()


@pytest.fixture
def direct(redis_server: object) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(redis_server.url, protocol=2) as client:  # type: ignore[attr-defined]
        client.flushall()
        time.sleep(0.05)
        yield client


def stat(proxy: Proxy, name: str) -> int:
    return int(proxy.stats()[name])


def becomes(proxy: Proxy, name: str, value: int) -> bool:
    return eventually(lambda: stat(proxy, name) == value)


def holder(proxy: Proxy) -> Raw:
    raw = proxy.raw()
    assert raw.ask("GET", KEY) == NIL
    return raw


def waiter(proxy: Proxy) -> Raw:
    before = stat(proxy, "lease_waits_held")
    raw = proxy.raw()
    raw.send("GET", KEY)
    assert becomes(proxy, "lease_waits_held", before + 1)
    return raw


def test_waiters_get_what_is_written_past_the_proxy(leased: Proxy, direct: redis.Redis):
    with holder(leased), waiter(leased) as second:
        assert second.silent(0.1)
        direct.set(KEY, "v")
        assert second.reply() == b"$1\r\nv\r\n"
        assert not direct.exists(f"nexus:lease:{KEY}")


def test_explain_says_why_a_miss_is_held(leased: Proxy, direct: redis.Redis):
    def explained() -> str:
        with leased.raw() as raw:
            return raw.ask("NEXUS", "EXPLAIN", "GET", KEY).decode()

    assert "answer:miss" in explained()
    assert "lease:misses wait for who loads, 0.6 s at most" in explained()
    with holder(leased), waiter(leased) as second:
        said = explained()
        assert "answer:held" in said
        assert "a client of this worker has been loading the key for" in said
        assert "; 1 wait, each for 0.6 s at most" in said
        direct.set(KEY, "v")
        assert second.reply() == b"$1\r\nv\r\n"


def test_resp3_waiters_are_answered_in_their_protocol(leased: Proxy, direct: redis.Redis):
    with holder(leased) as first, leased.raw() as second:
        second.ask("HELLO", 3)
        second.send("GET", KEY)
        time.sleep(0.05)
        assert first.ask("SET", KEY, "v") == b"+OK\r\n"
        assert second.reply() == b"$1\r\nv\r\n"
        assert direct.get(KEY) == b"v"


def test_the_wait_has_an_end_and_is_counted(leased: Proxy, direct: redis.Redis):
    before = stat(leased, "lease_waits_released_late")
    with holder(leased), leased.raw() as second:
        began = time.monotonic()
        assert second.ask("GET", KEY) == NIL
        assert WAIT * 0.9 <= time.monotonic() - began < WAIT + 2
    assert becomes(leased, "lease_waits_released_late", before + 1)


def test_who_loads_is_never_held(leased: Proxy, direct: redis.Redis):
    """A pool lends the holder's connection to somebody else while the value is loaded; or the
    loader reads other leased keys."""
    with holder(leased) as first, leased.raw() as second:
        began = time.monotonic()
        assert second.ask("GET", "product:2") == NIL
        assert first.ask("GET", KEY) == NIL
        assert first.ask("GET", "product:2") == NIL
        assert time.monotonic() - began < WAIT * 0.8


def test_what_is_sent_behind_a_held_read_frees_it(leased: Proxy, direct: redis.Redis):
    with holder(leased), waiter(leased) as second:
        second.send("PING")
        assert second.replies(2) == [NIL, b"+PONG\r\n"]
        second.write(b"*2\r\n$3\r\nGET\r\n$9\r\nproduct:1\r\n*1\r\n$4\r\nPING\r\n")
        assert second.replies(2) == [NIL, b"+PONG\r\n"]


def test_the_next_loads_when_the_holder_is_gone(leased: Proxy, direct: redis.Redis):
    first = holder(leased)
    with waiter(leased) as second:
        assert second.silent(0.05)
        first.close()
        assert second.reply() == NIL
        with waiter(leased) as third:
            assert third.silent(0.05)
            second.ask("SET", KEY, "v")
            assert third.reply() == b"$1\r\nv\r\n"


def test_a_key_that_nobody_loads_costs_nobody(leased: Proxy, direct: redis.Redis):
    with holder(leased):
        time.sleep(TTL + 0.1)
        began = time.monotonic()
        with leased.raw() as second, leased.raw() as third:
            assert second.ask("GET", KEY) == NIL
            assert third.ask("GET", KEY) == NIL
        assert time.monotonic() - began < WAIT * 0.8
    assert direct.get(f"nexus:lease:{KEY}") == b"left"


def test_keys_without_a_lease_are_as_ever(leased: Proxy, direct: redis.Redis):
    with leased.raw() as first, leased.raw() as second:
        began = time.monotonic()
        assert first.ask("GET", "plain") == second.ask("GET", "plain") == NIL
        assert time.monotonic() - began < WAIT * 0.8


def test_a_late_fence_sends_nobody_past_the_lease(
    leased: Proxy, direct: redis.Redis, redis_server: object
):
    """Hits wait for Redis; the key expires meanwhile: one loads, not all who waited."""
    with leased.raw() as first:
        assert eventually(
            lambda: (
                direct.set(KEY, "old", px=1500)
                and first.ask("GET", KEY) == b"$3\r\nold\r\n"
                and "answer:hit" in first.ask("NEXUS", "EXPLAIN", "GET", KEY).decode()
            )
        )
        raws = [leased.raw() for _ in range(20)]
        granted = stat(leased, "leases_granted")
        direct.set(KEY, "old", px=1000)
        assert first.ask("GET", KEY) == b"$3\r\nold\r\n"
        time.sleep(0.1)  # what was heard of Redis is older than max_staleness
        redis_server.signal(signal.SIGSTOP)  # type: ignore[attr-defined]
        try:
            for raw in raws:
                raw.send("GET", KEY)
            time.sleep(1.2)
        finally:
            redis_server.signal(signal.SIGCONT)  # type: ignore[attr-defined]
        assert becomes(leased, "leases_granted", granted + 1)
        assert first.ask("SET", KEY, "new") == b"+OK\r\n"
        replies = [raw.reply() for raw in raws]
        assert sorted(replies) == [NIL] + 19 * [b"$3\r\nnew\r\n"]
        for raw in raws:
            raw.close()


def test_an_expired_value_stands_in_for_a_loader_that_fails(leased: Proxy, direct: redis.Redis):
    direct.set("stale:1", "old", px=150)
    with leased.raw() as first, leased.raw() as second:
        assert first.ask("GET", "stale:1") == b"$3\r\nold\r\n"
        time.sleep(0.2)
        assert first.ask("GET", "stale:1") == NIL  # it is sent to load, and does not
        assert second.ask("GET", "stale:1") == b"$3\r\nold\r\n"
    direct.set("stale:2", "old")
    with leased.raw() as first, leased.raw() as second:
        assert first.ask("GET", "stale:2") == b"$3\r\nold\r\n"
        direct.delete("stale:2")  # no expiry: it never stands in
        time.sleep(0.05)
        assert first.ask("GET", "stale:2") == NIL
        assert second.ask("GET", "stale:2") == NIL


def test_nor_does_it_overtake_errors_while_redis_is_down(
    proxy_factory: Callable[..., Proxy], redis_factory: Callable[..., RedisServer], tmp_path: Path
):
    policy = tmp_path / "policy.yaml"
    policy.write_text(POLICY)
    server = redis_factory()
    proxy = proxy_factory(server.url, "--policy", str(policy))
    with redis.Redis.from_url(server.url, protocol=2) as direct:
        direct.set("stale:1", "old", px=500)
    old = b"$3\r\nold\r\n"
    with proxy.raw() as raw:
        assert raw.ask("GET", "stale:1") == old
        server.kill()
        time.sleep(0.5)
        assert eventually(lambda: raw.ask("GET", "stale:1") == old)
        for before in ("stale:none", "other"):
            raw.write(encode("GET", before) + encode("GET", "stale:1") + encode("GET", before))
            error, second, third = raw.replies(3)
            assert error.startswith((b"-LOADING", b"-NEXUSDOWN"))
            assert second in (error, old)
            assert third == error
        raw.write(encode("GET", "stale:1") * 3)
        assert raw.replies(3) == [old] * 3


@pytest.mark.parametrize("kind", ["early", "passing"])
def test_early_refresh_sends_one_and_nobody_waits(leased: Proxy, direct: redis.Redis, kind: str):
    """Also the first time, when nobody knows yet how long loading takes."""
    held = stat(leased, "lease_waits_held")
    for number in range(100):
        key = f"{kind}:{number}"
        direct.set(key, "live", px=1000)
        with leased.raw() as first, leased.raw() as second:
            while first.ask("GET", key) != NIL:
                pass
            said = second.ask("NEXUS", "EXPLAIN", "GET", key).decode()
            values = [second.ask("GET", key) for _ in range(20)]
            if not direct.exists(key) or NIL in values:
                continue  # a machine that busy: it ended before they had read
            assert values == [b"$4\r\nlive\r\n"] * 20
            assert "is being asked" not in said
            first.ask("SET", key, "new")
            assert eventually(lambda: second.ask("GET", key) == b"$3\r\nnew\r\n")  # noqa: B023
        break
    else:
        pytest.fail("it always ended unloaded")
    if number == 0:
        assert stat(leased, "lease_waits_held") == held


def test_values_that_are_not_kept_can_stand_in_too(leased: Proxy, direct: redis.Redis):
    direct.lpush("passing:list", "x")
    direct.pexpire("passing:list", 200)
    direct.set("passing:old", "old", px=200)
    with leased.raw() as first, leased.raw() as second:
        assert first.ask("GET", "passing:old") in (b"$3\r\nold\r\n", NIL)
        assert first.ask("GET", "passing:list").startswith(b"-WRONGTYPE")
        time.sleep(0.25)
        assert first.ask("GET", "passing:old") == NIL  # it is sent to load, and does not
        assert second.ask("GET", "passing:old") == b"$3\r\nold\r\n"
        assert first.ask("GET", "passing:list") == NIL
        assert second.ask("GET", "passing:list") == NIL  # an error never stands in


def test_those_who_wait_at_another_proxy_follow_one_by_one(
    leased: Proxy, proxy_factory: Callable[..., Proxy], redis_server: object, direct: redis.Redis,
    tmp_path: Path,
):  # fmt: skip
    """The holder's own worker may have nobody who waits."""
    policy = tmp_path / "policy.yaml"
    policy.write_text(POLICY.replace("lease_wait_ms: 600", "lease_wait_ms: 60000"))
    other = proxy_factory(redis_server.url, "--policy", str(policy))  # type: ignore[attr-defined]
    first = holder(leased)
    with waiter(other) as second, waiter(other) as third:
        first.close()
        assert second.reply() == NIL
        assert third.silent(0.1)
        with other.raw() as late:
            assert late.ask("GET", KEY) == NIL  # the lease ended unwritten: nobody joins
        assert second.ask("SET", KEY, "v") == b"+OK\r\n"
        assert third.reply() == b"$1\r\nv\r\n"


def test_a_lock_that_somebody_else_took_meanwhile_is_left_alone(leased: Proxy, direct: redis.Redis):
    first = holder(leased)
    with waiter(leased) as second:
        direct.set(f"nexus:lease:{KEY}", "of-another-proxy", px=30_000)
        first.close()
        assert second.reply() == NIL  # after its wait: the other's client is loading
    assert direct.get(f"nexus:lease:{KEY}") == b"of-another-proxy"
    direct.delete(f"nexus:lease:{KEY}")


def test_a_policy_that_is_switched_off_holds_nobody(leased: Proxy, direct: redis.Redis):
    with holder(leased), waiter(leased) as second, leased.raw() as third:
        third.ask("NEXUS", "POLICY", "OFF")
        assert second.reply() == NIL
        assert second.ask("GET", KEY) == NIL
        third.ask("NEXUS", "POLICY", "ON")


def test_redis_going_away_frees_who_waits(
    proxy_factory: Callable[..., Proxy], redis_factory: Callable[..., object], tmp_path: Path
):
    policy = tmp_path / "policy.yaml"
    policy.write_text(POLICY)
    server = redis_factory()
    proxy = proxy_factory(server.url, "--policy", str(policy))  # type: ignore[attr-defined]
    replies: list[bytes] = []
    with proxy.raw() as first, proxy.raw() as second:
        assert first.ask("GET", KEY) == NIL
        second.send("GET", KEY)
        waiting = threading.Thread(target=lambda: replies.append(second.reply()))
        waiting.start()
        time.sleep(0.1)
        server.stop()  # type: ignore[attr-defined]
        waiting.join(5)
    assert replies
    assert replies[0].startswith((b"-LOADING", b"-NEXUSDOWN", NIL))
