# cython: annotation_typing=False, wraparound=True
"""One tracking connection: fills, fences, and who waits for them. One source, two backends.

::

    miss ──► Flight ──► GET k, PTTL k ──► reply ──► waiters, table
    hit  ──► fence young enough? ──► yes: answered at once
                                 └─► no: Reading waits ──► PING … PONG ──► answered

A :class:`Source` is a connection to Redis as one user in one db, RESP3, ``CLIENT TRACKING ON``.
Every key that is read there is pushed to us once when it changes. Redis sends pushes and replies in
the order in which things happened, so the reply to a PING sent at *t* says: whatever changed before
*t* has been heard of (a *fence*). ``fresh`` is the sending time of the last one answered.

A reply that is on its way is a *pending* entry of the table, which goes with its key. So a flight
whose token is still alive when a fence comes back was not overtaken by any write before the fence.
"""

from __future__ import annotations

from collections import deque
from math import inf
from typing import TYPE_CHECKING, Any

import cython  # type: ignore[import-untyped]

if not cython.compiled:
    from nexus._speedups._nearcache_py import (
        CHANGED,
        COMMITTED,
        HIT,
        LATE,
        PENDING,
        READ,
    )
    from nexus._speedups._respscan_py import cut
    from nexus.cacheproxy._client_py import Client, Held
    from nexus.cacheproxy._core_py import Core
    from nexus.cacheproxy._link_py import DOWN, UP, Link, Receiver

from nexus._speedups.respscan import arguments
from nexus.cacheproxy.comparison import Comparison
from nexus.clock import monotonic
from nexus.wire.downgrade import downgrade

if TYPE_CHECKING:
    from nexus.cacheproxy._near_py import Partition

__all__ = ["Flight", "Reading", "Source", "release"]

_PING = bytearray(b"*1\r\n$4\r\nPING\r\n")
#: Replies that say that nothing is there.
NOTHING = (b"_\r\n", b"$-1\r\n", b"*-1\r\n", b"*0\r\n", b"%0\r\n", b"~0\r\n")
_PTTL = b"*2\r\n$4\r\nPTTL\r\n"

#: Row of the command counts; see session.py.
FORWARDED = 0

#: What reads of a key that is not there are answered with: certainly, and possibly.
NIL = frozenset((b"$-1\r\n", b"_\r\n", b"*-1\r\n"))
EMPTY = frozenset((b"$0\r\n\r\n", b"*0\r\n", b"%0\r\n", b"~0\r\n", b":0\r\n", b"+none\r\n"))

#: Seconds for which a key that was not there is not asked for again in order to keep it.
ABSENT_SECONDS = 1.0

#: Seconds that a tracking connection may owe a reply before another connection is asked whether
#: Redis is there at all; and how much longer it has once that one was answered.
STALL = 0.1
GRACE = 0.05
#: Longest interval of the check, seconds.
CHECK = 0.05


class Reading(Held):
    """A client's read that waits for a flight or a fence.

    ``need``: the fence that answers it must have been sent at or after this. ``after``: and behind
    this many commands on the tracking connection, because those answer what the client read before.
    """

    def __init__(
        self, client: Client, partition: Partition, number: int, raw: bytes, begin: int, now: float
    ) -> None:
        self.reply = None
        self.span = None
        self.client = client
        self.partition = partition
        self.number = number
        self.raw = raw
        self.begin = begin
        self.arrival = now
        self.need = now
        self.after = 0
        self.flight: Flight | None = None
        #: Of a read whose miss is leased: what becomes of it when its entry is gone; else None.
        self.rule: Any = None
        #: Sent on the client's own link after all.
        self.forwarded = False


def release(client: Client, core: Core) -> None:
    """Send everything that the client waits for down its own link, in order.

    Whoever calls it calls ``client.found()`` afterwards.
    """
    if client.closed or client.held == 0:
        return
    plane = core.plane
    if client.link.retired and client.outstanding == 0:
        client.bind()
    link = client.link
    items: deque[Any] = deque()
    slots: Any = client.slots
    for item in slots:
        if not isinstance(item, Reading) or item.reply is not None:
            items.append(item)
            continue
        reading: Reading = item
        reading.forwarded = True
        client.held -= 1
        if link.state == DOWN:
            plane.refused_commands += 1
            items.append(link.refusal)
            continue
        raw = bytearray(reading.raw)
        core.table.note(
            link.notes, READ, link.sent + 1, core.commands, reading.number, 2, raw,
            reading.begin, len(raw),
        )  # fmt: skip
        client.split = True
        link.send(client, raw, 0, len(raw), 1)
        plane.shared_commands += 1
        name = arguments(raw, 0, len(raw))[0]
        core.commands.count(FORWARDED, core.commands.group(name))
        client.write_seq = link.sent
        if reading.span is not None:
            plane.tracer.released(reading.span, link)
            reading.span = None
        items.append(1)
    client.slots = items
    client.split = True


class Flight(Receiver):
    """One read on its way, for everybody who asks the same meanwhile."""

    def __init__(
        self, source: Source, partition: Partition, number: int, request: bytes, rule: Any,
        admit: bool, now: float,
    ) -> None:  # fmt: skip
        self.split = False
        self.source = source
        self.partition = partition
        self.number = number
        self.request = request
        self.rule = rule
        self.admit = admit
        self.sent = now
        self.flushes = source.link.flushes
        self.number_sent = source.link.sent + 1
        self.token = source.core.table.begin(partition.space, number, request)
        self.data = bytearray()
        self.reply: bytes | None = None
        #: Waiters that came before it was sent; those who came later wait for fences.
        self.waiters: list[Reading] = []
        self.late = 0
        self.landed = False
        #: Until when the reply is Redis's own if nothing is heard; seconds, known with the PTTL.
        self.expiry = 0.0

    def join(self, reading: Reading, now: float) -> None:
        """``reading`` shares the reply."""
        reading.flight = self
        if (
            self.reply is None
            and self.source.link.flushes == self.flushes
            and reading.after < self.number_sent
        ):
            self.sent = now  # not sent yet, so it will be later than this
            self.waiters.append(reading)
            return
        reading.need = now
        self.late += 1
        self.source.wait(reading, now)

    def alive(self) -> bool:
        return bool(
            self.source.core.table.alive(
                self.partition.space, self.number, self.request, self.token
            )
        )

    def deliver(self, data: bytearray, start: int, end: int, done: int) -> None:
        self.data += cut(data, start, end)
        if done:
            self._arrived()

    def _arrived(self) -> None:
        source = self.source
        reply = bytes(self.data)
        self.data = bytearray()
        if self.partition.protocol == 2:
            reply = downgrade(reply)
        self.reply = reply
        clients = []
        leased = self.misses()
        for reading in self.waiters:
            if not reading.forwarded:
                if leased and source.core.leases.adopt(reading, self.rule):
                    if reading.span is not None:
                        reading.span.outcome = "leased"
                    continue
                reading.reply = reply
                reading.client.held -= 1
                clients.append(reading.client)
        self.waiters = []
        for client in clients:
            client.found()
        source.advance(self.sent)

    def misses(self) -> bool:
        """Whether those who wait may have to wait for somebody who loads what is not there."""
        reply: Any = self.reply
        return bool(self.rule.leased) and reply in NOTHING

    def end(self, reason: str) -> None:
        """Nothing more comes for the table."""
        self.landed = True
        table = self.source.core.table
        if reason:
            self.source.core.discard(reason)
        if self.late:
            table.close(self.partition.space, self.number, self.request, self.token)
        else:
            table.abandon(self.partition.space, self.number, self.request, self.token)
            self.source.flights.pop(self.token, None)

    def left(self) -> None:
        """One of those who waited for a fence is served."""
        self.late -= 1
        if self.late == 0 and self.landed:
            self.source.core.table.abandon(
                self.partition.space, self.number, self.request, self.token
            )
            self.source.flights.pop(self.token, None)

    def lives(self, milliseconds: int) -> None:
        """Redis says how long the key lives; -1: for ever, -2: there is none."""
        core = self.source.core
        reply: Any = self.reply
        self.expiry = self.sent + milliseconds / 1000 if milliseconds >= 0 else inf
        if milliseconds == -2 and not (reply in NIL or reply in EMPTY or reply[:1] in b"-!"):
            self.expiry = 0.0  # it went between the two
        hot: Any = core.hot
        if hot is not None and hot.eternal and milliseconds != -2:
            hot.lives(self.partition.db, self.request, milliseconds)
        most = inf
        if milliseconds >= 0 and (self.rule.early_refresh or self.rule.stale_if_error > 0):
            most = core.leases.landed(self, reply, milliseconds)
        if not self.admit:
            self.end("")
            return
        life = min(self.rule.ttl, core.max_ttl, most)
        if milliseconds == -2:
            # Whoever misses while a leased value is loaded waits for it instead.
            life = 0.0 if self.rule.leased else min(self.rule.negative_ttl, core.max_ttl)
        elif milliseconds >= 0:
            life = min(life, milliseconds / 1000)
        if reply.startswith((b"-", b"!")):
            self.end("error")
        elif (milliseconds == -2) != (reply in NIL) and (milliseconds != -2 or reply not in EMPTY):
            self.end("changed")  # between the two
        elif life <= 0:
            if milliseconds == -2:
                # Asking again each time costs more than it may ever save.
                name = (self.partition.space, self.number, self.request)
                core.refuse(name, self.sent + ABSENT_SECONDS)
            self.end("absent" if milliseconds == -2 else "expired")
        else:
            self._commit(reply, self.sent + life)

    def _commit(self, reply: bytes, expiry: float) -> None:
        core = self.source.core
        partition = self.partition
        result = core.table.commit(
            partition.space, self.number, self.request, self.token, reply, expiry,
            partition.link.sent,
        )  # fmt: skip
        self.landed = True
        if self.late == 0:
            self.source.flights.pop(self.token, None)
        if result == COMMITTED:
            core.committed += 1
        elif result == CHANGED:
            core.discard("changed")
        else:
            core.discard("too_big")
            core.refuse((partition.space, self.number, self.request), monotonic() + 10)

    def pushed(self, data: bytearray, start: int, end: int) -> None:
        self.source.pushed(data, start, end)

    def lost(self, _count: int, _partial: bool, _error: bytes) -> None:
        """The tracking connection is gone: everybody goes their own way."""
        self.landed = True
        if self.reply is None or self.admit:
            self.source.core.discard("lost")
        self.source.flights.pop(self.token, None)
        clients = {reading.client for reading in self.waiters if not reading.forwarded}
        self.waiters = []
        for client in clients:
            release(client, self.source.core)
            client.found()


class Lifetime(Receiver):
    """The reply to a flight's PTTL."""

    def __init__(self, flight: Flight) -> None:
        self.split = False
        self.flight = flight
        self.data = b""

    def deliver(self, data: bytearray, start: int, end: int, done: int) -> None:
        self.data += cut(data, start, end)
        if done:
            text = self.data[1:-2]
            known = self.data.startswith(b":") and text.lstrip(b"-").isdigit()
            if known:
                self.flight.lives(int(text))
            else:
                self.flight.end("error")

    def pushed(self, data: bytearray, start: int, end: int) -> None:
        self.flight.source.pushed(data, start, end)

    def lost(self, _count: int, _partial: bool, _error: bytes) -> None:
        """The flight hears of it, too, unless it was only waiting for this."""
        if self.flight.reply is not None:
            self.flight.lost(_count, _partial, _error)


class Probe(Receiver):
    """A PING on a shared link: is Redis there while the tracking connection is silent?"""

    def __init__(self, source: Source, sent: float) -> None:
        self.split = False
        self.source = source
        self.sent = sent

    def deliver(self, _data: bytearray, _start: int, _end: int, done: int) -> None:
        if done:
            self.source.probed()

    def pushed(self, data: bytearray, start: int, end: int) -> None:
        """A shared link has none."""

    def lost(self, _count: int, _partial: bool, _error: bytes) -> None:
        self.source.probing = False


class Source(Receiver):
    """A tracking connection; as a receiver, of its own PINGs.

    ``owner`` opens it and hears of its end (:mod:`nexus.cacheproxy.tracking`).
    """

    def __init__(self, core: Core, index: int) -> None:
        self.split = False
        self.core = core
        #: Its spaces are ``2 · index`` (RESP2) and ``2 · index + 1`` (RESP3).
        self.index = index
        self.owner: Any = None
        self.link = Link(core.plane, self)
        self.link.pin = self
        self.up = False
        #: Whether entries need fences; a connection without tracking has none to give.
        self.tracked = True
        self.fresh = -1.0
        self.pings: deque[float] = deque()
        self.ping_flushes = -1
        self.ping_number = 0
        self.waiting: deque[Reading] = deque()
        self.flights: dict[int, Flight] = {}
        self.push = b""
        self.timer: Any = None
        self.due = 0.0
        self.probing = False
        #: When another connection was answered while this one owed a reply since before.
        self.suspected = 0.0
        #: Whether its time was up at the last check, too.
        self.doubted = False
        self.used = 0
        #: Shared links of its partitions, to probe with.
        self.partitions: list[Partition] = []

    # -- fences

    def fence(self, need: float, after: int, now: float) -> None:
        """Make sure that a fence sent at or after ``need``, behind ``after`` commands, comes."""
        if not self.tracked or not self.up:
            return
        if self.pings and self.ping_number > after:
            if self.pings[-1] >= need:
                return
            if self.link.flushes == self.ping_flushes:
                self.pings[-1] = now  # not sent yet
                return
        self.core.fences += 1
        self.pings.append(now)
        self.ping_flushes = self.link.flushes
        self.link.send(self, _PING, 0, len(_PING), 1)
        self.ping_number = self.link.sent
        self._arm(now)

    def newest(self) -> int:
        """The command behind whose reply one that comes now belongs: none, if a PING is the last.

        Who waits for the same PING is served in the order of coming.
        """
        link = self.link
        if self.pings and self.ping_number == link.sent and link.flushes == self.ping_flushes:
            return link.sent - 1
        return link.sent

    def overdue(self, now: float) -> bool:
        """Whether waiting for the fence has taken longer than it may."""
        return bool(self.pings) and now - self.pings[0] > self.patience()

    def patience(self) -> float:
        """Longest wait for a fence, seconds."""
        return self.core.staleness if self.core.staleness > 0 else STALL

    def deliver(self, _data: bytearray, _start: int, _end: int, done: int) -> None:
        sent = -1.0
        for _ in range(done):
            if self.pings:
                sent = self.pings.popleft()
        if sent >= 0:
            if self.core.observe_fence is not None:
                self.core.observe_fence(monotonic() - sent)
            self.advance(sent)

    def advance(self, sent: float) -> None:
        """Everything that changed before ``sent`` has been heard of."""
        self.fresh = max(self.fresh, sent)
        self.suspected = 0.0
        if not self.waiting:
            return
        now = monotonic()
        received = self.link.received
        need = -1.0
        after = 0
        clients: list[Client] = []
        freed: list[Client] = []
        #: Whose next readings must not be found before this one's.
        behind: set[Client] = set()
        for _ in range(len(self.waiting)):
            reading = self.waiting.popleft()
            if reading.forwarded or reading.client.closed:
                if reading.flight is not None:
                    reading.flight.left()
                continue
            if reading.client in behind:
                reading.need = now
                reading.after = self.link.sent
            if (
                reading.need > self.fresh
                or reading.after >= received
                or not self._serve(reading, now, freed)
            ):
                self.waiting.append(reading)
                need = max(need, reading.need)
                after = max(after, reading.after)
            if reading.reply is not None:
                reading.client.held -= 1
                clients.append(reading.client)
            else:
                behind.add(reading.client)
        for client in freed:
            release(client, self.core)
            client.found()
        for client in clients:
            client.found()
        if need >= 0:
            self.fence(need, after, now)
            self._arm(now, now + self.core.staleness)

    def _serve(self, reading: Reading, now: float, freed: list[Client]) -> bool:
        """Find the reply of one whose fence has come; False: it waits on."""
        table = self.core.table
        flight: Flight | None = reading.flight
        if flight is not None:
            if flight.reply is None:
                return False  # cannot be: the fence was sent behind it
            adopted = False
            if now < flight.expiry and flight.alive():
                adopted = flight.misses() and self.core.leases.adopt(reading, flight.rule)
                if not adopted:
                    reading.reply = flight.reply
            flight.left()
            reading.flight = None
            if adopted or reading.reply is not None:
                return True
        partition = reading.partition
        raw = bytearray(reading.raw)
        start = table.used
        code = table.probe(
            partition.space, reading.number, raw, reading.begin, len(raw), now, self.fresh,
            reading.need, 0, False,
        )  # fmt: skip
        if code == HIT:
            reading.reply = cut(table.buffer, start, table.used)
            table.used = start
            self.core.hits += 1
            return True
        if code == LATE:
            reading.need = table.ripe
            return False
        request = reading.raw[reading.begin :]
        if code == PENDING:
            token = table.token(partition.space, reading.number, request)
            other = self.flights.get(token)
            if other is not None:
                other.join(reading, now)
                return True
        rule = reading.rule if flight is None else flight.rule
        if rule is not None and self.up:
            # Overtaken by a write, or ended while it waited: once more, for all who were.
            self.fly(partition, reading.number, raw, reading.begin, rule, False, now).join(
                reading, now
            )
            return True
        freed.append(reading.client)
        return True

    def wait(self, reading: Reading, now: float) -> None:
        """``reading`` waits for a fence sent at or after ``reading.need``."""
        self.core.waited += 1
        self.waiting.append(reading)
        self.fence(reading.need, reading.after, now)
        patient = reading.flight is not None or reading.rule is not None
        self._arm(now, inf if patient else reading.arrival + self.core.staleness)

    # -- fills

    def fly(
        self, partition: Partition, number: int, raw: bytearray, begin: int, rule: Any,
        admit: bool, now: float,
    ) -> Flight:  # fmt: skip
        """Ask Redis for the reply to one whole command, ``raw``; ``admit``: to keep it."""
        request = bytes(raw[begin:])
        flight = Flight(self, partition, number, request, rule, admit, now)
        self.flights[flight.token] = flight
        self.core.fills += 1
        self.link.send(flight, raw, 0, len(raw), 1)
        line = request.index(b"\r\n")
        key = request[: line + 2 + int(request[1:line]) + 2]
        ask = bytearray(_PTTL + key)
        self.link.send(Lifetime(flight), ask, 0, len(ask), 1)
        self._arm(now)
        return flight

    def compare(self, partition: Partition, number: int, raw: bytearray, begin: int) -> None:
        """Fetch what was just answered from the table: it must still be the same."""
        request = bytes(raw[begin:])
        facts = self.core.table.facts(partition.space, number, request)
        if facts is not None and self.up and self.tracked:
            comparison = Comparison(self, partition, number, request, facts)
            self.link.send(comparison, raw, 0, len(raw), 1)

    # -- pushes

    def pushed(self, data: bytearray, start: int, end: int) -> None:
        self.push += cut(data, start, end)
        if self.link.scanner.partial:
            return
        push, self.push = self.push, b""
        self.core.pushes += 1
        dropped = self.core.table.invalidate(push)
        self.core.leases.pushed(self, push)
        if dropped > 0:
            if push.startswith(b"_", 21) or push.startswith(b"*-1", 21):
                self.core.dropped_null += dropped
            else:
                self.core.dropped_push += dropped

    def lost(self, _count: int, _partial: bool, _error: bytes) -> None:
        """PINGs will not be answered; :meth:`link_losing` has seen to the rest."""

    # -- silence

    def _arm(self, now: float, late: float = inf) -> None:
        """Check again soon; ``late``: when the first who waits for a fence has waited enough."""
        due = now + CHECK
        if self.core.staleness > 0:
            due = min(due, max(late, now + 0.0005))
        if self.timer is not None:
            if self.due <= due:
                return
            self.timer.cancel()
        self.due = due
        self.timer = self.core.plane.loop.call_later(due - now, self._check)

    def _check(self) -> None:
        self.timer = None
        now = monotonic()
        staleness = self.core.staleness
        late = inf
        if staleness > 0:
            freed = []
            for reading in self.waiting:
                # One whose miss would be leased waits on: Redis may say that nothing is there any
                # more, and then it would load beside all others who were late with it.
                if reading.flight is None and reading.rule is None and not reading.forwarded:
                    if now - reading.arrival >= staleness:
                        freed.append(reading.client)
                    else:
                        late = min(late, reading.arrival + staleness)
            for client in freed:
                if client.held and not client.closed:
                    self.core.late += 1
                    release(client, self.core)
                    client.found()
        self._suspect(now)
        if self.waiting or self.flights or self.pings:
            self._arm(now, late)

    def _suspect(self, now: float) -> None:
        """End a connection that stays silent while Redis answers on another."""
        since = now
        if self.pings:
            since = self.pings[0]
        for flight in self.flights.values():
            if not flight.landed:
                since = min(since, flight.sent)
                break  # they are in the order of sending
        if now - since < STALL or not self.up:
            self.suspected = 0.0
        elif self.suspected and since < self.suspected:
            if now - self.suspected > GRACE:
                if self.doubted:
                    self.owner.stalled()
                    self.link.close()
                # Timers run before sockets are read: a worker that was not running itself finds
                # what has arrived meanwhile before the next check.
                self.doubted = True
        elif not self.probing:
            for partition in self.partitions:
                if partition.link.state == UP:
                    self.probing = True
                    partition.link.send(Probe(self, now), _PING, 0, len(_PING), 1)
                    break

    def probed(self) -> None:
        """Redis answered a PING elsewhere."""
        self.probing = False
        self.suspected = monotonic()
        self.doubted = False

    # -- owner of the link

    def ready(self, sent: float) -> None:
        """Redis tracks what is read here from now on."""
        self.up = True
        self.fresh = sent

    def link_losing(self, link: Link) -> None:
        """R7: what it filled goes before anything else happens."""
        link.state = DOWN
        self.up = False
        self.fresh = -1.0
        self.suspected = 0.0
        self.push = b""
        self.pings.clear()
        self.core.dropped_lost += self.core.table.clear(self.index)

    def link_lost(self, _link: Link, error: Exception | None) -> None:
        self.core.leases.lost(self)
        waiting, self.waiting = self.waiting, deque()
        for reading in waiting:
            if reading.flight is not None:
                reading.flight.left()
            if not reading.forwarded and not reading.client.closed:
                release(reading.client, self.core)
                reading.client.found()
        self.owner.ended(error)

    def link_broken(self, _link: Link, error: Exception) -> None:
        self.owner.broken(error)

    def observe(self, seconds: float) -> None:
        """Latency is sampled on the clients' links."""
