"""The control plane of a running gateway: files that break, clients that go, workers that die."""

from __future__ import annotations

import importlib
import json
import os
import random
import re
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from gateway_process import BACKENDS, GatewayProcess, check_backend
from gateway_upstream import Upstream

from nexus.gateway.discovery import ServiceEntry
from nexus.gateway.settings import BalancerSettings, GatewaySettings
from nexus.gateway.upstreams import Upstreams
from nexus.gateway.wheel import Wheel
from nexus.observability.registry import Registry
from nexus.observability.sampling import Sampling
from nexus.policy.breaker import BreakerTable

Start = Callable[..., GatewayProcess]

AUTH = {"enabled": True, "jwt_secret": "0123456789abcdef0123456789abcdef"}


def wait_for(condition: Callable[[], bool], seconds: float = 8) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.02)
    return False


def workers(gateway: GatewayProcess) -> set[int]:
    pid = gateway.process.pid
    return {int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()}


def replaced(gateway: GatewayProcess) -> None:
    """Kill the only worker, and wait for its replacement to serve."""
    [old] = workers(gateway)
    os.kill(old, signal.SIGKILL)

    def served() -> bool:
        try:
            return gateway.request("/ready").status == 200 and workers(gateway) != {old}
        except (OSError, EOFError):
            return False

    assert wait_for(served), gateway.output()


def reload(gateway: GatewayProcess, **changed: Any) -> None:
    gateway.write_config(gateway.config | changed)
    gateway.process.send_signal(signal.SIGHUP)


def upstreams_of(gateway: GatewayProcess) -> list[str]:
    return [server["url"] for server in gateway.request("/lb-stats").json["servers"]]


# ------------------------------------------------------------------------------ services file


def test_a_worker_that_dies_while_the_services_file_is_broken_is_replaced(
    start_gateway: Start, upstream_a: Upstream, upstream_b: Upstream
) -> None:
    gateway = start_gateway([upstream_a.url])
    # What counts is the list in force, not the one at the start.
    gateway.write_services([upstream_b.url, upstream_a.url])
    both = [upstream_b.url, upstream_a.url]
    assert wait_for(lambda: upstreams_of(gateway) == both)
    gateway.services.write_text('{"services": [')
    replaced(gateway)
    assert upstreams_of(gateway) == both
    assert gateway.request("/api/json").status == 200
    assert 'nexus_discovery_reloads_total{result="broken"}' in gateway.metrics()
    gateway.write_services([upstream_a.url])
    assert wait_for(lambda: upstreams_of(gateway) == [upstream_a.url])


def test_every_broken_state_is_counted_once_also_after_a_reload(
    start_gateway: Start, upstream_a: Upstream
) -> None:
    gateway = start_gateway([upstream_a.url], services_poll_seconds=0.05)

    def counted(times: int) -> bool:
        line = f'nexus_discovery_reloads_total{{result="broken"}} {times}.0'
        return line in gateway.metrics()

    def put(text: str) -> None:
        # In one step: a poll between truncation and write would see one broken state more.
        fresh = gateway.services.with_suffix(".new")
        fresh.write_text(text)
        fresh.replace(gateway.services)

    put("{")
    assert wait_for(lambda: counted(1)), gateway.metrics()
    put("{{")
    assert wait_for(lambda: counted(2)), gateway.metrics()
    gateway.write_services([upstream_a.url])
    reload(gateway, via=False)
    assert wait_for(lambda: gateway.output().count("configuration reloaded") == 1)
    time.sleep(0.3)
    put("[")
    assert wait_for(lambda: counted(3)), gateway.metrics()
    time.sleep(0.2)
    assert counted(3)


# ------------------------------------------------------------------------------------ metrics


def gauges_of(gateway: GatewayProcess, url: str) -> dict[str, float]:
    """Every gauge of an upstream: name (with the state of connections) → value."""
    found = {}
    for line in gateway.metrics().splitlines():
        match = re.fullmatch(r"nexus_(\w+)\{(.*)\} (\S+)", line)
        if match and f'upstream="{url}"' in match[2] and not match[1].startswith("upstream_req"):
            use = re.search(r'state="(\w+)"', match[2])
            found[f"{match[1]}_{use[1]}" if use else match[1]] = float(match[3])
    return found


def test_gauges_of_an_upstream_follow_it_out_and_end_with_it(
    start_gateway: Start, upstream_a: Upstream, upstream_b: Upstream
) -> None:
    gateway = start_gateway(
        [upstream_b.url], breaker={"enabled": True}, timeouts={"body_idle": 20, "total": 30}
    )
    client = gateway.client()
    client.send(b"POST /api/echo HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\n1")
    busy = {
        "circuit_breaker_state": 0.0,
        "upstream_healthy": 1.0,
        "upstream_connections_idle": 0.0,
        "upstream_connections_busy": 1.0,
        "upstream_queue": 0.0,
    }
    assert wait_for(lambda: gauges_of(gateway, upstream_b.url) == busy)
    gateway.write_services([upstream_a.url])
    leaving = busy | {"upstream_healthy": 0.0}
    assert wait_for(lambda: gauges_of(gateway, upstream_b.url) == leaving)
    client.send(b"2")
    assert client.read().status == 200
    assert wait_for(lambda: gauges_of(gateway, upstream_b.url) == {})
    assert wait_for(lambda: gauges_of(gateway, upstream_a.url)["upstream_healthy"] == 1.0)
    gateway.write_services([upstream_b.url])
    assert wait_for(lambda: gauges_of(gateway, upstream_b.url).get("upstream_healthy") == 1.0)
    client.close()


def test_breakers_that_find_no_room_are_counted() -> None:
    table = BreakerTable(bytearray(BreakerTable.size(1, 1)), 1, 1)
    metrics = Registry(workers=1).open(0)
    upstreams = Upstreams(GatewaySettings(), table, 0, Wheel(0), metrics, random.Random(1))
    upstreams.apply([ServiceEntry(url=f"http://{name}") for name in ("a", "b", "c")])
    overflows = metrics.counter("nexus_circuit_breaker_overflows_total")
    assert overflows.value == 2
    upstreams.report()
    assert overflows.value == 2


@pytest.mark.parametrize(
    ("algorithm", "weights", "lines"),
    [
        ("round-robin", (1, 2), 1),
        ("round-robin", (2, 2), 0),
        ("weighted", (1, 2), 0),
        ("weighted-smooth", (1, 2), 0),
    ],
)
def test_weights_without_effect_are_said_once(
    algorithm: Any, weights: tuple[int, ...], lines: int, caplog: pytest.LogCaptureFixture
) -> None:
    settings = GatewaySettings(balancer=BalancerSettings(algorithm=algorithm))
    entries = [ServiceEntry(url=f"http://{w}-{i}", weight=w) for i, w in enumerate(weights)]
    for worker in (0, 1):
        table = BreakerTable(bytearray(BreakerTable.size(4, 2)), 4, 2)
        metrics = Registry(workers=2).open(worker)
        Upstreams(settings, table, worker, Wheel(0), metrics, random.Random(1)).apply(entries)
    said = [r for r in caplog.records if "weights of the services file" in r.getMessage()]
    assert len(said) == lines


# ------------------------------------------------------------------------------------ clients


def test_tokens_of_a_removed_client_end_with_the_reload(
    start_gateway: Start, upstream_a: Upstream
) -> None:
    clients = [{"client_id": name, "client_secret": f"{name}-secret"} for name in ("stays", "goes")]
    gateway = start_gateway([upstream_a.url], auth=AUTH | {"clients": clients})
    bearers = {}
    for client in clients:
        answer = gateway.request("/auth/token", "POST", json.dumps(client).encode())
        assert answer.value("cache-control") == "no-store"
        bearers[client["client_id"]] = f"Authorization: Bearer {answer.json['access_token']}"
    for bearer in bearers.values():
        for _ in range(2):  # the second time from the cache
            assert gateway.request("/api/json", "GET", None, bearer).status == 200
    metrics = gateway.metrics()
    assert 'nexus_auth_cache_total{result="hit"} 2.0' in metrics
    assert 'nexus_auth_cache_total{result="miss"} 2.0' in metrics
    reload(gateway, auth=AUTH | {"clients": clients[:1]})

    def refused() -> bool:
        return gateway.request("/api/json", "GET", None, bearers["goes"]).status == 401

    assert wait_for(refused)
    answer = gateway.request("/api/json", "GET", None, bearers["goes"])
    assert answer.json["reason"] == "unknown_client"
    assert answer.value("www-authenticate") == 'Bearer realm="nexus", error="invalid_token"'
    assert gateway.request("/api/json", "GET", None, bearers["stays"]).status == 200


def test_credentials_that_are_refused_whatever_they_are_made_of(
    start_gateway: Start, upstream_a: Upstream
) -> None:
    gateway = start_gateway([upstream_a.url], auth=AUTH)
    nested = f"Authorization: Bearer {'W1tb' * 967}.e30.AAAA"  # "[[[…" in base64
    answer = gateway.request("/api/json", "GET", None, nested)
    assert (answer.status, answer.json["reason"]) == (401, "malformed_token")
    assert answer.value("www-authenticate") == 'Bearer realm="nexus", error="invalid_token"'
    wrong = b'{"client_id": "nobody", "client_secret": "wrong"}'
    for body, status in ((wrong, 401), (b"{}", 400), (b"[" * 8000, 400)):
        answer = gateway.request("/auth/token", "POST", body)
        assert answer.status == status
        assert answer.value("cache-control") == "no-store"
        # "A server generating a 401 response MUST send a WWW-Authenticate" (RFC 9110 §15.5.2)
        challenge = 'Bearer realm="nexus"' if status == 401 else None
        assert answer.value("www-authenticate") == challenge


# --------------------------------------------------------------------------------- trace ids


def test_requests_have_trace_ids_although_tracing_is_off(
    start_gateway: Start, upstream_a: Upstream
) -> None:
    gateway = start_gateway([upstream_a.url], access_log={"enabled": True})
    trace, parent = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
    given = f"traceparent: 00-{trace}-{parent}-01"
    own = gateway.request("/api/json?own")
    theirs = gateway.request(
        "/api/json?theirs", "GET", None, given, "tracestate: a=1", "tracestate: b=2,c=3"
    )
    twice = gateway.request("/api/json?twice", "GET", None, given, given, "tracestate: a=1")
    broken = gateway.request(
        "/api/json?broken", "GET", None, "traceparent: 00-nonsense", "tracestate: a=1"
    )
    refused = gateway.request("/nowhere")
    malformed = gateway.request("/bad", "GET", None, "No Colon")
    assert malformed.status == 400
    gateway.stop()
    lines = [json.loads(x) for x in gateway.output().splitlines() if x.startswith("{")]
    logged = {line["request_id"]: line for line in lines if "request_id" in line}
    for response in (own, theirs, twice, broken, refused, malformed):
        line = logged[response.value("x-request-id") or ""]
        assert re.fullmatch("[0-9a-f]{32}", line["trace_id"])
        assert re.fullmatch("[0-9a-f]{16}", line["span_id"])
    sent = {seen.path: seen for seen in upstream_a.seen}
    for path, response in (("/json?own", own), ("/json?broken", broken), ("/json?twice", twice)):
        # Begun here, and not sampled: nobody records it.
        line = logged[response.value("x-request-id") or ""]
        expected = f"00-{line['trace_id']}-{line['span_id']}-02"
        assert sent[path].values("traceparent") == [expected]
        assert sent[path].values("tracestate") == []
    # Begun by the client, and passed on as if we were not there.
    line = logged[theirs.value("x-request-id") or ""]
    assert line["trace_id"] == trace
    assert line["span_id"] != parent
    assert sent["/json?theirs"].values("traceparent") == [f"00-{trace}-{parent}-01"]
    assert sent["/json?theirs"].values("tracestate") == ["a=1,b=2,c=3"]


@pytest.mark.parametrize("backend", BACKENDS)
def test_trace_ids_do_not_repeat(backend: str) -> None:
    check_backend(backend)
    traces = importlib.import_module(f"nexus.gateway._traces_{backend}")
    request = importlib.import_module(f"nexus.gateway._request_{backend}")
    trace_ids, span_ids = set(), set()
    for tracer in (traces.Tracer(Sampling(1.0)), traces.Tracer(Sampling(1.0))):
        for _ in range(500):  # many times what is drawn at once
            exchange = request.ServedRequest(None, None)
            tracer.open(exchange, None, b"")
            assert exchange.sampled
            tracer.outgoing(exchange)
            trace_ids.add(exchange.trace_id)
            span_ids |= {exchange.span_id, exchange.upstream_span_id}
    assert (len(trace_ids), len(span_ids)) == (1000, 2000)
    assert all(re.fullmatch("[0-9a-f]{32}", trace_id) for trace_id in trace_ids)
    assert all(re.fullmatch("[0-9a-f]{16}", span_id) for span_id in span_ids)
