"""Spans of functions in OTLP's protobuf; the counterpart of ``observability/spans.py``.

Runs in the exporter's thread. Text is redacted here: by the attribute's name and by pattern.
Field numbers: opentelemetry/proto/trace/v1/trace.proto.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Any, Final

from opentelemetry.proto.common.v1.common_pb2 import (
    AnyValue,
    ArrayValue,
    InstrumentationScope,
    KeyValue,
)
from opentelemetry.proto.resource.v1.resource_pb2 import Resource
from opentelemetry.proto.trace.v1.trace_pb2 import Span as Message
from opentelemetry.proto.trace.v1.trace_pb2 import Status

from nexus._version import __version__
from nexus.observability.otlpwire import boolean, delimited, integer, number, text
from nexus.observability.redaction import redact_text, secret_key
from nexus.observability.tracecontext import RANDOM, SAMPLED
from nexus.redact import MASK
from nexus.tracing.kernel import Span, visible_parent

__all__ = ["Encoder"]

#: Characters of one value.
MAX_TEXT: Final = 4096

_IDS: Final = struct.Struct("<2s16s2s8s")
_TIMES: Final = struct.Struct("<BBBQBQ")
_FLAGS: Final = struct.Struct("<2sI")
_HAS_IS_REMOTE: Final = 0x100
_IS_REMOTE: Final = 0x200
_ERROR: Final = 2
_SMALL: Final = 1 << 31

#: Characters of an attribute's name for which it is remembered whether it is a secret's.
_MAX_NAME: Final = 64
_secret: Final = lru_cache(maxsize=1024)(secret_key)


class Encoder:
    """Encodes batches for one resource (this process)."""

    def __init__(self, resource: Mapping[str, str | int]) -> None:
        encoded = Resource(attributes=[_pair(key, value) for key, value in resource.items()])
        self._resource: Final = delimited(b"\x0a", encoded.SerializeToString())

    def encode(self, spans: Iterable[Span]) -> bytes:
        """An ``ExportTraceServiceRequest``; several of them concatenated are one again."""
        by_scope: dict[tuple[str, str], list[bytes]] = {}
        for span in spans:
            by_scope.setdefault(span.scope or ("nexus.tracing", __version__), []).append(
                _encode(span)
            )
        parts = [self._resource]
        for (name, version), encoded in by_scope.items():
            scope = InstrumentationScope(name=name, version=version).SerializeToString()
            parts.append(delimited(b"\x12", delimited(b"\x0a", scope) + b"".join(encoded)))
        return delimited(b"\x0a", b"".join(parts))


def _encode(span: Span) -> bytes:
    """Field 2 of a ``ScopeSpans``."""
    parent_id = visible_parent(span)
    state = span.trace_state.to_header() if span.trace_state else ""
    flags = _HAS_IS_REMOTE | (_IS_REMOTE if span.parent_remote else 0)
    flags |= SAMPLED | (RANDOM if span.random_id else 0)
    attributes = span.attributes or {}
    out = [
        _IDS.pack(
            b"\x0a\x10",
            span.trace_id.to_bytes(16, "big"),
            b"\x12\x08",
            span.span_id.to_bytes(8, "big"),
        ),
        delimited(b"\x1a", state.encode()) if state else b"",
        b"\x22\x08" + parent_id.to_bytes(8, "big") if parent_id else b"",
        delimited(b"\x2a", span.name.encode("utf-8", "replace")),
        _TIMES.pack(
            *(0x30, span.kind + 1),  # OTLP has "unspecified" before the API's kinds
            *(0x39, span.started_ns),
            *(0x41, span.started_ns + span.duration_ns),
        ),
        *[_attribute(key, value) for key, value in attributes.items()],
        _FLAGS.pack(b"\x85\x01", flags),
    ]
    if span.events or span.links or span.status or span.dropped_attributes:
        out.append(_rest(span))
    return delimited(b"\x12", b"".join(out))


def _rest(span: Span) -> bytes:
    """What most spans do not have: fields 10 to 15."""
    message = Message(
        dropped_attributes_count=span.dropped_attributes,
        events=[
            Message.Event(
                name=name,
                time_unix_nano=at,
                attributes=[_pair(key, value) for key, value in attributes.items()],
            )
            for name, at, attributes in span.events or ()
        ],
        dropped_events_count=span.dropped_events,
        links=[
            Message.Link(
                trace_id=context.trace_id.to_bytes(16, "big"),
                span_id=context.span_id.to_bytes(8, "big"),
                trace_state=context.trace_state.to_header() if context.trace_state else "",
                flags=context.trace_flags,
                attributes=[_pair(key, value) for key, value in attributes.items()],
            )
            for context, attributes in span.links or ()
        ],
        dropped_links_count=span.dropped_links,
    )
    out: bytes = message.SerializeToString()
    if span.status:
        code = Status.STATUS_CODE_ERROR if span.status == _ERROR else Status.STATUS_CODE_OK
        status = Status(message=_text("", span.description), code=code)
        out += delimited(b"\x7a", status.SerializeToString())
    return out


def _attribute(key: str, value: Any) -> bytes:
    kind = type(value)
    if kind is str:
        return text(key, _text(key, value))
    if kind is int and 0 <= value < _SMALL:
        return integer(key, value)
    if kind is float:
        return number(key, value)
    if kind is bool:
        return boolean(key, value)
    return delimited(b"\x4a", _pair(key, value).SerializeToString())


def _pair(key: str, value: Any) -> KeyValue:
    return KeyValue(key=key, value=_value(key, value))


def _value(key: str, value: Any) -> AnyValue:
    if isinstance(value, bool):
        return AnyValue(bool_value=value)
    if isinstance(value, int):
        if -(1 << 63) <= value < 1 << 63:
            return AnyValue(int_value=value)
        return AnyValue(string_value=str(value))
    if isinstance(value, float):
        return AnyValue(double_value=value)
    if isinstance(value, bytes):
        return AnyValue(string_value=_text(key, value.decode("utf-8", "backslashreplace")))
    if isinstance(value, tuple):
        return AnyValue(array_value=ArrayValue(values=[_value(key, item) for item in value]))
    return AnyValue(string_value=_text(key, str(value)))


def _text(key: str, value: str) -> str:
    if (_secret if len(key) <= _MAX_NAME else secret_key)(key):
        return MASK
    # Lone surrogates are no UTF-8.
    return redact_text(value[:MAX_TEXT]).encode("utf-8", "backslashreplace").decode()
