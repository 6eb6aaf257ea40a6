"""HTTP/1.1 on the wire: strict heads, chunked bodies, and how long a body is. No I/O, no clock.

::

    bytes in a buffer ──► RequestHead.parse ──► method, path, framing, fields by id
                                   │
                                   └──► .fields(drop) ──► the fields as the next hop gets them

*Strict by construction*: what RFC 9112 allows a recipient to repair is refused instead, because two
programs that repair differently are how requests are smuggled. Every refusal is an
:class:`~nexus.errors.HttpError` with a status and a reason code; all of them, with their RFC
section, are :data:`~nexus._speedups.http1_table.REASONS`.

*Always re-serialised*: nothing reaches the next hop as raw bytes. ``fields(drop)`` writes each
field anew as ``Name: value CRLF``, in order, without the categories in ``drop`` and without what
``Connection`` nominated.

*Borrowed memory*: a head keeps offsets into the buffer it was parsed from. ``value``, ``joined``,
``fields`` and ``block`` may be called only until that buffer changes; what they return is a copy.
``method``, ``target``, ``path``, ``query`` and ``host`` are copies already.
"""

from __future__ import annotations

from typing import Final

from nexus._speedups.http1 import ChunkedDecoder, RequestHead, ResponseHead, chunk
from nexus._speedups.http1_table import (
    ABSENT,
    EXPECTATION,
    FIELDS,
    FRAMING,
    HOP,
    LOCATION_CATEGORY,
    OURS,
    PROXYING,
    REPRESENTATION,
    SECRET,
    TRACE,
    UNDERSCORE,
    field,
    normalise_path,
)

__all__ = [
    "ABSENT",
    "EXPECTATION",
    "FIELDS",
    "FRAMING",
    "HOP",
    "LAST_CHUNK",
    "LOCATION_CATEGORY",
    "OURS",
    "PROXYING",
    "REASON_PHRASES",
    "REPRESENTATION",
    "SECRET",
    "TRACE",
    "UNDERSCORE",
    "ChunkedDecoder",
    "RequestHead",
    "ResponseHead",
    "chunk",
    "field",
    "normalise_path",
]

#: The end of a chunked body without trailers (RFC 9112 §7.1).
LAST_CHUNK: Final = b"0\r\n\r\n"

#: RFC 9110 §15, for the statuses that Nexus answers with itself.
REASON_PHRASES: Final[dict[int, str]] = {
    200: "OK",
    204: "No Content",
    400: "Bad Request",
    401: "Unauthorized",
    403: "Forbidden",
    404: "Not Found",
    405: "Method Not Allowed",
    408: "Request Timeout",
    413: "Content Too Large",
    414: "URI Too Long",
    417: "Expectation Failed",
    421: "Misdirected Request",
    429: "Too Many Requests",
    431: "Request Header Fields Too Large",
    500: "Internal Server Error",
    501: "Not Implemented",
    502: "Bad Gateway",
    503: "Service Unavailable",
    504: "Gateway Timeout",
    505: "HTTP Version Not Supported",
}
