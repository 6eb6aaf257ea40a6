"""What goes wrong upstream and what a client is told; retries; who is cut off, and when."""

from __future__ import annotations

import time

import pytest
from gateway_process import GatewayProcess
from gateway_upstream import Upstream
from support.servers import free_port


def reason(
    gateway: GatewayProcess, path: str, method: str = "GET", body: bytes | None = None
) -> tuple[int, str]:
    response = gateway.request(path, method, body)
    return response.status, response.json["reason"]


def test_a_failure_is_retried_on_the_other_upstream(
    gateway: GatewayProcess, upstream_a: Upstream, upstream_b: Upstream
) -> None:
    for path in ("/api/only-b", "/api/reset-a", "/api/hang-a"):
        for _ in range(2):
            assert gateway.request(path).status == 200, path


def test_a_body_is_replayed(gateway: GatewayProcess) -> None:
    for _ in range(2):
        response = gateway.request("/api/reset-a", "PUT", b"x" * 30_000)
        assert (response.status, response.body) == (200, b"from b")


def test_a_post_that_may_have_run_is_not_repeated(
    gateway: GatewayProcess, upstream_a: Upstream, upstream_b: Upstream
) -> None:
    def calls() -> int:
        return upstream_a.calls.get("/reset", 0) + upstream_b.calls.get("/reset", 0)

    before = calls()
    assert reason(gateway, "/api/reset", "POST", b"pay") == (502, "upstream_closed")
    assert calls() == before + 1
    assert reason(gateway, "/api/reset") == (502, "upstream_closed")
    assert calls() == before + 4, "an idempotent request has three attempts"


def test_behind_a_broken_connection_each_attempt_has_a_new_one(
    gateway: GatewayProcess, upstream_a: Upstream, upstream_b: Upstream
) -> None:
    for _ in range(4):  # connections that rest in both pools
        assert gateway.request("/api/text").status == 200
    before = {up.name: len(up.seen) for up in (upstream_a, upstream_b)}
    assert reason(gateway, "/api/reset") == (502, "upstream_closed")
    attempts = [
        (up, seen)
        for up in (upstream_a, upstream_b)
        for seen in up.seen[before[up.name] :]
        if seen.path == "/reset"
    ]
    assert len(attempts) == 3
    reused = [
        seen
        for up, seen in attempts
        if any(other.connection == seen.connection for other in up.seen[: before[up.name]])
    ]
    assert len(reused) <= 1


def test_the_last_real_response_is_passed_through(gateway: GatewayProcess) -> None:
    response = gateway.request("/api/status/503")
    assert response.status == 503
    assert response.json["data"] == {"code": 503}


def test_timeout_is_504(gateway: GatewayProcess) -> None:
    start = time.monotonic()
    assert reason(gateway, "/api/hang", "POST", b"x") == (504, "upstream_timeout")
    assert 0.6 < time.monotonic() - start < 2


@pytest.mark.parametrize(
    ("path", "why"),
    [
        ("/api/bad-framing", "upstream_length_and_encoding"),
        ("/api/garbage", "upstream_bad_status_line"),
        ("/api/unasked-101", "upstream_unasked_upgrade"),
    ],
)
def test_responses_that_cannot_be_believed_are_502(
    gateway: GatewayProcess, path: str, why: str
) -> None:
    assert reason(gateway, path) == (502, why)


def test_bytes_behind_a_response_never_reach_a_client(gateway: GatewayProcess) -> None:
    client = gateway.client()
    for _ in range(6):
        client.send(b"GET /api/extra HTTP/1.1\r\nHost: a\r\n\r\n")
        assert client.read().body == b"ok"
        client.send(b"GET /api/text HTTP/1.1\r\nHost: a\r\n\r\n")
        assert client.read().body == b"plain text"


@pytest.mark.parametrize("path", ["/api/truncated", "/api/truncated-chunked", "/api/bad-chunk"])
def test_a_truncated_body_is_not_made_to_look_complete(gateway: GatewayProcess, path: str) -> None:
    client = gateway.client()
    client.send(f"GET {path} HTTP/1.1\r\nHost: a\r\n\r\n".encode())
    response = client.read()
    assert response.status == 200
    assert not response.complete
    assert b"_meta" not in response.body
    assert client.closed() or client.buffer


def test_nobody_there_is_502_and_no_upstream_at_all_is_told(start_gateway) -> None:  # type: ignore[no-untyped-def]
    gateway = start_gateway([f"http://127.0.0.1:{free_port()}"])
    assert reason(gateway, "/api/x") == (502, "connect_refused")
    assert reason(gateway, "/api/x", "POST", b"x") == (502, "connect_refused")


def test_early_response_while_the_body_is_still_arriving(gateway: GatewayProcess) -> None:
    client = gateway.client()
    client.send(
        b"POST /api/early HTTP/1.1\r\nHost: a\r\nContent-Length: 1000000\r\n\r\n" + bytes(1000)
    )
    response = client.read()
    assert (response.status, response.body) == (422, b"no")
    assert response.value("connection") == "close"
    client.send(bytes(1000))  # still read, so that the reply is not lost to a reset
    assert client.closed()


def test_a_client_that_leaves_cancels_the_upstream(
    gateway: GatewayProcess, upstream_a: Upstream, upstream_b: Upstream
) -> None:
    before = upstream_a.open_now + upstream_b.open_now
    client = gateway.client()
    client.send(b"POST /api/hang HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\n\r\nx")
    deadline = time.monotonic() + 0.5
    while upstream_a.open_now + upstream_b.open_now <= before and time.monotonic() < deadline:
        time.sleep(0.01)
    client.close()
    deadline = time.monotonic() + 0.6  # before the upstream's own timeout
    while upstream_a.open_now + upstream_b.open_now > before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert upstream_a.open_now + upstream_b.open_now <= before
    assert 'nexus_rejections_total{reason="client_disconnected"}' in gateway.metrics()


def test_body_limit(start_gateway, upstream_a: Upstream) -> None:  # type: ignore[no-untyped-def]
    gateway = start_gateway([upstream_a.url], limits={"body_bytes": 1000})
    seen = len(upstream_a.seen)
    assert reason(gateway, "/api/echo", "POST", bytes(1001)) == (413, "body_too_large")
    assert len(upstream_a.seen) == seen, "refused up front"
    assert gateway.request("/api/echo", "POST", bytes(1000)).status == 200
    client = gateway.client()
    client.send(b"POST /api/echo HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n")
    client.send(b"3e8\r\n" + bytes(1000) + b"\r\n1\r\nx\r\n")
    assert client.read().status == 413


def test_breaker_opens_and_is_skipped(
    start_gateway, upstream_a: Upstream, upstream_b: Upstream
) -> None:  # type: ignore[no-untyped-def]
    gateway = start_gateway(
        [upstream_a.url],
        breaker={"reset_timeout_ms": 600, "timeout_ms": 700},
        retry={"max_attempts": 1},
    )
    for _ in range(3):
        assert gateway.request("/api/status/500").status == 500
    assert reason(gateway, "/api/json") == (503, "no_healthy_upstream")
    stats = gateway.request("/cb-stats").json
    assert stats[upstream_a.url]["state"] == "open"
    assert (
        f'nexus_circuit_breaker_opens_total{{upstream="{upstream_a.url}"}} 1.0' in gateway.metrics()
    )
    time.sleep(0.7)
    assert gateway.request("/api/json").status == 200
    assert gateway.request("/cb-stats").json[upstream_a.url]["state"] == "closed"


def test_discovery_adds_drains_and_ignores_nonsense(
    start_gateway, upstream_a: Upstream, upstream_b: Upstream
) -> None:  # type: ignore[no-untyped-def]
    gateway = start_gateway([upstream_a.url])

    def names(n: int = 6) -> set[str | None]:
        return {gateway.request("/api/json").value("x-upstream") for _ in range(n)}

    def becomes(expected: set[str]) -> None:
        end = time.monotonic() + 5
        while names() != expected:
            assert time.monotonic() < end
            time.sleep(0.05)

    assert names() == {"a"}
    gateway.write_services([upstream_a.url, upstream_b.url])
    becomes({"a", "b"})
    gateway.services.write_text('{"services": [')
    time.sleep(0.5)
    assert names() == {"a", "b"}
    gateway.write_services([upstream_b.url])
    becomes({"b"})
    servers = gateway.request("/lb-stats").json["servers"]
    assert [s["url"] for s in servers] == [upstream_b.url]
    assert servers[0]["requestsHandled"] >= 6


def test_pool_is_bounded_and_queued_for(start_gateway, upstream_a: Upstream) -> None:  # type: ignore[no-untyped-def]
    gateway = start_gateway([upstream_a.url], upstream={"max_connections": 2, "queue_size": 2})
    before = upstream_a.connections
    clients = [gateway.client() for _ in range(4)]
    for client in clients:
        client.send(b"GET /api/sse HTTP/1.1\r\nHost: a\r\n\r\n")
        time.sleep(0.02)
    assert reason(gateway, "/api/text") == (503, "upstream_queue_full")
    assert [c.read().status for c in clients] == [200] * 4
    assert upstream_a.connections - before <= 2
