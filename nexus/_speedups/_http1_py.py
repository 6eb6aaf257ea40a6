"""HTTP/1.1 heads and chunked bodies in pure Python: the reference of the compiled twin.

The order of the checks is part of the behaviour: the line scanner first, byte by byte in order (so
that the outcome cannot depend on how the bytes were split over reads), then the start line, then
each field line, then what the fields mean together.
"""

from __future__ import annotations

import re
from typing import Final

from nexus._speedups import http1_table as table
from nexus._speedups.http1_table import refuse, refuse_response
from nexus.errors import HttpError

__all__ = ["ChunkedDecoder", "RequestHead", "ResponseHead", "chunk"]

_TOKEN: Final = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_TCHAR: Final = frozenset(byte for byte in range(256) if _TOKEN.fullmatch(bytes([byte])))
_BAD_VALUE: Final = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")
_TARGET: Final = re.compile(rb"[\x21-\x7e]+")
# What needs no normalisation: no "%", no "//", no "/.", nothing that must be encoded.
_PLAIN_PATH: Final = re.compile(rb"(?:/(?![./])[A-Za-z0-9\-._~!$&'()*+,;=:@]*)+")
_STATUS_LINE: Final = re.compile(
    rb"HTTP/1\.([01]) ([1-5][0-9][0-9])(?: ([\t\x20-\x7e\x80-\xff]*))?"
)
_VERSION: Final = re.compile(rb"HTTP/([0-9])\.([0-9])")
_METHODS: Final = {method: method for method in table.METHODS}
_IDS: Final = {name: index + 1 for index, name in enumerate(table.FIELD_NAMES)}
_CATEGORIES: Final = (0, *table.FIELDS.values())
_HOST: Final = table.field(b"host")
_LENGTH: Final = table.field(b"content-length")
_ENCODING: Final = table.field(b"transfer-encoding")
_CONNECTION: Final = table.field(b"connection")
_EXPECT: Final = table.field(b"expect")
_UPGRADE: Final = table.field(b"upgrade")
_AUTHORIZATION: Final = table.field(b"authorization")

Buffer = bytearray | bytes


def chunk(payload: bytes) -> bytes:
    """One chunk (RFC 9112 §7.1); ``payload`` must not be empty, which would end the body."""
    return b"%x\r\n%b\r\n" % (len(payload), payload)


def _why(byte: int, otherwise: str) -> str:
    """NUL and CR have a reason of their own wherever they stand."""
    if byte == 0:
        return "nul_byte"
    if byte == 0x0D:
        return "bare_cr"
    return otherwise


class _Head:
    """What request and response heads have in common."""

    _request = True

    def __init__(self, max_head: int, max_line: int, max_fields: int) -> None:
        self._max_head = max_head
        # Below the other limit, or which of the two is met first would depend on the reads.
        self._max_line = min(max_line, max_head - 4) if self._request else max_head
        self._max_fields = max_fields
        #: (id, category, name, value) of every field line, in order.
        self._fields: list[tuple[int, int, bytes, bytes]] = []
        self._count = [0] * len(_CATEGORIES)
        self._nominated: list[bytes] = []
        self.reset()

    def reset(self) -> None:
        """Forget the message; the next ``parse`` begins a new one."""
        self._begin = -1
        self._line = 0
        self._scan = 0
        self.minor = 1
        self.content_length = table.ABSENT
        self.chunked = False
        self.keep_alive = True
        self._says_upgrade = False

    def value(self, known: int) -> bytes | None:
        """The first value of a known field. Valid until the buffer that was parsed changes."""
        if self._count[known]:
            for found, _, _, value in self._fields:
                if found == known:
                    return value
        return None

    def is_value(self, known: int, value: bytes | None) -> bool:
        """Whether ``value`` is the first value of a known field; valid as :meth:`value` is."""
        return value is not None and self.value(known) == value

    def count(self, known: int) -> int:
        """How many lines a known field has."""
        return self._count[known]

    def joined(self, known: int) -> bytes:
        """All values of a known list field, joined with ``", "``; valid as :meth:`value` is."""
        return b", ".join([value for found, _, _, value in self._fields if found == known])

    def named(self, name: bytes) -> bytes | None:
        """All values of the field with this lower-case name, known or not, joined with ``", "``.

        ``None`` where there is none; valid as :meth:`value` is. O(fields).
        """
        values = [value for _, _, found, value in self._fields if found.lower() == name]
        return b", ".join(values) if values else None

    def fields(self, drop: int) -> bytes:
        """``Name: value CRLF`` for each end-to-end field whose category is not in ``drop``."""
        nominated = self._nominated
        return b"".join(
            [
                b"%b: %b\r\n" % (name, value)
                for found, category, name, value in self._fields
                if not category & drop and (found or not nominated or name.lower() not in nominated)
            ]
        )

    def _refuse(self, reason: str) -> HttpError:
        return refuse(reason) if self._request else refuse_response(reason)

    def _find_begin(self, buffer: Buffer, start: int, size: int) -> bool:
        if size == 0:
            return False
        offset = 0
        if self._request and buffer[start] == 0x0D:
            # RFC 9112 §2.2: an empty line before the request line SHOULD be ignored; once.
            if size > 1 and buffer[start + 1] != 0x0A:
                raise self._refuse("bare_cr")
            if size <= 2:
                return False
            offset = 2
        byte = buffer[start + offset]
        if byte == 0x0A:
            raise self._refuse("bare_lf")
        if self._request:
            if _TOKEN.match(buffer, start + offset, start + offset + 1) is None:
                raise self._refuse(_why(byte, "bad_start_line"))
        elif byte != 0x48:
            raise self._refuse("bad_status_line")
        self._begin = self._line = self._scan = offset
        return True

    def _find_end(self, buffer: Buffer, start: int, end: int) -> int:
        """Length of the head with its empty line, or 0 while that is not there yet."""
        size = end - start
        if self._begin < 0 and not self._find_begin(buffer, start, size):
            return 0
        while True:
            at = buffer.find(b"\n", start + self._scan, end) - start
            if at < 0:
                self._scan = size
                if self._line == self._begin and size - self._begin > self._max_line + 1:
                    raise self._refuse("uri_too_long" if self._request else "head_too_large")
                if size > self._max_head:
                    raise self._refuse("head_too_large")
                return 0
            proper = at > self._line and buffer[start + at - 1] == 0x0D
            length = at - self._line - proper
            if self._line == self._begin and length > self._max_line:
                raise self._refuse("uri_too_long" if self._request else "head_too_large")
            if at + 1 > self._max_head:
                raise self._refuse("head_too_large")
            if not proper:
                raise self._refuse("bare_lf")
            self._scan = self._line = at + 1
            if length == 0:
                return at + 1

    def _parse_fields(self, lines: list[bytes]) -> None:
        fields = self._fields
        fields.clear()
        count = self._count = [0] * len(_CATEGORIES)
        self._nominated = []
        for index in range(1, len(lines)):
            line = lines[index]
            if index > self._max_fields:
                raise self._refuse("too_many_fields")
            if line[0] in b" \t":
                raise self._refuse("obs_fold")
            match = _TOKEN.match(line)
            colon = match.end() if match else 0
            if colon == len(line):
                raise self._refuse("bad_field_name")
            byte = line[colon]
            if byte != 0x3A:
                if byte in b" \t":
                    raise self._refuse("space_before_colon")
                raise self._refuse(_why(byte, "bad_field_name"))
            if colon == 0:
                raise self._refuse("bad_field_name")
            name = line[:colon]
            value = line[colon + 1 :].strip(b" \t")
            bad = _BAD_VALUE.search(value)
            if bad is not None:
                raise self._refuse(_why(bad[0][0], "bad_field_value"))
            known = _IDS.get(name.lower(), 0)
            category = _CATEGORIES[known]
            if not known and b"_" in name:
                form = _IDS.get(name.lower().replace(b"_", b"-"), 0)
                category = table.UNDERSCORE | _CATEGORIES[form] & table.UNDERSCORED
            count[known] += 1
            fields.append((known, category, name, value))

    def _parse_framing(self) -> None:
        encodings = self._count[_ENCODING]
        lengths = self._count[_LENGTH]
        if encodings:
            if self.minor == 0:
                raise self._refuse("encoding_in_http10")
            if lengths:
                raise self._refuse("length_and_encoding")
            self._parse_encoding(self.joined(_ENCODING))
        elif lengths:
            if lengths > 1:
                raise self._refuse("length_repeated")
            value = self.value(_LENGTH) or b""
            if not 1 <= len(value) <= table.MAX_LENGTH_DIGITS or value.strip(b"0123456789"):
                raise self._refuse("bad_length")
            self.content_length = int(value)

    def _parse_encoding(self, value: bytes) -> None:
        lowered = value.lower()
        if lowered != b"chunked":
            codings = [part.strip(b" \t") for part in lowered.split(b",")]
            if codings[-1] != b"chunked" or b"chunked" in codings[:-1]:
                raise self._refuse("bad_encoding")
            raise self._refuse("unsupported_encoding")
        self.chunked = True

    def _parse_connection(self) -> None:
        self.keep_alive = self.minor == 1
        if not self._count[_CONNECTION]:
            return
        close = False
        options = self.joined(_CONNECTION).lower().split(b",")
        if len(options) > table.MAX_NOMINATIONS:
            raise self._refuse("bad_connection")
        for option in options:
            option = option.strip(b" \t")
            if option == b"close":
                close = True
            elif option == b"keep-alive":
                self.keep_alive = True
            elif option == b"upgrade":
                self._says_upgrade = True
            elif option:
                self._nominate(option)
        if close:
            self.keep_alive = False

    def _nominate(self, option: bytes) -> None:
        if _TOKEN.fullmatch(option) is None:
            raise self._refuse("bad_connection")
        known = _IDS.get(option, 0)
        if known:
            if _CATEGORIES[known] != table.HOP:
                raise self._refuse("nominates_end_to_end")
        elif option.startswith((b"content-", b"x-forwarded-")):
            raise self._refuse("nominates_end_to_end")
        else:
            self._nominated.append(option)


class RequestHead(_Head):
    """A request head (RFC 9112 §3); one object serves all requests of a connection."""

    def __init__(self, max_head: int, max_line: int, max_fields: int) -> None:
        super().__init__(max_head, max_line, max_fields)

    def reset(self) -> None:
        super().reset()
        self.method = b""
        self.target = b""
        self.path = b""
        self.query = b""
        self.host = b""
        self.expect_continue = False
        self.upgrade = False

    def parse(self, buffer: Buffer, start: int, end: int) -> int:
        """Length of the head in ``buffer[start:end]``, 0 while incomplete.

        On a call after a 0, the bytes seen before must be the same, wherever they are now.
        Raises :class:`~nexus.errors.HttpError`.
        """
        length = self._find_end(buffer, start, end)
        if length == 0:
            return 0
        lines = bytes(buffer[start + self._begin : start + length - 4]).split(b"\r\n")
        authority = self._parse_start(lines[0])
        self._parse_fields(lines)
        self._parse_host(authority)
        self._parse_framing()
        self._parse_connection()
        if self._count[_AUTHORIZATION] > 1:
            raise refuse("authorization_repeated")
        self._parse_expect()
        if self._says_upgrade and self._count[_UPGRADE] == 1:
            asked = (self.value(_UPGRADE) or b"").lower()
            self.upgrade = (
                asked == b"websocket"
                and self.method == b"GET"
                and self.minor == 1
                and self.content_length <= 0
                and not self.chunked
            )
        return length

    def _parse_start(self, line: bytes) -> bytes | None:
        match = _TOKEN.match(line)
        stop = match.end() if match else 0
        if line[stop : stop + 1] != b" ":
            raise refuse(_why(line[stop] if stop < len(line) else 0x20, "bad_start_line"))
        if stop > table.MAX_METHOD:
            raise refuse("bad_method")
        method = line[:stop]
        self.method = _METHODS.get(method, method)
        begin = stop + 1
        match = _TARGET.match(line, begin)
        stop = match.end() if match else begin
        if stop == begin or line[stop : stop + 1] != b" ":
            raise refuse(_why(line[stop] if stop < len(line) else 0x20, "bad_start_line"))
        self.target = line[begin:stop]
        version = _VERSION.fullmatch(line, stop + 1)
        if version is None:
            raise refuse("bad_version")
        if version[1] != b"1" or version[2] not in (b"0", b"1"):
            raise refuse("unsupported_version")
        self.minor = 1 if version[2] == b"1" else 0
        return self._parse_target()

    def _parse_target(self) -> bytes | None:
        if self.method == b"CONNECT":
            raise refuse("connect_unsupported")
        target = self.target
        authority: bytes | None = None
        if target[0] != 0x2F:
            if target == b"*":
                if self.method != b"OPTIONS":
                    raise refuse("bad_target")
                self.path = target
                return None
            authority, target = table.split_absolute(target)
        if b"#" in target:
            raise refuse("bad_target")
        path, mark, query = target.partition(b"?")
        self.query = mark + query
        plain = _PLAIN_PATH.fullmatch(path) is not None
        self.path = path if plain else table.normalise_path(path)
        return authority

    def _parse_host(self, authority: bytes | None) -> None:
        hosts = self._count[_HOST]
        if hosts > 1:
            raise refuse("host_repeated")
        if hosts == 0:
            if self.minor == 1:
                raise refuse("host_missing")
            self.host = authority or b""
            return
        self.host = self.value(_HOST) or b""
        if not table.host_is_valid(self.host):
            raise refuse("bad_host")
        if authority is not None and authority.lower() != self.host.lower():
            raise refuse("host_mismatch")

    def _parse_expect(self) -> None:
        if not self._count[_EXPECT] or self.minor == 0:
            return  # RFC 9110 §10.1.1: an HTTP/1.0 expectation is ignored
        if self._count[_EXPECT] > 1 or (self.value(_EXPECT) or b"").lower() != b"100-continue":
            raise refuse("expectation_failed")
        self.expect_continue = True


class ResponseHead(_Head):
    """A response head (RFC 9112 §4); one object serves all responses of a connection."""

    _request = False

    def __init__(self, max_head: int, max_fields: int) -> None:
        super().__init__(max_head, max_head, max_fields)

    def reset(self) -> None:
        super().reset()
        self.status = 0
        self.reason = b""
        self.upgrade = False

    def parse(self, buffer: Buffer, start: int, end: int) -> int:
        """Length of the head, 0 while incomplete; as :meth:`RequestHead.parse`, but 502."""
        length = self._find_end(buffer, start, end)
        if length == 0:
            return 0
        lines = bytes(buffer[start + self._begin : start + length - 4]).split(b"\r\n")
        match = _STATUS_LINE.fullmatch(lines[0])
        if match is None:
            raise refuse_response("bad_status_line")
        self.minor = 1 if match[1] == b"1" else 0
        self.status = int(match[2])
        self.reason = match[3] or b""
        self._parse_fields(lines)
        self._parse_framing()
        self._parse_connection()
        self.upgrade = self._says_upgrade and self._count[_UPGRADE] == 1
        return length

    def block(self, drop: int) -> bytes:
        """Status line and end-to-end fields, as they go to the client."""
        return b"HTTP/1.1 %d %b\r\n%b" % (self.status, self.reason, self.fields(drop))


_SIZE, _EXTENSION, _SIZE_LF, _DATA, _DATA_CR, _DATA_LF, _TRAILER, _TRAILER_LF, _DONE = range(9)
_HEX: Final = {byte: int(chr(byte), 16) for byte in b"0123456789abcdefABCDEF"}


class ChunkedDecoder:
    """Chunked transfer coding (RFC 9112 §7.1): extensions and trailers are checked and dropped."""

    __slots__ = (
        "_count", "_extensions", "_left", "_named", "_request", "_state", "done", "payload"
    )  # fmt: skip

    def __init__(self, request: bool) -> None:
        self._request = request
        self.reset()

    def reset(self) -> None:
        """Begin a new body."""
        self._state = _SIZE
        self._left = 0
        #: Digits of this size line; bytes of this line; bytes of the trailer section.
        self._count = 0
        self._extensions = 0
        #: Whether the name of this trailer field, and its colon, have been read.
        self._named = False
        #: The data bytes of the last ``feed``.
        self.payload = b""
        #: Whether the last chunk and the trailer section have been read.
        self.done = False

    def _refuse(self, reason: str) -> HttpError:
        return refuse(reason) if self._request else refuse_response(reason)

    def feed(self, buffer: Buffer, start: int, end: int) -> int:
        """Decode ``buffer[start:end]``; returns how many bytes belong to this body.

        All of them unless the body ends in there. Raises :class:`~nexus.errors.HttpError`.
        """
        pieces: list[bytes] = []
        at = start
        while at < end and self._state != _DONE:
            if self._state == _DATA:
                take = min(self._left, end - at)
                pieces.append(bytes(buffer[at : at + take]))
                at += take
                self._left -= take
                if self._left == 0:
                    self._state = _DATA_CR
                continue
            self._step(buffer[at])
            at += 1
        self.payload = pieces[0] if len(pieces) == 1 else b"".join(pieces)
        self.done = self._state == _DONE
        return at - start

    def _step(self, byte: int) -> None:
        state = self._state
        if state == _SIZE:
            self._size(byte)
        elif state == _EXTENSION:
            self._extension(byte)
        elif state == _SIZE_LF:
            if byte != 0x0A:
                raise self._refuse("bare_cr")
            self._count = 0
            # The last chunk: the trailer section follows, line by line.
            self._state = _DATA if self._left else _TRAILER
            self._extensions = self._extensions if self._left else 0
            self._named = False
        elif state == _DATA_CR:
            if byte != 0x0D:
                raise self._refuse("bad_chunk_end")
            self._state = _DATA_LF
        elif state == _DATA_LF:
            if byte != 0x0A:
                raise self._refuse("bad_chunk_end")
            self._state = _SIZE
        elif state == _TRAILER:
            self._trailer(byte)
        else:
            if byte != 0x0A:
                raise self._refuse("bare_cr")
            if self._count == 0:
                self._state = _DONE
            else:
                self._count = 0
                self._named = False
                self._state = _TRAILER

    def _size(self, byte: int) -> None:
        digit = _HEX.get(byte)
        if digit is not None:
            self._count += 1
            if self._count > table.MAX_CHUNK_DIGITS:
                raise self._refuse("bad_chunk_size")
            self._left = self._left * 16 + digit
            return
        if self._count == 0:
            raise self._refuse(_why(byte, "bad_chunk_size"))
        if byte == 0x0D:
            self._state = _SIZE_LF
        elif byte == 0x3B:
            self._state = _EXTENSION
        elif byte == 0x0A:
            raise self._refuse("bare_lf")
        else:
            raise self._refuse(_why(byte, "bad_chunk_size"))

    def _extension(self, byte: int) -> None:
        if byte == 0x0D:
            self._state = _SIZE_LF
            return
        if byte == 0x0A:
            raise self._refuse("bare_lf")
        if (byte < 0x20 and byte != 0x09) or byte == 0x7F:
            raise self._refuse(_why(byte, "bad_chunk_extension"))
        self._count += 1
        self._extensions += 1
        if self._count > table.MAX_CHUNK_LINE or self._extensions > table.MAX_EXTENSION_BYTES:
            raise self._refuse("bad_chunk_extension")

    def _trailer(self, byte: int) -> None:
        """A trailer field is as strict as one of the head, then dropped; ``_count``: its length."""
        if byte == 0x0D:
            if self._count and not self._named:
                raise self._refuse("bad_trailer")
            self._state = _TRAILER_LF
            return
        if byte == 0x0A:
            raise self._refuse("bare_lf")
        if (byte < 0x20 and byte != 0x09) or byte == 0x7F:
            raise self._refuse(_why(byte, "bad_trailer"))
        if not self._named:
            if byte == 0x3A and self._count:
                self._named = True
            elif byte not in _TCHAR:
                raise self._refuse("bad_trailer")
        self._count += 1
        self._extensions += 1
        if self._extensions > table.MAX_TRAILER_BYTES:
            raise self._refuse("bad_trailer")
