"""Clients that break the protocol, or take their time: refused as specified, nothing sent on."""

from __future__ import annotations

import select
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from gateway_process import Client, GatewayProcess
from gateway_upstream import Upstream
from support.servers import wait_until

sys.path.insert(0, str(Path(__file__).parents[1] / "http1"))

from http1_corpus import BAD_CHUNKS, BAD_REQUESTS

SMUGGLED = b"GET /api/smuggled HTTP/1.1\r\nHost: a\r\n\r\n"


def test_the_whole_corpus_is_refused_and_nothing_reaches_an_upstream(
    gateway: GatewayProcess, upstream_a: Upstream, upstream_b: Upstream
) -> None:
    seen = len(upstream_a.seen) + len(upstream_b.seen)
    for name, data, status, reason in BAD_REQUESTS:
        # A path that would be proxied, were the request believed.
        data = data.replace(b" / HTTP", b" /api/bad HTTP", 1)
        client = Client(gateway.port, 3)
        client.send(data)
        if reason not in ("uri_too_long", "head_too_large") and len(data) < 9000:
            client.send(SMUGGLED)
        response = client.read()
        assert (response.status, response.json["reason"]) == (status, reason), name
        assert response.value("connection") == "close", name
        client.close()
    assert len(upstream_a.seen) + len(upstream_b.seen) == seen


def test_bad_chunks_are_refused_and_their_connection_is_not_used_again(
    gateway: GatewayProcess, upstream_a: Upstream, upstream_b: Upstream
) -> None:
    head = b"POST /api/echo HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
    for name, data, reason in BAD_CHUNKS:
        client = Client(gateway.port, 3)
        client.send(head + data + SMUGGLED)
        response = client.read()
        assert (response.status, response.json["reason"]) == (400, reason), name
        client.close()
    for upstream in (upstream_a, upstream_b):
        assert not [s for s in upstream.seen if "smuggled" in s.path]
        assert not [
            s
            for s in upstream.seen
            if s.line.startswith(b"POST /echo") and b"chunked" in s.head and s.body == b"hello0"
        ]


def test_every_refusal_has_a_request_id_and_a_metric(gateway: GatewayProcess) -> None:
    client = gateway.client()
    client.send(b"GET / HTTP/1.1\n\n")
    response = client.read()
    assert response.value("x-request-id")
    assert set(response.json) == {"error", "message", "reason"}
    assert "RFC 9112" in response.json["message"]
    assert 'nexus_rejections_total{reason="bare_lf"}' in gateway.metrics()


def test_slow_head_is_408(gateway: GatewayProcess) -> None:
    client = gateway.client()
    start = time.monotonic()
    client.send(b"GET /api/text HTTP/1.1\r\n")
    for _ in range(3):
        time.sleep(0.2)
        client.send(b"X: y\r\n")
    response = client.read()
    assert (response.status, response.json["reason"]) == (408, "head_timeout")
    assert time.monotonic() - start < 2
    assert client.closed(3)


def test_slow_second_head_is_408_too(gateway: GatewayProcess) -> None:
    client = gateway.client()
    client.send(b"GET /api/text HTTP/1.1\r\nHost: a\r\n\r\n")
    assert client.read().status == 200
    client.send(b"GET /api/")
    start = time.monotonic()
    assert client.read().status == 408
    assert 0.8 < time.monotonic() - start < 1.8


def test_silence_is_closed_without_a_word(gateway: GatewayProcess) -> None:
    client = gateway.client()
    assert client.closed(2)
    client = gateway.client()
    client.send(b"GET /api/text HTTP/1.1\r\nHost: a\r\n\r\n")
    assert client.read().status == 200
    start = time.monotonic()
    assert client.closed(4)
    assert time.monotonic() - start > 1.5, "keep-alive is 2 s"


def test_stalled_body_is_408(
    gateway: GatewayProcess, upstream_a: Upstream, upstream_b: Upstream
) -> None:
    client = gateway.client()
    client.send(b"POST /api/echo HTTP/1.1\r\nHost: a\r\nContent-Length: 100\r\n\r\nhalf")
    response = client.read()
    assert (response.status, response.json["reason"]) == (408, "body_timeout")


def test_a_slow_client_does_not_count_against_the_upstream(gateway: GatewayProcess) -> None:
    client = gateway.client()
    client.send(b"POST /api/echo HTTP/1.1\r\nHost: a\r\nContent-Length: 6\r\n\r\n")
    for _ in range(6):  # longer than the upstream's timeout of 0.7 s
        time.sleep(0.2)
        client.send(b"x")
    assert client.read().status == 200


def test_pipelining_without_reading_is_bounded(gateway: GatewayProcess) -> None:
    client = gateway.client()
    client.sock.settimeout(1)
    ahead = b"GET /api/text HTTP/1.1\r\nHost: a\r\n\r\n"
    sent = 0
    try:
        client.send(b"GET /api/hang HTTP/1.1\r\nHost: a\r\n\r\n")
        for _ in range(2000):
            sent += client.sock.send(ahead * 1000)
    except TimeoutError:
        pass
    assert sent < 30_000_000, "the gateway must stop reading"
    assert gateway.request("/api/text").status == 200
    client.close()


def test_many_idle_connections_do_not_matter(gateway: GatewayProcess) -> None:
    clients = [gateway.client() for _ in range(300)]
    assert gateway.request("/api/text").status == 200
    for client in clients:
        client.close()


@pytest.mark.parametrize("cut", [1, 5, 17, 40, 60])
def test_a_client_that_leaves_anywhere_leaves_nothing_behind(
    gateway: GatewayProcess, cut: int
) -> None:
    request = b"POST /api/echo HTTP/1.1\r\nHost: a\r\nContent-Length: 20\r\n\r\nhalf a body"
    for _ in range(5):
        client = gateway.client()
        client.send(request[:cut])
        client.close()
    assert gateway.request("/api/text").status == 200


UPGRADE = "GET /api/{} HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"


def ends_within(client: Client, seconds: float, *, sending: bytes = b"") -> None:
    """The connection is reset, though nothing is read from it; ``sending``: while it sends."""
    poll = select.poll()
    poll.register(client.sock, 0)  # only what is always told: POLLERR, POLLHUP
    client.sock.settimeout(0.1)

    def ended() -> bool:
        if sending:
            try:
                client.sock.send(sending)
            except TimeoutError:
                return False
            except OSError:
                return True
        return bool(poll.poll(0))

    wait_until(ended, seconds, "the end of the connection")


def test_who_never_reads_is_cut_off_also_while_sending_and_in_a_tunnel(
    start_gateway: Callable[..., GatewayProcess], upstream_a: Upstream
) -> None:
    gateway = start_gateway([upstream_a.url], timeouts={"stream_idle": 1, "body_idle": 5})
    uploading, tunnel, deaf = (Client(gateway.port) for _ in range(3))
    uploading.send(b"POST /api/flood HTTP/1.1\r\nHost: a\r\nContent-Length: 1000000\r\n\r\n")
    tunnel.send(UPGRADE.format("ws-flood").encode())
    deaf.send(UPGRADE.format("ws-deaf").encode())
    ends_within(uploading, 6, sending=b"x" * 100)
    ends_within(tunnel, 6)
    ends_within(deaf, 8, sending=bytes(65_536))
    metrics = gateway.metrics()
    assert 'nexus_rejections_total{reason="response_too_slow"} 2' in metrics
    assert 'nexus_rejections_total{reason="stream_idle"} 1' in metrics


def test_a_408_that_ends_an_idle_connection_is_no_answer(
    start_gateway: Callable[..., GatewayProcess],
) -> None:
    upstream = Upstream("a").start()
    gateway = start_gateway([upstream.url])
    for _ in range(3):
        assert gateway.request("/api/once").body == b"first"
    assert upstream.connections == 3
    assert "nexus_upstream_keepalive_races_total" in gateway.metrics()
    # What may have been done is not done again.
    response = gateway.request("/api/once", "POST", b"pay")
    assert response.status == 408
    upstream.stop()
