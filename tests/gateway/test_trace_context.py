"""W3C Trace Context through a running gateway: the cases of the specification's own harness
(github.com/w3c/trace-context, test/), an upstream that the OpenTelemetry SDK instruments, and that
every span is accounted for."""

from __future__ import annotations

import http.server
import itertools
import re
import threading
import uuid
from collections.abc import Iterator

import pytest
from gateway_process import GatewayProcess, check_backend
from gateway_upstream import Upstream
from opentelemetry.propagate import extract
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind
from support.collector import Collector, values
from support.waiting import eventually

TRACE = "12345678901234567890123456789012"
PARENT = "1234567890123456"
GOOD = f"00-{TRACE}-{PARENT}-01"
UNSAMPLED = f"00-{TRACE}-{PARENT}-00"
FORM = re.compile(r"00-([0-9a-f]{32})-([0-9a-f]{16})-(0[0-3])")


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    made = Collector()
    yield made
    made.close()


@pytest.fixture(scope="module", params=["py", "c"])
def traced(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    upstream_a: Upstream,
    collector: Collector,
) -> Iterator[GatewayProcess]:
    check_backend(request.param)
    gateway = GatewayProcess(
        tmp_path_factory.mktemp(f"traced-{request.param}"),
        request.param,
        [upstream_a.url],
        {"tracing": {"enabled": True, "otlp_endpoint": collector.url}},
        {"OTEL_BSP_SCHEDULE_DELAY": "50", "OTEL_RESOURCE_ATTRIBUTES": "deployment=test"},
    ).start()
    yield gateway
    assert gateway.stop() == 0


@pytest.fixture
def send(traced: GatewayProcess, upstream_a: Upstream):
    """Field lines → (trace id, parent id, flags, tracestate members) as the upstream gets them."""

    def sent(*fields: str) -> tuple[str, str, str, list[str]]:
        mark = uuid.uuid4().hex
        assert traced.request(f"/api/json?{mark}", "GET", None, *fields).status == 200
        seen = next(one for one in reversed(upstream_a.seen) if mark in one.path)
        (parent,) = seen.values("traceparent")
        match = FORM.fullmatch(parent)
        assert match, parent
        assert match[1] != "0" * 32
        assert match[2] != "0" * 16
        states = seen.values("tracestate")
        assert len(states) <= 1
        return match[1], match[2], match[3], states[0].split(",") if states else []

    return sent


@pytest.mark.parametrize(
    "fields",
    [
        [f"traceparent: {GOOD}"],
        [f"TraceParent: {GOOD}"],
        [f"TrAcEpArEnT: {GOOD}"],
        [f"TRACEPARENT: {GOOD}"],
        [f"traceparent: cc-{TRACE}-{PARENT}-01"],
        [f"traceparent: cc-{TRACE}-{PARENT}-01-what-the-future-will-be-like"],
        [f"traceparent:  {GOOD}"],
        [f"traceparent: \t{GOOD}"],
        [f"traceparent: {GOOD} "],
        [f"traceparent: {GOOD}\t"],
        [f"traceparent: \t {GOOD} \t"],
        [f"traceparent: {GOOD}", "tracestate: "],
    ],
    ids=repr,
)
def test_goes_on_in_the_callers_trace(send, fields):
    trace, parent, flags, state = send(*fields)
    assert trace == TRACE
    assert parent != PARENT
    assert flags == "01"
    assert state == []


@pytest.mark.parametrize("flags", ["00", "01", "02", "03"])
def test_the_random_flag_goes_on_as_it_came(send, flags):
    assert send(f"traceparent: 00-{TRACE}-{PARENT}-{flags}")[2] == flags
    # Of the bits that mean nothing yet none does (Level 2, §4.2.2).
    assert send(f"traceparent: 00-{TRACE}-{PARENT}-f{int(flags) | 0xC:x}")[2] == flags


@pytest.mark.parametrize(
    "fields",
    [
        [],
        [f"traceparent: 00-{TRACE[:-1]}1-{PARENT}-01", f"traceparent: {GOOD}"],
        [f"trace-parent: {GOOD}"],
        [f"trace.parent: {GOOD}"],
        [f"traceparent: {GOOD}."],
        [f"traceparent: {GOOD}-what-the-future-will-be-like"],
        [f"traceparent: cc-{TRACE}-{PARENT}-01.what-the-future-will-be-like"],
        [f"traceparent: ff-{TRACE}-{PARENT}-01"],
        [f"traceparent: .0-{TRACE}-{PARENT}-01"],
        [f"traceparent: 0.-{TRACE}-{PARENT}-01"],
        [f"traceparent: 000-{TRACE}-{PARENT}-01"],
        [f"traceparent: 0000-{TRACE}-{PARENT}-01"],
        [f"traceparent: 0-{TRACE}-{PARENT}-01"],
        [f"traceparent: 00-{'0' * 32}-{PARENT}-01"],
        [f"traceparent: 00-.{TRACE[1:]}-{PARENT}-01"],
        [f"traceparent: 00-{TRACE[:-1]}.-{PARENT}-01"],
        [f"traceparent: 00-{TRACE}3-{PARENT}-01"],
        [f"traceparent: 00-{TRACE[:-1]}-{PARENT}-01"],
        [f"traceparent: 00-{TRACE}-{'0' * 16}-01"],
        [f"traceparent: 00-{TRACE}-.{PARENT[1:]}-01"],
        [f"traceparent: 00-{TRACE}-{PARENT[:-1]}.-01"],
        [f"traceparent: 00-{TRACE}-{PARENT}7-01"],
        [f"traceparent: 00-{TRACE}-{PARENT[:-1]}-01"],
        [f"traceparent: 00-{TRACE}-{PARENT}-.0"],
        [f"traceparent: 00-{TRACE}-{PARENT}-0."],
        [f"traceparent: 00-{TRACE}-{PARENT}-001"],
        [f"traceparent: 00-{TRACE}-{PARENT}-1"],
        ["tracestate: foo=1"],
        ["tracestate: foo=1,bar=2"],
    ],
    ids=repr,
)
def test_begins_a_trace_of_its_own(send, fields):
    trace, parent, flags, state = send(*fields)
    assert trace[:-1] != TRACE[:-1]
    assert parent != PARENT
    assert flags == "03", "sampled, and drawn at random"
    assert state == []


_KEY = "abcdefghijklmnopqrstuvwxyz0123456789_-*/"
_VALUE = "".join(chr(c) for c in range(0x20, 0x7F) if chr(c) not in ",=")


def _members(first: int, last: int) -> str:
    return ",".join(f"bar{n:02}={n:02}" for n in range(first, last + 1))


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        (["foo=1,bar=2"], ["foo=1", "bar=2"]),
        (["foo=1", ""], ["foo=1"]),
        (["", "foo=1"], ["foo=1"]),
        (
            ["foo=1,bar=2", "rojo=1,congo=2", "baz=3"],
            ["foo=1", "bar=2", "rojo=1", "congo=2", "baz=3"],
        ),
        ([f"{_KEY}={_VALUE}"], [f"{_KEY}={_VALUE}"]),
        ([f"{_KEY}@a-z0-9_-*/={_VALUE}"], [f"{_KEY}@a-z0-9_-*/={_VALUE}"]),
        (["foo=1 \t , \t bar=2, \t baz=3"], ["foo=1", "bar=2", "baz=3"]),
        (["foo=1\t \t,\t \tbar=2,\t \tbaz=3"], ["foo=1", "bar=2", "baz=3"]),
        ([" foo=1"], ["foo=1"]),
        (["\tfoo=1"], ["foo=1"]),
        (["foo=1 "], ["foo=1"]),
        (["foo=1\t"], ["foo=1"]),
        (["\t foo=1 \t"], ["foo=1"]),
        (
            [_members(1, 10), _members(11, 20), _members(21, 30), _members(31, 32)],
            _members(1, 32).split(","),
        ),
        (["foo=1", "z" * 256 + "=1"], ["foo=1", "z" * 256 + "=1"]),
        (
            ["foo=1", "t" * 241 + "@" + "v" * 14 + "=1"],
            ["foo=1", "t" * 241 + "@" + "v" * 14 + "=1"],
        ),
        (
            ["foo=1", "t" * 242 + "@v=1"],
            ["foo=1", "t" * 242 + "@v=1"],
        ),
        (
            ["foo=1", "t@" + "v" * 15 + "=1"],
            ["foo=1", "t@" + "v" * 15 + "=1"],
        ),
        (["foo@=1,bar=2"], ["foo@=1", "bar=2"]),
        (["foo@@bar=1,bar=2"], ["foo@@bar=1", "bar=2"]),
        (["foo@bar@baz=1,bar=2"], ["foo@bar@baz=1", "bar=2"]),
        # Of one key the first goes on.
        (["foo=1,foo=1"], ["foo=1"]),
        (["foo=1,foo=2"], ["foo=1"]),
        (["foo=1", "foo=1"], ["foo=1"]),
        (["foo=1", "foo=2"], ["foo=1"]),
        # None of these is a list, so none of it goes on.
        (["foo =1"], []),
        (["FOO=1"], []),
        (["foo.bar=1"], []),
        (["@foo=1,bar=2"], []),
        ([_members(1, 10), _members(11, 20), _members(21, 30), _members(31, 33)], []),
        (["foo=1", "z" * 257 + "=1"], []),
        (["foo=bar=baz"], []),
        (["foo=,bar=3"], []),
    ],
    ids=repr,
)
def test_tracestate(send, fields, expected):
    lines = [f"tracestate: {value}" for value in fields]
    trace, parent, flags, state = send(f"traceparent: {UNSAMPLED}", *lines)
    assert (trace, flags) == (TRACE, "00")
    assert parent != PARENT
    assert state == expected


@pytest.mark.parametrize("name", ["TraceState", "TrAcEsTaTe", "TRACESTATE"])
def test_tracestate_in_any_letter_case(send, name):
    assert send(f"traceparent: {UNSAMPLED}", f"{name}: foo=1")[3] == ["foo=1"]


@pytest.mark.parametrize("name", ["trace-state", "trace.state"])
def test_tracestate_by_another_name_is_none(send, name):
    assert send(f"traceparent: {UNSAMPLED}", f"{name}: foo=1")[3] == []


@pytest.mark.parametrize("given", [f"traceparent: {GOOD}", "", "traceparent: 00-0-0-01"])
def test_each_request_of_a_connection_is_a_parent_of_its_own(traced, upstream_a, given):
    client = traced.client()
    mark = uuid.uuid4().hex
    line = f"{given}\r\n" if given else ""
    for _ in range(3):
        client.send(f"GET /api/json?{mark} HTTP/1.1\r\nHost: t\r\n{line}\r\n".encode())
        assert client.read().status == 200
    client.close()
    seen = [one.values("traceparent")[0] for one in upstream_a.seen if mark in one.path]
    found = [FORM.fullmatch(value) for value in seen]
    assert len({match[2] for match in found if match}) == 3
    traces = {match[1] for match in found if match}
    assert traces == {TRACE} if given.endswith(GOOD) else len(traces) == 3


def test_spans_link_across_the_gateway_and_an_upstream_with_the_sdk(
    traced, collector, tmp_path, request
):
    kept = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(kept))
    tracer = provider.get_tracer("shop")

    class Shop(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            context = extract(dict(self.headers))
            with tracer.start_as_current_span(self.path, context=context, kind=SpanKind.SERVER):
                self.send_response(200)
                self.send_header("Content-Length", "2")
                self.end_headers()
                self.wfile.write(b"ok")

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Shop)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    request.addfinalizer(server.server_close)
    request.addfinalizer(server.shutdown)
    services = traced.services.read_text()
    request.addfinalizer(lambda: traced.services.write_text(services))
    traced.write_services([f"http://127.0.0.1:{server.server_address[1]}"])
    for _ in range(100):
        traced.request("/api/json?first")
        if kept.get_finished_spans():
            break
        threading.Event().wait(0.05)
    path = f"/order/{uuid.uuid4().hex}"
    answer = traced.request(f"/api{path}", "GET", None, f"traceparent: {GOOD}", "tracestate: a=1")
    assert answer.status == 200
    end = threading.Event()
    for _ in range(100):
        ended = [span for span in kept.get_finished_spans() if span.name == path]
        ours = [span for span in collector.spans if path in values(span)["http.url"]]
        if len(ours) == 2 and ended:
            break
        end.wait(0.05)
    (theirs,) = ended
    root, client = sorted(ours, key=lambda span: span.kind)
    assert root.parent_span_id.hex() == PARENT
    assert client.parent_span_id == root.span_id
    assert f"{theirs.parent.span_id:016x}" == client.span_id.hex()
    assert f"{theirs.context.trace_id:032x}" == TRACE
    assert theirs.parent.is_remote
    assert theirs.parent.trace_state.get("a") == "1"
    assert root.trace_state == client.trace_state == "a=1"
    assert values(client)["http.url"].endswith(path)
    assert root.trace_id.hex() == TRACE
    assert collector.resources[-1]["deployment"] == "test"


def test_received_and_dropped_are_made(traced, collector):
    def counts() -> dict[str, float]:
        found: dict[str, float] = {}
        for line in traced.metrics().splitlines():
            if line.startswith("nexus_trace_spans"):
                name = re.split(r"[{ ]", line)[0]
                found[name] = found.get(name, 0) + float(line.split()[-1])
        return found

    for _ in range(20):
        traced.request("/api/json")
    for _ in range(100):
        now = counts()
        dropped = now.get("nexus_trace_spans_dropped_total", 0)
        exported = now["nexus_trace_spans_exported_total"]
        if now["nexus_trace_spans_total"] == exported + dropped:
            break
        threading.Event().wait(0.05)
    made = now["nexus_trace_spans_total"]
    assert made == exported + dropped
    # The module's collector may have had another gateway before, never fewer than ours.
    assert len(collector.spans) >= exported
    assert made >= 40


@pytest.mark.parametrize(
    ("environ", "flags", "spans"),
    [
        ({"OTEL_SDK_DISABLED": "true"}, "02", 0),
        ({"OTEL_TRACES_SAMPLER": "always_on"}, "01", 2),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else None,
)
def test_variables_decide(start_gateway, upstream_a, environ, flags, spans):
    """Each against a setting, or a caller, that says otherwise."""
    collector = Collector()
    gateway = start_gateway(
        [upstream_a.url],
        {"OTEL_BSP_SCHEDULE_DELAY": "10", **environ},
        tracing={"enabled": True, "otlp_endpoint": collector.url, "sample_ratio": 1.0},
    )
    mark = uuid.uuid4().hex
    given = [f"traceparent: {UNSAMPLED}"] if flags == "01" else []
    gateway.request(f"/api/json?{mark}", "GET", None, *given)
    gateway.stop()
    seen = next(one for one in reversed(upstream_a.seen) if mark in one.path)
    assert seen.values("traceparent")[0].endswith(f"-{flags}")
    assert sum(mark in str(values(span)) for span in collector.spans) == spans
    collector.close()


@pytest.mark.parametrize("opt_in", ["", "http/dup"])
def test_each_attempt_is_a_span_that_its_upstream_knows(
    start_gateway, upstream_a, upstream_b, opt_in
):
    collector = Collector()
    gateway = start_gateway(
        [upstream_a.url, upstream_b.url],
        {"OTEL_BSP_SCHEDULE_DELAY": "10", "OTEL_SEMCONV_STABILITY_OPT_IN": opt_in},
        tracing={"enabled": True, "otlp_endpoint": collector.url},
    )
    path = f"/reset-a?{uuid.uuid4().hex}"
    for _ in range(2):  # one of them, at least, meets a first
        assert gateway.request(f"/api{path}", "GET", None, f"traceparent: {GOOD}").status == 200
    mark = uuid.uuid4().hex
    assert gateway.request(f"/api/reset?{mark}").status == 502
    gateway.stop()  # which sends what it has
    collector.close()

    spans = [span for span in collector.spans if "/reset" in values(span)["http.url"]]
    clients = [span for span in spans if span.name == "upstream.proxy"]
    ids = {span.span_id.hex(): span for span in clients}
    assert len(ids) == len(clients) >= 6, "each attempt has an id of its own"
    told = [
        (seen, FORM.fullmatch(seen.values("traceparent")[0]))
        for upstream in (upstream_a, upstream_b)
        for seen in upstream.seen
        if path in seen.path or mark in seen.path
    ]
    assert {match[2] for _, match in told} == set(ids), "the ids that the upstreams got"
    for seen, match in told:
        span = ids[match[2]]
        assert span.trace_id.hex() == match[1]
        assert values(span)["http.url"].endswith(seen.path)
        upstream = upstream_a if seen in upstream_a.seen else upstream_b
        assert values(span)["peer.service"] == upstream.url.removeprefix("http://")

    roots = [span for span in spans if span not in clients]
    assert len(roots) == 3
    for root in roots:
        own = sorted(
            (span for span in clients if span.parent_span_id == root.span_id),
            key=lambda span: span.start_time_unix_nano,
        )
        said = [values(span) for span in own]
        assert values(root).get("nexus.attempts", 1) == len(own)
        assert all(  # one after the other, inside of the request
            one.end_time_unix_nano <= two.start_time_unix_nano
            for one, two in itertools.pairwise(own)
        )
        assert root.start_time_unix_nano <= own[0].start_time_unix_nano
        assert own[-1].end_time_unix_nano <= root.end_time_unix_nano
        failed = len(own) - 1 if values(root)["http.status_code"] == 200 else len(own)
        assert [span.status.code for span in own] == [2] * failed + [0] * (len(own) - failed)
        assert ["http.status_code" in one for one in said] == [False] * failed + [True] * (
            len(own) - failed
        )
        if opt_in:
            assert [one.get("http.request.resend_count", 0) for one in said] == list(
                range(len(own))
            )
            assert [one.get("error.type") for one in said[:failed]] == ["upstream_closed"] * failed
        else:
            assert not any("http.request.resend_count" in one for one in said)


def test_failures_reach_a_collector_with_hiccups_as_the_variables_say(start_gateway, upstream_a):
    """Nothing is sampled, the collector refuses twice: gzip, headers, resource, stable names."""
    collector = Collector()
    collector.answers = [503, 429]
    gateway = start_gateway(
        [upstream_a.url],
        {
            "OTEL_BSP_SCHEDULE_DELAY": "10",
            "OTEL_SEMCONV_STABILITY_OPT_IN": "http",
            "OTEL_EXPORTER_OTLP_ENDPOINT": collector.url,
            "OTEL_EXPORTER_OTLP_COMPRESSION": "gzip",
            "OTEL_EXPORTER_OTLP_HEADERS": "x-tenant=shop",
            "OTEL_SERVICE_NAME": "edge",
            "OTEL_RESOURCE_ATTRIBUTES": "deployment.environment=test",
            "OTEL_TRACES_SAMPLER": "parentbased_traceidratio",
            "OTEL_TRACES_SAMPLER_ARG": "0",
        },
        tracing={"enabled": True, "otlp_endpoint": "http://127.0.0.1:1"},
    )
    mark = uuid.uuid4().hex
    assert gateway.request(f"/api/json?{mark}").status == 200
    assert gateway.request(f"/api/status/500?{mark}").status == 500
    assert eventually(lambda: len(collector.spans) >= 2)
    gateway.stop()
    collector.close()
    # A busy machine makes others slow, which are kept, too.
    server, client = (
        span
        for span in collector.spans
        if "/status/500" in str(values(span).get("url.path", values(span).get("url.full")))
    )
    assert server.name == "GET /api/*"
    assert (
        values(server).items()
        >= {
            "http.request.method": "GET",
            "http.response.status_code": 500,
            "http.route": "/api/*",
            "url.path": "/api/status/500",
            "url.query": mark,
            "error.type": "500",
        }.items()
    )
    assert values(client)["url.full"] == f"{upstream_a.url}/status/500?{mark}"
    assert not {"http.method", "http.url", "http.status_code"} & {*values(server), *values(client)}
    assert server.flags & 1 == client.flags & 1 == 0
    told = [one.values("traceparent")[0] for one in upstream_a.seen if mark in one.path]
    assert [parent[-2:] for parent in told] == ["02", "02"]
    assert client.span_id.hex() in told[1]
    assert (
        collector.resources[0].items()
        >= {
            "service.name": "edge",
            "deployment.environment": "test",
        }.items()
    )
    assert len(collector.headers) >= 3
    for headers in collector.headers:
        assert (headers["Content-Encoding"], headers["x-tenant"]) == ("gzip", "shop")


def test_functions_of_the_worker_are_spans_too(start_gateway, upstream_a):
    collector = Collector()
    tracing = {"enabled": True, "otlp_endpoint": collector.url}
    gateway = start_gateway(
        [upstream_a.url],
        {"OTEL_BSP_SCHEDULE_DELAY": "10"},
        tracing={**tracing, "functions": ["nexus.gateway.discovery:ServicesFile.poll"]},
    )
    wanted = "nexus.gateway.discovery.ServicesFile.poll"
    for _ in range(200):  # it is polled five times a second
        if any(span.name == wanted for span in collector.spans):
            break
        threading.Event().wait(0.05)
    gateway.stop()
    assert any(span.name == wanted for span in collector.spans)
    collector.close()


def test_functions_that_do_not_exist_are_refused_at_the_start(tmp_path, upstream_a):
    gateway = GatewayProcess(
        tmp_path,
        "py",
        [upstream_a.url],
        {"tracing": {"functions": ["nexus.gateway.discovery:nothing"]}},
    )
    with pytest.raises(AssertionError, match="'nothing' fits no function of"):
        gateway.start()
