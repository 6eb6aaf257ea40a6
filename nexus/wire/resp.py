"""RESP2 and RESP3: bytes to values and back, without I/O.

::

    RequestDecoder   client → server   list[bytes]  (arrays of bulk strings, inline commands)
    ReplyDecoder     server → client   Value        (all types of RESP2 and RESP3)
    encode_command   list of arguments → bytes
    encode_reply     Value → bytes, for RESP3 or, with what RESP2 lacks turned down, for RESP2
    split_inline     one line → arguments, by Redis's quoting

    decoder = ReplyDecoder()
    decoder.feed(data)                                  # any piece of the stream
    while (value := decoder.read()) is not INCOMPLETE:
        ...

Decoders are incremental and bounded, and how the stream was cut changes nothing: neither the
values, nor ``consumed``, nor the error. A :class:`~nexus.errors.RespError` ends the stream; of a
request its text is what Redis 7 answers behind ``-ERR``, of a reply it names the byte and what was
expected there. Redis error replies are values (:class:`SimpleError`), never raised.

Memory: a request costs its own bytes plus one reference for each argument, a reply about 60 bytes
for each element; limits are constructor arguments with the defaults below. ``feed`` keeps a
reference to ``bytes`` and copies anything else, so a reused receive buffer may be passed.

This is for where values matter: our own connections to Redis, local answers, the tests. The
cacheproxy's data plane forwards bytes and only needs boundaries (``nexus._speedups.respscan``).
"""

from __future__ import annotations

from nexus._speedups.resp import (
    ReplyDecoder,
    RequestDecoder,
    encode_command,
    encode_reply,
    split_inline,
)
from nexus._speedups.resp_values import (
    INCOMPLETE,
    MAX_ARGUMENTS,
    MAX_BULK_BYTES,
    MAX_DEPTH,
    MAX_ELEMENTS,
    MAX_INLINE_BYTES,
    MAX_LINE_BYTES,
    MAX_REQUEST_BYTES,
    Attributed,
    BigNumber,
    BulkError,
    Incomplete,
    Map,
    Push,
    Set,
    SimpleError,
    SimpleString,
    VerbatimString,
)

__all__ = [
    "INCOMPLETE",
    "MAX_ARGUMENTS",
    "MAX_BULK_BYTES",
    "MAX_DEPTH",
    "MAX_ELEMENTS",
    "MAX_INLINE_BYTES",
    "MAX_LINE_BYTES",
    "MAX_REQUEST_BYTES",
    "Attributed",
    "BigNumber",
    "BulkError",
    "Incomplete",
    "Map",
    "Push",
    "ReplyDecoder",
    "RequestDecoder",
    "Set",
    "SimpleError",
    "SimpleString",
    "VerbatimString",
    "encode_command",
    "encode_reply",
    "split_inline",
]
