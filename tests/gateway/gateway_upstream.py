# ruff: noqa: E501  (one case per line reads better than wrapped bytes)
"""A raw upstream for gateway tests: it answers by path, byte by byte as the test wants, and records.

It runs on an event loop in a thread, so that tests may block. HTTP is written by hand here on
purpose: the point is to send what no server library would.
"""

from __future__ import annotations

import asyncio
import gzip
import json
import ssl
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from loop_thread import LoopThread

JSON = b'{"products":[1,2,3]}'


@dataclass
class Seen:
    """One request as it arrived: head with its CRLFs, body after de-framing."""

    head: bytes
    body: bytes = b""
    connection: int = 0

    @property
    def line(self) -> bytes:
        return self.head.split(b"\r\n", 1)[0]

    @property
    def path(self) -> str:
        return self.line.split(b" ")[1].decode()

    def values(self, name: str) -> list[str]:
        found = []
        for line in self.head.split(b"\r\n")[1:]:
            key, _, value = line.partition(b":")
            if key.decode().lower() == name.lower():
                found.append(value.strip().decode("latin-1"))
        return found


def reply(status: int = 200, body: bytes = b"", *fields: str, length: bool = True) -> bytes:
    lines = [f"HTTP/1.1 {status} X", *fields]
    if length:
        lines.append(f"Content-Length: {len(body)}")
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1") + body


@dataclass
class Upstream:
    """Listens on a free port of 127.0.0.1 or at ``unix``; ``name`` is sent as ``X-Upstream``."""

    name: str
    seen: list[Seen] = field(default_factory=list)
    connections: int = 0
    open_now: int = 0
    calls: dict[str, int] = field(default_factory=dict)
    port: int = 0
    tls: ssl.SSLContext | None = None
    unix: str = ""
    #: How `/mood` answers: 200, or a status, `reset`, `hang`, `slow`; `Retry-After` with `after`.
    mood: str = ""
    after: str = ""

    def start(self) -> Upstream:
        self._thread = LoopThread(self._listen)
        return self

    def stop(self) -> None:
        self._thread.stop()

    @property
    def url(self) -> str:
        if self.unix:
            return f"unix://{self.unix}"
        return f"{'https' if self.tls else 'http'}://127.0.0.1:{self.port}"

    async def _listen(self) -> asyncio.AbstractServer:
        if self.unix:
            return await asyncio.start_unix_server(self._serve, self.unix, limit=1 << 20)
        server = await asyncio.start_server(
            self._serve, "127.0.0.1", 0, limit=1 << 20, ssl=self.tls
        )
        self.port = server.sockets[0].getsockname()[1]
        return server

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self.open_now += 1
        number = self.connections
        try:
            while await self._one(reader, writer, number):
                pass
        except (ConnectionError, asyncio.IncompleteReadError, ValueError):
            pass
        finally:
            self.open_now -= 1
            writer.close()

    async def _one(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, number: int
    ) -> bool:
        head = await reader.readuntil(b"\r\n\r\n")
        seen = Seen(head, connection=number)
        self.seen.append(seen)
        path = seen.path.partition("?")[0]
        self.calls[path] = self.calls.get(path, 0) + 1
        before = BEFORE_BODY.get(path)
        if before is not None:
            return await before(self, seen, reader, writer)
        seen.body = await read_body(seen, reader)
        handler = AFTER_BODY.get(path) or AFTER_BODY["/" + path.split("/")[1]]
        return await handler(self, seen, reader, writer)


async def read_body(seen: Seen, reader: asyncio.StreamReader) -> bytes:
    length = seen.values("content-length")
    if length:
        return await reader.readexactly(int(length[0]))
    if seen.values("transfer-encoding") != ["chunked"]:
        return b""
    body = b""
    while True:
        size = int((await reader.readline()).strip(), 16)
        body += await reader.readexactly(size)
        assert await reader.readexactly(2) == b"\r\n"
        if size == 0:
            return body


Handler = Callable[[Upstream, Seen, asyncio.StreamReader, asyncio.StreamWriter], Awaitable[bool]]


def fixed(make: Callable[[Upstream, Seen], bytes], *, close: bool = False) -> Handler:
    async def handler(up: Upstream, seen: Seen, _r: object, writer: asyncio.StreamWriter) -> bool:
        writer.write(make(up, seen))
        await writer.drain()
        return not close

    return handler


def pieces(*parts: bytes, close: bool = False, pause: float = 0.03) -> Handler:
    async def handler(_u: Upstream, _s: Seen, _r: object, writer: asyncio.StreamWriter) -> bool:
        for part in parts:
            writer.write(part)
            await writer.drain()
            await asyncio.sleep(pause)
        return not close

    return handler


async def hang(_u: object, _s: object, reader: asyncio.StreamReader, _w: object) -> bool:
    await reader.read()  # until the gateway gives up
    return False


async def only_b(up: Upstream, _s: Seen, _r: object, writer: asyncio.StreamWriter) -> bool:
    good = up.name == "b"
    writer.write(reply(200 if good else 503, JSON, "Content-Type: application/json"))
    await writer.drain()
    return True


async def reset_a(up: Upstream, _s: Seen, _r: object, writer: asyncio.StreamWriter) -> bool:
    if up.name == "a":
        return False
    writer.write(reply(200, b"from b", "Content-Type: text/plain"))
    await writer.drain()
    return True


async def hang_a(
    up: Upstream, seen: Seen, reader: asyncio.StreamReader, w: asyncio.StreamWriter
) -> bool:
    if up.name == "a":
        return await hang(up, seen, reader, w)
    return await reset_a(up, seen, reader, w)


async def early(
    _u: Upstream, _s: Seen, reader: asyncio.StreamReader, w: asyncio.StreamWriter
) -> bool:
    w.write(reply(422, b"no", "Content-Type: text/plain"))
    await w.drain()
    await reader.read()
    return False


async def go_on(
    up: Upstream, seen: Seen, reader: asyncio.StreamReader, w: asyncio.StreamWriter
) -> bool:
    await asyncio.sleep(0.05)
    w.write(b"HTTP/1.1 100 Continue\r\n\r\n")
    seen.body = await read_body(seen, reader)
    w.write(reply(200, seen.body, "Content-Type: text/plain"))
    await w.drain()
    return True


async def websocket(
    _u: Upstream, _s: Seen, reader: asyncio.StreamReader, w: asyncio.StreamWriter
) -> bool:
    w.write(
        b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
        b"Sec-WebSocket-Accept: x\r\n\r\nhello"
    )
    while data := await reader.read(65536):
        if data == b"bye":
            break
        w.write(data.upper())
        await w.drain()
    return False


async def flood(_u: Upstream, _s: Seen, _r: object, w: asyncio.StreamWriter) -> bool:
    """Bytes without end, before the request's body is read."""
    w.write(reply(200, b"", "Content-Type: text/plain", length=False))
    while True:
        w.write(bytes(65536))
        await w.drain()


async def websocket_flood(_u: Upstream, _s: Seen, _r: object, w: asyncio.StreamWriter) -> bool:
    w.write(b"HTTP/1.1 101 X\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
    while True:
        w.write(bytes(65536))
        await w.drain()


async def websocket_deaf(_u: Upstream, _s: Seen, _r: object, w: asyncio.StreamWriter) -> bool:
    """Upgrades and never reads."""
    w.write(b"HTTP/1.1 101 X\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
    await asyncio.sleep(3600)
    return False


async def once(up: Upstream, seen: Seen, _r: object, w: asyncio.StreamWriter) -> bool:
    """Times an idle connection out with a 408 that crosses the next request."""
    if sum(other.connection == seen.connection for other in up.seen) == 1:
        w.write(reply(200, b"first", "Content-Type: text/plain"))
        await w.drain()
        return True
    w.write(reply(408, b"", "Connection: close"))
    await w.drain()
    return False


async def big(_u: Upstream, seen: Seen, _r: object, w: asyncio.StreamWriter) -> bool:
    size = int(seen.path.rsplit("/", 1)[1])
    w.write(
        reply(
            200,
            b"",
            "Content-Type: application/octet-stream",
            f"Content-Length: {size}",
            length=False,
        )
    )
    block = bytes(65536)
    while size:
        part = block[: min(size, len(block))]
        w.write(part)
        size -= len(part)
        await w.drain()
    return True


async def discard(
    _u: Upstream, seen: Seen, reader: asyncio.StreamReader, w: asyncio.StreamWriter
) -> bool:
    left = total = int(seen.values("content-length")[0])
    while left:
        left -= len(await reader.read(min(left, 65536)))
    w.write(reply(200, str(total).encode(), "Content-Type: text/plain"))
    await w.drain()
    return True


async def sse(_u: Upstream, _s: Seen, _r: object, w: asyncio.StreamWriter) -> bool:
    w.write(
        reply(
            200, b"", "Content-Type: text/event-stream", "Transfer-Encoding: chunked", length=False
        )
    )
    for i in range(3):
        event = f"data: {i}\n\n".encode()
        w.write(b"%x\r\n%b\r\n" % (len(event), event))
        await w.drain()
        await asyncio.sleep(0.25)
    w.write(b"0\r\n\r\n")
    await w.drain()
    return True


async def mood(up: Upstream, _s: Seen, _r: object, writer: asyncio.StreamWriter) -> bool:
    if up.mood == "reset":
        return False
    if up.mood in ("hang", "slow"):
        await asyncio.sleep(30 if up.mood == "hang" else 0.4)
    status = int(up.mood) if up.mood.isdigit() else 200
    fields = [f"Retry-After: {up.after}"] if up.after else []
    writer.write(reply(status, up.name.encode(), "Content-Type: text/plain", *fields))
    await writer.drain()
    return True


def status(up: Upstream, seen: Seen) -> bytes:
    code = int(seen.path.partition("?")[0].rsplit("/", 1)[1])
    return reply(
        code, b'{"code":%d}' % code, "Content-Type: application/json", f"X-Upstream: {up.name}"
    )


def typed(content_type: str, body: bytes = JSON, *fields: str) -> Handler:
    return fixed(lambda _u, _s: reply(200, body, f"Content-Type: {content_type}", *fields))


CHUNKED_JSON = (
    b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
)

BEFORE_BODY: dict[str, Handler] = {
    "/early": early,
    "/continue": go_on,
    "/ws": websocket,
    "/ws-flood": websocket_flood,
    "/ws-deaf": websocket_deaf,
    "/flood": flood,
    "/discard": discard,
    "/reset-head": reset_a,
}
AFTER_BODY: dict[str, Handler] = {
    "/": fixed(lambda _u, _s: reply(200, b"root", "Content-Type: text/plain")),
    "/json": fixed(
        lambda up, _s: reply(
            200, JSON, "Content-Type: application/json", f"X-Upstream: {up.name}", 'ETag: "v1"',
            "Accept-Ranges: bytes", "Content-Digest: sha-256=:x:", "Set-Cookie: a=1",
            "Set-Cookie: b=2", "Connection: keep-alive, X-Hop", "X-Hop: 1", "Keep-Alive: timeout=5",
        )
    ),
    "/echo": fixed(lambda _u, s: reply(200, s.head + b"|" + s.body, "Content-Type: text/plain")),
    "/head": fixed(lambda _u, _s: b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 20\r\n\r\n"),
    "/head-text": fixed(lambda _u, _s: b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 20\r\n\r\n"),
    "/utf8": typed('application/json; charset="UTF-8"'),
    "/latin1": typed("application/json; charset=iso-8859-1"),
    "/problem": typed("application/problem+json"),
    "/ndjson": typed("application/x-ndjson"),
    "/text": typed("text/plain", b"plain text"),
    "/empty": typed("application/json", b""),
    "/no-transform": typed("application/json", JSON, "Cache-Control: no-transform"),
    "/gzip": fixed(
        lambda _u, _s: reply(200, gzip.compress(JSON, mtime=0), "Content-Type: application/json", "Content-Encoding: gzip")
    ),
    "/206": fixed(lambda _u, _s: reply(206, b"{", "Content-Type: application/json", "Content-Range: bytes 0-0/20")),
    "/204": fixed(lambda _u, _s: b"HTTP/1.1 204 No Content\r\nContent-Type: application/json\r\n\r\n"),
    "/304": fixed(lambda _u, _s: b'HTTP/1.1 304 Not Modified\r\nContent-Type: application/json\r\nETag: "v1"\r\n\r\n'),
    "/status": fixed(status),
    "/redirect": fixed(lambda _u, _s: reply(302, b"", "Location: /elsewhere?x=1")),
    "/redirect-far": fixed(lambda _u, _s: reply(302, b"", "Location: https://example.com/x")),
    "/redirect-net": fixed(lambda _u, _s: reply(302, b"", "Location: //example.com/x")),
    "/chunked": pieces(CHUNKED_JSON, b"5\r\n[1,2,\r\n", b"3;x=y\r\n 3]\r\n", b"0\r\nTrailer: x\r\n\r\n"),
    "/chunked-at-once": fixed(lambda _u, _s: CHUNKED_JSON + b"2\r\n[]\r\n0\r\n\r\n"),
    "/chunked-empty": pieces(CHUNKED_JSON, b"0\r\n\r\n"),
    "/slow-json": pieces(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 6\r\n\r\n", b"[1,", b"2]"[:2] + b" "),
    "/until-close": pieces(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n\r\n", b"[1,", b"2]", close=True),
    "/truncated": pieces(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 50\r\n\r\n[1", close=True),
    "/truncated-chunked": pieces(CHUNKED_JSON, b"5\r\n[1,", close=True),
    "/bad-chunk": pieces(CHUNKED_JSON, b"5\r\n[1,2,\r\n", b"+3\r\n 3]\r\n"),
    "/bad-framing": fixed(lambda _u, _s: b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
    "/garbage": fixed(lambda _u, _s: b"220 smtp ready\r\n\r\n", close=True),
    "/extra": fixed(lambda _u, _s: reply(200, b"ok", "Content-Type: text/plain") + b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil"),
    "/unasked-101": fixed(lambda _u, _s: b"HTTP/1.1 101 X\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"),
    "/hints": fixed(lambda _u, _s: b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n" + reply(200, b"ok", "Content-Type: text/plain")),
    "/close-after": fixed(lambda _u, _s: reply(200, b"bye", "Content-Type: text/plain"), close=True),
    "/only-b": only_b,
    "/reset": fixed(lambda _u, _s: b"", close=True),
    "/reset-a": reset_a,
    "/hang": hang,
    "/hang-a": hang_a,
    "/big": big,
    "/sse": sse,
    "/once": once,
    "/mood": mood,
}  # fmt: skip


def parse_json(body: bytes) -> dict[str, object]:
    document = json.loads(body)
    assert isinstance(document, dict)
    return document
