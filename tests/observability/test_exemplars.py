"""OpenMetrics with exemplars: checked by prometheus-client's own parser."""

from __future__ import annotations

import asyncio

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse
from prometheus_client.parser import text_string_to_metric_families as parse_plain

from nexus.observability.exemplars import BLOCK_BYTES, MAX_EXEMPLARS, Exemplar, ExemplarSink
from nexus.observability.exposition import render, render_openmetrics, wants_openmetrics


def count(metrics, status="200", ms=12.3):
    labels = {"method": "GET", "route": "/api/*", "status_code": status}
    metrics.counter("nexus_http_requests_total", **labels).inc()
    metrics.histogram("nexus_http_request_duration_ms", **labels).observe(ms)


def samples(families):
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in families
        for sample in family.samples
    }


async def test_a_bucket_shows_a_trace_that_fell_into_it(registry, metrics, make_record):
    sink = ExemplarSink(registry.exemplars, 1)
    await sink.start()
    count(metrics)
    sink.consume([make_record(), make_record(sampled=False, duration_ns=900_000_000)])
    await sink.stop(1)
    families = {family.name: family for family in parse(render_openmetrics(registry).decode())}
    shown = [
        sample
        for sample in families["nexus_http_request_duration_ms"].samples
        if sample.exemplar is not None
    ]
    assert len(shown) == 1
    assert shown[0].labels["le"] == "25.0"
    exemplar = shown[0].exemplar
    assert exemplar.labels["trace_id"] == "4bf92f3577b34da6a3ce929d0e0e4736"
    assert exemplar.labels["span_id"] == "00f067aa0ba902b7"
    assert exemplar.value == pytest.approx(12.3457)
    assert float(exemplar.timestamp) == pytest.approx(1_700_000_000.135, abs=0.01)


def test_both_formats_tell_the_same(registry, metrics):
    for status, ms in (("200", 3.0), ("503", 5000.0)):
        count(metrics, status, ms)
    metrics.gauge("nexus_http_connections").set(7)
    body = render_openmetrics(registry).decode()
    assert body.endswith("# EOF\n")
    assert samples(parse(body)) == samples(parse_plain(render(registry).decode()))


async def test_all_workers_are_read_and_the_latest_wins(registry, make_record):
    for worker, trace in ((0, "a" * 32), (1, "b" * 32)):
        sink = ExemplarSink(registry.exemplars, worker)
        await sink.start()
        started = 1_700_000_000_000_000_000 + worker * 10**9
        sink.consume([make_record(trace_id=trace, started_ns=started)])
        await sink.stop(1)
    found = registry.exemplars.read()
    assert {exemplar.trace_id for exemplar in found.values()} == {"b" * 32}
    assert len(found) == 2  # of the request, and of its upstream


async def test_memory_is_bounded(registry, make_record):
    sink = ExemplarSink(registry.exemplars, 0)
    await sink.start()
    long = "r" * 190
    many = range(MAX_EXEMPLARS * 2)
    sink.consume([make_record(route=f"/{long}/{n}", upstream="") for n in many])
    await sink.stop(1)
    found = registry.exemplars.read()
    assert 0 < len(found) <= MAX_EXEMPLARS
    assert any(key[1][1].endswith(f"/{MAX_EXEMPLARS * 2 - 1}") for key in found)


def test_a_block_that_is_half_written_is_left_out(registry):
    row = ("nexus_http_request_duration_ms", ("GET", "/", "200"), 1, Exemplar("a", "b", 1.0, 2.0))
    registry.exemplars.write(0, [row])
    registry.exemplars.write(1, [row])
    assert len(registry.exemplars.read()) == 1
    registry.exemplars._memory[10] ^= 0xFF
    registry.exemplars._memory[BLOCK_BYTES + 10] ^= 0xFF
    assert registry.exemplars.read() == {}


async def test_it_is_published_while_requests_go_on(registry, make_record, monkeypatch):
    monkeypatch.setattr("nexus.observability.exemplars.PUBLISH_SECONDS", 0.01)
    sink = ExemplarSink(registry.exemplars, 0)
    await sink.start()
    sink.consume([make_record()])
    async with asyncio.timeout(5):
        while not registry.exemplars.read():
            await asyncio.sleep(0.01)
    await sink.stop(1)


@pytest.mark.parametrize(
    ("accept", "wanted"),
    [
        ("", False),
        ("*/*", False),
        ("text/plain;version=0.0.4", False),
        ("application/openmetrics-text", True),
        ("application/openmetrics-text;version=1.0.0,application/openmetrics-text;q=0.5", True),
        ("text/plain, Application/OpenMetrics-Text; version=1.0.0; q=0.6", True),
        ("application/openmetrics-text; q=0", False),
        ("application/openmetrics-text;q=0.000", False),
    ],
)
def test_what_a_scraper_asks_for(accept, wanted):
    assert wants_openmetrics(accept) is wanted
