"""A worker that did not run for a while blames nobody for it: what came meanwhile is in time."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from gateway_process import Client, GatewayProcess
from recording_upstream import OK, Answer, RecordingUpstream, wait_until

from nexus._speedups import BACKEND


@pytest.fixture
def gateway(tmp_path: Path, recording_upstream: RecordingUpstream) -> Iterator[GatewayProcess]:
    started = GatewayProcess(
        tmp_path,
        "py" if BACKEND == "pure" else "c",
        [recording_upstream.url],
        {
            "retry": {"max_attempts": 1},
            "breaker": {"timeout_ms": 1500},
            "timeouts": {"head": 1.5, "body_idle": 1.5, "keep_alive": 30, "total": 3},
        },
    ).start()
    yield started
    assert started.stop() == 0


def test_no_deadline_passes_while_the_gateway_is_stopped(
    gateway: GatewayProcess, recording_upstream: RecordingUpstream
) -> None:
    recording_upstream.answers["/slow"] = Answer((b"", OK), pause=0.5)
    clients = [Client(gateway.port, 30) for _ in range(3)]
    waits, sends_head, sends_body = clients
    waits.send(b"GET /api/slow HTTP/1.1\r\nHost: a\r\n\r\n")
    assert wait_until(lambda: recording_upstream.requests, 10)
    sends_head.send(b"GET /api/a HTTP/1.1\r\n")
    sends_body.send(b"POST /api/b HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\nbo")
    time.sleep(0.1)  # read, or all of it would be new when the worker goes on
    workers = psutil.Process(gateway.process.pid).children()
    for worker in workers:
        worker.send_signal(signal.SIGSTOP)
    try:
        sends_head.send(b"Host: a\r\n\r\n")
        sends_body.send(b"dy")
        time.sleep(4)
    finally:
        for worker in workers:
            worker.send_signal(signal.SIGCONT)
    for client in clients:
        assert client.read().status == 200
    # And deadlines still are: this one gets no second half.
    late = Client(gateway.port, 30)
    late.send(b"GET /api/a HTTP/1.1\r\n")
    assert late.read().status == 408
