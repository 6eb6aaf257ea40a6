"""Requests whose bodies are still arriving: they have a share of the upstream's connections.

The gateway is the real process, with four connections to its upstream, of which uploads may hold
two.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from gateway_process import Client, GatewayProcess
from recording_upstream import RecordingUpstream, wait_until

from nexus._speedups import BACKEND

PLACES = 2
HEAD = b"POST /api/%b HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n"
#: More than the gateway holds of a body (``retry.buffer_bytes``).
LARGE = 300_000


@pytest.fixture
def gateway(tmp_path: Path, recording_upstream: RecordingUpstream) -> Iterator[GatewayProcess]:
    started = GatewayProcess(
        tmp_path,
        "py" if BACKEND == "pure" else "c",
        [recording_upstream.url],
        {
            "upstream": {"max_connections": 2 * PLACES, "queue_size": 4},
            "timeouts": {"body_idle": 60, "total": 60},
            "breaker": {"timeout_ms": 30_000},
        },
    ).start()
    yield started
    assert started.stop() == 0
    assert "Traceback" not in started.output(), started.output()


def begun(gateway: GatewayProcess, upstream: RecordingUpstream, count: int) -> list[Client]:
    """Clients that have sent the first half of a body of ten bytes, and have all places."""
    clients = [Client(gateway.port, 30) for _ in range(count)]
    for client in clients:
        client.send(HEAD % (b"slow", 10) + b"01234")
    assert wait_until(lambda: len(upstream.unfinished()) == PLACES, 10)
    return clients


def test_slow_uploads_leave_connections_to_the_others(
    gateway: GatewayProcess, recording_upstream: RecordingUpstream
) -> None:
    slow = begun(gateway, recording_upstream, PLACES + 4)
    other = Client(gateway.port, 30)
    for _ in range(5):
        other.send(b"GET /api/other HTTP/1.1\r\nHost: a\r\n\r\n")
        assert other.read().status == 200
        # A body that is there at once is no upload, however many of them wait.
        other.send(HEAD % (b"whole", 4) + b"body")
        assert other.read().status == 200
    assert len(recording_upstream.unfinished()) == PLACES
    # In whichever order they end: a waiting one needs no place any more once its body is there.
    for client in reversed(slow):
        client.send(b"56789")
        assert client.read().status == 200
    bodies = [request.body for request in recording_upstream.requests if request.target == "/slow"]
    assert bodies == [b"0123456789"] * len(slow)


def test_a_large_body_waits_for_its_place_and_then_streams(
    gateway: GatewayProcess, recording_upstream: RecordingUpstream
) -> None:
    slow = begun(gateway, recording_upstream, PLACES)
    large = Client(gateway.port, 30)
    large.send(HEAD % (b"large", LARGE) + b"x" * (LARGE - 1))
    large.sock.settimeout(0.3)
    with pytest.raises(TimeoutError):
        large.read()
    large.sock.settimeout(30)
    assert len(recording_upstream.unfinished()) == PLACES
    slow[0].send(b"56789")
    assert slow[0].read().status == 200
    assert wait_until(
        lambda: max(len(c.unfinished) for c in recording_upstream.unfinished()) > LARGE - 2, 10
    )
    large.send(b"y")
    assert large.read().status == 200
    assert recording_upstream.requests[-1].body == b"x" * (LARGE - 1) + b"y"


def test_places_come_back_from_clients_that_leave(
    gateway: GatewayProcess, recording_upstream: RecordingUpstream
) -> None:
    for _ in range(3):
        leaving = begun(gateway, recording_upstream, PLACES + 2)
        # First those that hold a place, so that others move up, then the rest.
        for client in leaving:
            client.close()
        assert wait_until(lambda: not recording_upstream.unfinished(), 10)
    assert not recording_upstream.requests


def test_more_uploads_than_may_wait_are_refused(
    gateway: GatewayProcess, recording_upstream: RecordingUpstream
) -> None:
    waiting = begun(gateway, recording_upstream, PLACES + 4)

    def refused() -> bool:
        late = Client(gateway.port, 30)
        late.send(HEAD % (b"late", 10) + b"01234")
        late.sock.settimeout(1)
        try:
            response = late.read()
        except TimeoutError:
            late.close()  # one of the others had not come so far yet
            return False
        return (response.status, response.json["reason"]) == (503, "upstream_queue_full")

    assert wait_until(refused, 20)
    for client in waiting:
        client.close()


def test_who_waits_for_100_continue_is_told_to_go_on(
    gateway: GatewayProcess, recording_upstream: RecordingUpstream
) -> None:
    slow = begun(gateway, recording_upstream, PLACES)
    polite = Client(gateway.port, 30)
    polite.send(
        b"POST /api/polite HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 4\r\n\r\n"
    )
    # There is no place, so no upstream that could say it; the body is small and needs none.
    assert polite.read_head() == b"HTTP/1.1 100 Continue"
    polite.send(b"body")
    assert polite.read().status == 200
    assert len(recording_upstream.unfinished()) == PLACES
    for client in slow:
        client.close()
