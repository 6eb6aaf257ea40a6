"""An upstream that writes down every byte it is sent, and reads HTTP as strictly as it can.

It shares no code with the gateway: what it cannot parse by the letter of RFC 9112 is recorded as
an error, because a proxy that is strict by construction must never send it.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from loop_thread import LoopThread

OK = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 2\r\n\r\nok"

_FIELD = re.compile(rb"([!#$%&'*+\-.^_`|~0-9A-Za-z]+):[ \t]*([\t\x20-\x7e\x80-\xff]*)")
_LINE = re.compile(rb"([A-Z]+) (\S+) HTTP/1\.1")
_SIZE = re.compile(rb"([0-9A-Fa-f]{1,15})\r\n")


@dataclass(frozen=True)
class Request:
    """One complete request, body without framing; field names in lower case, in order."""

    method: str
    target: str
    fields: tuple[tuple[str, str], ...]
    body: bytes
    connection: int

    def values(self, name: str) -> list[str]:
        return [value for key, value in self.fields if key == name]


@dataclass(frozen=True)
class Answer:
    """What a path is answered with: ``pieces`` with a pause between, then perhaps an end."""

    pieces: tuple[bytes, ...]
    close: bool = False
    #: Answer as soon as the head is there, whatever body is announced.
    early: bool = False
    pause: float = 0.002


@dataclass
class Connection:
    """One accepted connection: all its bytes, and whether the peer has ended it."""

    number: int
    data: bytearray = field(default_factory=bytearray)
    #: What has arrived and is no complete request.
    unfinished: bytearray = field(default_factory=bytearray)
    closed: bool = False


class Malformed(Exception):
    """The proxy sent something that is no HTTP/1.1 request."""


class RecordingUpstream:
    """Listens on a free port of 127.0.0.1, on an event loop in a thread of its own."""

    def __init__(self) -> None:
        self.port = 0
        self.connections: list[Connection] = []
        self.requests: list[Request] = []
        self.errors: list[str] = []
        self.received = 0
        #: target without its query → answer; other targets are answered with :data:`OK`.
        self.answers: dict[str, Answer] = {}

    def start(self) -> RecordingUpstream:
        self._thread = LoopThread(self._listen)
        return self

    def stop(self) -> None:
        self._thread.stop()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def unfinished(self) -> list[Connection]:
        """Open connections that hold part of a request."""
        return [c for c in self.connections if c.unfinished and not c.closed]

    async def _listen(self) -> asyncio.AbstractServer:
        server = await asyncio.get_running_loop().create_server(
            lambda: _Protocol(self), "127.0.0.1", 0, backlog=512
        )
        self.port = server.sockets[0].getsockname()[1]
        return server


class _Protocol(asyncio.Protocol):
    def __init__(self, upstream: RecordingUpstream) -> None:
        self._upstream = upstream
        self._answering: asyncio.Task[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._record = Connection(len(self._upstream.connections))
        self._buffer = self._record.unfinished
        self._upstream.connections.append(self._record)

    def data_received(self, data: bytes) -> None:
        self._upstream.received += len(data)
        self._record.data += data
        self._buffer += data
        if self._answering is None:
            self._next()

    def connection_lost(self, exc: Exception | None) -> None:
        self._record.closed = True
        if self._answering is not None:
            self._answering.cancel()

    def _next(self) -> None:
        try:
            request = self._parse()
        except Malformed as error:
            self._upstream.errors.append(f"{error}: {bytes(self._buffer[:200])!r}")
            self._transport.abort()
            return
        if request is None:
            return
        answer = self._upstream.answers.get(request.target.partition("?")[0], Answer((OK,)))
        self._answering = asyncio.get_running_loop().create_task(self._answer(answer))

    async def _answer(self, answer: Answer) -> None:
        for index, piece in enumerate(answer.pieces):
            if index:
                await asyncio.sleep(answer.pause)
            self._transport.write(piece)
        self._answering = None
        if answer.close:
            self._transport.close()
        elif self._buffer:
            self._next()

    def _parse(self) -> Request | None:
        """Take one complete request off the buffer."""
        end = self._buffer.find(b"\r\n\r\n")
        if end < 0:
            return None
        lines = bytes(self._buffer[:end]).split(b"\r\n")
        line = _LINE.fullmatch(lines[0])
        if line is None:
            raise Malformed("request line")
        fields = []
        for raw in lines[1:]:
            match = _FIELD.fullmatch(raw)
            if match is None:
                raise Malformed(f"field line {raw!r}")
            fields.append((match[1].decode().lower(), match[2].decode("latin-1").strip(" \t")))
        target = line[2].decode("latin-1")
        answer = self._upstream.answers.get(target.partition("?")[0])
        if answer is not None and answer.early:
            # Nothing that follows on this connection is a request any more.
            body: bytes | None = b""
            del self._buffer[: end + 4]
        else:
            body = self._body(dict(fields), len(fields), end + 4)
        if body is None:
            return None
        names = [name for name, _ in fields]
        if names.count("host") != 1:
            raise Malformed("Host is not there exactly once")
        request = Request(line[1].decode(), target, tuple(fields), body, self._record.number)
        self._upstream.requests.append(request)
        return request

    def _body(self, fields: dict[str, str], count: int, at: int) -> bytes | None:
        length, encoding = fields.get("content-length"), fields.get("transfer-encoding")
        if length is not None and encoding is not None:
            raise Malformed("both framings")
        if encoding is not None:
            if encoding != "chunked":
                raise Malformed(f"encoding {encoding!r}")
            return self._chunks(at)
        size = 0
        if length is not None:
            if not re.fullmatch(r"[0-9]{1,18}", length):
                raise Malformed(f"length {length!r}")
            size = int(length)
        if len(self._buffer) < at + size:
            return None
        body = bytes(self._buffer[at : at + size])
        del self._buffer[: at + size]
        return body

    def _chunks(self, at: int) -> bytes | None:
        body = b""
        while True:
            line_end = self._buffer.find(b"\r\n", at)
            if line_end < 0:
                return None
            match = _SIZE.fullmatch(bytes(self._buffer[at : line_end + 2]))
            if match is None:  # an extension is none of our business either
                raise Malformed("chunk size line")
            size = int(match[1], 16)
            at = line_end + 2
            if len(self._buffer) < at + size + 2:
                return None
            if self._buffer[at + size : at + size + 2] != b"\r\n":
                raise Malformed("end of chunk, or a trailer")
            body += self._buffer[at : at + size]
            at += size + 2
            if size == 0:
                del self._buffer[:at]
                return body


def wait_until(condition: Callable[[], object], seconds: float = 2.0) -> bool:
    """Whether ``condition`` became true in time."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.002)
    return True
