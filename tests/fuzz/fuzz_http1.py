# ruff: noqa: E501  (tables read better by the row)
"""Coverage-guided fuzzing of the HTTP/1.1 kernels, heads and bodies; see ``harness.py``.

Invariants, for request heads, response heads and chunked bodies:

* the compiled and the pure kernel give the same message, or refuse with the same status, reason
  and text, after the same number of bytes;
* so do they for the same bytes cut anywhere into reads;
* nothing but ``HttpError`` is ever raised;
* what is accepted, written anew as the gateway writes it, is accepted again and means the same:
  method, path, query, fields, framing; and a second writing changes nothing any more;
* what is written anew holds no byte that another parser could take for the end of a line.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import harness

with harness.instrumented():
    from http1_backends import kernel

    from nexus._speedups import http1_table as table
    from nexus.errors import HttpError

    BACKENDS: list[ModuleType] = [kernel("py"), kernel("c")]

TIGHT = (200, 60, 5)
WIDE = (32_768, 8192, 100)
#: Writing anew may lengthen a head: percent-encodings, a space behind each colon.
REWRITTEN = (200_000, 65_536, 200)
HEAD_STATE = [
    *("method", "path", "query", "host", "minor", "content_length", "chunked", "keep_alive"),
    *("upgrade", "expect_continue", "status", "reason"),
]
_STRAY = re.compile(rb"\r(?!\n)|(?<!\r)\n|\0")


def feed(head: Any, data: bytes, cuts: list[int]) -> int:
    """Parse with the buffer ending at each of ``cuts`` first, as reads would bring it."""
    buffer = bytearray(data)
    for cut in sorted({cut for cut in cuts if cut < len(data)} | {len(data)}):
        used = head.parse(buffer, 0, cut)
        if used:
            return int(used)
    return 0


def head_outcome(head: Any, data: bytes, cuts: list[int]) -> object:
    try:
        used = feed(head, data, cuts)
    except HttpError as error:
        return (error.status, error.reason, str(error))
    if not used:
        return 0
    state = [getattr(head, name, None) for name in HEAD_STATE]
    return (used, state, head.fields(0), head.fields(table.HOP | table.FRAMING))


def body_outcome(decoder: Any, data: bytes, cuts: list[int]) -> object:
    at, payload = 0, b""
    try:
        for cut in [*sorted({cut for cut in cuts if cut < len(data)}), len(data)]:
            if decoder.done:
                break
            at += decoder.feed(bytearray(data), at, cut)
            payload += decoder.payload
    except HttpError as error:
        return (error.status, error.reason, str(error))
    return (at, payload, bool(decoder.done))


def rewrite(head: Any) -> bytes:
    """The request as it goes to an upstream, without the fields that the gateway adds."""
    framing = b""
    if head.content_length >= 0:
        framing = b"Content-Length: %d\r\n" % head.content_length
    elif head.chunked:
        framing = b"Transfer-Encoding: chunked\r\n"
    line = b"%b %b%b HTTP/1.1\r\nHost: %b\r\n" % (
        head.method, head.path, head.query, head.host or b"a",
    )  # fmt: skip
    return line + bytes(head.fields(table.HOP | table.FRAMING)) + framing + b"\r\n"


def meaning(head: Any) -> object:
    fields = head.fields(table.HOP | table.FRAMING)
    framing = (head.content_length, bool(head.chunked))
    return (head.method, head.path, head.query, fields, framing)


def check_rewritten(backend: ModuleType, data: bytes) -> None:
    head = backend.RequestHead(*WIDE)
    try:
        if not head.parse(data, 0, len(data)):
            return
    except HttpError:
        return
    written = rewrite(head)
    assert _STRAY.search(written) is None, (data, written)
    for reader in BACKENDS:
        again = reader.RequestHead(*REWRITTEN)
        assert again.parse(written, 0, len(written)) == len(written), (data, written)
        assert meaning(again) == meaning(head), (data, written)
        assert rewrite(again) == written, (data, written)


def check(data: bytes) -> None:
    """Raise ``AssertionError`` when an invariant is broken; the first three bytes choose cuts."""
    stream = data[3:]
    ways = [[], [byte * 3 for byte in data[:3]]]
    if harness.thorough(data):
        ways.append(list(range(1, min(len(stream), 400))))
    makers = [
        lambda b: b.RequestHead(*WIDE),
        lambda b: b.RequestHead(*TIGHT),
        lambda b: b.ResponseHead(WIDE[0], WIDE[2]),
        lambda b: b.ResponseHead(TIGHT[0], TIGHT[2]),
    ]
    for make in makers:
        outcomes = [head_outcome(make(b), stream, way) for b in BACKENDS for way in ways]
        assert all(outcome == outcomes[0] for outcome in outcomes), (stream, outcomes)
    for request in (True, False):
        outcomes = [
            body_outcome(b.ChunkedDecoder(request), stream, way) for b in BACKENDS for way in ways
        ]
        assert all(outcome == outcomes[0] for outcome in outcomes), (stream, outcomes)
    for backend in BACKENDS:
        check_rewritten(backend, stream)


TOKENS = [
    b"\r\n", b"\r", b"\n", b"\0", b" ", b"\t", b":", b",", b";", b"%", b"/", b"..", b"?", b"#", b"\xff",
    b"Content-Length: 5\r\n", b"Transfer-Encoding: chunked\r\n", b"Connection: x-a, close\r\n",
    b"X-A: b\r\n", b"Host: a\r\n", b"Upgrade: websocket\r\n", b"Expect: 100-continue\r\n", b"chunked",
    b"gzip, ", b"http://a", b"HTTP/1.0", b"%2e", b"%2F", b"_", b"9" * 18, b"0" * 9, b"0\r\n\r\n", b"f;a=b",
]  # fmt: skip


def mutate(rng: random.Random, stream: bytes) -> bytes:
    """One to four random edits: a byte changed, cut out, a token put in, a stretch doubled."""
    data = bytearray(stream)
    for _ in range(rng.randint(1, 4)):
        at = rng.randint(0, len(data))
        choice = rng.randrange(4)
        if choice == 0 and at < len(data):
            data[at] = rng.randrange(256)
        elif choice == 1:
            del data[at : at + rng.randint(1, 4)]
        elif choice == 2:
            data[at:at] = rng.choice(TOKENS)
        else:
            data[at:at] = data[max(0, at - rng.randint(1, 12)) : at]
    return bytes(data)


def seeds() -> Iterator[bytes]:
    from http1_corpus import BAD_CHUNKS, BAD_REQUESTS, BAD_RESPONSES
    from test_heads import PIECES

    for row in (*BAD_REQUESTS, *BAD_CHUNKS, *BAD_RESPONSES):
        yield row[1][:1500]
    yield from PIECES
    yield (
        b"POST /a/./b%2e?q HTTP/1.1\r\nHost: a:80\r\nX-A: b\r\nConnection: x-b\r\nX-b:\t1 \r\n\r\n"
    )
    yield b"HTTP/1.1 200 OK\r\nContent-Type: a/b\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nabcde\r\n0\r\n\r\n"


if __name__ == "__main__":
    harness.main(check, seeds, mutate)
