# cython: annotation_typing=False, wraparound=True
"""A connection to Redis, and who its replies are for. One source, two backends.

::

    Link.send              one copy into ``out``, one reference in the FIFO
    Link.flush             one write for all that the turn's clients sent
    Link.buffer_updated    ─ scan ─► FIFO head ─► Receiver.deliver: one slice

The FIFO says whose each coming reply is. The map of the whole path is in ``_client_py.py``.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any

import cython  # type: ignore[import-untyped]

if not cython.compiled:
    from nexus._speedups._respscan_py import CommandTable, ReplyScanner, append, cut, send

from nexus.clock import monotonic
from nexus.errors import RespError

if TYPE_CHECKING:
    import asyncio

__all__ = ["Link", "Plane", "Receiver", "Settler", "direct_descriptor"]

#: No command has this number.
NEVER = 1 << 62

# State of a link.
CONNECTING = 0
UP = 1
DOWN = 2


def direct_descriptor(transport: Any) -> int:
    """The socket that may be written to beside the transport; -1: there is none (TLS)."""
    if transport.get_extra_info("ssl_object") is not None:
        return -1
    connection = transport.get_extra_info("socket")
    return -1 if connection is None else int(connection.fileno())


class Plane:
    """What all connections of one worker share."""

    def __init__(self, loop: asyncio.AbstractEventLoop, table: CommandTable) -> None:
        self.loop = loop
        self.call_soon = loop.call_soon
        self.table = table
        #: Read buffer of every connection; bigger only costs cache.
        self.buffer = bytearray(262_144)
        #: Bytes of unprocessed input at which reading from a client pauses.
        self.pending_limit = 65_536
        #: An incomplete command above this is not waited for but streamed on its own connection.
        self.big_command = 65_536
        #: After a reply above this a client reads from its own connection, with back-pressure.
        self.big_reply = 1_048_576
        self.bulk_limit = 536_870_912
        self.output_limit = 268_435_456
        #: Bytes waiting for Redis at which clients are no longer read, and where they are again.
        self.link_high = 1_048_576
        self.link_low = 262_144
        self.shared_mask = 1
        #: Whether a policy is in force: shared clients' commands pass through ``Client.near``.
        self.near_on = False
        #: Commands until the next one that is traced; ``tracer`` draws how many, and is told of it.
        self.tracing = False
        self.trace_left = 0
        self.tracer: Any = None
        self.loading = b"-LOADING nexus: upstream is not reachable\r\n"
        self.lost = b"-NEXUSDOWN upstream lost, the command may have run\r\n"
        #: Coarse monotonic seconds, set by the worker's ticker: good for idle times.
        self.tick = 0
        self.shared_commands = 0
        self.pinned_commands = 0
        self.local_commands = 0
        #: Answered by us instead of Redis: not sent, and lost on the way.
        self.refused_commands = 0
        self.lost_commands = 0
        self.client_bytes_in = 0
        self.client_bytes_out = 0
        self.upstream_bytes_in = 0
        self.upstream_bytes_out = 0
        self.output_limit_kills = 0


class Receiver:
    """Somebody in a link's FIFO.

    ``split``: its next replies must not be handed over in one piece with those before, because an
    answer of the proxy's own stands between them.
    """

    def __init__(self) -> None:
        self.split = False

    def deliver(self, data: bytearray, start: int, end: int, done: int) -> None:
        """``data[start:end]`` is the receiver's: ``done`` replies end in it, one may go on."""
        raise NotImplementedError

    def pushed(self, data: bytearray, start: int, end: int) -> None:
        """(Part of) a RESP3 push that stands in front of the receiver's next reply."""

    def lost(self, count: int, partial: bool, error: bytes) -> None:
        """``count`` replies will not come, ``error`` stands for each.

        ``partial``: a part of the first was delivered already.
        """
        raise NotImplementedError

    def spliced(self, data: bytearray, end: int) -> None:
        """Raw bytes of a spliced link."""
        raise NotImplementedError

    def link_ready(self, link: Link) -> None:
        """A congested link takes commands again."""


class Settler:
    """Told what is answered before it is delivered."""

    def answered(self, link: Link) -> None:
        """Replies up to ``link.received`` are about to be delivered: settle ``link.notes``."""
        raise NotImplementedError


class Link:
    """One connection to Redis, as an asyncio ``BufferedProtocol``.

    Shared by many clients or dedicated to one (``pin``). It outlives its transport: a shared link
    is attached again after a reconnect. ``owner.link_lost(link)`` is called when the transport is
    gone and everybody in the FIFO has been told.
    """

    def __init__(self, plane: Plane, owner: Any) -> None:
        self.plane = plane
        self.owner = owner
        self.transport: Any = None
        self.state = CONNECTING
        #: What commands are answered with while the link is DOWN.
        self.refusal = plane.loading
        self.out = bytearray()
        self.descriptor = -1
        self.queued = False
        self.fifo: deque[Any] = deque()
        self.head: Receiver | None = None
        self.head_count = 0
        self.head_partial = False
        self.tail: Receiver | None = None
        self.tail_count = 0
        self.scanner = ReplyScanner()
        self.flush_due = False
        self.closing = False
        self.congested = False
        self.waiters: list[Receiver] = []
        #: Takes no more commands and is closed once the last reply is out: a reply too big to be
        #: collected is on it, and is read only as fast as ``slow`` takes it.
        self.retired = False
        self.slow: Any = None
        self.stalled_seconds = 0
        self.pin: Any = None
        self.splice = False
        self.reading_paused = False
        #: Sampled latency: the commands sent when the sample began, and when that was.
        self.sent = 0
        self.received = 0
        self.sample_at = 0
        self.sample_began = 0.0
        self.info: Any = None
        #: Writes so far: what was queued at one count is on its way at the next.
        self.flushes = 0
        #: What the near-cache must know when it is answered; None: nothing ever.
        self.notes: Any = None
        self.near: Any = None
        #: Traced commands that are outstanding, (number, span), and the number of the first.
        self.traces: Any = None
        self.trace_at = NEVER

    # -- towards Redis

    def send(self, receiver: Receiver, data: bytearray, start: int, end: int, count: int) -> None:
        """Queue ``data[start:end]``, which holds ``count`` commands of ``receiver``."""
        append(self.out, data, start, end)
        if count:
            self.expect(receiver, count)
        if not self.flush_due:
            self._schedule()

    def expect(self, receiver: Receiver, count: int) -> None:
        """The next ``count`` replies are ``receiver``'s."""
        self.sent += count
        if self.tail is receiver and not receiver.split:
            self.tail_count += count
            return
        receiver.split = False
        if self.tail is not None:
            self.fifo.append(self.tail)
            self.fifo.append(self.tail_count)
        self.tail = receiver
        self.tail_count = count

    def follow(self, number: int, span: Any) -> None:
        """The command of this number is traced."""
        if not self.traces:
            self.traces = deque()
            self.trace_at = number
        self.traces.append((number, span))

    def _traced(self, data: bytearray, start: int, stop: int, done: int) -> None:
        """``data[start:stop]`` ends ``done`` replies, the last is number ``received``."""
        before = self.received - done
        while self.traces and self.traces[0][0] <= self.received:
            number, span = self.traces.popleft()
            index = number - before - 1
            # Where the beginning was in a piece before, what it says is not known any more.
            known = index > 0 or not self.head_partial
            self.plane.tracer.replied(span, data, start, stop, index, known)
        self.trace_at = self.traces[0][0] if self.traces else NEVER

    def _schedule(self) -> None:
        if self.state == UP:
            self.flush_due = True
            self.plane.call_soon(self.flush)
        elif len(self.out) > self.plane.link_high:
            self.congested = True

    def flush(self) -> None:
        """Write what this turn collected."""
        self.flush_due = False
        if self.state != UP or not self.out:
            return
        self.flushes += 1
        if self.sample_at == 0 and not self.splice:
            self.sample_at = self.sent
            self.sample_began = monotonic()
        self.plane.upstream_bytes_out += len(self.out)
        data = self.out
        self.out = bytearray()
        self._write(data)

    def _write(self, data: bytearray) -> None:
        size = len(data)
        sent = 0
        if self.queued and self.transport.get_write_buffer_size() == 0:
            self.queued = False
        if self.descriptor >= 0 and not self.queued:
            sent = send(self.descriptor, data, 0, size)
            if sent == size:
                return
            del data[:sent]
        self.queued = True
        self.transport.write(data)

    def attach(self, transport: Any) -> None:
        """Take over a connected transport; what was queued meanwhile is sent."""
        self.transport = transport
        self.descriptor = direct_descriptor(transport)
        self.queued = True  # until the transport says that nothing waits
        self.scanner = ReplyScanner()
        self.state = UP
        self.closing = False
        self.sample_at = 0
        transport.set_write_buffer_limits(high=self.plane.link_high, low=self.plane.link_low)
        transport.set_protocol(self)
        if self.out:
            self.flush()
        self.resume_writing()

    def wait(self, receiver: Receiver) -> None:
        """``receiver.link_ready`` is called when the link is not congested any more."""
        self.waiters.append(receiver)

    def write_eof(self) -> None:
        """The client sends no more; Redis decides what that means for what it still does."""
        self.flush()
        if self.transport is not None and self.transport.can_write_eof():
            self.transport.write_eof()

    def close(self) -> None:
        """Drop the connection at once; what it still sends is not believed."""
        if self.transport is not None:
            self.closing = True
            self.descriptor = -1
            self.transport.abort()

    def retire(self, slow: Receiver) -> None:
        """A shared link becomes the one of a client that reads a big reply slowly.

        The owner opens another for everybody's next commands; only the replies that are behind the
        big one anyway have to wait for that client.
        """
        self.retired = True
        self.congested = True
        self.slow = slow
        self.pause(True)
        self.owner.link_retired(self)

    def release_slow(self) -> None:
        """Read on, whoever is slow."""
        self.slow = None
        self.pause(False)

    def relieve(self, limit: int) -> None:
        """Called once a second: others wait behind a slow client for ``limit`` seconds at most."""
        if self.reading_paused and (self.head is not self.slow or self.fifo or self.tail):
            self.stalled_seconds += 1
            if self.stalled_seconds > limit:
                self.release_slow()

    def pause(self, paused: bool) -> None:
        """Stop or go on reading (a shared link waits for a client only once it is retired)."""
        if self.transport is None or paused == self.reading_paused:
            return
        self.reading_paused = paused
        if paused:
            self.transport.pause_reading()
        else:
            self.transport.resume_reading()

    # -- asyncio protocol

    def connection_made(self, transport: Any) -> None:
        """Links are attached after the handshake instead."""

    def pause_writing(self) -> None:
        self.congested = True

    def resume_writing(self) -> None:
        self.congested = self.retired
        waiters = self.waiters
        if waiters:
            self.waiters = []
            for receiver in waiters:
                receiver.link_ready(self)

    def get_buffer(self, _hint: int) -> bytearray:
        return self.plane.buffer

    def buffer_updated(self, size: int) -> None:
        self.plane.upstream_bytes_in += size
        try:
            self._take(self.plane.buffer, size)
        except RespError as error:
            self.owner.link_broken(self, error)
            self.close()

    def eof_received(self) -> bool:
        return False

    def connection_lost(self, error: Exception | None) -> None:
        self.transport = None
        self.descriptor = -1
        self.flush_due = False
        self.reading_paused = False
        self.sample_at = 0
        self.owner.link_losing(self)
        self.give_up(self.plane.lost)
        self.resume_writing()
        self.owner.link_lost(self, error)

    def give_up(self, error: bytes) -> None:
        """Tell everybody in the FIFO that their replies will not come."""
        waiting: list[Any] = []
        if self.head is not None:
            waiting.append(self.head)
            waiting.append(self.head_count)
        waiting.extend(self.fifo)
        if self.tail is not None:
            waiting.append(self.tail)
            waiting.append(self.tail_count)
        partial = self.head_partial
        # Emptied first: whoever is told may send again at once.
        self.out = bytearray()
        self.fifo.clear()
        self.head = None
        self.head_count = 0
        self.head_partial = False
        self.tail = None
        self.tail_count = 0
        self.received = self.sent
        while self.traces:
            self.plane.tracer.lost(self.traces.popleft()[1], error)
        self.trace_at = NEVER
        if self.notes is not None and self.received >= self.notes.at:
            self._answered(self.near)
        for index in range(0, len(waiting), 2):
            self._lose(waiting[index], waiting[index + 1], partial and index == 0, error)

    def _lose(self, receiver: Receiver, count: int, partial: bool, error: bytes) -> None:
        if error is self.plane.lost:
            self.plane.lost_commands += count
        else:
            self.plane.refused_commands += count
        receiver.lost(count, partial, error)

    def _take(self, data: bytearray, size: int) -> None:
        position = 0
        while position < size and not self.closing:
            if self.head is None and not self._advance():
                # A splice begins behind the replies to what was replayed in front of it.
                if self.splice:
                    if self.pin is not None:
                        self._splice(self.pin, data, position, size)
                    return
                position = self._unasked(data, position, size)
                continue
            stop = self.scanner.scan(data, position, size, self.head_count)
            receiver: Any = self.head
            if self.scanner.push:
                if self.pin is not None:
                    self._push(receiver, data, position, stop)
            else:
                done = self.scanner.done
                self.received += done
                if self.notes is not None and self.received >= self.notes.at:
                    self._answered(self.near)
                if self.received >= self.trace_at:
                    self._traced(data, position, stop, done)
                self.head_count -= done
                self.head_partial = self.scanner.partial
                if self.head_count == 0:
                    self.head = None
                self._deliver(receiver, data, position, stop, done)
            position = stop
        if self.retired and self.head is None and not self.fifo and self.tail is None:
            self.close()
        if self.sample_at and self.received >= self.sample_at:
            self.sample_at = 0
            self.owner.observe(monotonic() - self.sample_began)

    # Typed calls: in the compiled backend the argument types make these C calls.

    def _deliver(self, who: Receiver, data: bytearray, start: int, end: int, done: int) -> None:
        who.deliver(data, start, end, done)

    def _answered(self, near: Settler) -> None:
        near.answered(self)

    def _push(self, who: Receiver, data: bytearray, start: int, end: int) -> None:
        who.pushed(data, start, end)

    def _splice(self, who: Receiver, data: bytearray, start: int, end: int) -> None:
        if start:
            rest = bytearray(cut(data, start, end))
            who.spliced(rest, len(rest))
        else:
            who.spliced(data, end)

    def _advance(self) -> bool:
        if self.fifo:
            self.head = self.fifo.popleft()
            self.head_count = self.fifo.popleft()
            return True
        if self.tail is not None:
            self.head = self.tail
            self.head_count = self.tail_count
            self.tail = None
            return True
        return False

    def _unasked(self, data: bytearray, position: int, size: int) -> int:
        stop = self.scanner.scan(data, position, size, 1)
        if not self.scanner.push:
            raise RespError("Protocol error: a reply that nobody asked for")
        if self.pin is not None:
            self._push(self.pin, data, position, stop)
        return stop
