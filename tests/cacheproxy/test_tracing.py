"""Sampled commands become spans at a collector: how each was answered, and no value of any."""

from __future__ import annotations

import json
import os
import signal
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from support.collector import Collector, values

from .proxy import Proxy, encode, eventually

Factory = Callable[..., Proxy]


@pytest.fixture
def collector() -> Iterator[Collector]:
    found = Collector()
    yield found
    found.close()


@pytest.fixture
def traced(
    collector: Collector, proxy_factory: Factory, redis_server: Any, tmp_path: Path
) -> Callable[..., Proxy]:
    """``traced(policy="", **tracing)``: a proxy that sends its spans to ``collector``."""
    with redis.Redis.from_url(redis_server.url, protocol=2) as direct:
        direct.flushall()

    def start(policy: str = "", **settings: object) -> Proxy:
        tracing = {
            "enabled": True,
            "otlp_endpoint": collector.url,
            "sample_ratio": 1.0,
        } | settings
        config = tmp_path / "cacheproxy.yaml"
        config.write_text(json.dumps({"tracing": tracing}))
        arguments = ["--config", str(config)]
        if policy:
            (tmp_path / "policy.yaml").write_text(policy)
            arguments += ["--policy", str(tmp_path / "policy.yaml")]
        return proxy_factory(redis_server.url, *arguments, OTEL_BSP_SCHEDULE_DELAY="20")

    return start


def metric(proxy: Proxy, name: str) -> float:
    """Sum of a counter's series."""
    with urllib.request.urlopen(f"http://127.0.0.1:{proxy.admin_port}/metrics", timeout=20) as page:
        lines = page.read().decode().splitlines()
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(name))


def outcomes(spans: list[Any]) -> list[tuple[str, str]]:
    return [(span.name, values(span)["nexus.outcome"]) for span in spans]


def test_a_span_says_what_the_conventions_ask_for_and_no_argument(
    traced: Callable[..., Proxy], collector: Collector, redis_server: Any
) -> None:
    proxy = traced()
    before = time.time_ns()
    with proxy.raw() as raw:
        address = raw.sock.getsockname()
        raw.ask("SELECT", 1)
        assert raw.ask("set", "a-key", "a-value") == b"+OK\r\n"
        assert raw.ask("LPUSH", "a-key", "a-value").startswith(b"-WRONGTYPE")
        found = collector.wait(3)
    assert outcomes(found) == [("SELECT", "pinned"), ("SET", "forwarded"), ("LPUSH", "forwarded")]
    select, write, wrong = found
    facts = values(write)
    assert facts["db.system.name"] == "redis"
    assert facts["db.operation.name"] == "SET"
    assert facts["db.namespace"] == "1"
    assert (facts["server.address"], facts["server.port"]) == ("127.0.0.1", redis_server.port)
    assert (facts["client.address"], facts["client.port"]) == address
    assert write.kind == 2
    assert before <= write.start_time_unix_nano <= write.end_time_unix_nano
    assert write.end_time_unix_nano <= time.time_ns()
    assert write.status.code == 0
    assert values(select)["db.namespace"] == "0"
    assert wrong.status.code == 2
    assert values(wrong)["db.response.status_code"] == values(wrong)["error.type"] == "WRONGTYPE"
    assert b"a-key" not in b"".join(span.SerializeToString() for span in found)
    assert len({span.trace_id for span in found}) == 3
    assert collector.resources[0]["service.name"] == "nexus-cacheproxy"
    assert set(collector.scopes) == {"nexus.cacheproxy"}


def test_keys_are_told_where_that_is_asked_for_and_values_never(
    traced: Callable[..., Proxy], collector: Collector
) -> None:
    proxy = traced(record_keys=True)
    with proxy.raw() as raw:
        raw.ask("MSET", "a", "secret-1", "b", "secret-2")
        raw.ask("AUTH", "secret-3")
        found = collector.wait(2)
    assert values(found[0])["db.query.text"] == "MSET a ? b ?"
    assert b"secret" not in b"".join(span.SerializeToString() for span in found)


def test_each_way_to_an_answer_has_its_outcome(
    traced: Callable[..., Proxy], collector: Collector, redis_server: Any
) -> None:
    proxy = traced("policies:\n  - {match: GET, keys: 'k:*', ttl: 60, near_cache: always}\n")

    def stat(name: str) -> int:
        return int(proxy.stats()[name])

    with proxy.raw() as one, proxy.raw() as two:
        one.ask("SET", "k:1", "v")
        # Once the tracking connection is there, reads are asked for on it.
        assert eventually(lambda: one.ask("GET", "k:0") and stat("near_fills") > 0)
        fills = stat("near_fills")
        os.kill(redis_server.pid, signal.SIGSTOP)
        try:
            one.send("GET", "k:1")
            assert eventually(lambda: stat("near_fills") == fills + 1)
            two.send("GET", "k:1")
            assert eventually(lambda: stat("near_coalesced") == 1)
        finally:
            os.kill(redis_server.pid, signal.SIGCONT)
        assert one.reply() == two.reply() == b"$1\r\nv\r\n"
        assert eventually(lambda: one.ask("GET", "k:1") and stat("near_hits") > 0)
        one.ask("GET", "other")
        one.write(encode("WATCH", "k:1") + encode("MULTI") + encode("PING") + encode("EXEC"))
        one.replies(4)
        assert eventually(lambda: count(collector, "EXEC") == 1)
    seen = Counter(outcomes(collector.spans))
    assert seen["SET", "forwarded"] == 1
    assert seen["GET", "miss"] >= 2
    assert seen["GET", "coalesced"] == 1
    assert seen["GET", "hit"] >= 1
    assert seen["GET", "forwarded"] == 1
    assert all(seen[name, "pinned"] == 1 for name in ("WATCH", "MULTI", "PING", "EXEC"))


def count(collector: Collector, name: str) -> int:
    return sum(span.name == name for span in collector.spans)


def test_a_read_that_waits_for_its_loader_is_leased(
    traced: Callable[..., Proxy], collector: Collector
) -> None:
    proxy = traced(
        "policies:\n  - match: GET\n    keys: 'k:*'\n    ttl: 60\n    near_cache: always\n"
        "    stampede: {mode: lease, lease_wait_ms: 10000}\n"
    )
    with proxy.raw() as loader, proxy.raw() as waiter:
        # Once the tracking connection is there, the first who misses is sent to load.
        assert eventually(
            lambda: loader.ask("GET", "k:1") and proxy.stats()["leases_granted"] != "0"
        )
        waiter.send("GET", "k:1")
        assert eventually(lambda: proxy.stats()["lease_waiting"] == "1")
        loader.ask("SET", "k:1", "v")
        assert waiter.reply() == b"$1\r\nv\r\n"
        assert eventually(lambda: ("GET", "leased") in outcomes(collector.spans))


def test_pipelined_commands_are_sampled_by_ratio_and_all_accounted_for(
    traced: Callable[..., Proxy], collector: Collector
) -> None:
    proxy = traced(sample_ratio=0.1)
    commands = 5000
    with proxy.raw() as raw:
        for _ in range(commands // 100):
            raw.write(b"*0\r\n" + encode("SET", "k", "v") * 50 + encode("LPUSH", "k", "v") * 50)
            raw.replies(100)
    # 500 ± 6 standard deviations.
    assert eventually(lambda: metric(proxy, "nexus_trace_spans_total") >= 373)
    made = metric(proxy, "nexus_trace_spans_total")
    assert 373 <= made <= 627
    assert eventually(
        lambda: (
            metric(proxy, "nexus_trace_spans_exported_total")
            + metric(proxy, "nexus_trace_spans_dropped_total")
            == made
        )
    )
    wrong = {span.name for span in collector.spans if span.status.code == 2}
    right = {span.name for span in collector.spans if span.status.code == 0}
    assert (wrong, right) == ({"LPUSH"}, {"SET"})


def test_a_collector_that_is_down_costs_no_command(
    traced: Callable[..., Proxy], collector: Collector
) -> None:
    proxy = traced(otlp_endpoint="http://127.0.0.1:9")
    with proxy.raw() as raw:
        for _ in range(60):
            raw.write(encode("SET", "k", "v") * 100)
            assert raw.replies(100) == [b"+OK\r\n"] * 100
    assert eventually(
        lambda: metric(proxy, 'nexus_trace_spans_dropped_total{reason="queue_full"') > 0
    )
    assert metric(proxy, "nexus_trace_spans_total") == 6000
    assert proxy.stop(60) == 0
    assert collector.spans == []


def test_a_command_whose_reply_never_comes_ends_its_span(
    traced: Callable[..., Proxy], collector: Collector, redis_server: Any
) -> None:
    proxy = traced()
    with redis.Redis.from_url(redis_server.url, protocol=2) as direct, proxy.raw() as raw:
        raw.send("BLPOP", "k", 0)
        assert eventually(lambda: direct.info("clients")["blocked_clients"] == 1)
        direct.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
        assert raw.reply().startswith(b"-NEXUSDOWN")
        found = collector.wait(1)
    assert values(found[0])["error.type"] == "NEXUSDOWN"


def test_off_is_the_default_and_a_reload_switches_it(
    traced: Callable[..., Proxy], collector: Collector, tmp_path: Path
) -> None:
    proxy = traced(enabled=False)
    with proxy.raw() as raw:
        raw.ask("SET", "k", "v")
        assert metric(proxy, "nexus_trace_spans_total") == 0
        config = tmp_path / "cacheproxy.yaml"
        config.write_text(config.read_text().replace('"enabled": false', '"enabled": true'))
        proxy.process.send_signal(signal.SIGHUP)

        def asked() -> bool:
            raw.ask("GET", "k")
            return bool(collector.spans)

        assert eventually(asked, 60)
    assert {span.name for span in collector.spans} == {"GET"}
    assert proxy.stop(60) == 0
