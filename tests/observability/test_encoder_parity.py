"""Access lines and spans: the compiled encoders write what the pure ones write, byte for byte."""

from __future__ import annotations

import itertools
import json
import os
import select

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nexus._speedups import COMPILED_MODULES, _built
from nexus.observability import _accessline_py, _spans_py

pytestmark = pytest.mark.skipif(
    not all(_built(name) for name in COMPILED_MODULES)
    and os.environ.get("NEXUS_REQUIRE_EXTENSIONS", "") in ("", "0"),
    reason="the kernels are not built",
)

text = st.text(
    st.characters(codec="utf-8") | st.sampled_from('"\\/\x00\x07\b\t\n\f\r\x1f\x7f é€😀'),
    max_size=12,
)
wire = st.binary(max_size=12) | st.sampled_from(
    [
        b"", b"GET", b"POST", b"BREW", b"/api/x", b"/api/x?page=2&token=abc", b'/a?q=\xff"\\',
        b"/p/eyJhbGciOiJIUzI1NiJ9.e30.x", b"http://user:secret@host/x", b"*", b"/" + b"x" * 3000,
        b"/" + b"\xc3\xa9" * 1500, b"Mozilla/5.0 (X11)", b"Bearer abcdefghij",
    ]
)  # fmt: skip
nanoseconds = st.integers(0, 10**13) | st.sampled_from([0, 499, 500, 1500, 999_499, 999_500, 10**9])
numbers = st.integers(0, 2**40)


def hexa(digits: int) -> st.SearchStrategy[str]:
    return st.text("0123456789abcdef", min_size=digits, max_size=digits)


fields = st.fixed_dictionaries(
    {
        "started_ns": st.integers(0, 2 * 10**18),
        "duration_ns": nanoseconds,
        "method": wire,
        "target": wire,
        "scheme": st.sampled_from([b"http", b"https"]),
        "host": st.sampled_from(
            [b"", b"shop.example:8080", b"\xe9.example", b"[::1]:80", b"[::1]", b":80", b"a:999999"]
        ),
        "route": text,
        "status": st.sampled_from([0, 101, 200, 404, 499, 500, 503]),
        "reason": text,
        "ip": text,
        "client_id": text,
        "user_agent": wire,
        "request_id": text,
        "inbound_request_id": wire,
        "correlation_id": wire,
        "bytes_in": numbers,
        "bytes_out": numbers,
        "proxied": st.booleans(),
        "upstream": st.sampled_from(
            ["", "http://h", "https://[::1]:8443/base/", "unix:///run/a", "http://h:1/"]
        ),
        "upstream_status": st.sampled_from([0, 200, 404, 502]),
        "upstream_target": wire,
        "upstream_start_ns": st.integers(0, 2 * 10**18),
        "upstream_ns": nanoseconds,
        "attempts": st.integers(0, 10),
        "upstream_error": text,
        "earlier": st.none()
        | st.lists(
            st.tuples(
                st.sampled_from(["http://h", "unix:///run/a", "http://h:1/"]),
                st.sampled_from([0, 503]),
                text,
                st.integers(0, 2 * 10**18),
                nanoseconds,
                hexa(16),
            ),
            max_size=2,
        ),
        "retry_skipped": text,
        "trace_id": hexa(32),
        "span_id": hexa(16),
        "parent_span_id": st.just("") | hexa(16),
        "upstream_span_id": hexa(16),
        "tracestate": st.sampled_from([b"", b"a=1,b=2", b"\xe9=1"]),
        "sampled": st.booleans(),
        "random_id": st.booleans(),
    }
)


def record_of(values: dict[str, object]) -> object:
    from nexus.observability._record_c import RequestRecord

    record = RequestRecord()
    for name, value in values.items():
        setattr(record, name, value)
    return record


@settings(deadline=None, max_examples=300)
@given(st.lists(fields, max_size=3), st.none() | st.integers(0, 99), text)
def test_access_lines(batch, worker, service) -> None:
    from nexus.observability import _accessline_c

    records = [record_of(values) for values in batch]
    pure = _accessline_py.AccessLineEncoder(service, worker)
    compiled = _accessline_c.AccessLineEncoder(service, worker)
    for _ in range(2):
        blocks = compiled.encode(records)
        assert blocks == pure.encode(records)
    lines = b"".join(blocks).splitlines(keepends=True)
    for line, values in zip(lines, batch, strict=True):
        assert line.endswith(b"}\n")
        assert line.count(b"\n") == 1
        document = json.loads(line)
        assert document["status"] == values["status"]
        assert document.get("ip", "") == values["ip"]
        assert document["latency_ms"] == pytest.approx(values["duration_ns"] / 1e6, abs=6e-4)


def test_access_lines_come_in_blocks_of_whole_ones() -> None:
    from nexus.observability import _accessline_c

    records = [
        record_of({"request_id": f"nexus-{n}", "target": b"/" + b"x" * (n * 40 % 600)})
        for n in range(64)
    ]
    records.insert(7, record_of({"request_id": "long", "route": "r" * 9000}))
    blocks = _accessline_c.AccessLineEncoder("x", 0).encode(records)
    assert blocks == _accessline_py.AccessLineEncoder("x", 0).encode(records)
    ids = [[json.loads(line)["request_id"] for line in block.splitlines()] for block in blocks]
    assert list(itertools.chain(*ids)) == [record.request_id for record in records]
    assert ["long"] in ids
    assert all(len(block) <= select.PIPE_BUF for block in blocks if b"long" not in block)
    assert len(blocks) < len(records) / 2


@settings(deadline=None, max_examples=300)
@given(st.lists(fields, max_size=3), st.sampled_from(["", "http", "http/dup"]))
def test_spans(batch, semconv) -> None:
    from nexus.observability import _spans_c

    records = [record_of(values) for values in batch]
    resource = {"service.name": "x", "process.pid": 7}
    pure = _spans_py.SpanEncoder(resource, semconv=semconv)
    compiled = _spans_c.SpanEncoder(resource, semconv=semconv)
    for _ in range(2):
        assert compiled.encode(records) == pure.encode(records)


def test_text_that_is_no_unicode_becomes_question_marks() -> None:
    from nexus.observability import _spans_c

    record = record_of(
        {"route": "/\ud800", "client_id": "\udfff", "trace_id": "a" * 32, "span_id": "b" * 16}
    )
    pure, compiled = _spans_py.SpanEncoder({}), _spans_c.SpanEncoder({})
    assert compiled.encode([record]) == pure.encode([record])
