"""The process's own metrics, and the payloads of /health and /ready."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import time

from nexus._speedups import BACKEND
from nexus._version import __version__
from nexus.observability import health
from nexus.observability.runtime import WARN_LAG_MS, RuntimeSampler


async def test_a_blocked_loop_is_seen(metrics, caplog):
    sampler = RuntimeSampler(metrics)
    sampler.start()
    with caplog.at_level(logging.WARNING, "nexus.runtime"):
        time.sleep((WARN_LAG_MS + 350) / 1000)  # longer than probe interval and threshold together
        async with asyncio.timeout(5):
            while metrics.histogram("nexus_event_loop_lag_seconds").count == 0:
                await asyncio.sleep(0.01)
    sampler.stop()
    assert metrics.gauge("nexus_event_loop_lag_max_seconds").value >= WARN_LAG_MS / 1000
    assert metrics.histogram("nexus_event_loop_lag_seconds").sum >= WARN_LAG_MS / 1000
    assert [record.getMessage() for record in caplog.records] == ["the event loop was held up"]
    assert caplog.records[0].lag_ms >= WARN_LAG_MS
    assert caplog.records[0].culprit.startswith("test_a_blocked_loop_is_seen (")
    assert "test_runtime_metrics.py:" in caplog.records[0].culprit


def hold_the_loop(seconds):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        sum(range(100))


async def test_the_warning_names_the_function_that_held_the_loop(metrics, caplog):
    sampler = RuntimeSampler(metrics)
    sampler.start()
    loop = asyncio.get_running_loop()
    with caplog.at_level(logging.WARNING, "nexus.runtime"):
        loop.call_later(0.05, hold_the_loop, 0.25 + (WARN_LAG_MS + 150) / 1000)
        async with asyncio.timeout(10):
            while not caplog.records:
                await asyncio.sleep(0.01)
    sampler.stop()
    (record,) = caplog.records
    assert record.culprit.startswith("hold_the_loop (")
    assert len(record.stack) >= 1
    assert not any("watchdog" in frame for frame in record.stack)


async def test_a_collection_is_named_as_what_held_the_loop(metrics, caplog, monkeypatch):
    sampler = RuntimeSampler(metrics)
    sampler.start()
    with caplog.at_level(logging.WARNING, "nexus.runtime"):
        sampler._on_gc("start", {})
        time.sleep((WARN_LAG_MS + 350) / 1000)
        sampler._on_gc("stop", {"generation": 2, "collected": 1})
        async with asyncio.timeout(5):
            while not caplog.records:
                await asyncio.sleep(0.01)
    sampler.stop()
    assert caplog.records[0].culprit == "garbage collector, generation 2"
    assert caplog.records[0].gc_pause_ms >= WARN_LAG_MS


async def test_the_process_is_measured(metrics):
    gc.collect()  # sockets that earlier tests left would be closed, and missed, by the one below
    sampler = RuntimeSampler(metrics)
    sampler.start()
    fds = metrics.gauge("nexus_process_open_fds").value
    held = [os.open("/dev/null", os.O_RDONLY) for _ in range(50)]
    gc.collect()
    sum(n * n for n in range(300_000))
    sampler.stop()
    assert metrics.gauge("nexus_process_open_fds").value >= fds + 50
    for fd in held:
        os.close(fd)
    assert 1e6 < metrics.gauge("nexus_process_resident_memory_bytes").value < 1e11
    assert 0 < metrics.counter("nexus_process_cpu_seconds_total").value <= time.process_time()
    assert metrics.histogram("nexus_gc_pause_seconds", generation="2").count >= 1
    assert abs(metrics.gauge("nexus_worker_start_time_seconds").value - time.time()) < 60
    pauses = metrics.histogram("nexus_gc_pause_seconds", generation="2").count
    gc.collect()
    assert metrics.histogram("nexus_gc_pause_seconds", generation="2").count == pauses


async def test_cpu_time_of_a_slot_never_falls(registry):
    for _ in range(2):  # an incarnation and its replacement
        sampler = RuntimeSampler(registry.open(0))
        sampler.start()
        sampler.stop()
    once = time.process_time()
    assert registry.open(0).counter("nexus_process_cpu_seconds_total").value >= once


def test_health():
    payload = health.health_payload("gateway", [(0, "ready", 71)], now_ms=1_700_000_000_123)
    assert payload == {
        "status": "gateway-ok",
        "timestamp": "2023-11-14T22:13:20.123Z",
        "version": __version__,
        "backend": BACKEND,
        "workers": [{"worker": 0, "state": "ready", "pid": 71}],
    }


def test_readiness():
    states = [(0, "ready", 71), (1, "draining", 72)]
    payload = health.ready_payload("cacheproxy", False, states, now_ms=0)
    assert payload["status"] == "not-ready"
    assert payload["service"] == "cacheproxy"
    assert payload["workers"][1] == {"worker": 1, "state": "draining", "pid": 72}
    assert health.ready_payload("x", True, [], now_ms=0)["status"] == "ready"
