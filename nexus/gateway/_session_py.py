# cython: annotation_typing=False
"""One client connection: requests in, replies out, in order; timeouts; back-pressure.

::

    READING head ─► phases ─► BODY (request body to the exchange) ─► WAITING (for the response)
         ▲                                                               │
         └──────────── keep-alive, pipelined requests wait ◄─────────────┘
    LINGERING: the reply is out, the rest of the request is read and thrown away, then closed
    TUNNELLING: after 101, bytes both ways

One source, compiled as ``_session_c``. A pipelining client is answered in order because the next
head is not parsed before the exchange is over; what it sent ahead waits in ``_pending``, bounded.
"""

from __future__ import annotations

import socket
import struct
from typing import Any, Final

import cython  # type: ignore[import-untyped]

from nexus.errors import HttpError
from nexus.gateway.buffers import RECEIVE_BUFFER

if not cython.compiled:
    from nexus._speedups._http1_py import ChunkedDecoder, RequestHead
    from nexus.gateway._core_py import Core
    from nexus.gateway._exchange_py import Exchange
    from nexus.gateway._outlet_py import Outlet
    from nexus.gateway._phases_py import Phases
    from nexus.gateway._ports_py import ClientPort
    from nexus.gateway.buffers import copied

__all__ = ["Session"]

_READING, _BODY, _WAITING, _LINGERING, _TUNNELLING, _CLOSED = range(6)

#: Bytes that a client may send ahead while its request is served; then it is not read.
MAX_AHEAD: Final = 65_536
#: After an early reply: how long and how much of the request is still read, so that the reply is
#: not lost to a reset (RFC 9112 §9.6; nginx lingers 5 s between reads).
LINGER_NS: Final = 2_000_000_000
MAX_LINGER: Final = 1_048_576
#: Draining: how long a connection that has not asked anything yet may take for its first request.
FIRST_REQUEST_NS: Final = 1_000_000_000
#: Least rate of a request body, bytes per second, and when it is first asked for, nanoseconds
#: (Kestrel: 240 bytes/s after 5 s).
MIN_BODY_RATE: Final = 240
RATE_GRACE_NS: Final = 10_000_000_000
#: How often a client that does not read as fast as we write is asked for the same rate: as nginx's
#: send_timeout, so that somebody may pause for a while.
SEND_WINDOW_NS: Final = 60_000_000_000
#: The same for what is left when we close: there is nothing to pause for any more.
CLOSE_WINDOW_NS: Final = 5_000_000_000


#: struct linger: on, no seconds.
_NO_LINGER: Final = struct.pack("ii", 1, 0)


class Session(ClientPort):
    """An asyncio ``BufferedProtocol``; one per accepted connection."""

    def __init__(
        self, core: Core, phases: Phases, sessions: set[Any], scheme: bytes, peer: str
    ) -> None:
        """``scheme``: what the client spoke; ``peer``: its address, ``""`` for the socket's."""
        super().__init__()
        self.core = core
        self.phases = phases
        self._sessions = sessions
        self.exchange = Exchange(core, self)
        self.exchange.scheme = scheme
        self._peer = peer
        self.transport: Any = None
        self._out: Any = None
        self._more = False
        self._head = RequestHead(core.max_head, core.max_line, core.max_fields)
        self._decoder: ChunkedDecoder | None = None
        self._pending: bytearray | None = None
        self._state = _READING
        self._left = 0
        self._chunked = False
        self._request_done = True
        self._response_done = True
        self._keep = True
        self._busy = False
        self._reading = True
        self._paused_ahead = False
        self._lingered = 0
        self._body_started = 0
        self._unsent = 0
        self._window = 0
        self._send_by = 0
        self._paused_at = 0
        self._last_read = 0
        self._served = 0
        self._blocked = False
        self._head_begun = False

    @property
    def idle(self) -> bool:
        """Whether no request is under way."""
        return self._state == _READING

    # -------------------------------------------------------------------------------- protocol

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        self._out = Outlet(transport)
        core = self.core
        core.connections += 1
        self._sessions.add(self)
        try:
            peer = (self._peer,) if self._peer else transport.get_extra_info("peername")
            self.phases.identify(self.exchange, peer)
        except Exception:
            self.break_off()  # nobody will read from it
            raise
        if core.connections > core.max_connections:
            self._keep = False
            self.exchange.begin_refused()
            self.exchange.reject(503, "too_many_connections", "Too many connections are open.")
            return
        core.wheel.schedule(self, core.wheel.now + core.head_ns)

    def get_buffer(self, _hint: int) -> bytearray:
        return RECEIVE_BUFFER

    def buffer_updated(self, size: int) -> None:
        self._last_read = self.core.wheel.now
        pending = self._pending
        if pending is None:
            self._process(RECEIVE_BUFFER, 0, size)
            return
        pending += memoryview(RECEIVE_BUFFER)[:size]
        if self._state == _WAITING:
            self._bound_ahead()
        else:
            self._pending = None
            self._process(pending, 0, len(pending))

    def eof_received(self) -> bool:
        if self._state == _TUNNELLING:
            self.exchange.close_upstream_writing()
            return True
        self._out.close()
        return False  # a FIN is a disconnect: the transport closes, connection_lost cancels

    def connection_lost(self, _exc: Exception | None) -> None:
        self._state = _CLOSED
        self._out.close()
        self.core.wheel.drop(self)
        self.core.connections -= 1
        self._sessions.discard(self)
        self._pending = None
        self.exchange.cancel(499, "client_disconnected")
        self.exchange.detach()

    def pause_writing(self) -> None:
        self._blocked = True
        self.exchange.block_client()
        if self._state != _READING and self._state != _LINGERING:
            window = min(SEND_WINDOW_NS, self.core.stream_idle_ns)
            self._watch_sending(self.core.wheel.now, window)

    def resume_writing(self) -> None:
        self._blocked = False
        if self._state == _WAITING or self._state == _TUNNELLING:
            self.deadline = 0
        self.exchange.unblock_client()

    # --------------------------------------------------------------------------------- reading

    def _process(self, buffer: bytearray, at: int, end: int) -> None:
        """Consume ``buffer[at:end]`` as far as the state allows; keep the rest."""
        self._busy = True
        while at < end:
            state = self._state
            if state == _READING:
                used = self._read_head(buffer, at, end)
                if used == 0:
                    break
                at += used
            elif state == _BODY:
                at += self._read_body(buffer, at, end)
            elif state == _TUNNELLING:
                self.exchange.on_tunnel_data(copied(buffer, at, end))
                at = end
            elif state == _LINGERING:
                self._lingered += end - at
                if self._lingered > MAX_LINGER:
                    self.transport.abort()
                at = end
            elif state == _CLOSED:
                at = end
            else:
                break
        self._busy = False
        if at < end and self._state != _CLOSED:
            self._pending = bytearray(buffer[at:end])
            if self._state == _WAITING:
                self._bound_ahead()

    def _read_head(self, buffer: bytearray, at: int, end: int) -> int:
        """Bytes consumed; 0 when the head is incomplete."""
        head = self._head
        core = self.core
        try:
            used = head.parse(buffer, at, end)
        except HttpError as error:
            self._refuse(error)
            return end - at
        if used == 0:
            # The first bytes of a head start its clock; more bytes do not restart it.
            if self._pending is None and self._served and not self._head_begun:
                self._head_begun = True
                core.wheel.schedule(self, core.wheel.now + core.head_ns)
            return 0
        self._head_begun = False
        self._more = at + used < end
        self._served += 1
        self._chunked = head.chunked
        self._left = max(0, head.content_length)
        has_body = self._chunked or self._left > 0
        self._request_done = not has_body
        self._response_done = False
        if has_body:
            self._start_body()
        else:
            self._state = _WAITING
            self.deadline = 0
        exchange = self.exchange
        exchange.begin(head, has_body)
        exchange.body_at_hand = has_body and self._more
        self.phases.run(exchange, head)
        exchange.body_at_hand = False
        if exchange.held:
            # The buffer is not ours for long: a head of its own, over a copy.
            kept = copied(buffer, at, at + used)
            exchange.held_head = RequestHead(core.max_head, core.max_line, core.max_fields)
            exchange.held_head.parse(kept, 0, used)
        head.reset()
        return used

    def _start_body(self) -> None:
        core = self.core
        self._state = _BODY
        if self._chunked:
            if self._decoder is None:
                self._decoder = ChunkedDecoder(True)
            self._decoder.reset()
        self._body_started = self._last_read
        core.wheel.schedule(self, core.wheel.now + min(core.body_idle_ns, RATE_GRACE_NS))

    def _read_body(self, buffer: bytearray, at: int, end: int) -> int:
        if self._chunked:
            decoder = self._decoder
            try:
                used = decoder.feed(buffer, at, end)  # type: ignore[union-attr]
            except HttpError as error:
                self._refuse(error)
                return end - at
            data = decoder.payload  # type: ignore[union-attr]
            last = decoder.done  # type: ignore[union-attr]
        else:
            used = end - at
            if used > self._left:
                used = self._left
            data = copied(buffer, at, at + used)
            self._left -= used
            last = self._left == 0
        if last:
            self._request_done = True
            self._state = _WAITING
            self.deadline = 0
            if self._response_done:
                self._next()
                return used
        self.exchange.on_request_body(data, last)
        return used

    def _bound_ahead(self) -> None:
        """While a response is outstanding reading goes on, to see an end, up to a limit."""
        if len(self._pending) > MAX_AHEAD and not self._paused_ahead:  # type: ignore[arg-type]
            self._paused_ahead = True
            self.pause_request()

    def _refuse(self, error: HttpError) -> None:
        """Bytes that must not be believed: answer if nothing was answered yet, then close."""
        self._keep = False
        self._request_done = False
        exchange = self.exchange
        if exchange.active:
            if exchange.responded:
                exchange.break_off(error.reason)
            else:
                exchange.reject(error.status, error.reason, error.detail)
            return
        self._state = _WAITING
        self._response_done = False
        exchange.begin_refused()
        exchange.reject(error.status, error.reason, error.detail)

    # ----------------------------------------------------------------------- for the exchange

    def send(self, data: bytes) -> None:
        if self._state != _CLOSED:
            # Pipelined requests of which the next is here: their replies leave together.
            self._out.write(data, self._busy and self._more)

    def response_done(self, keep: bool) -> None:
        self._response_done = True
        if not keep:
            self._keep = False
        if self._state == _CLOSED:
            return
        if not self._keep:
            self._close_politely()
        elif self._request_done:
            self._next()

    def tunnel(self) -> None:
        self._state = _TUNNELLING
        if not self._blocked:
            self.deadline = 0
        pending = self._pending
        if pending is not None and not self._busy:
            self._pending = None
            self._process(pending, 0, len(pending))
        self._unpause_ahead()

    def tunnel_ended(self) -> None:
        self._close()

    def break_off(self) -> None:
        """Close at once: what is still queued must not look like an orderly end."""
        self._state = _CLOSED
        self.transport.abort()

    def pause_request(self) -> None:
        if self._reading and self._state != _CLOSED:
            self._reading = False
            self._paused_at = self.core.wheel.now
            self.deadline = 0
            if self._blocked:
                self.core.wheel.schedule(self, self._send_by)
            self.transport.pause_reading()

    def resume_request(self) -> None:
        if not self._reading and self._state != _CLOSED and not self._paused_ahead:
            self._reading = True
            now = self.core.wheel.now
            if self._state == _BODY:
                # While we did not read, nothing could arrive: that is not the client's slowness.
                self._body_started += now - self._paused_at
                self._last_read = now
                self._expect_body(now)
            self.transport.resume_reading()

    # ---------------------------------------------------------------------------------- ending

    def _next(self) -> None:
        """The exchange is over in both directions: the next request, if it is here already."""
        core = self.core
        self._state = _READING
        self._head_begun = False
        if core.draining:
            self._close()
            return
        core.wheel.schedule(self, core.wheel.now + core.keep_alive_ns)
        self._unpause_ahead()
        if self._busy:
            return  # _process goes on with what it has
        pending = self._pending
        if pending is not None:
            self._pending = None
            self._process(pending, 0, len(pending))

    def _unpause_ahead(self) -> None:
        if self._paused_ahead:
            self._paused_ahead = False
            self.resume_request()

    def _close_politely(self) -> None:
        self.deadline = 0
        ahead = self._pending is not None
        self._pending = None
        if (self._request_done and not ahead) or self._state == _LINGERING:
            self._close()
            return
        # The client is still sending: a close now would reset the connection under our reply.
        self._state = _LINGERING
        self._lingered = 0
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self._paused_ahead = False
        self.resume_request()
        self.core.wheel.schedule(self, self.core.wheel.now + LINGER_NS)

    def close_when_idle(self) -> None:
        """Draining: an idle connection is closed, a busy one after its response."""
        if self._state != _READING or self._pending is not None or self._busy:
            return
        if self._served:
            self._close()
        else:  # just accepted: its first request may be in the socket already
            self.core.wheel.schedule(self, self.core.wheel.now + FIRST_REQUEST_NS)

    def _close(self) -> None:
        """Close behind what is still to be sent, as long as the client takes it."""
        self._state = _CLOSED
        self.transport.close()
        self._watch_sending(self.core.wheel.now, CLOSE_WINDOW_NS)

    def _watch_sending(self, now: int, window: int) -> None:
        """Demand the least rate of what waits for the client from now on."""
        self._unsent = self.transport.get_write_buffer_size()
        self._window = window
        self._send_by = now + window
        if self._state != _BODY or not self.deadline or self.deadline > self._send_by:
            self.core.wheel.schedule(self, self._send_by)

    def _check_sending(self, now: int) -> None:
        taken = self._unsent - self.transport.get_write_buffer_size()
        if taken >= MIN_BODY_RATE * (self._window // 1_000_000_000):
            self._watch_sending(now, self._window)
            return
        # With a reset: after a plain close the kernel would keep what waits, megabytes of it, for
        # somebody who takes nothing.
        sock = self.transport.get_extra_info("socket")
        if sock is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _NO_LINGER)
        if self._state == _CLOSED:
            self.transport.abort()
        else:
            self.exchange.break_off("response_too_slow")

    def abort(self) -> None:
        """The drain's time is over."""
        if self.transport is not None:
            self.transport.abort()

    def on_deadline(self, now: int) -> None:
        state = self._state
        if state == _READING:
            if self._pending is None:
                self._close()
            else:
                self._refuse(
                    HttpError(408, "head_timeout", "The request head did not arrive in time.")
                )
        elif state == _BODY:
            if self._blocked and now >= self._send_by:
                self._check_sending(now)
            if self._state == _BODY and self._reading:
                self._check_body(now)
        elif state == _LINGERING:
            self._close()
        elif state == _CLOSED or self._blocked:
            self._check_sending(now)

    def _check_body(self, now: int) -> None:
        core = self.core
        if now - self._last_read >= core.body_idle_ns:
            self._refuse(HttpError(408, "body_timeout", "The request body stopped arriving."))
            return
        open_for = now - self._body_started
        if open_for >= RATE_GRACE_NS:
            if self.exchange.bytes_in < MIN_BODY_RATE * (open_for // 1_000_000_000):
                self._refuse(HttpError(408, "body_too_slow", "The request body is too slow."))
                return
        self._expect_body(now)

    def _expect_body(self, now: int) -> None:
        """Look at the request body again when it may be too late, or too slow."""
        core = self.core
        until = min(self._last_read + core.body_idle_ns, now + RATE_GRACE_NS)
        if self._blocked and self._send_by < until:
            until = self._send_by
        core.wheel.schedule(self, until)
