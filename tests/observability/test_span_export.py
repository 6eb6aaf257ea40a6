"""Spans as a collector receives them: decoded with OpenTelemetry's own classes."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from dataclasses import dataclass

import pytest
from aiohttp import web
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status
from support.servers import free_port

from nexus.errors import ConfigError
from nexus.observability.otlp import EXPORTS
from nexus.observability.record import RequestRecord
from nexus.observability.spans import SpanEncoder
from nexus.observability.tracing import SpanSink


@dataclass
class Tracing:
    otlp_endpoint: str
    service_name: str = "nexus-gateway"


class Collector:
    """An OTLP/HTTP receiver; ``answers`` are given in turn, then 200."""

    def __init__(self) -> None:
        self.requests: list[web.Request] = []
        self.spans: list[Span] = []
        self.resources: list[dict[str, object]] = []
        self.answers: list[web.Response] = []
        self.hang = asyncio.Event()
        self.hang.set()
        self.url = ""

    async def receive(self, request: web.Request) -> web.Response:
        self.requests.append(request)
        body = await request.read()
        await self.hang.wait()
        if self.answers:
            answer = self.answers.pop(0)
            if answer.status != 200:
                return answer
        else:
            answer = web.Response(body=b"", content_type="application/x-protobuf")
        for resource_spans in ExportTraceServiceRequest.FromString(body).resource_spans:
            self.resources.append(attributes(resource_spans.resource))
            for scope_spans in resource_spans.scope_spans:
                self.spans += scope_spans.spans
        return answer


def attributes(message) -> dict[str, object]:
    return {
        pair.key: getattr(pair.value, pair.value.WhichOneof("value")) for pair in message.attributes
    }


@pytest.fixture
async def collector() -> AsyncIterator[Collector]:
    receiver = Collector()
    app = web.Application()
    app.router.add_post("/v1/traces", receiver.receive)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    receiver.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    yield receiver
    receiver.hang.set()
    await runner.cleanup()


@pytest.fixture
def unused_port() -> int:
    return free_port()


FAST = {"OTEL_BSP_SCHEDULE_DELAY": "10"}


@pytest.fixture
def make_sink(collector, metrics):
    def make(environ=None, endpoint=None, **options) -> SpanSink:
        settings = Tracing(endpoint or collector.url)
        return SpanSink(settings, metrics, environ={**FAST, **(environ or {})}, **options)

    return make


def counts(metrics) -> dict[str, float]:
    """Where every span went."""
    reasons = ("queue_full", "export_failed", "refused", "rejected", "shutdown", "encoding")
    found = {
        reason: metrics.counter("nexus_trace_spans_dropped_total", reason=reason).value
        for reason in reasons
    }
    found["made"] = metrics.counter("nexus_trace_spans_total").value
    found["exported"] = metrics.counter("nexus_trace_spans_exported_total").value
    assert found["made"] == sum(v for k, v in found.items() if k != "made")
    return {k: v for k, v in found.items() if v}


async def until(condition, seconds: float = 30.0) -> None:
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.005)


async def test_a_request_becomes_a_server_and_a_client_span(
    collector, make_sink, make_record, metrics
):
    sink = make_sink()
    await sink.start()
    sink.consume([make_record(parent_span_id="aaaaaaaaaaaaaaaa", tracestate=b"a=1")])
    await until(lambda: len(collector.spans) == 2)
    await sink.stop(1)
    server, client = collector.spans
    assert server.name == "GET /api/*"
    assert server.kind == Span.SPAN_KIND_SERVER
    assert server.trace_id.hex() == "4bf92f3577b34da6a3ce929d0e0e4736"
    assert server.span_id.hex() == "00f067aa0ba902b7"
    assert server.parent_span_id.hex() == "aaaaaaaaaaaaaaaa"
    assert server.trace_state == "a=1"
    assert server.flags == 0x301
    assert server.start_time_unix_nano == 1_700_000_000_123_000_000
    assert server.end_time_unix_nano - server.start_time_unix_nano == 12_345_678
    assert server.status.code == Status.STATUS_CODE_UNSET
    assert attributes(server) == {
        "http.method": "GET",
        "http.url": "/api/products?page=2",
        "http.route": "/api/*",
        "net.peer.ip": "192.0.2.7",
        "http.status_code": 200,
        "nexus.request_id": "nexus-1700000000123-abc",
        "nexus.client_id": "shop",
    }
    assert client.name == "upstream.proxy"
    assert client.kind == Span.SPAN_KIND_CLIENT
    assert client.trace_id == server.trace_id
    assert client.parent_span_id == server.span_id
    assert client.span_id.hex() == "b7ad6b7169203331"
    assert client.flags == 0x101
    assert client.end_time_unix_nano - client.start_time_unix_nano == 9_000_000
    assert attributes(client) == {
        "peer.service": "127.0.0.1:3001",
        "http.method": "GET",
        "http.url": "http://127.0.0.1:3001/products?page=2",
        "http.status_code": 200,
    }
    assert counts(metrics) == {"made": 2, "exported": 2}
    request = collector.requests[0]
    assert request.headers["Content-Type"] == "application/x-protobuf"


@pytest.mark.parametrize("opt_in", ["http", "http/dup"])
async def test_the_stable_names_by_opt_in(collector, make_sink, make_record, opt_in):
    sink = make_sink({"OTEL_SEMCONV_STABILITY_OPT_IN": opt_in})
    await sink.start()
    sink.consume([make_record(method=b"BREW", user_agent=b"curl", host=b"shop.example:8443")])
    await sink.stop(5)
    server, client = map(attributes, collector.spans)
    assert (
        server.items()
        >= {
            "http.request.method": "_OTHER",
            "http.request.method_original": "BREW",
            "url.path": "/api/products",
            "url.query": "page=2",
            "url.scheme": "http",
            "http.route": "/api/*",
            "client.address": "192.0.2.7",
            "server.address": "shop.example",
            "server.port": 8443,
            "http.response.status_code": 200,
            "user_agent.original": "curl",
        }.items()
    )
    assert (
        client.items()
        >= {
            "server.address": "127.0.0.1",
            "server.port": 3001,
            "url.full": "http://127.0.0.1:3001/products?page=2",
            "http.response.status_code": 200,
        }.items()
    )
    assert ("http.method" in server) == ("http.url" in client) == (opt_in == "http/dup")
    assert collector.spans[0].name == "HTTP /api/*"


async def test_failures_are_marked_and_kept_though_unsampled(collector, make_sink, make_record):
    sink = make_sink()
    await sink.start()
    sink.consume(
        [
            make_record(sampled=False),
            make_record(sampled=False, status=502, upstream_status=0, reason="bad_gateway"),
            make_record(sampled=False, duration_ns=1_500_000_000, trace_id="", span_id=""),
            make_record(sampled=True, status=429, proxied=False, reason="rate_limited"),
            make_record(sampled=True, status=503, attempts=0, reason="no_healthy_upstream"),
        ]
    )
    await sink.stop(5)
    failed, failed_client, slow, slow_client, limited, without = collector.spans
    assert without.kind == Span.SPAN_KIND_SERVER
    assert failed.status.code == failed_client.status.code == Status.STATUS_CODE_ERROR
    assert attributes(failed)["nexus.reason"] == "bad_gateway"
    assert "http.status_code" not in attributes(failed_client)
    assert failed.flags == 0x100
    assert len(slow.trace_id) == 16
    assert slow_client.parent_span_id == slow.span_id != b""
    assert limited.status.code == Status.STATUS_CODE_UNSET
    assert limited.kind == Span.SPAN_KIND_SERVER


async def test_the_environment_beats_the_settings(collector, make_sink, make_record):
    sink = make_sink(
        {
            "OTEL_EXPORTER_OTLP_ENDPOINT": collector.url + "/",
            "OTEL_SERVICE_NAME": "edge",
            "OTEL_RESOURCE_ATTRIBUTES": "deployment.environment=test%20bed,service.name=no",
            "OTEL_EXPORTER_OTLP_HEADERS": "x-tenant=a%20b",
            "OTEL_EXPORTER_OTLP_COMPRESSION": "gzip",
        },
        endpoint="http://127.0.0.1:1",
        worker=3,
    )
    await sink.start()
    sink.consume([make_record()])
    await sink.stop(5)
    (resource,) = collector.resources
    assert resource["service.name"] == "edge"
    assert resource["deployment.environment"] == "test bed"
    assert str(resource["service.instance.id"]).endswith("/3")
    assert collector.requests[0].headers["x-tenant"] == "a b"
    assert collector.requests[0].headers["Content-Encoding"] == "gzip"


@pytest.mark.parametrize(
    ("environ", "message"),
    [
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "localhost:4318"}, "expected an http:// or https:// URL"),
        ({"OTEL_EXPORTER_OTLP_COMPRESSION": "lz4"}, "COMPRESSION: expected none or gzip"),
        ({"OTEL_BSP_MAX_QUEUE_SIZE": "many"}, "QUEUE_SIZE: expected an integer >= 2, got 'many'"),
        ({"OTEL_BSP_SCHEDULE_DELAY": "0"}, "DELAY: expected an integer >= 1, got '0'"),
        ({"OTEL_RESOURCE_ATTRIBUTES": "a"}, "ATTRIBUTES: expected key=value"),
    ],
)
def test_variables_that_cannot_be_read(metrics, environ, message):
    with pytest.raises(ConfigError, match=message):
        SpanSink(Tracing("http://127.0.0.1:4318"), metrics, environ=environ)


async def test_batches_are_bounded_and_all_arrive(collector, make_sink, make_record, metrics):
    sink = make_sink({"OTEL_BSP_SCHEDULE_DELAY": "60000"})
    await sink.start()
    for _ in range(9):
        sink.consume([make_record() for _ in range(100)])
    # Three full batches without waiting for the delay; the rest at the end.
    await until(lambda: len(collector.spans) == 3 * 512)
    assert len(collector.requests) == 3
    await sink.stop(5)
    assert len(collector.spans) == 1800
    assert counts(metrics) == {"made": 1800, "exported": 1800}


async def test_batches_go_side_by_side_up_to_a_bound(collector, make_sink, make_record, metrics):
    collector.hang.clear()
    sink = make_sink({"OTEL_BSP_SCHEDULE_DELAY": "60000"})
    await sink.start()
    for expected in range(1, 8):
        sink.consume([make_record() for _ in range(256)])
        await until(lambda n=expected: len(collector.requests) == min(n, EXPORTS))
    assert len(collector.requests) == EXPORTS == 4  # three batches wait in the queue
    collector.hang.set()
    await until(lambda: len(collector.spans) == 7 * 512)
    await sink.stop(5)
    assert counts(metrics) == {"made": 3584, "exported": 3584}


async def test_batches_that_hang_are_all_accounted_for(collector, make_sink, make_record, metrics):
    collector.hang.clear()
    sink = make_sink()
    await sink.start()
    for expected in range(1, 4):
        sink.consume([make_record() for _ in range(256)])
        await until(lambda n=expected: len(collector.requests) == n)
    sink.consume([make_record()])
    await sink.stop(0.1)
    assert counts(metrics) == {"made": 1538, "shutdown": 1538}


async def test_a_request_with_more_attempts_than_a_batch_holds_goes_alone(
    collector, make_sink, make_record, metrics
):
    sink = make_sink({"OTEL_BSP_MAX_EXPORT_BATCH_SIZE": "2"})
    await sink.start()
    failed = ("http://127.0.0.1:3002", 0, "upstream_reset", 1, 2, "00000000000000aa")
    sink.consume([make_record(), make_record(attempts=3, earlier=[failed, failed]), make_record()])
    await until(lambda: len(collector.spans) == 8)
    await sink.stop(5)
    assert sorted(span.name for span in collector.spans).count("upstream.proxy") == 5
    assert counts(metrics) == {"made": 8, "exported": 8}


async def test_a_full_queue_drops_and_counts(collector, make_sink, make_record, metrics):
    collector.hang.clear()
    sink = make_sink()
    await sink.start()
    sink.consume([make_record() for _ in range(256)])
    await until(lambda: collector.requests)
    sink.consume([make_record() for _ in range(2000)])
    collector.hang.set()
    await sink.stop(10)
    assert counts(metrics) == {"made": 4512, "exported": 2560, "queue_full": 1952}
    assert len(collector.spans) == 2560


async def test_a_hiccup_is_retried(collector, make_sink, make_record, metrics):
    collector.answers = [
        web.Response(status=503),
        web.Response(status=429, headers={"Retry-After": "0"}),
    ]
    sink = make_sink()
    await sink.start()
    sink.consume([make_record()])
    await until(lambda: collector.spans)
    await sink.stop(1)
    assert len(collector.requests) == 3
    assert counts(metrics) == {"made": 2, "exported": 2}


async def test_a_refusal_is_final(collector, make_sink, make_record, metrics):
    collector.answers = [web.Response(status=400), web.Response(status=307)]
    sink = make_sink()
    await sink.start()
    for expected in (1, 2):
        sink.consume([make_record()])
        await until(lambda n=expected: len(collector.requests) == n)
    await sink.stop(1)
    assert len(collector.requests) == 2
    assert counts(metrics) == {"made": 4, "refused": 4}


async def test_partial_success_is_counted(collector, make_sink, make_record, metrics):
    answer = ExportTraceServiceResponse()
    answer.partial_success.rejected_spans = 1
    collector.answers = [
        web.Response(body=answer.SerializeToString(), content_type="application/x-protobuf"),
        web.Response(body=b"\xff\xff not protobuf"),
    ]
    sink = make_sink()
    await sink.start()
    for expected in (1, 2):
        sink.consume([make_record()])
        await until(lambda n=expected: len(collector.requests) == n)
    await sink.stop(1)
    assert counts(metrics) == {"made": 4, "exported": 3, "rejected": 1}


async def test_a_dead_collector_is_one_line_and_bounded_loss(
    make_sink, make_record, metrics, collector, caplog, unused_port
):
    sink = make_sink(endpoint=f"http://127.0.0.1:{unused_port}")
    await sink.start()
    with caplog.at_level(logging.INFO, "nexus.tracing"):
        sink.consume([make_record() for _ in range(3000)])
        await sink.stop(5)
    lines = [record for record in caplog.records if record.name == "nexus.tracing"]
    assert [line.levelname for line in lines] == ["WARNING"]
    assert "Cannot connect" in lines[0].cause
    assert counts(metrics) == {"made": 6000, "queue_full": 3952, "export_failed": 2048}


async def test_recovery_is_one_line_too(collector, make_sink, make_record, metrics, caplog):
    collector.answers = [web.Response(status=404) for _ in range(3)]
    sink = make_sink()
    await sink.start()
    with caplog.at_level(logging.INFO, "nexus.tracing"):
        for expected in range(1, 6):
            sink.consume([make_record()])
            await until(lambda n=expected: len(collector.requests) == n)
        await sink.stop(5)
    assert [record.levelname for record in caplog.records] == ["WARNING", "INFO"]
    assert caplog.records[1].spans_lost == 6
    assert counts(metrics) == {"made": 10, "exported": 4, "refused": 6}


async def test_stopping_does_not_wait_for_a_collector_that_hangs(
    collector, make_sink, make_record, metrics
):
    collector.hang.clear()
    sink = make_sink()
    await sink.start()
    sink.consume([make_record() for _ in range(400)])
    await until(lambda: collector.requests)
    async with asyncio.timeout(5):
        await sink.stop(0.1)
    assert counts(metrics) == {"made": 800, "shutdown": 800}
    sink.consume([make_record()])
    assert counts(metrics) == {"made": 802, "shutdown": 802}


async def test_a_record_that_cannot_be_encoded_costs_no_other(
    collector, make_sink, make_record, metrics
):
    sink = make_sink()
    await sink.start()
    sink.consume([make_record(trace_id="not hex")] + [make_record() for _ in range(63)])
    await sink.stop(5)
    assert counts(metrics) == {"made": 128, "exported": 126, "encoding": 2}


@given(
    st.text(max_size=40),
    st.integers(0, 20_000),
    st.binary(max_size=300),
    st.integers(1, 2**63 - 1),
    st.integers(0, 2**21),
)
def test_what_is_written_is_what_opentelemetry_reads(route, length, wire, started_ns, attempts):
    record = RequestRecord()
    record.proxied = True
    record.method = b"PUT"
    record.route = route
    record.target = b"/" + b"x" * length + wire
    record.request_id = "r" * length
    record.user_agent = wire
    record.started_ns = started_ns
    record.attempts = attempts
    record.status = 599
    record.upstream = "https://[::1]:8443/base/"
    encoder = SpanEncoder({"service.name": "x", "process.pid": 7}, semconv="http/dup")
    decoded = ExportTraceServiceRequest.FromString(encoder.encode([record, record]))
    (resource_spans,) = decoded.resource_spans
    assert attributes(resource_spans.resource) == {"service.name": "x", "process.pid": 7}
    (scope_spans,) = resource_spans.scope_spans
    assert scope_spans.scope.name == "nexus.gateway"
    assert len(scope_spans.spans) == (4 if attempts else 2)
    server, client = scope_spans.spans[:2]
    # Nothing was written under a field number that the schema does not have, or twice.
    decoded.DiscardUnknownFields()
    assert decoded.ByteSize() == len(encoder.encode([record, record]))
    assert server.name == (f"PUT {route}" if route else "PUT")
    found = attributes(server)
    assert found.get("http.route", "") == route
    assert found.get("nexus.request_id", "") == "r" * length
    assert found.get("nexus.attempts", 1) == max(attempts, 1)
    assert server.start_time_unix_nano == started_ns
    assert server.status.code == Status.STATUS_CODE_ERROR
    if not attempts:  # it met no upstream
        return
    assert client.parent_span_id == server.span_id
    assert attributes(client)["peer.service"] == "::1:8443"
    assert attributes(client)["http.url"].startswith("https://[::1]:8443/base/")


@pytest.mark.parametrize("bad", [{"trace_id": "ab"}, {"span_id": "ab"}, {"parent_span_id": "ab"}])
def test_identifiers_of_another_length_are_refused(make_record, bad):
    with pytest.raises(ValueError, match="expected a trace id of 16 bytes"):
        SpanEncoder({}).encode([make_record(**bad)])
