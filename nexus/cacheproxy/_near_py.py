# cython: annotation_typing=False, wraparound=True
"""The near-cache in a client's path: every command of a shared client while a policy is in force.

:meth:`Partition.take` goes through a client's input once::

    cacheable read ──► in the table, fence young enough ──► appended to one answer for the batch
                   └─► else: forwarded, or held for a flight or a fence
    anything else  ──► forwarded in runs; its keys are dropped or noted (:class:`Notes`)

What a client may be answered from the table is decided here (the numbers are those of
``docs/near-cache.md``): nothing while a command of its own that is not a plain read is outstanding
(R8), nothing by a fence older than ``max_staleness`` (R11) or than what it did last that nobody can
tell the keys of (R9). A read that is forwarded although its key is known marks that key: the next
hit needs a fence sent after that read's reply (R13), so nobody goes back in time.
"""

from __future__ import annotations

from collections import deque
from typing import Any

import cython  # type: ignore[import-untyped]

if not cython.compiled:
    from nexus._speedups._nearcache_py import (
        BUSY,
        FLUSH,
        FULL,
        HIT,
        LATE,
        MISS,
        PENDING,
        READ,
        UNKNOWN,
        WRITE,
        Notes,
    )
    from nexus._speedups._respscan_py import UNWATCHED, CommandScanner, cut
    from nexus.cacheproxy._client_py import HELD, Client, Near
    from nexus.cacheproxy._core_py import Core
    from nexus.cacheproxy._link_py import DOWN, Link
    from nexus.cacheproxy._tracking_py import Flight, Reading, Source

from nexus.clock import monotonic

__all__ = ["Partition"]

# Verdicts of the scanner, the kind that travels shared, and effects; see commands.py.
MORE = 0
COMMAND = 1
SHARED = 1
CACHED = 1
READS = 2
WRITES = 3
FLUSHES = 5
#: Rows of the command counts; see session.py.
FORWARDED = 0
HITS = 4
JOINED = 5

# When a rule keeps replies; see nexus/policy/rules.py.
HOT = 1
ALWAYS = 2

#: Fences in ``max_staleness`` while there are hits: the answer to one may take most of it before
#: a hit has to wait, and waiting costs more than a PING.
FENCES = 4


class Partition(Near):
    """The clients of one shared link: one Redis user, db and protocol version."""

    def __init__(self, core: Core, link: Link, protocol: int, identity: Any, db: int) -> None:
        self.core = core
        self.table = core.table
        self.link = link
        self.protocol = protocol
        self.identity = identity
        self.db = db
        #: The tracking connection that fills for it; None: no policy is in force.
        self.source: Any = None  # a Source
        self.space = -1
        self.notes = Notes()
        #: Whose commands the ``UNKNOWN`` notes are.
        self.unknowns: deque[Client] = deque()
        link.near = self
        link.notes = self.notes

    # -- the path of every command

    def take(  # noqa: C901  (the hot loop: a call costs more than a branch)
        self, client: Client, data: bytearray, start: int, end: int
    ) -> int:
        core = self.core
        plane = core.plane
        table = self.table
        scanner = client.scanner
        link = self.link
        source = self.source
        if client.held:
            core.leases.behind(client)
        run = position = start
        count = hits = 0
        now = fresh = floor = -1.0
        usable = False
        client.verdict = MORE
        while True:
            # Of a key that no rule takes nothing is in the table, now or when its reply comes: its
            # reads are forwarded as if there were no policy, unless something waits before them.
            mask = client.mask | UNWATCHED
            if client.held or client.guarded:
                mask = 0
            verdict = scanner.scan(data, position, end, mask)
            position = scanner.run_end
            if scanner.run_count:
                if table.used:
                    self._emit(client)
                count += scanner.run_count
                core.misses += scanner.run_count
                client.read_seq = link.sent + count
            if verdict != COMMAND or scanner.kind != SHARED or client.mask == 0:
                client.verdict = verdict
                break
            stop = scanner.command_end
            effect = scanner.effect
            if now < 0:
                now = monotonic()
                if source is not None and source.up:
                    usable = True
                    fresh = source.fresh
                    floor = max(now - core.staleness, client.fence_after)
            if effect == CACHED and scanner.argc > 1 and self._single(scanner):
                if client.guarded:
                    core.guard.reads(client, data, position, stop)
                code = BUSY
                if link.received >= client.write_seq:
                    code = MISS
                    need = floor
                    if usable:
                        if client.held:
                            need = now  # not older than what is found for those before it
                        code = self._probe(client, data, position, stop, now, fresh, need)
                        if code == FULL:
                            self._emit(client)
                            code = self._probe(client, data, position, stop, now, fresh, need)
                        if code == HIT:
                            if count:
                                client.forward(data, run, position, count)
                                count = 0
                            hits += 1
                            if core.shadow_every:
                                self._shadow(client, data, position, stop)
                            if plane.tracing:
                                plane.trace_left -= 1
                                if plane.trace_left < 0:
                                    plane.tracer.hit(client, data, position, stop)
                            core.commands.count(HITS, scanner.group)
                            position = run = stop
                            continue
                        if code == LATE and client.held and fresh < floor:
                            # The fence that those before it wait for serves all the rest as well:
                            # cheaper than to wait with each.
                            client.blocked |= HELD
                            break
                    alone = position == start and stop == end
                    if self._slow(client, data, position, stop, code, now, need, alone, count):
                        position = run = stop
                        continue
                if client.held:
                    client.blocked |= HELD
                    break
                self._read(client, data, position, stop, count, code)
            else:
                if client.held:
                    client.blocked |= HELD
                    break
                if effect:
                    if (
                        core.guard is not None
                        and (client.guarded or effect == WRITES)
                        and core.guard.concerns(client, scanner.number)
                    ):
                        if count:
                            client.forward(data, run, position, count)
                            count = 0
                            run = position
                        if table.used:
                            self._emit(client)
                        if core.guard.before(self, client, data, position, stop, True):
                            core.commands.count(FORWARDED, scanner.group)
                            position = run = stop
                            continue
                    if effect == WRITES and core.tagger is not None:
                        if count:
                            client.forward(data, run, position, count)
                            count = 0
                            run = position
                        self._tag(client, data, position, stop)
                    self._note(client, data, position, stop, count)
            if table.used:
                self._emit(client)
            core.commands.count(FORWARDED, scanner.group)
            count += 1
            position = stop
        if count:
            client.forward(data, run, position, count)
        if table.used:
            self._emit(client)
        if hits:
            core.hits += hits
            core.aged(now - fresh, hits)
            if now - fresh > core.staleness / FENCES:
                self._refresh(source, now)
        return position

    def _shadow(self, client: Client, data: bytearray, position: int, stop: int) -> None:
        """Compare one hit in so many with what Redis has."""
        core = self.core
        core.shadow_hits += 1
        if core.shadow_hits % core.shadow_every == 0:
            raw = bytearray(cut(data, position, stop))
            scanner = client.scanner
            self.source.compare(self, scanner.number, raw, scanner.name_end)

    def _refresh(self, source: Source, now: float) -> None:
        source.fence(now - self.core.staleness / FENCES, 0, now)

    def _single(self, scanner: CommandScanner) -> bool:
        """Whether the command names one key, however many arguments it has."""
        if scanner.argc == 2:
            return True
        _first, last, _step = self.core.commands.keys(scanner.number)
        return last == 1

    def _probe(
        self, client: Client, data: bytearray, position: int, stop: int, now: float,
        fresh: float, floor: float,
    ) -> int:  # fmt: skip
        scanner = client.scanner
        received = self.link.received
        return self.table.probe(
            self.space, scanner.number, data, position + scanner.name_end, stop, now, fresh, floor,
            received, received < client.read_seq,
        )  # fmt: skip

    def _emit(self, client: Client) -> None:
        """Hand over what the table has answered."""
        table = self.table
        used = table.used
        table.used = 0
        if client.outstanding == 0 and not client.slots:
            client.pass_on(table.buffer, 0, used)
        else:
            client.answer(cut(table.buffer, 0, used))

    def _read(
        self, client: Client, data: bytearray, position: int, stop: int, count: int, code: int
    ) -> None:
        """A cacheable read, of which the table said ``code``, goes down the link.

        One that is still asked for need not hold up the client's next hits: when it comes, it is
        of a later number than this read, which the client then waits for.
        """
        scanner = client.scanner
        seq = self.link.sent + count + 1
        entries = self.table.note(
            self.notes, READ, seq, self.core.commands, scanner.number, scanner.argc, data,
            position + scanner.name_end, stop,
        )  # fmt: skip
        client.read_seq = seq
        if code > PENDING or entries:
            client.write_seq = seq
        if code != MISS or entries:
            self.core.bypassed += 1

    def _note(self, client: Client, data: bytearray, position: int, stop: int, count: int) -> None:
        """Something that reads or changes keys goes down the link."""
        scanner = client.scanner
        effect = scanner.effect
        kind = READ
        if effect == WRITES:
            kind = WRITE
        elif effect == FLUSHES:
            kind = FLUSH
        elif effect > READS:
            kind = UNKNOWN
            self.unknowns.append(client)
        seq = self.link.sent + count + 1
        entries = self.table.note(
            self.notes, kind, seq, self.core.commands, scanner.number, scanner.argc, data,
            position + scanner.name_end, stop,
        )  # fmt: skip
        if kind != READ:
            self.core.dropped_write += entries
        client.write_seq = seq

    def note(self, client: Client, data: bytearray, start: int, stop: int) -> None:
        """One command that did not come through :meth:`take` is about to be forwarded."""
        if client.scanner.effect:
            guard = self.core.guard
            if guard is not None and guard.concerns(client, client.scanner.number):
                guard.before(self, client, data, start, stop, False)
            self.prepare(client, data, start, stop)

    def prepare(self, client: Client, data: bytearray, start: int, stop: int) -> None:
        """What goes before, and is noted of, one command that is sent next."""
        if client.scanner.effect == WRITES and self.core.tagger is not None:
            self._tag(client, data, start, stop)
        self._note(client, data, start, stop, 0)

    def _tag(self, client: Client, data: bytearray, start: int, stop: int) -> None:
        """The keys that a write stores join their tags, in front of it."""
        tagger = self.core.tagger
        if client.scanner.number in tagger.numbers:
            tagger.before(self.link, self.identity, data, start, stop)

    def note_unknown(self, client: Client, seq: int) -> None:
        """Number ``seq`` of the link may change anything."""
        if client.guarded:
            self.core.guard.forget(client)
        self.unknowns.append(client)
        self.table.note(self.notes, UNKNOWN, seq, self.core.commands, 0, 0, bytearray(), 0, 0)
        client.write_seq = seq

    def note_all(self) -> None:
        """The policy has just come into force: what is outstanding was not noted."""
        link = self.link
        if link.received < link.sent:
            self.table.note(
                self.notes, FLUSH, link.sent, self.core.commands, 0, 0, bytearray(), 0, 0
            )

    def answered(self, link: Link) -> None:
        now = monotonic()
        unknown, dropped = self.table.answered(self.notes, link.received, now)
        self.core.dropped_write += dropped
        while unknown:
            unknown -= 1
            client: Client = self.unknowns.popleft()
            client.fence_after = now

    # -- reads that the table does not answer at once

    def _slow(
        self, client: Client, data: bytearray, position: int, stop: int, code: int, now: float,
        floor: float, alone: bool, count: int,
    ) -> bool:  # fmt: skip
        """Whether the read is held; else it is forwarded."""
        core = self.core
        source = self.source
        scanner = client.scanner
        # A held reply must not have replies of the link before it that are still to come, nor may
        # what is in the buffer already be sent behind what follows.
        free = count == 0 and client.outstanding == 0
        if code == LATE:
            if not free:
                return False
            rule = self._leased(scanner, data, position, stop) if alone else None
            if rule is None and self._overdue(source, now):
                return False
            reading = self._hold(client, data, position, stop, now, "hit")
            reading.rule = rule
            reading.need = max(floor, self.table.ripe)
            source.wait(reading, now)
            return True
        if code == PENDING:
            if not free or not core.singleflight:
                return False
            flight = source.flights.get(
                self.table.token(
                    self.space, scanner.number, cut(data, position + scanner.name_end, stop)
                )
            )
            if flight is None:
                return False
            core.joined += 1
            core.commands.count(JOINED, scanner.group)
            flight.join(self._hold(client, data, position, stop, now, "coalesced"), now)
            return True
        if code != MISS:
            return False
        core.misses += 1
        if core.matchers is None:
            return False
        return self._miss(client, data, position, stop, now, alone, free)

    def _leased(self, scanner: CommandScanner, data: bytearray, position: int, stop: int) -> Any:
        """The rule that leases misses of the key that is read; None: there is none."""
        matchers = self.core.matchers
        matcher = None if matchers is None else matchers[scanner.number]
        if matcher is None:
            return None
        rule = matcher.only
        if rule is None:
            table = self.table
            table.locate(data, position + scanner.name_end, stop)
            rule = matcher.find(cut(data, table.key_begin, table.key_stop))
        return rule if rule is not None and rule.enabled and rule.leased else None

    def _overdue(self, source: Source, now: float) -> bool:
        return source.overdue(now)

    def _miss(
        self, client: Client, data: bytearray, position: int, stop: int, now: float, alone: bool,
        free: bool,
    ) -> bool:  # fmt: skip
        """A read that nothing is known of: ask for it, or let it go its way."""
        core = self.core
        source = self.source
        scanner = client.scanner
        number = scanner.number
        matcher = core.matchers[number]
        if matcher is None:
            return False
        begin = position + scanner.name_end
        table = self.table
        table.locate(data, begin, stop)
        rule = matcher.only
        if rule is None:
            rule = matcher.find(cut(data, table.key_begin, table.key_stop))
        if rule is None or not rule.enabled:
            return False
        leased = rule.leased and alone and free
        up = source is not None and source.up
        if up and leased and core.leases.entries and self._join(client, data, position, stop, now):
            return True
        rate = rule.rate
        hot = rule.near == ALWAYS
        if rate is not None:
            reads = rate.touch(data, table.key_begin, table.key_stop, now)
            if reads >= rule.hot_threshold:
                hot = hot or rule.near == HOT
                if core.hot is not None:
                    core.hot.read(
                        rule, cut(data, table.key_begin, table.key_stop), self.db, self.identity,
                        rule.hot_threshold, now,
                    )  # fmt: skip
        elif up and not leased:
            return False
        if not up:
            return free and rule.stale_if_error > 0 and self._stale(client, data, now, rule)
        together = free and (core.singleflight or leased)
        if (
            rule.early_refresh
            and alone
            and free
            and self._early(client, data, position, stop, now, rule)
        ):
            return True
        if not hot and not (together and alone):
            return False
        return self._ask(client, data, position, stop, now, alone, together, rule, hot)

    def _ask(
        self, client: Client, data: bytearray, position: int, stop: int, now: float, alone: bool,
        together: bool, rule: Any, admit: bool,
    ) -> bool:  # fmt: skip
        core = self.core
        scanner = client.scanner
        number = scanner.number
        request = cut(data, position + scanner.name_end, stop)
        if not self.source.tracked and not rule.ttl_only:
            return False
        if b"WITHSCORE" in request.upper():
            return False  # a RESP3 reply of these says less than one in RESP2, or more
        admit = admit and core.keeping
        if admit and core.refused:
            until = core.refused.get((self.space, number, request))
            admit = until is None or until < now
        if not admit and not (together and alone and (rule.leased or core.spare())):
            return False
        raw = bytearray(cut(data, position, stop))
        flight: Flight = self.source.fly(self, number, raw, scanner.name_end, rule, admit, now)
        # Behind one that is held nothing can be forwarded: then all wait, for one round trip.
        if not (together and (alone or (client.held > 0 and rule.near == ALWAYS))):
            return False
        flight.join(self._hold(client, data, position, stop, now, "miss"), now)
        return True

    def _join(self, client: Client, data: bytearray, position: int, stop: int, now: float) -> bool:
        """Whether the read waits for somebody who loads its value."""
        scanner = client.scanner
        return bool(
            self.core.leases.join(
                lambda: self._hold(client, data, position, stop, now, "leased"),
                client,
                self.source,
                scanner.number,
                cut(data, position + scanner.name_end, stop),
            )
        )

    def _early(
        self, client: Client, data: bytearray, position: int, stop: int, now: float, rule: Any
    ) -> bool:
        """Whether the read may be sent to load a value that ends soon."""
        return bool(
            self.core.leases.early(
                lambda: self._hold(client, data, position, stop, now, "leased"),
                self,
                cut(data, position + client.scanner.name_end, stop),
                rule,
            )
        )

    def _stale(self, client: Client, data: bytearray, now: float, rule: Any) -> bool:
        """Whether a value that has expired stands in while Redis is not there."""
        core = self.core
        if client.slots or self.link.state != DOWN or self.source is None:
            return False
        if client.scanner.number != core.leases.get_number or self.table.used:
            return False
        table = self.table
        key = cut(data, table.key_begin, table.key_stop)
        reply = core.leases.stale_reply(self.source, key, rule, now)
        if reply is None:
            return False
        core.leases.stale_served += 1
        client.answer(reply)
        return True

    def _hold(
        self, client: Client, data: bytearray, position: int, stop: int, now: float, outcome: str
    ) -> Reading:
        """A reading in the client's slots; ``outcome`` is what it counts as if it is found."""
        if self.table.used:
            self._emit(client)
        scanner = client.scanner
        reading = Reading(
            client, self, scanner.number, cut(data, position, stop), scanner.name_end, now
        )
        if client.held:
            reading.after = self.source.newest()
        client.hold(reading)
        plane = self.core.plane
        if plane.tracing:
            plane.trace_left -= 1
            if plane.trace_left < 0:
                reading.span = plane.tracer.held(client, data, position, stop, outcome)
        return reading
