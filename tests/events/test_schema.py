"""The schema of the three topics: what is accepted, what is refused, and with which words."""

import contextlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nexus.errors import EventError
from nexus.wire import events

STAMP = "2026-11-21T10:00:00.123Z"

COMPLETED = {
    "id": "e-1",
    "emittedAt": STAMP,
    "method": "GET",
    "url": "/api/products?page=2",
    "route": "/api/*",
    "statusCode": 200,
    "latencyMs": 12.5,
    "ip": "192.0.2.7",
    "clientId": "gateway-client",
    "workerId": 3,
}
HIT = {"id": "e-2", "emittedAt": STAMP, "ip": "192.0.2.7", "method": "GET", "url": "/api/x"}
OPENED = {
    "id": "e-3",
    "emittedAt": STAMP,
    "upstream": "http://127.0.0.1:3001",
    "method": "GET",
    "url": "/api/x",
}
EXAMPLES = {
    events.REQUEST_COMPLETED: COMPLETED,
    events.RATE_LIMIT_HIT: HIT,
    events.CIRCUIT_OPENED: OPENED,
}


def decode(topic, value, headers=()):
    raw = value if isinstance(value, bytes | None) else json.dumps(value).encode()
    return events.decode(topic, raw, headers, fallback_id="t/0/7")


@pytest.mark.parametrize("topic", events.TOPICS)
def test_an_event_keeps_the_contracts_field_names_both_ways(topic):
    event = decode(topic, EXAMPLES[topic])
    assert json.loads(events.encode(event)) == EXAMPLES[topic]


@pytest.mark.parametrize(
    ("topic", "field"),
    [
        (topic, field)
        for topic, example in EXAMPLES.items()
        for field in example
        if field not in ("id", "clientId")
    ],
)
def test_a_missing_field_is_named(topic, field):
    value = {k: v for k, v in EXAMPLES[topic].items() if k != field}
    with pytest.raises(EventError, match=field):
        decode(topic, value)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"statusCode": "200"}, "Expected `int`, got `str`"),
        ({"statusCode": 1000}, "<= 999"),
        ({"latencyMs": -1}, ">= 0"),
        ({"latencyMs": None}, "latencyMs"),
        ({"emittedAt": "yesterday at about noon"}, "ISO 8601"),
        ({"emittedAt": "2026-11-21T10:00:00.123"}, "offset from UTC"),
        ({"method": ""}, "length >= 1"),
        ({"ip": "x" * 65}, "length <= 64"),
        ({"id": "x" * 129}, "length <= 128"),
    ],
)
def test_a_wrong_value_says_what_was_expected(change, words):
    with pytest.raises(EventError, match=words):
        decode(events.REQUEST_COMPLETED, COMPLETED | change)


def test_values_that_are_no_event_are_refused():
    for value, words in [
        (b"", "value: "),
        (b"{", "value: "),
        (b"[]", "Expected `object`"),
        (b"\xff\xfe", "value: "),
        (b'{"ip":"\xff"}', "value: "),
        (None, "tombstone"),
        (b" " * (events.MAX_EVENT_BYTES + 1), "at most 65536 bytes"),
    ]:
        with pytest.raises(EventError, match=words):
            decode(events.RATE_LIMIT_HIT, value)
    with pytest.raises(EventError, match="no schema"):
        decode("gateway.unheard.of", HIT)


def test_unknown_fields_are_skipped_so_that_a_schema_can_grow():
    assert decode(events.RATE_LIMIT_HIT, HIT | {"country": "NZ"}).ip == "192.0.2.7"


def test_an_event_without_an_id_is_known_by_its_header_or_its_place():
    value = {k: v for k, v in HIT.items() if k != "id"}
    assert decode(events.RATE_LIMIT_HIT, value, [("ce_id", b"h-1")]).id == "h-1"
    assert decode(events.RATE_LIMIT_HIT, value).id == "t/0/7"
    assert decode(events.RATE_LIMIT_HIT, HIT, [("ce_id", b"h-1")]).id == "e-2"


def test_a_newer_major_version_is_refused_and_ours_is_not():
    ours = events.cloud_event_headers(events.RATE_LIMIT_HIT, "e-2", STAMP, b"/nexus/gateway")
    assert decode(events.RATE_LIMIT_HIT, HIT, ours).id == "e-2"
    with pytest.raises(EventError, match="version 2 is newer"):
        decode(
            events.RATE_LIMIT_HIT,
            HIT,
            [("ce_dataschema", b"urn:nexus:event:gateway.rate_limit.hit:2")],
        )
    for uri in (b"", b"http://example.com/schema", b"urn:nexus:event:x:99999"):
        with pytest.raises(EventError, match="ce_dataschema"):
            decode(events.RATE_LIMIT_HIT, HIT, [("ce_dataschema", uri)])


def test_headers_are_those_of_cloudevents_and_w3c():
    parent = b"00-" + b"a" * 32 + b"-" + b"b" * 16 + b"-01"
    headers = dict(
        events.cloud_event_headers(events.CIRCUIT_OPENED, "e-3", STAMP, b"/nexus/gateway", parent)
    )
    assert headers == {
        "ce_id": b"e-3",
        "ce_source": b"/nexus/gateway",
        "ce_time": STAMP.encode(),
        "ce_specversion": b"1.0",
        "ce_type": b"gateway.circuit.opened",
        "ce_dataschema": b"urn:nexus:event:gateway.circuit.opened:1",
        "content-type": b"application/json",
        "traceparent": parent,
    }


@given(st.binary(max_size=300))
def test_any_bytes_give_an_event_or_an_event_error(value):
    for topic in events.TOPICS:
        with contextlib.suppress(EventError):
            assert decode(topic, value).id


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=40),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=6,
)


@given(st.sampled_from(events.TOPICS), st.data())
def test_an_event_with_one_field_replaced_by_anything_never_breaks_the_decoder(topic, data):
    example = EXAMPLES[topic]
    field = data.draw(st.sampled_from(sorted(example)))
    value = example | {field: data.draw(json_values)}
    try:
        event = decode(topic, value)
    except EventError:
        return
    assert events.decode(topic, events.encode(event), fallback_id="x") == event


@pytest.mark.parametrize("good", [b"a", b"6f1c-0aQ/=+@:~._", b"x" * 128])
def test_a_correlation_id_of_safe_characters_is_a_key(good):
    assert events.correlation_key(good) == good


@pytest.mark.parametrize("bad", [b"", b"x" * 129, b"a b", b"a\n", b"caf\xc3\xa9", b"a,b"])
def test_any_other_correlation_id_is_none(bad):
    assert events.correlation_key(bad) is None
