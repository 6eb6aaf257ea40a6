"""RESP2 and RESP3, decoded as the bytes come in: the pure-Python twin of ``_resp_c``.

::

    feed(data) ──► buffer ──► read() ──► one request / reply, or "more bytes are needed"

Nothing is looked at twice: a search for a line's end resumes where it stopped (``_scan``), and a
half-received aggregate waits on an explicit stack. Neither the results nor the errors depend on
how the bytes were cut. After an error the stream has no more boundaries, so ``read()`` raises the
same error for ever and the connection must be closed.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final, NoReturn, TypeAlias

from nexus._speedups.resp_values import (
    INCOMPLETE,
    MAX_ARGUMENTS,
    MAX_BULK_BYTES,
    MAX_DEPTH,
    MAX_ELEMENTS,
    MAX_INLINE_BYTES,
    MAX_LINE_BYTES,
    MAX_REQUEST_BYTES,
    UNAUTHENTICATED_ARGUMENTS,
    UNAUTHENTICATED_BULK_BYTES,
    Attributed,
    BigNumber,
    BulkError,
    Map,
    Push,
    Set,
    SimpleError,
    SimpleString,
    VerbatimString,
    bad_reply,
    expected_count,
    expected_length,
    require_line_limit,
)
from nexus.errors import RespError

if TYPE_CHECKING:
    from nexus._speedups.resp_values import Incomplete, Value

__all__ = ["ReplyDecoder", "RequestDecoder", "split_inline"]

Bytes: TypeAlias = bytes | bytearray | memoryview

_NUL: Final = 0
_LF: Final = 0x0A
_CR: Final = 0x0D
_STAR: Final = 0x2A
_DOLLAR: Final = 0x24

#: Longest decimal of a signed 64-bit number, sign included.
_INT64_CHARS: Final = 20
_INT64_MAX: Final = 2**63 - 1

#: RESP3 double, without the leading ``+`` that Redis never sends (hiredis refuses it, too).
_DOUBLE: Final = re.compile(rb"-?[0-9]+(?:\.[0-9]*)?(?:[eE][+-]?[0-9]+)?|-?inf|-?nan")
_BIG_NUMBER: Final = re.compile(rb"-?[0-9]+")
_ARRAY, _MAP, _SET, _PUSH, _ATTRIBUTE = b"*%~>|"
_AGGREGATES: Final = frozenset((_ARRAY, _MAP, _SET, _PUSH, _ATTRIBUTE))
_BULK, _BULK_ERROR, _VERBATIM = b"$!="
_BULKS: Final = frozenset((_BULK, _BULK_ERROR, _VERBATIM))
_LINES: Final = frozenset(b"+-:_#,(")

#: ``isspace`` of the C locale, and what ends an unquoted word: Redis uses these two sets.
_SPACE: Final = frozenset(b" \t\n\v\f\r")
_WORD_END: Final = frozenset(b" \t\n\r\0")
_ESCAPES: Final = {0x6E: 0x0A, 0x72: 0x0D, 0x74: 0x09, 0x62: 0x08, 0x61: 0x07}
_HEX: Final = frozenset(b"0123456789abcdefABCDEF")
_QUOTE: Final = 0x22
_APOSTROPHE: Final = 0x27
_BACKSLASH: Final = 0x5C


def _parse_int64(text: bytes) -> int | None:
    """A decimal as Redis's ``string2ll`` takes it: no sign but ``-``, no leading zero, 64 bits."""
    if not text or len(text) > _INT64_CHARS:
        return None
    negative = text[0] == 0x2D
    digits = text[1:] if negative else text
    if not digits.isdigit():
        return None
    if digits[0] == 0x30:
        return 0 if len(text) == 1 else None
    value = int(text)
    return value if -_INT64_MAX - 1 <= value <= _INT64_MAX else None


class _Input:
    """The bytes that were fed and are not decoded yet."""

    __slots__ = ("_base", "_consumed", "_data", "_error", "_pos", "_scan")

    def __init__(self) -> None:
        #: The very ``bytes`` that were fed while one piece is enough, else a ``bytearray``.
        self._data: bytes | bytearray = b""
        self._pos = 0
        #: No line ends between ``_pos`` and here.
        self._scan = 0
        #: Bytes of the stream before ``_data``.
        self._base = 0
        self._consumed = 0
        self._error: str | None = None

    @property
    def consumed(self) -> int:
        """Bytes of the stream up to the end of the last complete message."""
        return self._consumed

    @property
    def pending(self) -> int:
        """Bytes that were fed and wait for the rest of their message (or for ``read()``)."""
        return self._base + len(self._data) - self._consumed

    def feed(self, data: Bytes) -> None:
        """Append what was received; copies unless it is ``bytes``. Ignored after an error."""
        if self._error is not None:
            return
        view: Bytes = data if type(data) is bytes else memoryview(data)
        if self._pos == len(self._data):
            self._base += self._pos
            self._pos = self._scan = 0
            self._data = view if type(view) is bytes else bytearray(view)
            return
        if self._pos:
            self._base += self._pos
            self._scan -= self._pos
            if isinstance(self._data, bytes):
                self._data = bytearray(memoryview(self._data)[self._pos :])
            else:
                del self._data[: self._pos]
            self._pos = 0
        elif isinstance(self._data, bytes):
            self._data = bytearray(self._data)
        self._data += view

    def _fail(self, text: str) -> NoReturn:
        self._error = text
        self._data = b""
        self._base = self._consumed
        self._pos = self._scan = 0
        raise RespError(text)

    def _advance(self, pos: int) -> None:
        self._pos = self._scan = pos


class RequestDecoder(_Input):
    """Client to server: arrays of bulk strings, and inline commands with Redis's quoting.

    Takes and refuses exactly what Redis 7 does, and the text of the :class:`RespError` is what
    Redis answers behind ``-ERR`` (as Latin-1). As in Redis the two bytes after an argument and the
    byte after a header's CR are not looked at, and a NUL hides the line's end behind it. Where
    Redis depends on how the bytes were cut (limits of unfinished lines) this decoder does what
    Redis does when they come one by one.

    Two limits are ours: ``max_request_bytes`` (Redis closes without a word) and, where it is
    lowered, ``max_arguments``. Set ``authenticated`` to ``False`` for the limits that Redis puts
    on clients that have not given a password yet.
    """

    __slots__ = (
        "_arguments",
        "_bulk",
        "_max_arguments",
        "_max_bulk",
        "_max_inline",
        "_max_request",
        "_missing",
        "_start",
        "authenticated",
    )

    def __init__(
        self,
        *,
        max_bulk_bytes: int = MAX_BULK_BYTES,
        max_arguments: int = MAX_ARGUMENTS,
        max_inline_bytes: int = MAX_INLINE_BYTES,
        max_request_bytes: int = MAX_REQUEST_BYTES,
        authenticated: bool = True,
    ) -> None:
        super().__init__()
        require_line_limit("max_inline_bytes", max_inline_bytes)
        self.authenticated = authenticated
        self._max_bulk = max_bulk_bytes
        self._max_arguments = max_arguments
        self._max_inline = max_inline_bytes
        self._max_request = max_request_bytes
        self._arguments: list[bytes] = []
        #: Arguments still to come of the current request.
        self._missing = 0
        #: Length of the argument whose bytes come next, or -1 before its header.
        self._bulk = -1
        #: Where in the stream the current request began.
        self._start = 0

    def read(self) -> list[bytes] | None:
        """The next request, never empty, or ``None`` when more bytes are needed.

        Raises :class:`RespError` when the stream is broken, after all requests before it.
        """
        if self._error is not None:
            raise RespError(self._error)
        while True:
            if self._missing == 0:
                if self._pos == len(self._data):
                    return None
                self._start = self._base + self._pos
                if self._data[self._pos] != _STAR:
                    inline = self._read_inline()
                    if inline is None:
                        return None
                    self._consumed = self._base + self._pos
                    if inline:
                        return inline
                    continue
                if not self._read_count():
                    return None
            while self._missing:
                if not self._read_argument():
                    return None
            self._consumed = self._base + self._pos
            if self._arguments:
                request, self._arguments = self._arguments, []
                return request

    def _line_end(self, terminator: int, too_big: str) -> int:
        """Index of the terminator of the line at ``_pos``, or -1: not there yet."""
        data = self._data
        stop = min(len(data), self._pos + self._max_inline + 1)
        scan = self._scan
        if scan < stop and data[scan] != _NUL:
            found = data.find(terminator, scan, stop)
            hidden = data.find(_NUL, scan, stop if found < 0 else found)
            if hidden < 0 <= found:
                self._scan = found
                return found
            self._scan = stop if hidden < 0 else hidden
        if len(data) - self._pos > self._max_inline:
            self._fail(too_big)
        return -1

    def _read_inline(self) -> list[bytes] | None:
        end = self._line_end(_LF, "Protocol error: too big inline request")
        if end < 0:
            return None
        stop = end - 1 if end > self._pos and self._data[end - 1] == _CR else end
        words = split_inline(bytes(self._data[self._pos : stop]))
        if words is None:
            self._fail("Protocol error: unbalanced quotes in request")
        self._advance(end + 1)
        return words

    def _header_end(self, too_big: str) -> int:
        end = self._line_end(_CR, too_big)
        return end if end + 1 < len(self._data) else -1

    def _read_count(self) -> bool:
        end = self._header_end("Protocol error: too big mbulk count string")
        if end < 0:
            return False
        count = _parse_int64(bytes(self._data[self._pos + 1 : end]))
        if count is None or count > self._max_arguments:
            self._fail("Protocol error: invalid multibulk length")
        if count > UNAUTHENTICATED_ARGUMENTS and not self.authenticated:
            self._fail("Protocol error: unauthenticated multibulk length")
        self._advance(end + 2)
        self._missing = max(count, 0)
        return True

    def _read_argument(self) -> bool:
        if self._bulk < 0 and not self._read_length():
            return False
        stop = self._pos + self._bulk
        if len(self._data) < stop + 2:
            return False
        self._arguments.append(bytes(self._data[self._pos : stop]))
        self._advance(stop + 2)
        self._bulk = -1
        self._missing -= 1
        return True

    def _read_length(self) -> bool:
        end = self._header_end("Protocol error: too big bulk count string")
        if end < 0:
            return False
        first = self._data[self._pos]
        if first != _DOLLAR:
            # Redis writes CR and LF as blanks into an error reply.
            shown = " " if first in (_CR, _LF) else chr(first)
            self._fail(f"Protocol error: expected '$', got '{shown}'")
        length = _parse_int64(bytes(self._data[self._pos + 1 : end]))
        if length is None or length < 0 or length > self._max_bulk:
            self._fail("Protocol error: invalid bulk length")
        if length > UNAUTHENTICATED_BULK_BYTES and not self.authenticated:
            self._fail("Protocol error: unauthenticated bulk length")
        if self._base + end + 2 + length + 2 - self._start > self._max_request:
            self._fail("Protocol error: too big request")
        self._advance(end + 2)
        self._bulk = length
        return True


def split_inline(line: bytes) -> list[bytes] | None:
    """Words of an inline request by the rules of Redis's ``sdssplitargs``; ``None``: bad quotes.

    Words are parted by blanks; ``"…"`` knows ``\\n \\r \\t \\b \\a \\xHH`` and takes any other
    escaped byte as itself; ``'…'`` knows only ``\\'``. A quote may open inside a word, and after
    the closing one only a blank may follow. A NUL ends the line, as in C.
    """
    words: list[bytes] = []
    nul = line.find(_NUL)
    pos, end = 0, len(line)
    if nul >= 0:
        line, end = line[:nul], nul
    while True:
        while pos < end and line[pos] in _SPACE:
            pos += 1
        if pos == end:
            return words
        word = bytearray()
        while pos < end and line[pos] not in _WORD_END:
            byte = line[pos]
            if byte not in (_QUOTE, _APOSTROPHE):
                word.append(byte)
                pos += 1
                continue
            pos = _unquote(line, pos + 1, byte, word)
            if pos < 0:
                return None
            break
        words.append(bytes(word))


def _unquote(line: bytes, pos: int, quote: int, word: bytearray) -> int:
    """Append the quoted text at ``pos`` to ``word``; the index behind its end, or -1: bad."""
    end = len(line)
    while pos < end:
        byte = line[pos]
        if byte == quote:
            pos += 1
            return pos if pos == end or line[pos] in _SPACE else -1
        if byte == _BACKSLASH and pos + 1 < end:
            follower = line[pos + 1]
            if quote == _QUOTE:
                if (
                    follower == 0x78
                    and len(line) > pos + 3
                    and _HEX.issuperset(line[pos + 2 : pos + 4])
                ):
                    byte = int(line[pos + 2 : pos + 4], 16)
                    pos += 3
                else:
                    byte = _ESCAPES.get(follower, follower)
                    pos += 1
            elif follower == _APOSTROPHE:
                byte = follower
                pos += 1
        word.append(byte)
        pos += 1
    return -1


class ReplyDecoder(_Input):
    """Server to client: values of RESP2 and RESP3, as listed in ``resp_values``.

    Strict: CR LF everywhere, numbers without ``+``, leading zeros or blanks, pushes only at the
    top level. The :class:`RespError` says at which byte of the stream what was expected.
    """

    __slots__ = (
        "_bulk",
        "_bulk_kind",
        "_kinds",
        "_lists",
        "_max_bulk",
        "_max_depth",
        "_max_elements",
        "_max_line",
        "_missing",
    )

    def __init__(
        self,
        *,
        max_bulk_bytes: int = MAX_BULK_BYTES,
        max_line_bytes: int = MAX_LINE_BYTES,
        max_elements: int = MAX_ELEMENTS,
        max_depth: int = MAX_DEPTH,
    ) -> None:
        super().__init__()
        require_line_limit("max_line_bytes", max_line_bytes)
        self._max_bulk = max_bulk_bytes
        self._max_line = max_line_bytes
        self._max_elements = max_elements
        self._max_depth = max_depth
        #: Length of the bulk string whose bytes come next, or -1 before a header.
        self._bulk = -1
        self._bulk_kind = _BULK
        # The stack of open aggregates: type, elements to come, elements so far.
        self._kinds: list[int] = []
        self._missing: list[int] = []
        self._lists: list[list[Value]] = []

    def read(self) -> Value | Incomplete:
        """The next complete value, or ``INCOMPLETE`` when more bytes are needed.

        Raises :class:`RespError` when the stream is broken, after all values before it.
        """
        if self._error is not None:
            raise RespError(self._error)
        while True:
            value = self._read_bulk() if self._bulk >= 0 else self._read_header()
            if value is INCOMPLETE:
                return INCOMPLETE
            if value is _OPENED:
                continue
            while self._kinds:
                items = self._lists[-1]
                items.append(value)  # type: ignore[arg-type]  # neither sentinel gets here
                self._missing[-1] -= 1
                if self._missing[-1]:
                    break
                self._missing.pop()
                self._lists.pop()
                value = _finish(self._kinds.pop(), items)
            else:
                self._consumed = self._base + self._pos
                return value  # type: ignore[return-value]

    def _refuse(self, expected: str, got: bytes) -> NoReturn:
        self._fail(str(bad_reply(self._base + self._pos, expected, got)))

    def _read_header(self) -> object:
        """A value of one line, an opened aggregate or bulk string, or ``INCOMPLETE``."""
        data, pos = self._data, self._pos
        if pos == len(data):
            return INCOMPLETE
        kind = data[pos]
        if kind not in _LINES and kind not in _BULKS and kind not in _AGGREGATES:
            self._refuse("a RESP type", bytes(data[pos : pos + 1]))
        stop = min(len(data), pos + self._max_line + 1)
        end = data.find(_CR, max(self._scan, pos + 1), stop)
        if end < 0:
            self._scan = stop
            if stop - pos > self._max_line:
                self._refuse(
                    f"a line of at most {self._max_line} bytes", bytes(data[pos : pos + 33])
                )
            return INCOMPLETE
        self._scan = end
        if end + 1 == len(data):
            return INCOMPLETE
        if data[end + 1] != _LF:
            self._refuse("CR LF at the end of the line", bytes(data[pos : end + 2]))
        line = bytes(data[pos + 1 : end])
        if kind in _BULKS:
            return self._open_bulk(kind, line, end + 2)
        if kind in _AGGREGATES:
            return self._open_aggregate(kind, line, end + 2)
        value = self._line_value(kind, line)
        self._advance(end + 2)
        return value

    def _line_value(self, kind: int, line: bytes) -> Value:
        if kind == 0x2B or kind == 0x2D:
            if _LF in line:
                self._refuse("a line without LF inside", bytes([kind]) + line)
            return SimpleString(line) if kind == 0x2B else SimpleError(line)
        if kind == 0x3A:
            number = _parse_int64(line)
            if number is None:
                self._refuse("an integer of 64 bits", b":" + line)
            return number
        if kind == 0x5F:
            if line:
                self._refuse("a null without content", b"_" + line)
            return None
        if kind == 0x23:
            if line != b"t" and line != b"f":
                self._refuse("#t or #f", b"#" + line)
            return line == b"t"
        if kind == 0x2C:
            if _DOUBLE.fullmatch(line) is None:
                self._refuse("a double", b"," + line)
            return float(line)
        if _BIG_NUMBER.fullmatch(line) is None:
            self._refuse("a big number", b"(" + line)
        return BigNumber(line)

    def _open_bulk(self, kind: int, line: bytes, pos: int) -> object:
        length = _parse_int64(line)
        lowest = {_BULK: -1, _BULK_ERROR: 0, _VERBATIM: 4}[kind]
        if length is None or not lowest <= length <= self._max_bulk:
            self._refuse(expected_length(lowest, self._max_bulk), bytes([kind]) + line)
        self._advance(pos)
        if length < 0:
            return None
        self._bulk = length
        self._bulk_kind = kind
        return _OPENED

    def _read_bulk(self) -> object:
        data, pos = self._data, self._pos
        stop = pos + self._bulk
        if len(data) < stop + 2:
            return INCOMPLETE
        if data[stop] != _CR or data[stop + 1] != _LF:
            self._refuse("CR LF behind a bulk string", bytes(data[stop : stop + 2]))
        value = bytes(data[pos:stop])
        if self._bulk_kind == _BULK_ERROR:
            value = BulkError(value)
        elif self._bulk_kind == _VERBATIM:
            if value[3] != 0x3A:
                self._refuse("three letters and a colon", value[:33])
            value = VerbatimString(value)
        self._advance(stop + 2)
        self._bulk = -1
        return value

    def _open_aggregate(self, kind: int, line: bytes, pos: int) -> object:
        count = _parse_int64(line)
        width = 2 if kind in (_MAP, _ATTRIBUTE) else 1
        lowest = -1 if kind == _ARRAY else 0
        highest = self._max_elements // width
        if count is None or not lowest <= count <= highest:
            self._refuse(expected_count(lowest, highest), bytes([kind]) + line)
        if kind == _PUSH and self._kinds:
            self._refuse("a push at the top level only", b">" + line)
        if count >= 0 and len(self._kinds) == self._max_depth:
            self._refuse(f"at most {self._max_depth} levels", bytes([kind]) + line)
        self._advance(pos)
        if count < 0:
            return None
        # An attribute's frame also takes the value that it belongs to.
        elements = count * width + (kind == _ATTRIBUTE)
        if elements == 0:
            return _finish(kind, [])
        self._kinds.append(kind)
        self._missing.append(elements)
        self._lists.append([])
        return _OPENED


#: An aggregate or bulk string was begun: no value yet.
_OPENED: Final = object()


def _finish(kind: int, items: list[Value]) -> Value:
    if kind == _ARRAY:
        return items
    if kind == _MAP:
        return Map(items)
    if kind == _SET:
        return Set(items)
    if kind == _PUSH:
        return Push(items)
    value = items.pop()
    return Attributed(value, Map(items))
