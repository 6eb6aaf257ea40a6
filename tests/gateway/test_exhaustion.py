"""Many connections: what an idle one costs, and what happens when descriptors run out."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import psutil
import pytest
from gateway_process import Client, GatewayProcess
from gateway_upstream import Upstream

#: Bytes of the worker's memory that an idle client connection may cost.
IDLE_BYTES = 20 * 1024
PATIENT = {"head": 60, "body_idle": 60, "keep_alive": 60, "connect": 1, "total": 4}


def worker_of(gateway: GatewayProcess) -> psutil.Process:
    children = psutil.Process(gateway.process.pid).children(recursive=True)
    return max(children, key=lambda process: process.memory_info().rss)


@contextmanager
def open_connections(gateway: GatewayProcess, count: int) -> Iterator[list[Client]]:
    with ExitStack() as stack:
        clients = []
        for _ in range(count):
            client = gateway.client()
            stack.callback(client.close)
            clients.append(client)
        yield clients


@pytest.fixture
def gateway(
    start_gateway: Callable[..., GatewayProcess], upstream_a: Upstream
) -> Iterator[GatewayProcess]:
    return start_gateway([upstream_a.url], timeouts=PATIENT)


def test_an_idle_connection_costs_little(gateway: GatewayProcess) -> None:
    count = 400
    worker = worker_of(gateway)
    with open_connections(gateway, 50) as clients:  # what is allocated once, is
        for client in clients:
            client.send(b"GET /api/text HTTP/1.1\r\nHost: a\r\n\r\n")
            assert client.read().status == 200
        before = worker.memory_info().rss
        with open_connections(gateway, count) as idle:
            for client in idle:
                client.send(b"GET /health HTTP/1.1\r\nHost: a\r\n\r\n")
                assert client.read().status == 200
            assert (worker.memory_info().rss - before) / count < IDLE_BYTES
            assert gateway.request("/api/text").status == 200


def test_descriptors_run_out_and_come_back(gateway: GatewayProcess) -> None:
    worker = worker_of(gateway)
    assert gateway.request("/api/text").status == 200
    most = worker.num_fds() + 30
    worker.rlimit(psutil.RLIMIT_NOFILE, (most, most))
    with open_connections(gateway, 60) as clients:
        # One that was accepted is served as if nothing was the matter, without a spinning loop.
        clients[0].send(b"GET /health HTTP/1.1\r\nHost: a\r\n\r\n")
        assert clients[0].read().status == 200
        spent = sum(worker.cpu_times()[:2])
        time.sleep(0.5)
        assert sum(worker.cpu_times()[:2]) - spent < 0.25
        assert worker.num_fds() <= most
        clients[0].send(b"GET /health HTTP/1.1\r\nHost: a\r\n\r\n")
        assert clients[0].read().status == 200
    end = time.monotonic() + 5
    while True:  # the backlog is full of connections that are gone already
        try:
            if gateway.request("/api/text").status == 200:
                break
        except (TimeoutError, OSError, EOFError):
            pass
        assert time.monotonic() < end
        time.sleep(0.05)
    assert gateway.process.poll() is None
    assert worker.is_running()


def test_no_descriptor_for_an_upstream_is_our_own_shortage(gateway: GatewayProcess) -> None:
    worker = worker_of(gateway)
    soft, hard = worker.rlimit(psutil.RLIMIT_NOFILE)
    with open_connections(gateway, 1) as [client]:
        client.send(b"GET /health HTTP/1.1\r\nHost: a\r\n\r\n")
        assert client.read().status == 200
        worker.rlimit(psutil.RLIMIT_NOFILE, (worker.num_fds(), hard))
        client.send(b"GET /api/text HTTP/1.1\r\nHost: a\r\n\r\n")
        refused = client.read()
        assert (refused.status, refused.json["reason"]) == (503, "out_of_descriptors")
        worker.rlimit(psutil.RLIMIT_NOFILE, (soft, hard))
        client.send(b"GET /api/text HTTP/1.1\r\nHost: a\r\n\r\n")
        assert client.read().status == 200
