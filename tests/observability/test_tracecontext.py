"""W3C Trace Context: what is accepted, what is ignored, and who is sampled."""

from __future__ import annotations

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nexus.observability import tracecontext, tracing
from nexus.observability.tracecontext import RANDOM, SAMPLED
from nexus.observability.tracing import Sampler, parse_traceparent, parse_tracestate

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
SPAN = "00f067aa0ba902b7"


@pytest.mark.parametrize(
    ("value", "flags"),
    [
        (f"00-{TRACE}-{SPAN}-01", SAMPLED),
        (f"00-{TRACE}-{SPAN}-00", 0),
        (f"00-{TRACE}-{SPAN}-02", RANDOM),
        (f"00-{TRACE}-{SPAN}-ff", SAMPLED | RANDOM),
        (f"01-{TRACE}-{SPAN}-01", SAMPLED),
        (f"cc-{TRACE}-{SPAN}-01-what-the-future-brings", SAMPLED),
        (f"01-{TRACE}-{SPAN}-01-", SAMPLED),
    ],
)
def test_accepted(value, flags):
    assert parse_traceparent(value.encode()) == (TRACE, SPAN, flags)


@pytest.mark.parametrize(
    "value",
    [
        "",
        "00",
        f"00-{TRACE}-{SPAN}",
        f"00-{TRACE}-{SPAN}-1",
        f"00-{TRACE}-{SPAN}-01-",
        f"00-{TRACE}-{SPAN}-01-more",
        f"00-{TRACE}-{SPAN}-01.",
        f"01-{TRACE}-{SPAN}-01.more",
        f"ff-{TRACE}-{SPAN}-01",
        f"0-{TRACE}-{SPAN}-01",
        f"00-{TRACE.upper()}-{SPAN}-01",
        f"0A-{TRACE}-{SPAN}-01",
        f"00-{TRACE}-{SPAN}-0G",
        f"00-{'0' * 32}-{SPAN}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"00-{TRACE[1:]}-{SPAN}-01",
        f"00-{TRACE}0-{SPAN}-01",
        f"00-{TRACE}-{SPAN}0-01",
        f" 00-{TRACE}-{SPAN}-01",
        f"00-{TRACE}-{SPAN}-01\n",
        f"00_{TRACE}_{SPAN}_01",
        f"00-{TRACE[:-1]}_-{SPAN}-01",
        f"00-{TRACE}-{SPAN}-01,00-{TRACE}-{SPAN}-01",
    ],
)
def test_ignored(value):
    assert parse_traceparent(value.encode()) is None


@given(st.integers(0, 3))
def test_what_is_sent_can_be_read(flags):
    trace_id, span_id = tracing.new_trace_id(), tracing.new_span_id()
    sent = tracing.format_traceparent(trace_id, span_id, flags)
    assert parse_traceparent(sent) == (trace_id, span_id, flags)


@given(st.binary(max_size=80))
def test_no_bytes_break_the_parsers(value):
    assert parse_traceparent(value) is None or len(value) >= 55
    parse_tracestate([value])


NEARLY = st.builds(
    lambda parts, at, byte: parts[:at] + bytes([byte]) + parts[at + 1 :],
    st.just(f"00-{TRACE}-{SPAN}-01".encode()),
    st.integers(0, 54),
    st.one_of(st.sampled_from(b"0123456789abcdef-gAF _\n"), st.integers(0, 255)),
)


@given(NEARLY)
def test_the_short_way_and_the_long_way_agree(value):
    assert parse_traceparent(value) == tracecontext._parse_unusual(value)


def test_workers_do_not_draw_the_same_ids(forked):
    read, write = os.pipe()
    for _ in range(3):
        assert forked(lambda: os.write(write, tracing.new_trace_id().encode())) == 0
    ids = os.read(read, 1000) + tracing.new_trace_id().encode()
    os.close(read)
    os.close(write)
    assert len({ids[n : n + 32] for n in range(0, 128, 32)}) == 4


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([], b""),
        ([b"rojo=00f067aa0ba902b7,congo=t61"], b"rojo=00f067aa0ba902b7,congo=t61"),
        ([b"a=1", b"b=2 , c=3"], b"a=1,b=2,c=3"),
        ([b"a=1,,b=2,"], b"a=1,b=2"),
        ([b"\ta=1 \t, b=2"], b"a=1,b=2"),
        ([b"tenant@system=x"], b"tenant@system=x"),
        ([b"0a*/-_=x y~"], b"0a*/-_=x y~"),
        ([b",".join(b"k%d=v" % n for n in range(32))], b",".join(b"k%d=v" % n for n in range(32))),
        ([b",".join(b"k%d=v" % n for n in range(33))], b""),
        ([b"a=1,a=2"], b"a=1"),
        ([b"a=1", b"b=2,a=3"], b"a=1,b=2"),
        ([b"A=1"], b""),
        ([b"a"], b""),
        ([b"a="], b""),
        ([b"=1"], b""),
        ([b"a=1=2"], b""),
        ([b"a b=1"], b""),
        ([b"a=\xff"], b""),
        ([b"a=x\ty"], b""),
        ([b"@a=1"], b""),
        ([b"a@=1"], b"a@=1"),
        ([b"a@b@c=1"], b"a@b@c=1"),
        ([b"k" * 256 + b"=" + b"v" * 256], b"k" * 256 + b"=" + b"v" * 256),
        ([b"k" * 257 + b"=1"], b""),
        ([b"a=" + b"v" * 257], b""),
        ([b"t" * 241 + b"@" + b"s" * 14 + b"=1"], b"t" * 241 + b"@" + b"s" * 14 + b"=1"),
        ([b"t" * 242 + b"@v=1"], b"t" * 242 + b"@v=1"),
        ([b"t@" + b"s" * 15 + b"=1"], b"t@" + b"s" * 15 + b"=1"),
        ([b"t@" + b"s" * 255 + b"=1"], b""),
    ],
)
def test_tracestate(values, expected):
    assert parse_tracestate(values) == expected


@pytest.mark.parametrize("parent", [True, False])
def test_a_callers_decision_is_followed(parent):
    assert Sampler(0.0 if parent else 1.0).decide(TRACE, parent) is parent


@pytest.mark.parametrize(("ratio", "share"), [(0, 0), (1, 1), (0.1, 0.1), (0.5, 0.5)])
def test_roots_are_drawn_by_ratio(ratio, share):
    sampler = Sampler(ratio)
    ids = [f"{n * 0x9E3779B97F4A7C15 % 2**64:032x}" for n in range(1, 2001)]
    drawn = sum(sampler.decide(trace_id, None) for trace_id in ids) / len(ids)
    assert drawn == pytest.approx(share, abs=0.01)


def test_the_draw_is_opentelemetrys():
    from opentelemetry.sdk.trace.sampling import Decision, TraceIdRatioBased

    theirs = TraceIdRatioBased(0.3)
    for _ in range(300):
        trace_id = tracing.new_trace_id()
        decision = theirs.should_sample(None, int(trace_id, 16), "x").decision
        assert Sampler(0.3).decide(trace_id, None) == (decision is Decision.RECORD_AND_SAMPLE)


@pytest.mark.parametrize("ratio", [-0.1, 1.1, float("nan")])
def test_a_ratio_is_a_share(ratio):
    with pytest.raises(ValueError, match="expected 0 to 1"):
        Sampler(ratio)
