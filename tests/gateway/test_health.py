"""Who is left out of rotation, for how long, and who comes back: checks, ejection, slow start."""

from __future__ import annotations

import select
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import psutil
import pytest
from gateway_process import Client, GatewayProcess
from gateway_upstream import Upstream

Start = Callable[..., GatewayProcess]


@pytest.fixture
def three() -> Iterator[list[Upstream]]:
    upstreams = [Upstream(name).start() for name in "abc"]
    yield upstreams
    for upstream in upstreams:
        upstream.stop()


def answers(gateway: GatewayProcess, count: int, method: str = "GET") -> Counter[str]:
    """Who answered, or the status where nobody did."""
    seen: Counter[str] = Counter()
    for _ in range(count):
        reply = gateway.request("/api/mood", method)
        seen[reply.body.decode() if reply.status == 200 else str(reply.status)] += 1
    return seen


def until(condition: Callable[[], Any], seconds: float = 30.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.05)


def urls(upstreams: list[Upstream]) -> list[str]:
    return [upstream.url for upstream in upstreams]


def test_checks_take_out_and_bring_back(start_gateway: Start, three: list[Upstream]) -> None:
    gateway = start_gateway(
        urls(three),
        workers=2,
        health_check={
            "enabled": True,
            "path": "/mood",
            "interval_seconds": 0.2,
            "timeout_seconds": 0.3,
            "unhealthy_threshold": 2,
        },
    )
    until(lambda: gateway.metrics().count('result="good"') == 3)
    for trouble in ("503", "reset", "hang"):
        three[0].mood = trouble
        until(lambda: '"upstream is unhealthy"' in gateway.output())
        until(lambda: answers(gateway, 6, "POST").keys() == {"b", "c"})
        three[0].mood = ""
        until(lambda: answers(gateway, 6).keys() == {"a", "b", "c"})
    # One prober for all workers: twice the workers are not twice the checks.
    before = three[1].calls["/mood"]
    start = time.monotonic()
    time.sleep(1.2)
    passed = (time.monotonic() - start) / 0.2
    assert 0.4 * passed <= three[1].calls["/mood"] - before <= 1.4 * passed
    # None is left: 503, as no panic is configured.
    for upstream in three:
        upstream.mood = "503"
    # Both workers know, whoever is asked.
    until(lambda: all(gateway.request("/api/text").status == 503 for _ in range(12)))
    reply = gateway.request("/api/text")
    assert (reply.status, reply.json["reason"]) == (503, "no_healthy_upstream")


def test_the_prober_s_death_is_taken_over(start_gateway: Start, three: list[Upstream]) -> None:
    import os
    import signal

    import psutil

    gateway = start_gateway(
        urls(three[:1]),
        workers=2,
        health_check={"enabled": True, "path": "/mood", "interval_seconds": 0.1},
    )
    until(lambda: three[0].calls.get("/mood", 0) > 3)
    for worker in psutil.Process(gateway.process.pid).children():
        os.kill(worker.pid, signal.SIGKILL)
        before = three[0].calls["/mood"]
        until(lambda: three[0].calls["/mood"] > before + 3)  # noqa: B023


def test_panic_uses_the_sick_but_no_open_breaker(
    start_gateway: Start, three: list[Upstream]
) -> None:
    for upstream in three:
        upstream.mood = "404"  # bad for a check, no failure for a breaker
    gateway = start_gateway(
        urls(three),
        breaker={"enabled": True, "timeout_ms": 700},
        retry={"max_attempts": 1},
        balancer={"panic_threshold_percentage": 50},
        health_check={
            "enabled": True,
            "path": "/mood",
            "interval_seconds": 0.1,
            "unhealthy_threshold": 1,
        },
    )
    until(lambda: gateway.output().count("upstream is unhealthy") == 3)
    assert {gateway.request("/api/text").status for _ in range(6)} == {200}
    three[0].mood = "500"
    until(
        lambda: (
            gateway.request("/cb-stats").json[three[0].url]["state"] == "open"
            or not answers(gateway, 3)
        )
    )
    calls = three[0].calls.get("/text", 0)
    assert {gateway.request("/api/text").status for _ in range(6)} == {200}
    assert three[0].calls.get("/text", 0) == calls


def test_failures_in_a_row_eject_for_longer_each_time(
    start_gateway: Start, three: list[Upstream]
) -> None:
    gateway = start_gateway(
        urls(three),
        workers=2,
        retry={"delay_ms": 1},
        outliers={
            "enabled": True,
            "consecutive_5xx": 3,
            "consecutive_gateway_failures": 2,
            "base_ejection_seconds": 0.6,
            "max_ejection_seconds": 60,
        },
    )

    def ejections() -> int:
        return gateway.output().count('"upstream ejected"')

    three[0].mood = "reset"
    until(lambda: answers(gateway, 1) and ejections() == 1)
    assert '"seconds":0.6' in gateway.output().replace(": ", ":")
    time.sleep(0.1)
    assert answers(gateway, 8).keys() == {"b", "c"}
    # At the end of its time it is tried again, and out for twice as long.
    until(lambda: answers(gateway, 1) and ejections() == 2)
    assert '"seconds":1.2' in gateway.output().replace(": ", ":")
    # The other two: half of three is one, so nobody else is left out.
    three[1].mood = "503"
    answers(gateway, 8)
    assert ejections() == 2
    assert answers(gateway, 2).keys() == {"c"}, "a retry finds the one that is well"
    three[0].mood = three[1].mood = ""
    until(lambda: answers(gateway, 6).keys() == {"a", "b", "c"})
    assert "nexus_upstream_ejections_total" in gateway.metrics()


def test_a_new_upstream_starts_slowly(start_gateway: Start, three: list[Upstream]) -> None:
    gateway = start_gateway(urls(three[:1]), balancer={"slow_start_seconds": 60})
    assert answers(gateway, 10) == {"a": 10}, "who is there from the start is warm"
    gateway.write_services(urls(three[:2]))
    until(lambda: "upstream joins" in gateway.output().partition(three[1].url)[0][-400:])
    until(lambda: gateway.output().count("upstream joins") == 2)
    seen = answers(gateway, 60)
    assert 1 <= seen["b"] <= 12, seen


def test_retry_after_is_heeded_where_there_is_no_other(
    start_gateway: Start, three: list[Upstream]
) -> None:
    gateway = start_gateway(urls(three[:1]), access_log={"enabled": True})
    three[0].mood, three[0].after = "503", "1"
    start = time.monotonic()
    assert gateway.request("/api/mood").status == 503
    # Two retries, a second apart; the total time allows no more.
    assert time.monotonic() - start >= 2
    three[0].after = "60"
    start = time.monotonic()
    reply = gateway.request("/api/mood")
    assert reply.status == 503
    assert reply.value("retry-after") == "60"
    assert time.monotonic() - start < 1
    until(lambda: '"retry_after"' in gateway.output())
    # With another upstream nobody has to wait.
    gateway.write_services(urls(three[:2]))
    until(lambda: "b" in answers(gateway, 4))


def test_breakers_tell_what_they_know(start_gateway: Start, three: list[Upstream]) -> None:
    gateway = start_gateway(
        urls(three[:1]), workers=2, breaker={"enabled": True, "timeout_ms": 300},
        retry={"max_attempts": 1},
    )  # fmt: skip
    url = three[0].url
    assert gateway.request("/cb-stats").json[url]["lastError"] is None
    three[0].mood = "500"
    assert answers(gateway, 3) == {"500": 3}
    stats = gateway.request("/cb-stats").json[url]
    assert (stats["state"], stats["failures"], stats["lastError"]) == ("open", 0, "status 500")
    assert stats["nextTrialAt"] > stats["lastErrorAt"]
    assert 8000 < stats["retryInMs"] <= 10_000


def hold(gateway: GatewayProcess, names: Iterable[int]) -> dict[int, Client]:
    """A request for each name on a connection of its own, not waited for."""
    clients = {}
    for name in names:
        clients[name] = gateway.client(30)
        clients[name].send(b"GET /api/mood?%d HTTP/1.1\r\nHost: t\r\n\r\n" % name)
    return clients


def asked(upstream: Upstream) -> set[int]:
    """Names of the requests that have reached it."""
    return {int(seen.path.partition("?")[2]) for seen in tuple(upstream.seen) if "?" in seen.path}


def bulkhead_gauge(gateway: GatewayProcess, name: str) -> float:
    lines = gateway.metrics().splitlines()
    return sum(float(x.split()[-1]) for x in lines if x.startswith(f"nexus_bulkhead_{name}{{"))


BULKHEAD: dict[str, Any] = {
    "breaker": {"enabled": False, "timeout_ms": 60_000},
    "timeouts": {"total": 60, "keep_alive": 60},
    "bulkhead": {"max_concurrent": 2, "queue_size": 2, "wait_ms": 60_000},
}


@pytest.mark.parametrize("workers", [1, 2])
def test_a_slow_group_keeps_to_its_places(
    start_gateway: Start, three: list[Upstream], workers: int
) -> None:
    """Over all workers, whichever of them the kernel gives the connections."""
    upstream = three[0]
    upstream.mood = "hang"
    gateway = start_gateway(urls(three[:1]), workers=workers, **BULKHEAD)
    held = hold(gateway, range(8))
    replies: list[Any] = []

    def take_replies() -> bool:
        ready, _, _ = select.select([client.sock for client in held.values()], [], [], 0.05)
        names = [name for name, client in held.items() if client.sock in ready]
        replies.extend(held.pop(name).read() for name in names)
        return len(replies) >= 4

    until(take_replies, 30)
    until(lambda: len(asked(upstream)) == 2, 30)
    until(lambda: bulkhead_gauge(gateway, "waiting") == 2, 30)
    until(lambda: bulkhead_gauge(gateway, "active") == 2, 30)
    assert {reply.status for reply in replies} == {503}
    assert len(asked(upstream)) == 2, "nothing of the others goes further"
    # Those that are inside leave, and those that waited go, whichever worker they are in.
    upstream.mood = ""
    inside = asked(upstream)
    for name in inside:
        held.pop(name).close()
    for client in held.values():
        assert client.read().status == 200
    assert len(held) == 2
    refused = next(reply for reply in replies if reply.status == 503)
    assert (refused.json["reason"], refused.value("retry-after")) == ("bulkhead_full", "1")
    assert answers(gateway, 5) == {"a": 5}


def test_places_of_a_killed_worker_are_free_again(
    start_gateway: Start, three: list[Upstream]
) -> None:
    upstream = three[0]
    upstream.mood = "hang"
    gateway = start_gateway(urls(three[:1]), workers=2, **BULKHEAD)
    held = hold(gateway, range(4))
    until(lambda: len(asked(upstream)) == 2, 30)
    until(lambda: bulkhead_gauge(gateway, "waiting") == 2, 30)
    for process in psutil.Process(gateway.process.pid).children():
        process.kill()
    for client in held.values():
        assert client.closed(30)
    upstream.mood = ""
    until(lambda: bulkhead_gauge_or_nothing(gateway) == 0, 30)
    upstream.mood = "hang"
    again = hold(gateway, range(10, 14))
    until(lambda: len(asked(upstream) & set(again)) == 2, 30)
    until(lambda: bulkhead_gauge(gateway, "waiting") == 2, 30)


def bulkhead_gauge_or_nothing(gateway: GatewayProcess) -> float | None:
    """``None`` while nobody answers."""
    try:
        return bulkhead_gauge(gateway, "active")
    except (OSError, EOFError):
        return None
