"""A TCP relay between proxy and Redis that misbehaves on command.

::

    proxy ──► Relay (one Pipe per connection) ──► Redis

Bytes are never changed, except by ``sabotage``, which exists to show that the checkers notice.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import re
import socket
import struct
from collections import deque
from collections.abc import Callable
from typing import cast

__all__ = ["Pipe", "Relay"]

#: Unsent bytes at which the other side is not read any more.
_HIGH = 1 << 20
#: Bytes at the head of a chunk that "tiny" sends one to three at a time; the rest follows whole,
#: so that a value of some megabytes does not take minutes.
_TINY_BYTES = 200
#: Where a proxy asks Redis for invalidations.
_TRACKING = re.compile(rb"\r\nTRACKING\r\n\$2\r\nON\r\n", re.IGNORECASE)


class _End(asyncio.Protocol):
    """One socket of a pipe."""

    def __init__(self, take: Callable[[bytes], None], gone: Callable[[], None]) -> None:
        self.transport: asyncio.Transport | None = None
        self.other: _End | None = None
        self._take = take
        self._gone = gone

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        self.transport.set_write_buffer_limits(high=_HIGH)

    def data_received(self, data: bytes) -> None:
        self._take(data)

    def connection_lost(self, _error: Exception | None) -> None:
        self.transport = None
        self._gone()

    def pause_writing(self) -> None:
        if self.other is not None and self.other.transport is not None:
            self.other.transport.pause_reading()

    def resume_writing(self) -> None:
        if self.other is not None and self.other.transport is not None:
            self.other.transport.resume_reading()

    def write(self, data: bytes) -> None:
        if self.transport is not None and data:
            self.transport.write(data)

    def end(self, *, reset: bool) -> None:
        """Close at once; ``reset``: by RST instead of FIN."""
        if self.transport is None:
            return
        if reset:
            raw = self.transport.get_extra_info("socket")
            with contextlib.suppress(OSError):
                raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.transport.abort()


class Pipe:
    """One connection through the relay, and how it misbehaves at the moment."""

    def __init__(self, relay: Relay) -> None:
        self._relay = relay
        self.proxy = _End(self._from_proxy, self._ended)
        self.redis = _End(self._from_redis, self._ended)
        self.proxy.other, self.redis.other = self.redis, self.proxy
        self._early: list[bytes] = []
        self._connected = False
        self.closed = False
        #: Forward a part of the next reply bytes, then close.
        self.cut_next = False
        #: Swallow what comes from Redis, or both ways.
        self.deaf = False
        self.mute = False
        #: Keep what comes, from either side, until :meth:`release`.
        self.held = False
        self._held_back: list[tuple[_End, bytes]] = []
        #: The proxy asked Redis to be told of changes on this connection.
        self.tracking = False
        self._queue: deque[bytes] = deque()
        self._busy = False

    async def connect(self, host: str, port: int) -> None:
        loop = asyncio.get_running_loop()
        try:
            await loop.create_connection(lambda: self.redis, host, port)
        except OSError:
            self.end(reset=True)
            return
        if self.closed:
            self.redis.end(reset=True)
            return
        self._connected = True
        for data in self._early:
            self.redis.write(data)
        self._early.clear()

    def _from_proxy(self, data: bytes) -> None:
        if self.mute:
            return
        if not self.tracking and _TRACKING.search(data):
            self.tracking = True
        if self.held:
            self._held_back.append((self.redis, data))
        elif self._connected:
            self.redis.write(data)
        else:
            self._early.append(data)

    def _from_redis(self, data: bytes) -> None:
        if self.deaf:
            return
        if self._relay.sabotage is not None:
            data = self._relay.sabotage(data)
        if self.held:
            self._held_back.append((self.proxy, data))
            return
        if self.cut_next and len(data) > 1:
            # What was held back goes first; the cut is in the middle of this chunk.
            self._flush()
            self.proxy.write(data[: self._relay.random.randrange(1, len(data))])
            self._relay.mid_reply_cuts += 1
            self._relay.loop.call_later(0.002, lambda: self.end(reset=False))
            self.deaf = True
        elif self._relay.delay or self._relay.tiny or self._queue:
            self._queue.extend(self._pieces(data))
            if not self._busy:
                self._busy = True
                self._later()
        else:
            self.proxy.write(data)

    def _pieces(self, data: bytes) -> list[bytes]:
        if not self._relay.tiny:
            return [data]
        pieces, position = [], 0
        while position < min(len(data), _TINY_BYTES):
            size = self._relay.random.randint(1, 3)
            pieces.append(data[position : position + size])
            position += size
        pieces.append(data[position:])
        return pieces

    def _later(self) -> None:
        loop = self._relay.loop
        if self._relay.delay:
            loop.call_later(self._relay.random.uniform(0, self._relay.delay), self._next)
        else:
            loop.call_soon(self._next)

    def _next(self) -> None:
        if self._queue:
            self.proxy.write(self._queue.popleft())
        if self._queue and not self.closed:
            self._later()
        else:
            self._busy = False

    def _flush(self) -> None:
        while self._queue:
            self.proxy.write(self._queue.popleft())

    def release(self) -> None:
        """The stall is over; nothing was lost."""
        self.held = False
        waiting, self._held_back = self._held_back, []
        for side, data in waiting:
            if side is self.redis and not self._connected:
                self._early.append(data)
            elif side is self.proxy and self._queue:
                self._queue.append(data)
            else:
                side.write(data)

    def end(self, *, reset: bool) -> None:
        """Close both sides; what waits in between is lost."""
        self.closed = True
        self._held_back.clear()
        self._queue.clear()
        self.proxy.end(reset=reset)
        self.redis.end(reset=reset)
        self._relay.pipes.discard(self)

    def _ended(self) -> None:
        """One side closed: what it sent before is delivered, then the other side closes."""
        if self.closed:
            return
        self.closed = True
        self._relay.pipes.discard(self)
        self.release()
        self._flush()
        for side in (self.proxy, self.redis):
            if side.transport is not None:
                side.transport.close()


class Relay:
    """Listens on a port of its own and forwards to Redis."""

    def __init__(
        self,
        host: str,
        port: int,
        rng: random.Random,
        sabotage: Callable[[bytes], bytes] | None = None,
    ) -> None:
        self.target = (host, port)
        self.random = rng
        self.loop = asyncio.get_running_loop()
        self.pipes: set[Pipe] = set()
        self.port = 0
        #: Most seconds that a chunk from Redis is held back.
        self.delay = 0.0
        #: Send what comes from Redis in pieces of one to three bytes.
        self.tiny = False
        self.sabotage = sabotage
        self.mid_reply_cuts = 0
        self._server: asyncio.Server | None = None
        self._connecting: set[asyncio.Task[None]] = set()

    async def listen(self) -> None:
        """Accept connections, on the same port each time."""
        self._server = await self.loop.create_server(self._accept, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    def refuse(self) -> None:
        """Accept none any more: the proxy sees "connection refused"."""
        if self._server is not None:
            self._server.close()
            self._server = None

    def _accept(self) -> asyncio.Protocol:
        pipe = Pipe(self)
        self.pipes.add(pipe)
        task = self.loop.create_task(pipe.connect(*self.target))
        self._connecting.add(task)
        task.add_done_callback(self._connecting.discard)
        return pipe.proxy

    def some(self, *, tracking: bool = False) -> list[Pipe]:
        """A random half of the connections, at least one where there is one.

        ``tracking``: of those on which Redis tells of changes, if there are any.
        """
        pipes = sorted(self.pipes, key=id)
        if tracking:
            pipes = [pipe for pipe in pipes if pipe.tracking] or pipes
        return self.random.sample(pipes, (len(pipes) + 1) // 2)

    def stop(self) -> None:
        self.refuse()
        for task in self._connecting:
            task.cancel()
        for pipe in list(self.pipes):
            pipe.end(reset=True)
