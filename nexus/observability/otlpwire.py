"""Spans in OTLP's protobuf, written straight as bytes.

A span is a dozen length-prefixed fields, and most of its attributes (method, route, status,
upstream) recur from request to request; written directly, with those remembered, one costs a
quarter of what message objects do. ``opentelemetry-proto`` stays the authority: tests decode what
is written here with it.

Field numbers: opentelemetry/proto/trace/v1/trace.proto and common/v1/common.proto. Encoding:
https://protobuf.dev/programming-guides/encoding/ (a tag is ``number << 3 | wire type``).
"""

from __future__ import annotations

import struct
from functools import lru_cache
from typing import Final

__all__ = [
    "KIND_CLIENT",
    "KIND_SERVER",
    "boolean",
    "delimited",
    "integer",
    "number",
    "recurring",
    "span",
    "text",
]

KIND_SERVER: Final = 2
KIND_CLIENT: Final = 3

# Span: trace_id 1, span_id 2, trace_state 3, parent_span_id 4, name 5, kind 6, start 7 and end 8
# (fixed64), attributes 9, status 15 (message: code 3), flags 16 (fixed32).
_IDS: Final = struct.Struct("<2s16s2s8s")
_TIMES: Final = struct.Struct("<BBBQBQ")
_FLAGS: Final = struct.Struct("<2sI")
_DOUBLE: Final = struct.Struct("<3sd")
_ERROR: Final = b"\x7a\x02\x18\x02"

_ONE_BYTE: Final = tuple(bytes((n,)) for n in range(128))


def _varint(n: int) -> bytes:
    """Base 128, least significant group first; ``n`` is not negative."""
    if n < 128:
        return _ONE_BYTE[n]
    out = bytearray()
    while n > 127:
        out.append(n & 0x7F | 0x80)
        n >>= 7
    out.append(n)
    return bytes(out)


def delimited(tag: bytes, payload: bytes) -> bytes:
    """One length-delimited field."""
    return b"%b%b%b" % (tag, _varint(len(payload)), payload)


@lru_cache(maxsize=256)
def _key(key: str) -> bytes:
    return delimited(b"\x0a", key.encode())


def text(key: str, value: str) -> bytes:
    """An attribute of text: field 9 of a span, field 1 of a resource has the same body."""
    string = delimited(b"\x0a", value.encode("utf-8", "replace"))
    return delimited(b"\x4a", _key(key) + delimited(b"\x12", string))


@lru_cache(maxsize=4096)
def recurring(key: str, value: str) -> bytes:
    """As :func:`text`, remembered: for values that come again, from a set that is small."""
    return text(key, value)


@lru_cache(maxsize=1024)
def integer(key: str, value: int) -> bytes:
    """An attribute that is a small number, not negative."""
    return delimited(b"\x4a", _key(key) + delimited(b"\x12", b"\x18" + _varint(value)))


@lru_cache(maxsize=256)
def boolean(key: str, value: bool) -> bytes:
    """An attribute that is true or false."""
    return delimited(b"\x4a", _key(key) + (b"\x12\x02\x10\x01" if value else b"\x12\x02\x10\x00"))


def number(key: str, value: float) -> bytes:
    """An attribute that is a floating-point number."""
    return delimited(b"\x4a", _key(key) + _DOUBLE.pack(b"\x12\x09\x21", value))


def span(
    *,
    trace_id: bytes,
    span_id: bytes,
    parent_id: bytes,
    tracestate: str,
    flags: int,
    name: str,
    kind: int,
    start_ns: int,
    end_ns: int,
    attributes: list[bytes],
    error: bool,
) -> bytes:
    """One span as field 2 of a ``ScopeSpans``.

    ``trace_id`` is 16 bytes, ``span_id`` 8, ``parent_id`` 8 or none; times are nanoseconds since
    the Unix epoch. Raises ``ValueError`` for identifiers of another length.
    """
    if len(trace_id) != 16 or len(span_id) != 8 or len(parent_id) not in (0, 8):
        raise ValueError("expected a trace id of 16 bytes and span ids of 8")
    return delimited(
        b"\x12",
        b"".join(
            (
                _IDS.pack(b"\x0a\x10", trace_id, b"\x12\x08", span_id),
                delimited(b"\x1a", tracestate.encode()) if tracestate else b"",
                b"\x22\x08" + parent_id if parent_id else b"",
                _name(name),
                _TIMES.pack(0x30, kind, 0x39, start_ns, 0x41, end_ns),
                *attributes,
                _ERROR if error else b"",
                _FLAGS.pack(b"\x85\x01", flags),
            )
        ),
    )


@lru_cache(maxsize=1024)
def _name(name: str) -> bytes:
    return delimited(b"\x2a", name.encode("utf-8", "replace"))
