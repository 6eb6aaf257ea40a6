"""The recorder: batches, bounds, sinks that fail, an orderly end; access log and telemetry."""

from __future__ import annotations

import asyncio
import json
import logging

import pytest

from nexus.errors import ConfigError
from nexus.observability.accesslog import AccessLog
from nexus.observability.record import RequestRecord
from nexus.observability.recorder import BATCH_RECORDS, Recorder
from nexus.observability.telemetry import Telemetry, TelemetryMemory


class Collect:
    def __init__(self) -> None:
        self.batches: list[int] = []
        self.records: list[RequestRecord] = []

    def consume(self, records: list[RequestRecord]) -> None:
        self.batches.append(len(records))
        self.records += records


class Managed(Collect):
    def __init__(self) -> None:
        super().__init__()
        self.life: list[str] = []

    async def start(self) -> None:
        self.life.append("start")

    async def stop(self, deadline_seconds: float) -> None:
        self.life.append(f"stop {deadline_seconds <= 1} {len(self.records)}")


class Broken:
    def __init__(self) -> None:
        self.calls = 0
        self.mended = False

    def consume(self, records: list[RequestRecord]) -> None:
        self.calls += 1
        if not self.mended:
            raise RuntimeError("no")


async def until(condition, seconds: float = 30.0) -> None:
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.005)


async def test_a_record_arrives_soon(metrics):
    sink = Collect()
    recorder = Recorder([sink], metrics=metrics)
    await recorder.start()
    record = RequestRecord()
    recorder.append(record)
    assert sink.records == []
    await until(lambda: sink.records)
    assert sink.records == [record]
    await recorder.stop(1)


async def test_a_full_batch_does_not_wait_for_the_timer(metrics):
    sink = Collect()
    recorder = Recorder([sink], metrics=metrics)
    await recorder.start()
    for _ in range(BATCH_RECORDS + 1):
        recorder.append(RequestRecord())
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert sink.batches == [BATCH_RECORDS]
    await until(lambda: len(sink.records) == BATCH_RECORDS + 1)
    await recorder.stop(1)


async def test_one_turn_of_the_loop_takes_one_batch(metrics):
    sink = Collect()
    recorder = Recorder([sink], metrics=metrics)
    await recorder.start()
    records = [RequestRecord() for _ in range(2000)]
    for record in records:
        recorder.append(record)
    await until(lambda: len(sink.records) == 2000)
    assert max(sink.batches) == BATCH_RECORDS
    assert sink.records == records
    await recorder.stop(1)


async def test_overflow_is_counted(metrics):
    sink = Collect()
    recorder = Recorder([sink], metrics=metrics, capacity=100)
    await recorder.start()
    for _ in range(130):
        recorder.append(RequestRecord())
    assert metrics.counter("nexus_records_dropped_total").value == 30
    await recorder.stop(1)
    assert len(sink.records) == 100
    recorder.append(RequestRecord())
    assert metrics.counter("nexus_records_dropped_total").value == 31


async def test_records_from_before_the_start_are_kept(metrics):
    sink = Collect()
    recorder = Recorder([sink], metrics=metrics)
    recorder.append(RequestRecord())
    await recorder.start()
    await until(lambda: sink.records)
    await recorder.stop(1)


async def test_sinks_are_started_and_stopped_after_the_last_record(metrics):
    sink = Managed()
    recorder = Recorder([sink], metrics=metrics)
    await recorder.start()
    recorder.append(RequestRecord())
    await recorder.stop(1)
    assert sink.life == ["start", "stop True 1"]


async def test_a_broken_sink_hurts_no_other(metrics, caplog):
    broken, sink = Broken(), Collect()
    recorder = Recorder([broken, sink], metrics=metrics)
    await recorder.start()
    with caplog.at_level(logging.ERROR, "nexus.recorder"):
        for expected in (1, 2, 3):
            recorder.append(RequestRecord())
            await until(lambda n=expected: len(sink.records) == n)
        assert len(caplog.records) == 1  # a line per change of state, no flood
        broken.mended = True
        recorder.append(RequestRecord())
        await until(lambda: len(sink.records) == 4)
        broken.mended = False
        recorder.append(RequestRecord())
        await until(lambda: len(sink.records) == 5)
    assert len(caplog.records) == 2
    assert metrics.counter("nexus_sink_errors_total", sink="Broken").value == 4
    await recorder.stop(1)


async def test_an_access_line(metrics, make_record, tmp_path):
    path = tmp_path / "access.log"
    sink = AccessLog(str(path), metrics, worker=2)
    sink.consume(
        [
            make_record(),
            make_record(
                status=502,
                reason="bad_gateway",
                target=b"/api/x?token=hunter22",
                user_agent=b"curl\n\xff",
                upstream_status=0,
            ),
        ]
    )
    await sink.stop(5)
    first, second = map(json.loads, path.read_text().splitlines())
    assert first.pop("pid") > 0
    assert first == {
        "timestamp": "2023-11-14T22:13:20.123Z",
        "level": "info",
        "logger": "nexus.access",
        "message": "GET /api/* 200",
        "service": "gateway",
        "worker": 2,
        "method": "GET",
        "target": "/api/products?page=2",
        "status": 200,
        "latency_ms": 12.346,
        "ip": "192.0.2.7",
        "route": "/api/*",
        "client_id": "shop",
        "request_id": "nexus-1700000000123-abc",
        "trace_id": "4bf92f3577b34da6a3ce929d0e0e4736",
        "span_id": "00f067aa0ba902b7",
        "upstream": "http://127.0.0.1:3001",
        "upstream_status": 200,
        "upstream_ms": 9.0,
        "attempts": 1,
    }
    assert second["level"] == "error"
    assert second["reason"] == "bad_gateway"
    assert second["target"] == "/api/x?token=********"
    assert second["user_agent"] == "curl\n\\xff"


def test_an_access_log_that_cannot_be_opened_says_so(metrics, tmp_path):
    with pytest.raises(ConfigError, match=r"access_log\.path: cannot be opened: No such file"):
        AccessLog(str(tmp_path / "no" / "access.log"), metrics)


def test_telemetry_keeps_the_last_requests(make_record):
    telemetry = Telemetry(3)
    assert telemetry.recent() == []
    telemetry.consume([make_record(started_ns=n * 10**9, status=200 + n) for n in range(1, 6)])
    recent = telemetry.recent()
    assert [entry["statusCode"] for entry in recent] == [205, 204, 203]
    assert recent[0] == {
        "timestamp": "1970-01-01T00:00:05.000Z",
        "method": "GET",
        "url": "/api/products?page=2",
        "statusCode": 205,
        "latencyMs": 12.346,
        "ip": "192.0.2.7",
        "clientId": "shop",
    }


def test_telemetry_is_of_all_workers(make_record, forked):
    memory = TelemetryMemory(4, workers=2)

    def other_worker():
        sink = Telemetry(4, memory=memory, worker=1)
        sink.consume([make_record(started_ns=2 * 10**9, ip="192.0.2.2", client_id="")])

    mine = Telemetry(4, memory=memory, worker=0)
    mine.consume([make_record(started_ns=n * 10**9) for n in (1, 3)])
    assert forked(other_worker) == 0
    assert [entry["ip"] for entry in mine.recent()] == ["192.0.2.7", "192.0.2.2", "192.0.2.7"]
    assert mine.recent()[1]["clientId"] is None


def test_telemetry_is_bounded_by_its_cells(make_record):
    telemetry = Telemetry(2)
    hostile = b"/" + b'\x00"' * 100_000
    telemetry.consume([make_record(target=hostile, client_id="\x00" * 9999)])
    telemetry.consume([make_record(target=b"/?token=hunter22")])
    assert len(telemetry.recent()) == 2
    assert "hunter22" not in str(telemetry.recent())


def test_a_cell_that_is_being_overwritten_is_left_out(make_record):
    memory = TelemetryMemory(2)
    telemetry = Telemetry(2, memory=memory)
    telemetry.consume([make_record(), make_record()])
    memory._map[40] ^= 0xFF
    assert len(telemetry.recent()) == 1


def test_telemetry_can_be_off(make_record):
    telemetry = Telemetry(0)
    telemetry.consume([make_record()])
    assert telemetry.recent() == []
