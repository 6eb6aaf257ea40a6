# cython: annotation_typing=False, wraparound=True
"""Moving commands and replies: the hot path of the cacheproxy. One source, two backends.

::

    Client.buffer_updated ─ scan ─► run of plain commands ─► Link.send: one copy into ``out``,
                                                              one reference in the FIFO
    Link.flush             one write for all that the turn's clients sent
    Link.buffer_updated    ─ scan ─► FIFO head ─► Receiver.deliver: one slice, one write

Who waits for what
    A ``Link`` (``_link_py.py``) is one connection to Redis; its FIFO says whose each reply is. A
    :class:`Client` counts the replies it still expects from its link (``outstanding``); answers
    that the proxy makes itself while some are outstanding wait in ``slots``, so that every client
    sees its own order. Whatever changes a client's link waits until nothing is outstanding
    (a *barrier*): no reply can ever overtake another.

Writing
    Bytes go straight to the socket where nothing waits in the transport, and through the transport
    where it takes no more: uvloop's own path costs about a microsecond for each write, and its
    queue would only be emptied at the end of the turn. What waits there is never overtaken.

Memory
    All connections of a worker read into ``Plane.buffer``. It is theirs only within
    ``buffer_updated``; what must outlive that call is copied out (``out``, ``pending``, slices).
"""

from __future__ import annotations

from collections import deque
from typing import Any

import cython  # type: ignore[import-untyped]

if not cython.compiled:
    from nexus._speedups._respscan_py import CommandScanner, append, cut, send, send_bytes
    from nexus.cacheproxy._link_py import DOWN, Link, Plane, Receiver, Settler, direct_descriptor


__all__ = ["Client", "Held", "Near"]

# Verdicts of CommandScanner.scan; the class attributes of Client that name them are for readers.
MORE = 0

# Why a client's input waits; a bit each in ``Client.blocked``.
BARRIER = 1
PIN_WAIT = 2
CLIENT_FULL = 4
LINK_FULL = 8
HELD = 16


class Near(Settler):
    """What stands between a shared client's input and its link while a policy is in force."""

    def take(self, client: Client, data: bytearray, start: int, end: int) -> int:
        """Use up commands of ``data[start:end]``; returns where it stopped.

        ``client.verdict`` is the scanner's verdict at that place.
        """
        raise NotImplementedError


class Held:
    """A reply that is still being found, in a client's ``slots``."""

    def __init__(self) -> None:
        self.reply: bytes | None = None
        #: Its span, where it is traced.
        self.span: Any = None


class Client(Receiver):
    """One client connection: the part that every byte passes through.

    What is not a plain command is decided by the subclass (``special``, ``drained``, ``finish``).
    """

    def __init__(self, plane: Plane) -> None:
        super().__init__()
        self.plane = plane
        self.transport: Any = None
        self.link: Any = None
        self.pinned = False
        self.spliced_through = False
        self.discarding = False
        self.mask = plane.shared_mask
        self.scanner = CommandScanner(plane.table, plane.bulk_limit, plane.big_command)
        self.pending: bytearray | None = None
        self.outstanding = 0
        self.slots: deque[Any] | None = None
        self.blocked = 0
        self.closed = False
        self.eof = False
        self.quitting = False
        self.congested = False
        self.reading_paused = False
        self.reply_bytes = 0
        self.big_until = 0
        self.last_seen = plane.tick
        self.processing = False
        #: Whether the transport can still write after the client's end of input (TLS: no).
        self.half_open = True
        self.descriptor = -1
        self.queued = False
        #: The near-cache as this client sees it; None: pass through.
        self.near: Any = None
        self.verdict = MORE
        #: Unresolved :class:`Held` in ``slots``.
        self.held = 0
        #: Replies of the link up to these numbers: of anything but plain reads, of plain reads.
        self.write_seq = 0
        self.read_seq = 0
        #: A hit needs a fence that was sent later than this.
        self.fence_after = 0.0
        #: What it was sent to load is guarded (:mod:`nexus.cacheproxy.fillguard`).
        self.guarded = False

    # -- from the client

    def get_buffer(self, _hint: int) -> bytearray:
        return self.plane.buffer

    def buffer_updated(self, size: int) -> None:
        plane = self.plane
        plane.client_bytes_in += size
        self.last_seen = plane.tick
        if self.pending is not None:
            append(self.pending, plane.buffer, 0, size)
            if self.blocked == 0:
                self.resume()
            elif len(self.pending) > plane.pending_limit:
                self._pause_reading()
            return
        if self.blocked == 0:
            position = self.process(plane.buffer, 0, size)
        else:
            position = 0
        if position < size and not self.closed:
            self.pending = bytearray()
            append(self.pending, plane.buffer, position, size)
            if self.blocked and len(self.pending) > plane.pending_limit:
                self._pause_reading()

    def resume(self) -> None:
        """Go on with the input that was put aside."""
        if self.processing:
            return
        data = self.pending
        if data is not None and not self.closed:
            size = len(data)
            position = self.process(data, 0, size)
            if position >= size:
                self.pending = None
            elif position:
                del data[:position]
        if self.blocked == 0 and self.reading_paused and not self.closed:
            self.reading_paused = False
            self.transport.resume_reading()
        if self.eof and not self.closed:
            self.finish()

    def process(self, data: bytearray, start: int, end: int) -> int:
        """Use up input; returns where the unused rest begins."""
        self.processing = True
        try:
            return self._process(data, start, end)
        finally:
            self.processing = False

    def _process(self, data: bytearray, start: int, end: int) -> int:
        scanner = self.scanner
        while self.blocked == 0 and start < end and not self.closed:
            if self.quitting:
                return end
            if self.link is not None and self.link.congested and not self.discarding:
                if self.link.retired:
                    if self.outstanding or self.slots:
                        self.blocked |= BARRIER
                        break
                    self.bind()
                    continue
                self.blocked |= LINK_FULL
                self.link.wait(self)
                break
            if self.spliced_through:
                self.link.send(self, data, start, end, 0)
                return end
            if scanner.streaming:
                start = self._stream(data, start, end)
                if self.scanner.streaming:
                    break
                continue
            if self.plane.near_on and not self.pinned:
                if self.link is None:
                    self.bind()
                start = self._near(self.near, data, start, end)
                verdict = self.verdict
            else:
                verdict = scanner.scan(data, start, end, self.mask)
                if scanner.run_count:
                    self.forward(data, start, scanner.run_end, scanner.run_count)
                start = scanner.run_end
            if verdict == MORE:
                break
            start = self.special(verdict, data, start, end)
        return start

    # A typed call, as in Link.
    def _near(self, near: Near, data: bytearray, start: int, end: int) -> int:
        return near.take(self, data, start, end)

    def forward(self, data: bytearray, start: int, end: int, count: int) -> None:
        """Send ``count`` plain commands down the client's link."""
        if self.link is None:
            self.bind()
        if self.link.state == DOWN:
            self.plane.refused_commands += count
            self.answer(self.link.refusal * count)
            return
        if self.pinned:
            self.plane.pinned_commands += count
        else:
            self.plane.shared_commands += count
        self.link.send(self, data, start, end, count)
        self.expecting(count)
        if self.plane.tracing:
            self.traced(data, start, end, count)

    def traced(self, data: bytearray, start: int, end: int, count: int) -> None:
        """``count`` commands were just sent: is it the turn of one of them?"""
        plane = self.plane
        plane.trace_left -= count
        if plane.trace_left < 0:
            plane.tracer.forwarded(self, data, start, end, count)

    def expecting(self, count: int) -> None:
        """``count`` more replies will come from the link."""
        if not self.slots:
            self.outstanding += count
        elif isinstance(self.slots[-1], int):
            self.slots[-1] += count
        else:
            self.slots.append(count)

    def _stream(self, data: bytearray, start: int, end: int) -> int:
        stop = self.scanner.stream(data, start, end)
        if stop < 0:
            if not self.discarding:
                self._forget_last()
            self.protocol_error()
            return end
        if not self.discarding:
            self.link.send(self, data, start, stop, 0)
        elif not self.scanner.streaming:
            self.discarding = False
            self.discarded()
        return stop

    def _forget_last(self) -> None:
        """The command expected last will never be complete, so it will never be answered."""
        if self.slots:
            self.slots[-1] -= 1
            if self.slots[-1] == 0:
                self.slots.pop()
        else:
            self.outstanding -= 1

    def _pause_reading(self) -> None:
        if not self.reading_paused and not self.closed:
            self.reading_paused = True
            self.transport.pause_reading()

    # -- to the client

    def answer(self, data: bytes) -> None:
        """The proxy's own reply, in its turn."""
        if self.outstanding == 0 and not self.slots:
            self.write(data)
        else:
            if self.slots is None:
                self.slots = deque()
            self.slots.append(data)
            self.split = True

    def write(self, data: bytes) -> None:
        if self.closed:
            return
        if self.queued and self.transport.get_write_buffer_size() == 0:
            self.queued = False
        if self.descriptor >= 0 and not self.queued:
            sent = send_bytes(self.descriptor, data)
            self.plane.client_bytes_out += sent
            if sent == len(data):
                return
            data = data[sent:]
        self._queue(data)

    def _queue(self, data: bytes) -> None:
        """Leave to the transport what the socket does not take now."""
        self.plane.client_bytes_out += len(data)
        self.queued = True
        self.transport.write(data)
        if self.congested and self.transport.get_write_buffer_size() > self.plane.output_limit:
            self.plane.output_limit_kills += 1
            self.abort()

    def pass_on(self, data: bytearray, start: int, end: int) -> None:
        """Write a piece of somebody else's buffer."""
        if self.closed:
            return
        if self.queued and self.transport.get_write_buffer_size() == 0:
            self.queued = False
        if self.descriptor >= 0 and not self.queued:
            sent = send(self.descriptor, data, start, end)
            self.plane.client_bytes_out += sent
            start += sent
            if start == end:
                return
        self._queue(cut(data, start, end))

    def deliver(self, data: bytearray, start: int, end: int, done: int) -> None:
        if self.closed:
            return
        self.pass_on(data, start, end)
        if done == 0:
            self.reply_bytes += end - start
            if self.congested and self.reply_bytes > self.plane.big_reply:
                if not (self.pinned or self.link.retired):
                    self.link.retire(self)
            return
        if self.reply_bytes:
            if self.link is not None and self.link.slow is self:
                self.link.release_slow()
            if self.reply_bytes > self.plane.big_reply:
                self.big_until = self.plane.tick + 30
                if not self.pinned:
                    self.mask = 0  # every command is looked at, so that the next one moves
            self.reply_bytes = 0
        self.outstanding -= done
        if self.outstanding <= 0:
            if self.outstanding < 0:  # cannot be; a client cut off beats a reply crossed
                self.abort()
                return
            self.settle()

    def settle(self) -> None:
        """All replies of the first stretch are out: let what waited behind them go."""
        ready: list[bytes] = []
        while self.slots:
            item = self.slots[0]
            if isinstance(item, Held):
                if item.reply is None:
                    break
                if item.span is not None:
                    self.plane.tracer.found(item.span, item.reply)
                item = item.reply
            self.slots.popleft()
            if isinstance(item, int):
                self.outstanding = item
                break
            ready.append(item)
        if ready:
            self.write(ready[0] if len(ready) == 1 else b"".join(ready))
        if self.outstanding or self.slots:
            return
        if not self.closed and (self.pinned or self.blocked or self.eof or self.quitting):
            self.drained()

    def pushed(self, data: bytearray, start: int, end: int) -> None:
        self.pass_on(data, start, end)

    def spliced(self, data: bytearray, end: int) -> None:
        self.pass_on(data, 0, end)

    def lost(self, count: int, partial: bool, error: bytes) -> None:
        if self.closed:
            return
        if partial:
            # Half a reply is out: nothing that follows could be told from its rest.
            self.abort()
            return
        self.write(error * count)
        self.outstanding -= count
        if self.outstanding == 0:
            self.settle()

    def hold(self, held: Held) -> None:
        """The next reply is found later."""
        if self.slots is None:
            self.slots = deque()
        self.slots.append(held)
        self.held += 1
        self.split = True

    def found(self) -> None:
        """Some of what was held has its reply now, or has been forwarded."""
        if self.closed:
            return
        if self.outstanding == 0:
            self.settle()
        if self.held == 0:
            self.unblock(HELD)

    def unblock(self, reason: int) -> None:
        """One reason to wait is gone."""
        if self.blocked & reason:
            self.blocked &= ~reason
            if self.blocked == 0 and not self.closed:
                self.resume()

    def link_ready(self, _link: Link) -> None:
        self.unblock(LINK_FULL)

    def abort(self) -> None:
        """Drop the client at once."""
        if not self.closed:
            self.closed = True
            self.transport.abort()

    # -- asyncio protocol

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        self.descriptor = direct_descriptor(transport)
        # TLS cannot be closed by halves.
        self.half_open = transport.get_extra_info("ssl_object") is None

    def pause_writing(self) -> None:
        self.congested = True
        if self.link is not None and (self.pinned or self.link.slow is self):
            self.link.pause(True)
        self.blocked |= CLIENT_FULL

    def resume_writing(self) -> None:
        self.congested = False
        if self.link is not None and (self.pinned or self.link.slow is self):
            self.link.pause(False)
        self.unblock(CLIENT_FULL)

    def eof_received(self) -> bool:
        self.eof = True
        if not self.closed:
            self.finish()
        return self.half_open

    def connection_lost(self, _error: Exception | None) -> None:
        self.closed = True
        self.pending = None
        self.slots = None
        if self.link is not None and self.link.slow is self:
            self.link.release_slow()
        self.gone()

    # -- decided by the subclass

    def bind(self) -> None:
        """Set ``link`` to the shared link that fits the client's state."""
        raise NotImplementedError

    def special(self, verdict: int, data: bytearray, start: int, end: int) -> int:
        """Handle what is not a plain command at ``start``; returns where to go on."""
        raise NotImplementedError

    def drained(self) -> None:
        """Nothing is outstanding any more (called only where somebody may wait for that)."""
        raise NotImplementedError

    def discarded(self) -> None:
        """A big command was read to its end without being sent anywhere."""
        raise NotImplementedError

    def protocol_error(self) -> None:
        """``scanner.error`` says what is wrong with the client's bytes."""
        raise NotImplementedError

    def finish(self) -> None:
        """The client sends no more: answer what is outstanding, then close."""
        raise NotImplementedError

    def gone(self) -> None:
        """The connection is closed: free what it held."""
        raise NotImplementedError
