"""The near-cache of one worker: its tracking connections, and the policy that is in force.

::

    Pools ─ SharedLink ─ Partition ──(while a policy is in force)──► Tracker ─ Source
                                      one for each (user, db): RESP3, CLIENT TRACKING ON

Without tracking there is no near-cache for that user: Redis is too old, refuses RESP3 or
``CLIENT TRACKING``, or is a replica. The mode says so, and it is tried again every minute.
"""

from __future__ import annotations

import asyncio
import logging
import math
import random
from typing import TYPE_CHECKING, Final

from nexus._speedups.nearcache import NearTable, Rate
from nexus.cacheproxy.commandeffects import Effect
from nexus.cacheproxy.dial import DialError, Identity, dial
from nexus.cacheproxy.flow import Link, Plane, Receiver
from nexus.cacheproxy.leases import Leases
from nexus.cacheproxy.near import Core, Partition, Source
from nexus.clock import monotonic
from nexus.wire.resp import encode_command

if TYPE_CHECKING:
    from nexus.cacheproxy.pools import Pools
    from nexus.cacheproxy.settings import CacheproxySettings
    from nexus.policy.policyfile import RuleBook

__all__ = ["NearCache", "Tracker"]

log = logging.getLogger("nexus.cacheproxy")

#: Seconds until a refused tracking connection is tried again.
REFUSED_SECONDS: Final = 60.0
#: Reconnect delay after a loss, seconds: full jitter up to this, doubled up to the cap.
RECONNECT_BASE: Final = 0.05
RECONNECT_CAP: Final = 1.0
#: All entries are looked at once in so many ticks (10 s), and those that were hit are touched, so
#: that Redis's own eviction knows what is hot; so many at a time at most.
TOUCH_TICKS: Final = 40
TOUCH_MOST: Final = 500
#: Highest number of a command in the scanner's table.
MAX_NUMBER: Final = 2048


class NearCache:
    """See the module."""

    def __init__(self, pools: Pools, plane: Plane) -> None:
        self.core: Final = Core(plane, plane.table, NearTable(0))
        self.leases: Final = Leases(pools, self.core)
        self.core.leases = self.leases
        self._pools: Final = pools
        self._plane: Final = plane
        self.trackers: Final[dict[tuple[Identity, int], Tracker]] = {}
        self._free: Final[list[int]] = []
        self._next = 0
        self._book: RuleBook | None = None
        self.stalls = 0
        self.lost = 0
        #: Set at the first answer, good or bad, of a tracking connection.
        self.first_attempt: Final = asyncio.Event()

    # -- settings and policy

    def configure(self, settings: CacheproxySettings) -> None:
        """Take over settings; the budget is for all workers."""
        near = settings.near_cache
        core = self.core
        core.table.max_bytes = near.max_bytes // settings.workers
        core.keeping = near.enabled and near.max_bytes > 0
        core.staleness = near.max_staleness_ms / 1000
        core.max_ttl = near.max_entry_ttl_seconds
        core.singleflight = settings.singleflight.enabled
        ratio = settings.shadow.compare_ratio
        core.shadow_every = round(1 / ratio) if ratio > 0 else 0

    def apply(self, book: RuleBook | None) -> None:
        """Bring a policy into force, or none; whatever the last one kept is dropped."""
        core = self.core
        core.refused.clear()
        self.leases.reset()
        core.table.clear(-1)
        self._book = book
        if book is not None:
            rates = {window: Rate(window) for window in {rule.hot_window for rule in book.rules}}
            for rule in book.rules:
                rule.rate = rates[rule.hot_window]
            numbers = {
                self._plane.table.number(name.lower().encode()): book.matcher(name)
                for name in book.commands
            }
            core.matchers = [numbers.get(number) for number in range(MAX_NUMBER + 1)]
            core.guard = self.leases.guard if any(rule.fill_guard for rule in book.rules) else None
            self._plane.table.watch(Effect.CACHED, book.prefixes)
        else:
            core.matchers = None
            core.guard = None
            self._plane.near_on = False
            for tracker in list(self.trackers.values()):
                self._close(tracker)
            return
        # What is outstanding was not noted, or not the reads of keys that had no rule until now.
        for shared in self._pools.shared_links():
            shared.partition.note_all()
            for link in shared.retired:
                if link.near is not None:
                    link.near.note_all()
            if not self._plane.near_on:
                self._connect(shared.partition)
        self._plane.near_on = True
        for session in self._pools.sessions:
            if not session.pinned and session.link is not None:
                session.write_seq = session.link.sent

    @property
    def wants_ttl_only(self) -> bool:
        """Whether any rule is content with time alone where Redis tells of no changes."""
        return self._book is not None and any(rule.ttl_only for rule in self._book.rules)

    # -- partitions

    def partition(self, link: Link, protocol: int, identity: Identity, db: int) -> Partition:
        """What the clients of a shared link pass through."""
        partition = Partition(self.core, link, protocol, identity, db)
        if self._plane.near_on:
            self._connect(partition)
        return partition

    def successor(self, before: Partition, link: Link) -> Partition:
        """The same for the link that follows a retired one; its commands are numbered on."""
        link.sent = link.received = before.link.sent
        partition = Partition(self.core, link, before.protocol, before.identity, before.db)
        if before.source is not None:
            partition.source, partition.space = before.source, before.space
            before.source.partitions.remove(before)
            before.source.partitions.append(partition)
        return partition

    def forget(self, partition: Partition) -> None:
        """The shared link is closed for good."""
        tracker = self.trackers.get((partition.identity, partition.db))
        if tracker is not None and partition in tracker.source.partitions:
            tracker.source.partitions.remove(partition)
            if not tracker.source.partitions:
                self._close(tracker)

    def _connect(self, partition: Partition) -> None:
        key = (partition.identity, partition.db)
        tracker = self.trackers.get(key)
        if tracker is None:
            index = self._free.pop() if self._free else self._next
            if index == self._next:
                self._next += 1
            tracker = self.trackers[key] = Tracker(self, self._pools, Source(self.core, index), key)
        tracker.source.partitions.append(partition)
        partition.source = tracker.source
        partition.space = 2 * tracker.source.index + (partition.protocol == 3)

    def _close(self, tracker: Tracker) -> None:
        self.trackers.pop(tracker.key, None)
        for partition in tracker.source.partitions:
            partition.source = None
        tracker.close()
        self.core.table.clear(tracker.source.index)
        self._free.append(tracker.source.index)

    # -- housekeeping

    def tick(self) -> None:
        """Four times a second: tell Redis of what is hit here (R20)."""
        table = self.core.table
        if table.entries == 0:
            return
        found = table.touched(table.entries // TOUCH_TICKS + 16, monotonic())
        self._tell_hot(found)
        keys: dict[int, list[bytes]] = {}
        for space, key, _hits in found[:TOUCH_MOST]:
            keys.setdefault(space >> 1, []).append(key)
        for tracker in self.trackers.values():
            wanted = keys.get(tracker.source.index)
            if wanted and tracker.source.up:
                self.core.touches += len(wanted)
                tracker.send([b"TOUCH", *wanted], Ignored(tracker.source))

    def _tell_hot(self, found: list[tuple[int, bytes, int]]) -> None:
        """Hits are reads, too: keys that are hot in the table alone are prolonged in time."""
        hot, book = self.core.hot, self._book
        if hot is None or book is None:
            return
        who = {tracker.source.index: tracker.key for tracker in self.trackers.values()}
        now = monotonic()
        for space, key, hits in found:
            if space >> 1 not in who:
                continue
            identity, db = who[space >> 1]
            for command in book.commands:
                rule = book.rule(command, key)
                if rule is not None:
                    if hits >= rule.hot_threshold:
                        hot.read(rule, key, db, identity, hits, now)
                    break

    def mode(self) -> str:
        """How entries are kept true: ``tracked``, ``ttl-only`` or ``off`` and why.

        Of all users the first for whom it is not ``tracked``.
        """
        if not self._plane.near_on:
            return "off (no policy)"
        for tracker in self.trackers.values():
            if not tracker.source.tracked:
                return f"ttl-only ({tracker.refusal})"
            if tracker.refusal:
                return f"off ({tracker.refusal})"
        return "tracked"

    def close(self) -> None:
        for tracker in list(self.trackers.values()):
            self._close(tracker)


class Tracker:
    """Opens a source's connection, and again when it is lost."""

    def __init__(
        self, near: NearCache, pools: Pools, source: Source, key: tuple[Identity, int]
    ) -> None:
        self.near: Final = near
        self.source: Final = source
        self.key: Final = key
        #: Why there is no tracking; empty: there is, or it is being opened.
        self.refusal = ""
        self.closing = False
        self._pools: Final = pools
        self._attempt = 0
        self._wait = 0.0
        self._protocol = 3
        source.owner = self
        self._task = asyncio.get_running_loop().create_task(self._open())

    async def _open(self) -> None:
        identity, db = self.key
        while not self.closing:
            if self._wait:
                await asyncio.sleep(self._wait)
            try:
                transport = await dial(self._pools.target, identity, self._protocol, db)
            except DialError as error:
                self._back_off()
                self.near.first_attempt.set()
                if error.reply and not error.reply.startswith((b"-LOADING", b"-BUSY", b"-MASTER")):
                    self._refused(str(error))
                    if self._protocol == 3 and self.near.wants_ttl_only:
                        self._protocol, self._wait = 2, 0.0  # RESP3 is what it does not know
                continue
            self.source.link.attach(transport)
            if self._protocol == 2:
                self._go_by_time()
                return
            self.send([b"HELLO", 3], Setup(self, monotonic(), b"role"))
            self.send([b"CLIENT", b"TRACKING", b"ON"], Setup(self, monotonic(), b"tracking"))
            return

    def send(self, args: list[bytes | int], receiver: Receiver) -> None:
        data = bytearray(encode_command(args))
        self.source.link.send(receiver, data, 0, len(data), 1)

    def _back_off(self) -> None:
        self._attempt += 1
        self._wait = random.random() * min(
            RECONNECT_CAP, RECONNECT_BASE * 2 ** min(self._attempt, 10)
        )

    def _refused(self, why: str) -> None:
        if why != self.refusal:
            log.warning(
                "no near-cache: redis does not track for us",
                extra={"error": why, "user": self.key[0].label},
            )
        self.near.first_attempt.set()
        self.refusal = why
        self._wait = REFUSED_SECONDS

    def answered(self, setup: Setup, reply: bytes) -> None:
        """A reply to the set-up."""
        if reply.startswith((b"-", b"!")):
            if setup.what == b"tracking":
                self._refused(reply[1:].strip().decode("utf-8", "replace"))
                if self.near.wants_ttl_only:
                    self._go_by_time()
                else:
                    self.source.link.close()
        elif setup.what == b"role":
            if b"\r\nrole\r\n$7\r\nreplica" in reply or b"\r\nrole\r\n+replica" in reply:
                self._refused("it is a replica")
                self.source.link.close()
        elif not self.source.link.closing and not self.refusal_stands(reply):
            self._attempt = 0
            self._wait = 0.0
            self.refusal = ""
            self.source.ready(setup.sent)
            self.near.first_attempt.set()

    def _go_by_time(self) -> None:
        """Fill for rules that say ``ttl_only``: nobody tells us of changes here."""
        self._attempt = 0
        self.source.tracked = False
        self.source.ready(math.inf)

    def refusal_stands(self, reply: bytes) -> bool:
        return not reply.startswith(b"+OK")

    # -- owner of the source

    def stalled(self) -> None:
        """It owed replies while Redis answered elsewhere; it is being closed."""
        self.near.stalls += 1
        log.warning("tracking connection stalled", extra={"user": self.key[0].label})

    def differed(self) -> None:
        """A hit was not what Redis has: an error of ours, which must be heard of."""
        log.error("near-cache differs from redis", extra={"user": self.key[0].label})

    def broken(self, error: Exception) -> None:
        log.error("redis sent what is not RESP", extra={"error": str(error)})

    def ended(self, error: Exception | None) -> None:
        if self.closing:
            return
        if not self.source.tracked:
            self.source.tracked = True
            self._protocol, self._wait = 3, 0.0
        if self._wait < REFUSED_SECONDS:
            self.near.lost += 1
            log.warning("tracking connection lost", extra={"error": str(error or "closed")})
            self._back_off()
        self._task = asyncio.get_running_loop().create_task(self._open())

    def close(self) -> None:
        self.closing = True
        self._task.cancel()
        self.source.link.close()


class Setup(Receiver):
    """The reply to one command of the set-up."""

    def __init__(self, tracker: Tracker, sent: float, what: bytes) -> None:
        super().__init__()
        self._tracker = tracker
        self._data = b""
        self.sent = sent
        self.what = what

    def deliver(self, data: bytearray, start: int, end: int, done: int) -> None:
        self._data += bytes(data[start:end])
        if done:
            self._tracker.answered(self, self._data)

    def lost(self, count: int, partial: bool, error: bytes) -> None:
        """The tracker hears of it by itself."""


class Ignored(Receiver):
    """The reply to a TOUCH says nothing."""

    def __init__(self, source: Source) -> None:
        super().__init__()
        self._source = source

    def deliver(self, data: bytearray, start: int, end: int, done: int) -> None:
        pass

    def pushed(self, data: bytearray, start: int, end: int) -> None:
        self._source.pushed(data, start, end)

    def lost(self, count: int, partial: bool, error: bytes) -> None:
        pass
