"""The current span through threads, executors, processes; and together with OpenTelemetry."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import textwrap
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from opentelemetry import trace
from opentelemetry.proto.trace.v1.trace_pb2 import Span as Message
from support.collector import values

from nexus import tracing
from nexus.errors import ConfigError
from nexus.observability.sampling import Sampling, sampling_from
from nexus.tracing import traced


@traced(name="below")
def below():
    pass


def test_threads_and_executors(on, sent):
    @traced(name="above")
    def above():
        thread = threading.Thread(target=tracing.carry(below))
        thread.start()
        thread.join()
        with ThreadPoolExecutor(2) as pool:
            for done in [tracing.submit(pool, below) for _ in range(4)]:
                done.result()
            pool.submit(below).result()  # without: a trace of its own

    on()
    above()
    sent()
    parents = [s.parent_span_id for s in sent_all() if s.name == "below"]
    top = next(s for s in sent_all() if s.name == "above")
    assert parents.count(top.span_id) == 5
    assert parents.count(b"") == 1


@pytest.fixture(autouse=True)
def _collector_at_hand(collector):
    global sent_all
    sent_all = lambda: collector.spans  # noqa: E731


async def test_tasks_and_asyncio_to_thread(on, sent):
    @traced(name="above")
    async def above():
        await asyncio.create_task(later())
        await asyncio.to_thread(below)

    @traced(name="later")
    async def later():
        pass

    on()
    await above()
    spans = sent()
    assert spans["later"].parent_span_id == spans["above"].span_id
    assert spans["below"].parent_span_id == spans["above"].span_id


def test_continued_over_process_borders(on, sent):
    on()
    header = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
    with tracing.continued({"Traceparent": header, "tracestate": "a=1, b=2"}) as parent:
        assert parent.is_remote
        below()
        with tracing.span("block", n=1):
            out = tracing.inject()
    assert out["tracestate"] == "a=1,b=2"
    assert out["traceparent"].startswith("00-4bf92f3577b34da6a3ce929d0e0e4736-")
    spans = sent()
    assert spans["below"].trace_id.hex() == "4bf92f3577b34da6a3ce929d0e0e4736"
    assert spans["below"].parent_span_id.hex() == "00f067aa0ba902b7"
    assert spans["below"].flags & 0x200
    assert spans["block"].trace_state == "a=1,b=2"
    with tracing.continued({"traceparent": "nonsense"}) as parent:
        assert parent is None
    with tracing.continued({"traceparent": header[:-1] + "0"}), tracing.span("not sampled"):
        assert tracing.inject()["traceparent"].endswith("-00")
    assert "not sampled" not in sent()
    # The random flag is the trace id's, and so its children's and theirs.
    with (
        tracing.continued({"traceparent": header[:-1] + "3"}),
        tracing.span("random"),
        tracing.span("child"),
    ):
        assert tracing.inject()["traceparent"].endswith("-03")
    assert sent()["child"].flags & 0xFF == 3


def test_code_that_knows_only_opentelemetry(on, sent):
    """A middleware sees the current span by the standard API, and adds to it and below it."""
    on()
    tracer = trace.get_tracer("some.middleware", "1.2")

    @traced(name="ours")
    def ours():
        seen = trace.get_current_span()
        assert isinstance(seen, trace.Span)
        assert seen.is_recording()
        seen.set_attribute("seen.by", "middleware")
        seen.add_event("noted", {"k": 1})
        with tracer.start_as_current_span("theirs", kind=trace.SpanKind.CLIENT) as theirs:
            theirs.add_link(seen.get_span_context())
            below()
        with pytest.raises(KeyError), tracer.start_as_current_span("failed"):
            raise KeyError("x")
        detached = tracer.start_span("detached", attributes={"a": True}, start_time=10**18)
        detached.set_status(trace.Status(trace.StatusCode.OK))
        detached.set_status(trace.StatusCode.ERROR, "OK is final")
        detached.end(end_time=10**18 + 5)

    ours()
    spans = sent()
    assert values(spans["ours"]) == {"seen.by": "middleware"}
    assert spans["ours"].events[0].name == "noted"
    assert spans["theirs"].parent_span_id == spans["ours"].span_id
    assert spans["theirs"].kind == Message.SPAN_KIND_CLIENT
    assert spans["theirs"].links[0].span_id == spans["ours"].span_id
    assert spans["below"].parent_span_id == spans["theirs"].span_id
    assert spans["failed"].status.code == 2
    assert len(spans["failed"].events) == 1
    assert spans["detached"].status.code == 1
    assert spans["detached"].end_time_unix_nano - spans["detached"].start_time_unix_nano == 5


def run(code: str, **environ: str) -> str:
    """A process of its own: a tracer provider is set once in a process."""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={**os.environ, **environ},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_with_the_sdk_set_up_it_makes_the_spans():
    out = run(
        """
        import asyncio
        from opentelemetry import trace
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import SimpleSpanProcessor
        from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

        kept = InMemorySpanExporter()
        provider = TracerProvider()
        provider.add_span_processor(SimpleSpanProcessor(kept))
        trace.set_tracer_provider(provider)

        from nexus import tracing

        @tracing.traced(name="ours", args=["n"], attributes={"k": "v"})
        def ours(n):
            with trace.get_tracer("theirs").start_as_current_span("theirs"):
                asyncio.run(inner())

        @tracing.traced(name="inner")
        async def inner():
            with tracing.span("block", a=1):
                pass

        @tracing.traced(name="fails")
        def fails():
            raise ValueError("no")

        @tracing.traced(name="short", min_duration=9)
        def short():
            pass

        ours(0)
        assert tracing.enable()
        ours(7)
        short()
        try:
            fails()
        except ValueError:
            pass
        spans = {s.name: s for s in kept.get_finished_spans()}
        assert set(spans) == {"ours", "theirs", "inner", "block", "fails"}, set(spans)
        for child, parent in (("theirs", "ours"), ("inner", "theirs"), ("block", "inner")):
            assert spans[child].parent.span_id == spans[parent].context.span_id, child
        assert dict(spans["ours"].attributes) == {"k": "v", "arg.n": 7}
        assert spans["fails"].status.status_code is trace.StatusCode.ERROR
        tracing.disable()
        ours(1)
        assert len(kept.get_finished_spans()) == 7  # only the SDK's own was added
        print("done")
        """
    )
    assert out == "done\n"


def test_switched_off_by_the_environment():
    code = "from nexus import tracing; print(tracing.enable(), tracing.enabled())"
    assert run(code, OTEL_SDK_DISABLED="true") == "False False\n"


def test_exit_and_fork_send_what_was_made(collector):
    """Spans of the last moment leave before the process ends; a fork sends its own only."""
    run(
        """
        import os
        from nexus import tracing

        @tracing.traced(name="before")
        def before(): pass
        @tracing.traced(name="in child")
        def child(): pass

        tracing.enable()
        before()
        pid = os.fork()
        if pid == 0:
            child()
            tracing.disable()
            os._exit(0)
        assert os.waitpid(pid, 0)[1] == 0
        """,
        OTEL_EXPORTER_OTLP_ENDPOINT=collector.url,
        OTEL_SERVICE_NAME="forker",
        OTEL_BSP_SCHEDULE_DELAY="300",
    )
    collector.wait(2)
    assert sorted(span.name for span in collector.spans) == ["before", "in child"]
    assert collector.resources[-1]["service.name"] == "forker"


def test_batches_do_not_wait_for_each_other(on, collector, monkeypatch):
    """The first is answered only once a second is there: a collector may be far away."""
    come = []
    second = threading.Event()
    take = collector.take

    def answer(*request):
        come.append(request)
        if len(come) > 1:
            second.set()
        assert second.wait(20)
        return take(*request)

    monkeypatch.setattr(collector, "take", answer)
    on(OTEL_BSP_MAX_EXPORT_BATCH_SIZE="10", OTEL_BSP_SCHEDULE_DELAY="60000")
    for _ in range(40):
        below()
    assert tracing.flush(20)
    counts = tracing.counts()
    assert (counts["made"], counts["exported"], counts["queued"]) == (40, 40, 0)
    assert counts["ok batch"] == len(come) >= 4
    assert len(collector.spans) == 40


def test_drops_are_counted(on, sent, collector):
    on(OTEL_BSP_MAX_QUEUE_SIZE="10", OTEL_BSP_SCHEDULE_DELAY="60000")
    for _ in range(9):
        below()
    collector.answers[:] = [400]
    assert tracing.flush()
    for _ in range(500):
        below()
    tracing.disable()
    counts = tracing.counts()
    assert counts["made"] == 509
    assert counts["refused dropped"] >= 9
    lost = sum(n for what, n in counts.items() if what.endswith("dropped"))
    assert counts["exported"] + lost == 509
    assert counts["exported"] == len(collector.spans)


@pytest.mark.parametrize(
    ("name", "argument", "expected"),
    [
        ("", "", Sampling(0.25)),
        ("always_on", "", Sampling(1.0, False)),
        ("always_off", "0.5", Sampling(0.0, False)),
        ("traceidratio", "0.5", Sampling(0.5, False)),
        ("parentbased_traceidratio", "", Sampling(1.0)),
        ("parentbased_always_off", "", Sampling(0.0)),
    ],
)
def test_samplers_of_the_environment(name, argument, expected):
    environ = {"OTEL_TRACES_SAMPLER": name, "OTEL_TRACES_SAMPLER_ARG": argument}
    assert sampling_from(environ, 0.25) == expected


def test_samplers_that_cannot_be_read():
    with pytest.raises(ConfigError, match="expected one of always_on"):
        sampling_from({"OTEL_TRACES_SAMPLER": "jaeger_remote"}, 1)
    with pytest.raises(ConfigError, match="0 to 1, got '2'"):
        sampling_from({"OTEL_TRACES_SAMPLER": "traceidratio", "OTEL_TRACES_SAMPLER_ARG": "2"}, 1)


def test_always_on_asks_no_parent(on, sent):
    on(OTEL_TRACES_SAMPLER="always_on")
    with tracing.continued(
        {"traceparent": "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00"}
    ):
        below()
    assert sent()["below"].parent_span_id.hex() == "00f067aa0ba902b7"
