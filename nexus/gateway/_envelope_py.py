# cython: annotation_typing=False
"""Which responses are wrapped as ``{"data": …, "_meta": {…}}``, and the bytes around them.

The upstream's JSON is never decoded: a prefix goes before its bytes and a suffix behind them.
Passed untouched: anything but ``application/json`` in UTF-8 (so ``+json``, ndjson, event streams,
other charsets), content-encoded bodies, 204, 206, 304, empty bodies, and what the upstream has
marked ``no-transform`` (RFC 9110 §7.7 forbids a proxy to change that).

One source, compiled as ``_envelope_c``.
"""

from __future__ import annotations

import re
from typing import Final

import cython  # type: ignore[import-untyped]

if not cython.compiled:
    from nexus.gateway.buffers import joined

__all__ = ["PREFIX", "is_wrappable", "suffix", "wrapped"]

PREFIX: Final = b'{"data":'

# RFC 9110 §8.3.1: type/subtype, then parameters; the only one that may stand here is the charset.
_JSON: Final = re.compile(
    rb'application/json[ \t]*(?:;[ \t]*charset[ \t]*=[ \t]*"?utf-?8"?[ \t]*)?;?', re.IGNORECASE
)


def suffix(request_id: bytes, stamp: bytes) -> bytes:
    """What follows the upstream's bytes; both arguments need no escaping."""
    return joined(
        (
            b',"_meta":{"requestId":"',
            request_id,
            b'","gateway":"nexus","timestamp":"',
            stamp,
            b'"}}',
        )
    )


def wrapped(body: bytes, request_id: bytes, stamp: bytes) -> bytes:
    """The whole of a body that is at hand."""
    return joined(
        (
            PREFIX,
            body,
            b',"_meta":{"requestId":"',
            request_id,
            b'","gateway":"nexus","timestamp":"',
            stamp,
            b'"}}',
        )
    )


def is_wrappable(
    status: int,
    content_type: bytes | None,
    content_encoding: bytes | None,
    cache_control: bytes | None,
) -> bool:
    """Whether the body of such a response, if there is one, is wrapped."""
    if content_type is None or status in (204, 206, 304):
        return False
    if content_type != b"application/json" and _JSON.fullmatch(content_type) is None:
        return False
    if content_encoding is not None and content_encoding.lower() != b"identity":
        return False
    return cache_control is None or b"no-transform" not in cache_control.lower()
