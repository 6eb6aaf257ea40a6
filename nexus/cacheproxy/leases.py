"""Miss leases in a worker: held reads, the lock among workers and proxies, and what ends them.

::

    miss ─► flight ─nil─► Leases.adopt ─► Lease (nexus/policy/leases.py) decides
                                            │ read    tracking connection: a nil is tracked, too
                                            │ lock    SET nexus:lease:{k} id NX PX, as our own user
    push of k, closed connection, timer ────┘

The client of a held read has nothing else outstanding; whatever it sends behind it sets the read
free at once. A read that is set free goes to Redis as if it had just come.
"""

from __future__ import annotations

import asyncio
import heapq
import random
import secrets
from math import inf, log
from typing import TYPE_CHECKING, Any, Final

import hiredis

from nexus.cacheproxy.fillguard import LOCKS, FillGuard
from nexus.cacheproxy.flow import DOWN, Receiver
from nexus.cacheproxy.near import Reading, release
from nexus.clock import monotonic
from nexus.policy.leases import Delta, Lease, LeaseCounts, Lock, StaleStore, State, refresh_is_due
from nexus.wire.downgrade import downgrade
from nexus.wire.resp import encode_command

if TYPE_CHECKING:
    from nexus.cacheproxy.dial import Identity
    from nexus.cacheproxy.flow import Client, Link
    from nexus.cacheproxy.near import Flight, Partition, Source
    from nexus.cacheproxy.pools import Pools, SharedLink
    from nexus.policy.rules import Rule

__all__ = ["LeaseEntry", "Leases", "key_of"]

#: In place of a holder's id, once a lease has ended unwritten: those who wait are being sent one
#: after the other; whoever waits already may follow. Nobody else may have it.
_COOL: Final = b"cool"
_LEFT: Final = b"left"
#: ARGV: id, milliseconds, whether who asks has waited before. What is in the lock now, or that it
#: was inherited.
_LOCK: Final = (
    b"local id = redis.call('get',KEYS[1]) "
    b"if not id or (id=='left' and ARGV[3]=='1') then "
    b"redis.call('set',KEYS[1],ARGV[1],'px',ARGV[2]) return id and 'inherited' or ARGV[1] end "
    b"return id"
)
_EXTEND: Final = (
    b"if redis.call('get',KEYS[1])==ARGV[1] then redis.call('pexpire',KEYS[1],ARGV[2]) end"
)
#: Milliseconds that a lock outlives its lease, so that whoever loads and is in time finds it.
_MARGIN: Final = 1000
_UNLOCK: Final = b"if redis.call('get',KEYS[1])==ARGV[1] then redis.call('del',KEYS[1]) end"
_MARK: Final = (
    b"local id = redis.call('get',KEYS[1]) if not id or id==ARGV[1] then "
    b"redis.call('set',KEYS[1],ARGV[2],'px',ARGV[3]) end"
)
#: What a miss looks like (RESP3): nil, or nothing in it.
_NOTHING: Final = (b"_\r\n", b"$-1\r\n", b"*-1\r\n", b"*0\r\n", b"%0\r\n", b"~0\r\n")
_NIL: Final = {2: b"$-1\r\n", 3: b"_\r\n"}
#: Early refresh is drawn for where its probability is above this.
_RARE: Final = 1e-6
#: There a value is kept for this part of what loading takes; then one read asks for it again, and
#: draws for so many. The others are hits until the expiry.
_SLICES: Final = 4
_DRAWS: Final = 4
_SHORTEST: Final = 0.01
#: What loading is thought to take before it was measured: this part of the wait, of a second at
#: most.
_GUESS: Final = 0.25
#: Bytes of expired values kept for when nothing better can be had, over all keys of a worker.
STALE_BYTES: Final = 16 * 1024 * 1024
#: Keys whose expiry is remembered for early refresh.
_MOST_EXPIRIES: Final = 10_000


def key_of(request: bytes) -> bytes:
    """The first of a command's arguments, which are given as RESP."""
    line = request.index(b"\r\n")
    return request[line + 2 : line + 2 + int(request[1:line])]


class _Reply(Receiver):
    """``count`` replies of one connection, handed over together."""

    def __init__(self, count: int, done: Any, source: Source | None = None) -> None:
        super().__init__()
        self._left = count
        self._done = done
        self._source = source
        self._data = bytearray()

    def deliver(self, data: bytearray, start: int, end: int, done: int) -> None:
        self._data += data[start:end]
        self._left -= done
        if self._left == 0:
            self._done(bytes(self._data))

    def pushed(self, data: bytearray, start: int, end: int) -> None:
        if self._source is not None:
            self._source.pushed(data, start, end)

    def lost(self, _count: int, _partial: bool, _error: bytes) -> None:
        self._left = -1  # nothing more counts
        self._done(b"")


class LeaseEntry:
    """One leased request, as the :class:`nexus.policy.leases.Port` of its lease."""

    def __init__(
        self, leases: Leases, source: Source, db: int, number: int, request: bytes, raw: bytes,
        rule: Rule,
    ) -> None:  # fmt: skip
        self.leases: Final = leases
        self.source: Final = source
        self.db: Final = db
        self.number: Final = number
        self.request: Final = request
        self.raw: Final = bytearray(raw)
        self.rule: Final = rule
        self.key: Final = key_of(request)
        self.name: Final = LOCKS + self.key
        #: In the lock while it is ours; another one each time.
        self.id = b""
        self.lease: Final = Lease(
            self, rule.lease_wait, rule.lease_ttl, leases.counts, leases.delta(rule)
        )
        self.due = inf
        self._reads = 0
        #: The last value handed out, and what it is in RESP2.
        self._served = self._downgraded = b""

    # -- port of the lease

    def read(self) -> None:
        self._reads += 1
        number = self._reads
        if not self.source.up:
            asyncio.get_running_loop().call_soon(self.leases.lost, self.source)
            return
        reply = _Reply(1, lambda data: self._found(number, data), self.source)
        self.source.link.send(reply, self.raw, 0, len(self.raw), 1)

    def _found(self, number: int, reply: bytes) -> None:
        if number == self._reads and reply:
            self.lease.found(reply, reply in _NOTHING, monotonic())
            self.leases.after(self)

    def lock(self, ttl: float) -> None:
        self.id = mine = self.leases.new_id()
        milliseconds = int(ttl * 1000) + _MARGIN
        waited = 1 if self.lease.waited else 0
        request = encode_command([b"EVAL", _LOCK, 1, self.name, mine, milliseconds, waited])
        self._send(request, 1, lambda data: self._locked(mine, data))

    def _locked(self, mine: bytes, data: bytes) -> None:
        reader = hiredis.Reader()
        reader.feed(data)
        answer = reader.gets() if data else hiredis.ReplyError("lost")
        if isinstance(answer, hiredis.ReplyError):
            lock = Lock.FAILED
            self.leases.lock_failures += 1
        elif answer == mine:
            lock = Lock.WON
        elif answer == b"inherited":
            lock = Lock.INHERITED
        else:
            lock = Lock.COOLING if answer in (_COOL, _LEFT) else Lock.TAKEN
        if mine != self.id:  # the question was put again since
            if lock in (Lock.WON, Lock.INHERITED):
                self._tell(b"EVAL", _UNLOCK, 1, self.name, mine)
            return
        self.lease.locked(lock, monotonic())
        self.leases.after(self)

    def unlock(self) -> None:
        self._tell(b"EVAL", _UNLOCK, 1, self.name, self.id)

    def extend(self, ttl: float) -> None:
        self._tell(b"EVAL", _EXTEND, 1, self.name, self.id, int(ttl * 1000) + _MARGIN)

    def leave(self, ttl: float) -> None:
        self._mark(_LEFT, ttl)

    def cool(self, ttl: float) -> None:
        self._mark(_COOL, ttl)

    def _mark(self, word: bytes, ttl: float) -> None:
        milliseconds = int(ttl * 1000) + _MARGIN
        self._tell(b"EVAL", _MARK, 1, self.name, self.id, word, milliseconds)
        self.id = word

    def grant(self, waiter: Reading, reply: bytes | None) -> None:
        partition: Partition = waiter.partition
        self.leases.holds(waiter.client, self)
        if self.rule.fill_guard and self.number == self.leases.get_number:
            self.leases.guard.granted(self, waiter, early=reply is None)
        if reply is None:
            self._answer(waiter, _NIL[partition.protocol])
        else:
            self.serve(waiter, reply)

    def serve(self, waiter: Reading, reply: bytes) -> None:
        partition: Partition = waiter.partition
        if partition.protocol == 2:
            if self._served is not reply:  # thousands may wait for the same
                self._served, self._downgraded = reply, downgrade(reply)
            reply = self._downgraded
        self._answer(waiter, reply)

    def release(self, waiter: Reading, *, late: bool) -> None:
        leases = self.leases
        client = waiter.client
        if late or client.link is None or client.link.state == DOWN:
            reply = leases.stale_reply(self.source, self.key, self.rule, monotonic())
            if reply is not None and self.number == leases.get_number:
                leases.stale_served += 1
                self._answer(waiter, reply)
                return
        leases.waiting.pop(client, None)
        if client.closed:
            return
        release(client, leases.core)
        client.found()

    def _answer(self, waiter: Reading, reply: bytes) -> None:
        client = waiter.client
        self.leases.waiting.pop(client, None)
        if client.closed or waiter.forwarded or waiter.reply is not None:
            return
        waiter.reply = reply
        client.held -= 1
        client.found()

    # -- the lock's connection

    def _send(self, request: bytes, count: int, done: Any) -> None:
        link = self.leases.lock_link(self.db)
        if link.state == DOWN:
            asyncio.get_running_loop().call_soon(done, b"")
            return
        data = bytearray(request)
        link.send(_Reply(count, done), data, 0, len(data), count)

    def _tell(self, *args: bytes | int) -> None:
        self._send(encode_command(list(args)), 1, _unheard)


def _unheard(_reply: bytes) -> None:
    """Nothing depends on it: a lock ends by itself, too."""


class Leases:
    """See the module."""

    def __init__(self, pools: Pools, core: Any) -> None:
        self.core: Final = core
        self.counts: Final = LeaseCounts()
        self.stale_served = 0
        self.lock_failures = 0
        #: This worker, among all workers and proxies.
        self.id: Final = secrets.token_hex(8).encode()
        self.get_number: Final = int(core.commands.number(b"get"))
        #: Leases by what is asked: connection, command, arguments.
        self.entries: Final[dict[tuple[Source, int, bytes], LeaseEntry]] = {}
        #: Who waits, and where.
        self.waiting: Final[dict[Client, tuple[LeaseEntry, Reading]]] = {}
        self._pools: Final = pools
        self.guard: Final = FillGuard(self)
        self._by_key: Final[dict[tuple[Source, bytes], list[LeaseEntry]]] = {}
        self._holding: Final[dict[Client, list[LeaseEntry]]] = {}
        self._deltas: Final[dict[int, Delta]] = {}
        self._locks: Final[dict[int, SharedLink]] = {}
        self._expiries: Final[dict[tuple[Source, bytes], float]] = {}
        self._stale: Final = StaleStore(STALE_BYTES)
        self._serial = 0
        self._heap: Final[list[tuple[float, int, LeaseEntry]]] = []
        self._timer: asyncio.TimerHandle | None = None

    @property
    def base(self) -> Identity:
        """The user whose locks they are."""
        return self._pools.base

    def explain(self, source: Source, number: int, request: bytes, now: float) -> str:
        """Why a miss of this request would be held now; empty: it would not be."""
        entry = self.entries.get((source, number, request))
        if entry is None or entry.lease.live:
            return ""
        lease = entry.lease
        if lease.state is State.HELD and lease.holder is not None:
            since = now - lease.granted_at
            return (
                f"a client of this worker has been loading the key for {since:.2f} s; "
                f"{lease.waiting} wait, each for {lease.wait:g} s at most"
            )
        if lease.state in (State.ELSEWHERE, State.LOCKING, State.HELD):
            return (
                "another worker or proxy has the lease, or is being asked; "
                f"{lease.waiting} wait here, each for {lease.wait:g} s at most"
            )
        return ""

    # -- from the path of a client's reads

    def join(
        self, reading_of: Any, client: Client, source: Source, number: int, request: bytes
    ) -> bool:
        """Whether a miss waits for a lease that is under way; ``reading_of()`` makes it wait."""
        entry = self.entries.get((source, number, request))
        if entry is None or entry.lease.state in (State.IDLE, State.READING):
            return False
        if entry.lease.live:
            return False  # a read of its own finds the value that is being loaded anew
        if self._loads(client) or not entry.lease.holds(monotonic()):
            return False
        return self._arrive(entry, reading_of())

    def adopt(self, reading: Reading, rule: Rule) -> bool:
        """Whether a held read that Redis answered with nothing goes on waiting."""
        client = reading.client
        if client.closed or client.blocked or client.held != 1 or len(client.slots or ()) != 1:
            return False  # something was sent behind it
        if self._loads(client):
            return False
        return self._arrive(self._entry(reading, rule), reading)

    def _loads(self, client: Client) -> bool:
        """Whether the client was sent to load something: whoever waits for it must not wait."""
        return any(
            entry.lease.holder is not None and entry.lease.holder.client is client
            for entry in self._holding.get(client, ())
        )

    def _arrive(self, entry: LeaseEntry, reading: Reading) -> bool:
        self.waiting[reading.client] = entry, reading
        if entry.lease.arrive(reading, monotonic()):
            self.after(entry)
            return True
        self.waiting.pop(reading.client, None)
        return False

    def early(self, reading_of: Any, partition: Partition, request: bytes, rule: Rule) -> bool:
        """Whether a read of a value that ends soon is sent to load it anew."""
        source: Source = partition.source
        expiry = self._expiries.get((source, key_of(request)))
        now = monotonic()
        if expiry is None or now >= expiry:
            return False
        draw = 1.0 - random.random()
        if not refresh_is_due(now, expiry, self.delta(rule).seconds, draw, reads=_DRAWS):
            return False
        known = self.entries.get((source, self.get_number, request))
        if known is not None and not known.lease.offerable(now):
            return False
        reading: Reading = reading_of()
        entry = self._entry(reading, rule)
        self.waiting[reading.client] = entry, reading
        entry.lease.offer(reading, now)
        self.after(entry)
        return True

    def _entry(self, reading: Reading, rule: Rule) -> LeaseEntry:
        partition: Partition = reading.partition
        request = reading.raw[reading.begin :]
        name = (partition.source, reading.number, request)
        entry = self.entries.get(name)
        if entry is None:
            entry = self.entries[name] = LeaseEntry(
                self, partition.source, partition.db, reading.number, request, reading.raw, rule
            )  # fmt: skip
            self._by_key.setdefault((entry.source, entry.key), []).append(entry)
        return entry

    def landed(self, flight: Flight, reply: bytes, milliseconds: int) -> float:
        """A value with a time to live was read; longest time to keep it, seconds."""
        rule: Rule = flight.rule
        if flight.number != self.get_number or not reply.startswith(b"$") or reply in _NOTHING:
            return inf
        expiry = flight.sent + milliseconds / 1000
        name = (flight.source, key_of(flight.request))
        if rule.stale_if_error > 0:
            self._stale.put(name, reply, expiry)
        if not rule.early_refresh:
            return inf
        if len(self._expiries) >= _MOST_EXPIRIES:
            self._expiries.clear()
        self._expiries[name] = expiry
        delta = self.delta(rule).seconds
        left = milliseconds / 1000
        return max(left + delta * log(_RARE), delta / _SLICES, _SHORTEST)

    def stale_reply(self, source: Source, key: bytes, rule: Rule, now: float) -> bytes | None:
        """A value that ended by expiry not too long ago; it is the reply to a GET."""
        if rule.stale_if_error <= 0:
            return None
        return self._stale.get((source, key), now, rule.stale_if_error)

    # -- what ends leases

    def behind(self, client: Client) -> None:
        """A client sends something; if its read is held, it is not any longer."""
        found = self.waiting.get(client)
        if found is not None:
            entry, reading = found
            entry.lease.behind(reading)
            self.after(entry)

    def gone(self, client: Client) -> None:
        """A client's connection closed."""
        found = self.waiting.pop(client, None)
        now = monotonic()
        if client.guarded:
            self.guard.forget(client)
        if found is not None:
            found[0].lease.gone(found[1], now)
            self.after(found[0])
        for entry in self._holding.pop(client, ()):
            holder = entry.lease.holder
            if holder is not None and holder.client is client:
                entry.lease.gone(holder, now)
                self.after(entry)

    def holds(self, client: Client, entry: LeaseEntry) -> None:
        """``client`` is sent to load."""
        entries = self._holding.setdefault(client, [])
        entries[:] = [one for one in entries if one.lease.state is not State.IDLE]
        entries.append(entry)

    def pushed(self, source: Source, push: bytes) -> None:
        """Redis tells of changes."""
        if not self._by_key and not self._expiries and not len(self._stale):
            return
        keys = _keys(push)
        if keys is None:
            keys = [key for of, key in self._by_key if of is source]
            self._expiries.clear()
        now = monotonic()
        for key in keys:
            name = (source, key)
            self._expiries.pop(name, None)
            self._stale.drop_before(name, now)
            for entry in list(self._by_key.get(name, ())):
                entry.lease.changed(now)
                self.after(entry)

    def lost(self, source: Source) -> None:
        """A tracking connection is gone."""
        for entry in [one for one in self.entries.values() if one.source is source]:
            entry.lease.lost()
            self._forget(entry)

    def reset(self) -> None:
        """Another policy is in force."""
        for entry in list(self.entries.values()):
            entry.lease.lost()
            self._forget(entry)
        self.guard.reset()
        self._deltas.clear()
        self._expiries.clear()
        self._stale.clear()

    # -- upkeep

    @property
    def held(self) -> int:
        """Reads that wait now."""
        return len(self.waiting)

    def new_id(self) -> bytes:
        """What nobody else puts into a lock."""
        self._serial += 1
        return b"%b-%d" % (self.id, self._serial)

    def delta(self, rule: Rule) -> Delta:
        """How long loading takes under a rule."""
        found = self._deltas.get(rule.index)
        if found is None:
            found = self._deltas[rule.index] = Delta(min(rule.lease_wait, 1.0) * _GUESS)
        return found

    def lock_link(self, db: int) -> Link:
        """The connection of the proxy's own user."""
        shared = self._locks.get(db)
        if shared is None or shared.closing:
            shared = self._locks[db] = self._pools.shared(self._pools.base, 2, db)
        return shared.link

    def after(self, entry: LeaseEntry) -> None:
        """Something happened to a lease: see when it has to be looked at next."""
        now = monotonic()
        if entry.lease.forgettable(now):
            self._forget(entry)
            return
        due = entry.lease.due()
        if due < entry.due:
            entry.due = due
            self._serial += 1
            heapq.heappush(self._heap, (due, self._serial, entry))
            if self._heap[0][2] is entry:
                self._arm(due - now)

    def _arm(self, seconds: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = asyncio.get_running_loop().call_later(max(0.0, seconds), self._tick)

    def _tick(self) -> None:
        self._timer = None
        now = monotonic()
        while self._heap and self._heap[0][0] <= now:
            due, _, entry = heapq.heappop(self._heap)
            if due == entry.due:
                entry.due = inf
                if entry.lease.due() <= now:
                    entry.lease.tick(now)
                self.after(entry)
        if self._heap:
            self._arm(self._heap[0][0] - now)

    def _forget(self, entry: LeaseEntry) -> None:
        name = (entry.source, entry.number, entry.request)
        if self.entries.get(name) is entry:
            del self.entries[name]
            same = self._by_key[(entry.source, entry.key)]
            same.remove(entry)
            if not same:
                del self._by_key[(entry.source, entry.key)]
        entry.due = -inf


def _keys(push: bytes) -> list[bytes] | None:
    """The keys of an invalidation; ``None``: all."""
    reader = hiredis.Reader()
    reader.feed(push)
    message: Any = reader.gets()
    if not isinstance(message, list) or message[0] != b"invalidate":
        return []
    return message[1]  # type: ignore[no-any-return]
