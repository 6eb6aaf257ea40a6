# cython: annotation_typing=False, wraparound=True
"""Moving commands and replies: the hot path of the cacheproxy. One source, two backends.

::

    Client.buffer_updated ─ scan ─► run of plain commands ─► Link.send: one copy into ``out``,
                                                              one reference in the FIFO
    Link.flush             one write for all that the turn's clients sent
    Link.buffer_updated    ─ scan ─► FIFO head ─► Receiver.deliver: one slice, one write

Who waits for what
    A :class:`Link` is one connection to Redis; its FIFO says whose each coming reply is. A
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
from typing import TYPE_CHECKING, Any

import cython  # type: ignore[import-untyped]

if not cython.compiled:
    from nexus._speedups._respscan_py import (
        CommandScanner,
        CommandTable,
        ReplyScanner,
        append,
        cut,
        send,
        send_bytes,
    )

from nexus.clock import monotonic
from nexus.errors import RespError

if TYPE_CHECKING:
    import asyncio

__all__ = ["Client", "Held", "Link", "Near", "Plane", "Receiver"]

# Verdicts of CommandScanner.scan; the class attributes of Client that name them are for readers.
MORE = 0

# Why a client's input waits; a bit each in ``Client.blocked``.
BARRIER = 1
PIN_WAIT = 2
CLIENT_FULL = 4
LINK_FULL = 8
HELD = 16

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


class Near:
    """What stands between a shared client's input and its link while a policy is in force."""

    def take(self, client: Client, data: bytearray, start: int, end: int) -> int:
        """Use up commands of ``data[start:end]``; returns where it stopped.

        ``client.verdict`` is the scanner's verdict at that place.
        """
        raise NotImplementedError

    def answered(self, link: Link) -> None:
        """Replies up to ``link.received`` are about to be delivered: settle ``link.notes``."""
        raise NotImplementedError


class Held:
    """A reply that is still being found, in a client's ``slots``."""

    def __init__(self) -> None:
        self.reply: bytes | None = None


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

    def _answered(self, near: Near) -> None:
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
