"""What the tests of this layer share: a registry of their own, records, forked writers."""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Callable, Iterator

import pytest

from nexus.observability import logs
from nexus.observability.record import RequestRecord
from nexus.observability.registry import LocalMetrics, Registry


@pytest.fixture
def registry() -> Registry:
    return Registry(workers=2)


@pytest.fixture
def metrics(registry: Registry) -> LocalMetrics:
    return registry.open(0)


@pytest.fixture
def make_record() -> Callable[..., RequestRecord]:
    """A proxied GET that went well; keyword arguments replace what it says."""

    def make(**fields: object) -> RequestRecord:
        record = RequestRecord()
        values = {
            "started_ns": 1_700_000_000_123_000_000,
            "duration_ns": 12_345_678,
            "method": b"GET",
            "target": b"/api/products?page=2",
            "route": "/api/*",
            "status": 200,
            "ip": "192.0.2.7",
            "client_id": "shop",
            "request_id": "nexus-1700000000123-abc",
            "proxied": True,
            "upstream": "http://127.0.0.1:3001",
            "upstream_target": b"/products?page=2",
            "upstream_status": 200,
            "upstream_start_ns": 1_700_000_000_124_000_000,
            "upstream_ns": 9_000_000,
            "attempts": 1,
            "trace_id": "4bf92f3577b34da6a3ce929d0e0e4736",
            "span_id": "00f067aa0ba902b7",
            "upstream_span_id": "b7ad6b7169203331",
            "sampled": True,
            **fields,
        }
        for name, value in values.items():
            setattr(record, name, value)
        return record

    return make


@pytest.fixture
def log_pipe() -> Iterator[tuple[int, int]]:
    """(read end, write end) of a pipe; afterwards logging is as it was."""
    root = logging.getLogger()
    level = root.level
    read, write = os.pipe()
    yield read, write
    logs.unconfigure()
    root.setLevel(level)
    os.close(read)
    os.close(write)


def in_child(work: Callable[[], None]) -> int:
    """Run ``work`` in a forked process; its exit code (0: it returned)."""
    pid = os.fork()
    if pid == 0:
        signal.alarm(30)  # a child that hangs must fail its test, not outlive it
        code = 1
        try:
            work()
            code = 0
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


@pytest.fixture
def forked() -> Callable[[Callable[[], None]], int]:
    return in_child
