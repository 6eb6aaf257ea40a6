"""Which requests become which events, under which key."""

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nexus._speedups import COMPILED_MODULES, _built
from nexus.gateway import _completed_py
from nexus.gateway.events import EventSink
from nexus.observability.record import RequestRecord
from nexus.wire import events


class Collected:
    def __init__(self):
        self.all = []

    def emit(self, topic, value, key, headers):
        event = events.decode(topic, value, headers, fallback_id="none")
        self.all.append((topic, event, key, dict(headers)))


def record(**fields):
    finished = RequestRecord()
    finished.started_ns = 1_795_255_200_123_456_789  # 2026-11-21T10:00:00.123Z
    finished.duration_ns = 12_345_678
    finished.method = b"GET"
    finished.target = b"/api/products?page=2"
    finished.route = "/api/*"
    finished.status = 200
    finished.ip = "192.0.2.7"
    for name, value in fields.items():
        setattr(finished, name, value)
    return finished


def consume(*records):
    collected = Collected()
    EventSink(collected, worker_id=5).consume(records)
    return collected.all


def test_a_proxied_request_is_reported_with_the_contracts_fields():
    [(topic, event, key, headers)] = consume(
        record(proxied=True, client_id="c1", trace_id="a" * 32, span_id="b" * 16, sampled=True)
    )
    assert topic == "gateway.request.completed"
    assert key is None
    assert (event.method, event.url, event.route) == ("GET", "/api/products?page=2", "/api/*")
    assert (event.status_code, event.latency_ms) == (200, 12.345)
    assert (event.ip, event.client_id, event.worker_id) == ("192.0.2.7", "c1", 5)
    assert event.emitted_at == "2026-11-21T10:00:00.135Z"  # when it ended
    assert headers["ce_id"].decode() == event.id
    assert headers["traceparent"] == b"00-" + b"a" * 32 + b"-" + b"b" * 16 + b"-01"


def test_a_rate_limited_request_is_reported_under_its_address():
    [(topic, event, key, _)] = consume(
        record(reason="rate_limited", status=429, correlation_id=b"c-1")
    )
    assert topic == "gateway.rate_limit.hit"
    assert key == b"192.0.2.7"
    assert (event.ip, event.method, event.url) == ("192.0.2.7", "GET", "/api/products?page=2")


def test_other_replies_of_our_own_are_no_events():
    assert consume(record(reason="no_token", status=401), record(status=404), record()) == []


def test_a_valid_correlation_id_is_the_key_and_any_other_is_not():
    keys = [
        key
        for _, _, key, _ in consume(
            record(proxied=True, correlation_id=b"order-7"),
            record(proxied=True, correlation_id=b"not a key"),
            record(proxied=True),
        )
    ]
    assert keys == [b"order-7", None, None]


SECRETS = (
    b"/cb?access_token=SECRET123&page=2",
    b"/a?sig=SECRET123",
    b"/t/eyJhbGciOiJIUzI1NiJ9.SECRET123.x",
)


def test_no_event_carries_a_credential():
    for target in SECRETS:
        for fields in ({"proxied": True}, {"reason": "rate_limited", "status": 429}):
            [(_, event, _, _)] = consume(record(target=target, **fields))
            assert "SECRET123" not in event.url
            assert "********" in event.url
        collected = Collected()
        EventSink(collected, 0).circuit_opened("http://127.0.0.1:3001", "GET", target.decode())
        assert "SECRET123" not in collected.all[0][1].url


def test_an_opened_circuit_is_reported_at_once():
    collected = Collected()
    EventSink(collected, 0).circuit_opened("http://127.0.0.1:3001", "GET", "/api/x")
    [(topic, event, key, _)] = collected.all
    assert topic == "gateway.circuit.opened"
    assert key is None
    assert (event.upstream, event.method, event.url) == ("http://127.0.0.1:3001", "GET", "/api/x")


def test_ids_differ_within_and_between_workers():
    ids = [e.id for _ in range(3) for _, e, _, _ in consume(*[record(proxied=True)] * 50)]
    assert len(set(ids)) == 150


def test_whatever_came_over_the_wire_fits_the_schema():
    [(_, event, _, _)] = consume(
        record(proxied=True, target=b"/\xff" + b"x" * 9000, method=b"", trace_id="", client_id="")
    )
    assert len(event.url) == events.MAX_URL_CHARACTERS
    assert event.url.startswith("/\\xffxx")  # as in the access log
    assert event.client_id is None


def test_the_kept_second_changes_with_the_clock():
    stamps = [
        e.emitted_at
        for _, e, _, _ in consume(
            *(
                record(proxied=True, started_ns=ms * 1_000_000, duration_ns=0)
                for ms in (1_000_999, 1_001_000, 999, 0)
            )
        )
    ]
    assert stamps == [
        "1970-01-01T00:16:40.999Z",
        "1970-01-01T00:16:41.000Z",
        "1970-01-01T00:00:00.999Z",
        "1970-01-01T00:00:00.000Z",
    ]


@pytest.mark.skipif(
    not all(_built(name) for name in COMPILED_MODULES)
    and os.environ.get("NEXUS_REQUIRE_EXTENSIONS", "") in ("", "0"),
    reason="the kernels are not built",
)
@given(
    st.fixed_dictionaries(
        {
            "started_ns": st.integers(0, 2 * 10**18),
            "duration_ns": st.integers(0, 10**13) | st.sampled_from([999, 1000, 1_500_000]),
            "method": st.sampled_from([b"", b"GET", b"\xffX"]),
            "target": st.binary(max_size=9) | st.just(b"/a?token=b&c"),
            "route": st.text(st.characters(codec="utf-8"), max_size=9),
            "status": st.integers(0, 999),
            "ip": st.text('0123456789abcdef.:"\\', max_size=9),
            "client_id": st.text(st.characters(codec="utf-8"), max_size=9),
            "trace_id": st.sampled_from(["", "a" * 32]),
            "span_id": st.sampled_from(["", "b" * 16]),
            "sampled": st.booleans(),
            "random_id": st.booleans(),
        }
    ),
    st.integers(0, 64),
    st.text('0123456789abcdef-"', max_size=20),
)
def test_both_encoders_write_the_same(values, worker, event_id):
    from nexus.gateway import _completed_c
    from nexus.observability import _record_c

    finished = _record_c.RequestRecord()
    for name, value in values.items():
        setattr(finished, name, value)
    pure = _completed_py.CompletedEncoder(worker, b"/nexus/gateway")
    compiled = _completed_c.CompletedEncoder(worker, b"/nexus/gateway")
    for _ in range(2):
        assert compiled.encode(finished, event_id) == pure.encode(finished, event_id)
