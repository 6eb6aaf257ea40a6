"""The events that the gateway reports and the consumer acts on: bytes ↔ values.

::

    topic                        struct             key of the record
    gateway.request.completed    RequestCompleted   correlation id, else none
    gateway.rate_limit.hit       RateLimitHit       ip
    gateway.circuit.opened       CircuitOpened      none

The value is one JSON object. Beside the fields of its topic it carries ``id`` and ``emittedAt``
(ISO 8601, UTC). Metadata that routers and replays want without parsing the value is in the record's
headers, in the binary mode of the CloudEvents Kafka binding 1.0.2 (``ce_id``, ``ce_source``, …).

Versions: a field may be added at any time and readers skip what they do not know; a change of
meaning raises the major version in ``ce_dataschema`` (:func:`schema_uri`), and a reader refuses a
major version above its own. ``docs/events.md`` has the tables.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import datetime
from typing import Annotated, Final, TypeAlias

import msgspec
from msgspec import Meta

from nexus.errors import EventError

__all__ = [
    "CIRCUIT_OPENED",
    "DEAD_LETTER_SUFFIX",
    "MAX_EVENT_BYTES",
    "MAX_URL_CHARACTERS",
    "RATE_LIMIT_HIT",
    "REQUEST_COMPLETED",
    "SCHEMA_VERSION",
    "TOPICS",
    "CircuitOpened",
    "Event",
    "Headers",
    "RateLimitHit",
    "RequestCompleted",
    "cloud_event_headers",
    "correlation_key",
    "dead_letter_topic",
    "decode",
    "encode",
    "parse_instant",
    "schema_uri",
]

REQUEST_COMPLETED: Final = "gateway.request.completed"
RATE_LIMIT_HIT: Final = "gateway.rate_limit.hit"
CIRCUIT_OPENED: Final = "gateway.circuit.opened"

SCHEMA_VERSION: Final = 1

#: Longest value accepted, bytes. Brokers refuse records above 1 MiB (``message.max.bytes``); no
#: event of ours comes near, so anything larger is not ours.
MAX_EVENT_BYTES: Final = 65_536

#: Characters of a request target kept in an event; a request line may be longer than that.
MAX_URL_CHARACTERS: Final = 2048

DEAD_LETTER_SUFFIX: Final = ".dlq"

#: Headers of a Kafka record: names may repeat, values are bytes.
Headers: TypeAlias = Sequence[tuple[str, bytes]]

Name = Annotated[str, Meta(min_length=1, max_length=512)]
Url = Annotated[str, Meta(max_length=8192)]


class _Event(msgspec.Struct, frozen=True, kw_only=True, rename="camel", gc=False):
    """What every event carries. ``id`` may be absent in records of other producers."""

    emitted_at: Annotated[str, Meta(min_length=20, max_length=40)]
    id: Annotated[str, Meta(max_length=128)] = ""


class RequestCompleted(_Event, frozen=True, kw_only=True, gc=False):
    """A proxied request ended. ``route`` is the template, ``latency_ms`` milliseconds."""

    method: Name
    url: Url
    route: Annotated[str, Meta(max_length=512)]
    status_code: Annotated[int, Meta(ge=0, le=999)]
    latency_ms: Annotated[float, Meta(ge=0)]
    ip: Annotated[str, Meta(max_length=64)]
    client_id: Annotated[str, Meta(max_length=256)] | None = None
    worker_id: int


class RateLimitHit(_Event, frozen=True, kw_only=True, gc=False):
    """An address exceeded its bucket."""

    ip: Annotated[str, Meta(min_length=1, max_length=64)]
    method: Name
    url: Url


class CircuitOpened(_Event, frozen=True, kw_only=True, gc=False):
    """A circuit breaker tripped open; ``method`` and ``url`` are of the request that did it."""

    upstream: Annotated[str, Meta(min_length=1, max_length=2048)]
    method: Name
    url: Url


Event: TypeAlias = RequestCompleted | RateLimitHit | CircuitOpened

_TYPES: Final[dict[str, type[Event]]] = {
    REQUEST_COMPLETED: RequestCompleted,
    RATE_LIMIT_HIT: RateLimitHit,
    CIRCUIT_OPENED: CircuitOpened,
}

#: The three topics, in the order of the table above.
TOPICS: Final = tuple(_TYPES)

_decoders: Final = {topic: msgspec.json.Decoder(cls) for topic, cls in _TYPES.items()}

#: One JSON object without insignificant white space; fields in the order of the struct.
encode = msgspec.json.Encoder().encode

_SCHEMA: Final = re.compile(rb"^urn:nexus:event:[a-z_.]+:(\d{1,4})$")

# RFC 9110 leaves the syntax of x-correlation-id to its users; these are the characters of UUIDs,
# ULIDs, W3C ids, base64 and the usual prefixes. Anything else is no key of ours.
_CORRELATION: Final = re.compile(rb"[A-Za-z0-9._~:/+=@-]{1,128}")


def decode(topic: str, value: bytes | None, headers: Headers = (), *, fallback_id: str) -> Event:
    """The event in one record, checked against the schema of its topic.

    An event without an ``id`` gets the one of its ``ce_id`` header, else ``fallback_id`` (which
    must be the same again when the record is read again: topic, partition and offset).
    Raises :class:`~nexus.errors.EventError`; its text names the field and what was expected.
    """
    decoder = _decoders.get(topic)
    if decoder is None:
        raise EventError(f"topic: no schema for {topic!r}")
    if value is None:
        raise EventError("value: expected a JSON object, got a tombstone")
    if len(value) > MAX_EVENT_BYTES:
        raise EventError(f"value: expected at most {MAX_EVENT_BYTES} bytes, got {len(value)}")
    named = b""
    for name, content in headers:
        if name == "ce_dataschema":
            _check_version(content)
        elif name == "ce_id":
            named = content
    try:
        event = decoder.decode(value)
    except msgspec.DecodeError as error:  # ValidationError is one of these
        raise EventError(f"value: {error}") from None
    except UnicodeDecodeError as error:
        raise EventError(f"value: not UTF-8 (byte {error.start})") from None
    parse_instant(event.emitted_at)
    if event.id:
        return event
    identity = named.decode("ascii", "replace")[:128] or fallback_id
    return msgspec.structs.replace(event, id=identity)


def _check_version(uri: bytes) -> None:
    match = _SCHEMA.match(uri or b"")
    if match is None:
        raise EventError(f"ce_dataschema: expected urn:nexus:event:<topic>:<version>, got {uri!r}")
    if int(match[1]) > SCHEMA_VERSION:
        raise EventError(
            f"ce_dataschema: version {int(match[1])} is newer than ours ({SCHEMA_VERSION})"
        )


def parse_instant(text: str) -> float:
    """Seconds since the Unix epoch of an ISO 8601 instant with an offset. Raises ``EventError``."""
    try:
        instant = datetime.fromisoformat(text)
    except ValueError:
        raise EventError(f"emittedAt: expected ISO 8601, got {text!r}") from None
    if instant.tzinfo is None:
        raise EventError(f"emittedAt: expected an offset from UTC (Z), got {text!r}")
    return instant.timestamp()


def schema_uri(topic: str) -> str:
    """``urn:nexus:event:gateway.request.completed:1``."""
    return f"urn:nexus:event:{topic}:{SCHEMA_VERSION}"


_FIXED_HEADERS: Final = {
    topic: (
        ("ce_specversion", b"1.0"),
        ("ce_type", topic.encode()),
        ("ce_dataschema", schema_uri(topic).encode()),
        ("content-type", b"application/json"),
    )
    for topic in TOPICS
}


def cloud_event_headers(
    topic: str, event_id: str, emitted_at: str, source: bytes, traceparent: bytes = b""
) -> list[tuple[str, bytes]]:
    """CloudEvents 1.0 attributes as Kafka headers; ``traceparent`` is the W3C one, if any.

    ``source`` is a URI reference (``/nexus/gateway``); with ``event_id`` it names the event.
    """
    headers = [
        ("ce_id", event_id.encode()),
        ("ce_source", source),
        ("ce_time", emitted_at.encode()),
        *_FIXED_HEADERS[topic],
    ]
    if traceparent:
        headers.append(("traceparent", traceparent))
    return headers


def correlation_key(value: bytes) -> bytes | None:
    """An ``x-correlation-id`` that may be a record key, or ``None``."""
    return value if _CORRELATION.fullmatch(value) else None


def dead_letter_topic(topic: str) -> str:
    """Where the records of ``topic`` go that cannot be handled."""
    return topic + DEAD_LETTER_SUFFIX
