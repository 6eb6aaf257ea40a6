# cython: annotation_typing=False
"""One connection to an upstream: requests out, responses in, and when it may be used again.

One source, compiled as ``_upstream_c``. A connection is idle in its pool, or belongs to exactly one
:class:`~nexus.gateway._ports_py.ResponseSink` from ``begin`` until the response is complete and the
sink releases it, or until it is lost.
"""

from __future__ import annotations

import select
from typing import Any, Final

import cython  # type: ignore[import-untyped]

from nexus.errors import HttpError
from nexus.gateway.buffers import RECEIVE_BUFFER

if not cython.compiled:
    from nexus._speedups._http1_py import ChunkedDecoder, ResponseHead
    from nexus.gateway._outlet_py import Outlet
    from nexus.gateway._ports_py import PoolPort, ResponseSink
    from nexus.gateway._wheel_py import Timed
    from nexus.gateway.buffers import copied

__all__ = ["UpstreamConnection"]

#: Largest response head: as nginx's proxy_buffer_size taken generously, and as our request heads.
MAX_HEAD: Final = 32_768
MAX_FIELDS: Final = 100
#: 1xx responses in front of one response; more is a broken or hostile upstream.
MAX_INFORMATIONAL: Final = 16
#: A connection that rested longer is asked whether it still lives before it is used (ns): the
#: event loop has had many turns to see an end that came earlier than that.
CHECK_AFTER_NS: Final = 250_000_000

# How the end of the body is found (RFC 9112 §6.3).
_HEAD, _LENGTH, _CHUNKED, _UNTIL_CLOSE, _TUNNEL, _IDLE, _CLOSED = range(7)


class UpstreamConnection(Timed):
    """An asyncio ``BufferedProtocol``; made by a pool, one per connection."""

    def __init__(self, pool: PoolPort) -> None:
        super().__init__()
        self.pool = pool
        self.sink: ResponseSink | None = None
        self.transport: Any = None
        self._out: Any = None
        self.head = ResponseHead(MAX_HEAD, MAX_FIELDS)
        self._decoder: ChunkedDecoder | None = None
        self._pending: bytearray | None = None
        self._mode = _IDLE
        self._left = 0
        self._informational = 0
        self._bodiless = False
        self._reusable = True
        #: Whether a byte of the current response has arrived.
        self.answered = False
        #: Requests begun on this connection.
        self.requests = 0
        #: Whether it was taken out of rest in the pool.
        self.rested = False
        self.idle_since = 0
        self._reading = True

    @property
    def lost(self) -> bool:
        """Whether the connection has ended."""
        return bool(self._mode == _CLOSED)

    # ---------------------------------------------------------------------------- for the sink

    def begin(self, sink: ResponseSink, data: bytes, bodiless: bool) -> None:
        """Send the first bytes of a request (or none yet); ``bodiless``: its method is HEAD."""
        self.sink = sink
        self.deadline = 0
        self._mode = _HEAD
        self._bodiless = bodiless
        self._informational = 0
        self.answered = False
        self.requests += 1
        if data:
            self._out.write(data)

    def write(self, data: bytes) -> None:
        """Send more of the request."""
        if self._mode != _CLOSED:
            self._out.write(data)

    def pause_reading(self) -> None:
        """Take no more of the response until :meth:`resume_reading`."""
        if self._reading and self._mode != _CLOSED:
            self._reading = False
            self.transport.pause_reading()

    def resume_reading(self) -> None:
        if not self._reading and self._mode != _CLOSED:
            self._reading = True
            self.transport.resume_reading()

    def release(self) -> None:
        """The exchange is over: back to the pool, or closed where it cannot be used again."""
        self.sink = None
        if self._mode == _IDLE and self._reusable:
            self.resume_reading()
            self.pool.give_back(self)
        elif self._mode != _CLOSED:
            self._mode = _CLOSED
            self.transport.abort()

    def discard(self) -> None:
        """Give up the exchange, whatever its state."""
        self._reusable = False
        self.release()

    def write_eof(self) -> None:
        """The client has closed its side of a tunnel."""
        if self._mode != _CLOSED and self.transport.can_write_eof():
            self.transport.write_eof()

    def alive(self, now: int) -> bool:
        """Whether an idle connection can be used: nothing to read, neither data nor an end."""
        if self._mode != _IDLE or self.transport.is_closing():
            return False
        if now - self.idle_since < CHECK_AFTER_NS:
            return True
        poll = select.poll()
        poll.register(self.transport.get_extra_info("socket").fileno(), select.POLLIN)
        return not poll.poll(0)

    def raced(self) -> bool:
        """Whether a loss may be no failure: the upstream ended an idle connection in that moment.

        A connection that carries its first request at once was not idle before it.
        """
        return not self.answered and (self.rested or self.requests > 1)

    # ------------------------------------------------------------------------------- protocol

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        self._out = Outlet(transport)

    def get_buffer(self, _hint: int) -> bytearray:
        return RECEIVE_BUFFER

    def buffer_updated(self, size: int) -> None:
        pending = self._pending
        if pending is None:
            self._consume(RECEIVE_BUFFER, 0, size)
        else:
            pending += memoryview(RECEIVE_BUFFER)[:size]
            self._consume(pending, 0, len(pending))

    def eof_received(self) -> bool:
        self._out.close()
        if self._mode == _UNTIL_CLOSE:
            self._complete(b"")
        elif self._mode == _TUNNEL:
            self._lost("closed")
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self._out.close()
        if self._mode == _UNTIL_CLOSE and exc is None:
            self._complete(b"")
        else:
            self._lost("reset" if exc is not None else "closed")
        self.pool.forget(self)

    def pause_writing(self) -> None:
        if self.sink is not None:
            self.sink.on_upstream_blocked()

    def resume_writing(self) -> None:
        if self.sink is not None:
            self.sink.on_upstream_writable()

    def on_deadline(self, now: int) -> None:  # noqa: ARG002
        """Idle for too long: closed before the upstream does it in the middle of a request."""
        if self._mode == _IDLE:
            self._mode = _CLOSED
            self.transport.close()

    # ------------------------------------------------------------------------------- responses

    def _consume(self, buffer: bytearray, start: int, end: int) -> None:
        mode = self._mode
        if mode == _HEAD:
            self.answered = True
            try:
                self._heads(buffer, start, end)
            except HttpError as error:
                self._lost(error.reason)
        elif mode in (_LENGTH, _CHUNKED):
            try:
                data = self._take(buffer, start, end)
            except HttpError as error:
                self._lost(error.reason)
                return
            if self._mode == _IDLE:
                self._complete(data)
            elif data:
                self.sink.on_body(self, data, False)  # type: ignore[union-attr]
        elif mode in (_UNTIL_CLOSE, _TUNNEL):
            self.sink.on_body(self, copied(buffer, start, end), False)  # type: ignore[union-attr]
        elif mode == _IDLE:
            # Bytes that nobody asked for: whatever they answer, it is not the next request.
            self._mode = _CLOSED
            self.transport.abort()

    def _heads(self, buffer: bytearray, start: int, end: int) -> None:
        head = self.head
        at = start
        while True:
            used = head.parse(buffer, at, end)
            if used == 0:
                self._pending = bytearray(buffer[at:end])
                return
            at += used
            if head.status >= 200:
                break
            if head.status == 101:
                self._upgrade(buffer, at, end)
                return
            self._informational += 1
            if self._informational > MAX_INFORMATIONAL:
                self._lost("upstream_too_many_1xx")
                return
            self.sink.on_informational(self, head)  # type: ignore[union-attr]
            head.reset()
            if self._mode != _HEAD:
                return
        self._pending = None
        self._respond(buffer, at, end)

    def _respond(self, buffer: bytearray, at: int, end: int) -> None:
        """The final response: frame its body (RFC 9112 §6.3) and hand over what is here."""
        head = self.head
        self._reusable = head.keep_alive
        if self._bodiless or head.status == 204 or head.status == 304:
            self._left = 0
            self._mode = _LENGTH
            if head.status == 204 and (head.chunked or head.content_length > 0):
                # RFC 9112 §6.3: no body, whatever it says. But what it says may follow.
                self._reusable = False
        elif head.chunked:
            if self._decoder is None:
                self._decoder = ChunkedDecoder(False)
            self._decoder.reset()
            self._mode = _CHUNKED
        elif head.content_length >= 0:
            self._left = head.content_length
            self._mode = _LENGTH
        else:
            self._mode = _UNTIL_CLOSE
            self._reusable = False
        data = self._take(buffer, at, end)
        complete = self._mode == _IDLE
        sink = self.sink
        if complete:
            self.sink = None
        sink.on_response(self, head, data, complete)  # type: ignore[union-attr]

    def _take(self, buffer: bytearray, at: int, end: int) -> bytes:
        """The body's bytes in ``buffer[at:end]``; the mode is idle when they were the last."""
        mode = self._mode
        if mode == _LENGTH:
            size = end - at
            if size < self._left:
                self._left -= size
                return copied(buffer, at, end)
            stop = at + self._left
            self._mode = _IDLE
            if stop < end:
                self._reusable = False
            return copied(buffer, at, stop)
        if mode == _CHUNKED:
            decoder = self._decoder
            used = decoder.feed(buffer, at, end)  # type: ignore[union-attr]
            if decoder.done:  # type: ignore[union-attr]
                self._mode = _IDLE
                if at + used < end:
                    self._reusable = False
            return decoder.payload  # type: ignore[union-attr]
        return copied(buffer, at, end)

    def _upgrade(self, buffer: bytearray, at: int, end: int) -> None:
        self._reusable = False
        self._pending = None
        self._mode = _TUNNEL
        self.sink.on_upgraded(self, self.head, copied(buffer, at, end))  # type: ignore[union-attr]

    def _complete(self, data: bytes) -> None:
        self._mode = _IDLE
        sink = self.sink
        self.sink = None
        if sink is not None:
            sink.on_body(self, data, True)

    def rest(self, now: int) -> None:
        """Called by the pool when the connection becomes idle."""
        self.head.reset()
        self._reusable = True
        self.idle_since = now

    def _lost(self, reason: str) -> None:
        was_open = self._mode != _CLOSED
        self._mode = _CLOSED
        if was_open:
            self.transport.abort()
        sink = self.sink
        self.sink = None
        if sink is not None:
            sink.on_lost(self, reason)
