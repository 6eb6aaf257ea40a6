"""Miss leases: of many who miss the same key, one loads it and the others wait.

A :class:`Lease` is the state of one key in one worker. It does nothing itself: it tells its
:class:`Port` what to do, and is told what came of it, and when.

::

    arrive ──► READING ──value──► everybody is answered
                  │ nil
                  ▼
               LOCKING ──taken──► ELSEWHERE   another worker or proxy has it; asked again later
                  │ won
                  ▼
               READING (nobody wrote it meanwhile) ──nil──► HELD: the first in the queue gets nil,
                                                            which sends it to load
    HELD, ELSEWHERE ──the key changed──► READING for all who wait

How a lease ends without a write: its holder's connection closes (the next in the queue becomes the
holder), or ``ttl`` passes (likewise, and nobody who comes later is held for another ``ttl``: a key
that nobody loads costs nobody). A waiter whose ``wait`` is over is released: it reads on its own.

Early refresh is that of A. Vattani, F. Chierichetti, K. Lowenstein, "Optimal probabilistic cache
stampede prevention", VLDB 2015. Times are seconds.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from dataclasses import dataclass
from enum import Enum
from math import inf, log
from typing import Any, Final, Protocol

__all__ = [
    "Delta",
    "Lease",
    "LeaseCounts",
    "Lock",
    "Port",
    "StaleStore",
    "State",
    "refresh_is_due",
]

#: Seconds until a lock that somebody else has is asked for again: doubled each time, up to the
#: second number. A write of the key is heard of at once; this is for holders that vanished.
POLL: Final = (0.05, 0.5)
#: Seconds without leases for a key whose lock Redis refused to talk about.
REFUSED: Final = 1.0
#: Weight of the newest loading time.
_NEWEST: Final = 0.25
#: What an entry of the stale store costs beside its bytes (dict slot, tuple, objects).
_OVERHEAD: Final = 200


class State(Enum):
    """See the module."""

    IDLE = "idle"
    READING = "reading"
    LOCKING = "locking"
    HELD = "held"
    ELSEWHERE = "elsewhere"


class Lock(Enum):
    """What came of asking for the lock."""

    WON = "won"
    #: Won by one who waited, after a lease that had ended unwritten.
    INHERITED = "inherited"
    TAKEN = "taken"
    #: Nobody may have it: the last lease ended unwritten.
    COOLING = "cooling"
    #: Redis did not answer, or refused.
    FAILED = "failed"


@dataclass(slots=True)
class LeaseCounts:
    """What all leases of a worker came to."""

    granted: int = 0
    #: To the next in the queue, because the holder was gone or late.
    handed_over: int = 0
    #: Ended unwritten by ``ttl``.
    expired: int = 0
    #: Ended by a write of the key.
    written: int = 0
    waited: int = 0
    #: Waiters that were answered with the value.
    served: int = 0
    #: Waiters whose time was over.
    released_late: int = 0
    #: Waiters that went on without waiting: something was sent behind the read.
    released_early: int = 0
    #: Reads that were not held because the last lease had ended unwritten.
    not_leased: int = 0
    #: Leases given before the value expired.
    early: int = 0


class Port(Protocol):
    """What a lease has done for it; ``waiter`` is whatever :meth:`Lease.arrive` was given."""

    def read(self) -> None:
        """Ask Redis for the key, tracked; :meth:`Lease.found` is told."""

    def lock(self, ttl: float) -> None:
        """Ask for the lock among all workers and proxies; :meth:`Lease.locked` is told."""

    def unlock(self) -> None:
        """Give the lock back, if it is still ours."""

    def extend(self, ttl: float) -> None:
        """Keep the lock for another ``ttl``, if it is still ours."""

    def leave(self, ttl: float) -> None:
        """Let nobody have the lock for ``ttl`` but those elsewhere who wait already."""

    def cool(self, ttl: float) -> None:
        """Let nobody have the lock for ``ttl``, unless somebody else has it now."""

    def grant(self, waiter: Any, reply: Any) -> None:
        """Answer the holder-to-be with the nil that sends it to load."""

    def serve(self, waiter: Any, reply: Any) -> None:
        """Answer a waiter with the value."""

    def release(self, waiter: Any, *, late: bool) -> None:
        """Let the waiter's read go its own way."""


class Lease:
    """The lease of one key, and who waits for it; see the module.

    ``wait``, ``ttl``: seconds that a waiter waits, and that a holder has.
    """

    __slots__ = (
        "_aboard",
        "_changed",
        "_cool_until",
        "_early",
        "_early_lease",
        "_early_until",
        "_keeps",
        "_offers",
        "_owner",
        "_poll",
        "_polls",
        "_queue",
        "counts",
        "delta",
        "expires",
        "granted_at",
        "holder",
        "port",
        "state",
        "ttl",
        "wait",
    )

    def __init__(
        self, port: Port, wait: float, ttl: float, counts: LeaseCounts, delta: Delta
    ) -> None:
        self.port: Final = port
        self.wait: Final = wait
        self.ttl: Final = ttl
        self.counts: Final = counts
        #: Told how long loading took.
        self.delta: Final = delta
        self.state = State.IDLE
        #: Who was sent to load; ``None``: nobody, or somebody elsewhere.
        self.holder: Any = None
        self.granted_at = 0.0
        self.expires = inf
        self._queue: Final = _Queue()
        #: Number of the last in the queue when the read under way was sent.
        self._aboard = 0
        #: The key changed since the read, or the question for the lock, was sent.
        self._changed = False
        #: We have the lock, so a nil makes the first in the queue the holder.
        self._owner = False
        #: The holder keeps the lease if the read under way finds nothing.
        self._keeps = False
        #: Who is to load although the value is still there.
        self._early: Any = None
        self._early_until = inf
        #: The lease was given while the value was there, so its expiry may still come.
        self._early_lease = False
        self._cool_until = -inf
        self._poll = inf
        self._polls = 0
        #: No early refresh before this.
        self._offers = -inf

    @property
    def waiting(self) -> int:
        """How many wait."""
        return len(self._queue)

    @property
    def waited(self) -> bool:
        """Whether the lock was asked for before by those who wait."""
        return self._polls > 0

    @property
    def live(self) -> bool:
        """Whether the value was there when the lease was asked for, and no end of it was heard."""
        return self._early is not None or self._early_lease

    def forgettable(self, now: float) -> bool:
        """Whether nothing would be lost with it."""
        return (
            self.state is State.IDLE
            and not self._queue
            and now >= self._cool_until
            and now >= self._offers
        )

    def due(self) -> float:
        """When :meth:`tick` has something to do."""
        when = min(self._queue.deadline, self._early_until if self._early is not None else inf)
        if self.state is State.HELD:
            return min(when, self.expires)
        if self.state is State.ELSEWHERE:
            return min(when, self._poll)
        if self.state is State.IDLE and not self._queue:
            return max(self._cool_until, self._offers)  # then it may be forgotten
        return when

    # -- who comes and goes

    def holds(self, now: float) -> bool:
        """Whether who arrives now waits; not while the key is cooling down."""
        return now >= self._cool_until

    def arrive(self, waiter: Any, now: float) -> bool:
        """A read missed; whether it waits."""
        if not self.holds(now):
            # Those who wait since before keep their turn; nobody joins them.
            self.counts.not_leased += 1
            return False
        self.counts.waited += 1
        self._queue.add(waiter, now + self.wait)
        if self.state is State.IDLE:
            self._read()
        return True

    def offerable(self, now: float) -> bool:
        """Whether somebody may be sent to load while the value is still there."""
        return self.state is State.IDLE and now >= self._cool_until and now >= self._offers

    def offer(self, waiter: Any, now: float) -> bool:
        """A read hit shortly before the expiry; whether it waits to be sent to load."""
        if not self.offerable(now):
            return False
        self._early = waiter
        self._early_until = now + self.wait
        self._offers = now + POLL[0]
        self._lock()
        return True

    def gone(self, waiter: Any, now: float) -> None:
        """The waiter's, or the holder's, connection closed."""
        if waiter is self._early:
            self._early = None
        if self._queue.leave(waiter) or waiter is not self.holder:
            return
        self.holder = None
        if self.state is State.HELD:
            self._hand_over(now)
        elif self._keeps:
            self._keeps = False

    def refused(self, waiter: Any) -> None:
        """What ``waiter`` loaded was not stored: somebody else wrote the key since its miss."""
        if waiter is not self.holder:
            return
        self.holder = None
        if self._keeps:
            self._keeps = False  # the read under way says how it goes on
        elif self.state is State.HELD:
            self._unlock()
            if self._queue:
                self.counts.handed_over += 1
                self._lock()
            else:
                self.state = State.IDLE

    def behind(self, waiter: Any) -> None:
        """Something was sent behind the waiter's read: it goes on at once."""
        if waiter is self._early:
            self._early = None
        elif not self._queue.leave(waiter):
            return
        self.counts.released_early += 1
        self.port.release(waiter, late=False)

    # -- what Redis says

    def found(self, reply: Any, nil: bool, now: float) -> None:
        """The read is answered. ``reply`` is what waiters get; ``nil``: the key is not there."""
        if self.state is not State.READING:
            return
        if not nil:
            self._value(reply, now)
        elif self._changed:
            self._read()
        elif self._keeps:
            self._keeps = False
            self.state = State.HELD
        elif not self._queue:
            self._end()
        elif self._owner:
            self._grant(self._queue.pop(), reply, now)
        else:
            self._lock()

    def locked(self, lock: Lock, now: float) -> None:
        """The question for the lock is answered."""
        if self.state is not State.LOCKING:
            if lock in (Lock.WON, Lock.INHERITED):
                self.port.unlock()
            return
        if lock is Lock.INHERITED:
            self._cool_until = now + self.ttl
        if lock in (Lock.WON, Lock.INHERITED):
            self._owner = True
            self._polls = 0
            early, self._early = self._early, None
            if early is not None and not self._changed:
                self.counts.early += 1
                self._grant(early, None, now)
                return
            if early is not None:
                self.port.release(early, late=False)
            self._read()
            return
        self._let_early_go()
        if lock is Lock.COOLING and self._polls and not self._changed:
            # Another waiter elsewhere follows: who waits keeps its turn, nobody joins.
            self._cool_until = now + self.ttl
            lock = Lock.TAKEN
        if lock is Lock.TAKEN:
            if self._changed:
                self._read()
            elif self._queue:
                self.state = State.ELSEWHERE
                self._poll = now + min(POLL[0] * 2**self._polls, POLL[1])
                self._polls += 1
            else:
                self.state = State.IDLE
        else:
            self._cool_until = now + (self.ttl if lock is Lock.COOLING else REFUSED)
            self._end()
            self._release_all()

    def changed(self, now: float) -> None:
        """Redis tells that the key changed."""
        self._cool_until = -inf
        if self.state in (State.READING, State.LOCKING):
            self._changed = True
            return
        if self.state is State.HELD and self._early_lease:
            # It may have been the expiry, and the holder is still loading.
            self._early_lease = False
            self._keeps = True
            self._read()
            return
        self._polls = 0
        if self.state is State.HELD:
            self._written(now)
            self._unlock()
        if self.state is not State.IDLE:
            if self._queue:
                self._read()
            else:
                self.state = State.IDLE

    def lost(self) -> None:
        """The connection that tells of changes is gone: nobody can wait for one."""
        self._end()
        self._let_early_go()
        self._release_all()

    def tick(self, now: float) -> None:
        """Time has passed; at least until :meth:`due`."""
        while self._queue.deadline <= now:
            waiter = self._queue.pop()
            self.counts.released_late += 1
            self.port.release(waiter, late=True)
        if self._early is not None and self._early_until <= now:
            self._let_early_go()
        if self.state is State.HELD and self.expires <= now:
            self.counts.expired += 1
            self.holder = None
            if self._queue:
                self._cool_until = now + self.ttl
                self.port.cool(self.ttl)
                self.counts.handed_over += 1
                self._read()
            else:
                self._leave(now)
        elif self.state is State.ELSEWHERE and self._poll <= now:
            if self._queue:
                self._lock()
            else:
                self._polls = 0
                self.state = State.IDLE

    # -- inside

    def _read(self) -> None:
        self.state = State.READING
        self._changed = False
        self._aboard = self._queue.last
        self.port.read()

    def _lock(self) -> None:
        self.state = State.LOCKING
        self._changed = False
        self.port.lock(self.ttl)

    def _grant(self, waiter: Any, reply: Any, now: float) -> None:
        self.state = State.HELD
        self._early_lease = reply is None
        self.holder = waiter
        self.granted_at = now
        self.expires = now + self.ttl
        self.counts.granted += 1
        self.port.grant(waiter, reply)

    def _written(self, now: float) -> None:
        self.counts.written += 1
        self.delta.add(now - self.granted_at)

    def _value(self, reply: Any, now: float) -> None:
        """Everybody whom the read answers has it; who came later needs one more."""
        if self._keeps:
            self._keeps = False
            self._written(now)
        self._unlock()
        served = self._queue.upto(self._aboard)
        if self._queue:
            self._read()
        else:
            self.state = State.IDLE
        self.counts.served += len(served)
        for waiter in served:
            self.port.serve(waiter, reply)

    def _hand_over(self, now: float) -> None:
        """The holder is no more. The lock may have ended meanwhile, so it is asked for anew."""
        if not self._queue:
            self._leave(now)
            return
        self.counts.handed_over += 1
        if now < self._cool_until:
            self.port.extend(self.ttl)  # nobody else may have it
            self._read()
        else:
            self._unlock()
            self._lock()

    def _leave(self, now: float) -> None:
        """It ended unwritten, and nobody waits here."""
        self._cool_until = now + self.ttl
        self.port.leave(self.ttl)
        self._owner = False  # what was left must stand
        self._end()

    def _unlock(self) -> None:
        self.holder = None
        self.expires = inf
        self._early_lease = False
        if self._owner:
            self._owner = False
            self.port.unlock()

    def _end(self) -> None:
        self._unlock()
        self._keeps = False
        self._polls = 0
        self.state = State.IDLE

    def _let_early_go(self) -> None:
        early, self._early = self._early, None
        if early is not None:
            self.port.release(early, late=False)

    def _release_all(self) -> None:
        for waiter in self._queue.upto(self._queue.last):
            self.port.release(waiter, late=False)


class Delta:
    """How long loading takes: an exponentially weighted mean, seconds.

    ``guess`` stands in until the first one has been measured.
    """

    __slots__ = ("_measured", "seconds")

    def __init__(self, guess: float = 0.0) -> None:
        self.seconds = guess
        self._measured = False

    def add(self, seconds: float) -> None:
        """One loading, from the miss to the write."""
        if self._measured:
            self.seconds += (seconds - self.seconds) * _NEWEST
        else:
            self.seconds = seconds
            self._measured = True


def refresh_is_due(
    now: float, expiry: float, delta: float, draw: float, beta: float = 1.0, reads: int = 1
) -> bool:
    """Whether a value is loaded anew although it is still there.

    ``draw`` is uniform in (0, 1]; ``delta`` what loading takes. Source: see the module. One draw
    may stand for those of several ``reads``: the least of theirs decides.
    """
    least = draw if reads == 1 else 1.0 - (1.0 - draw) ** (1.0 / reads)
    return least <= 0.0 or now - delta * beta * log(least) >= expiry


class _Queue:
    """Who waits, oldest first; leaving from the middle costs no more than from the front."""

    __slots__ = ("_serial", "_waiting")

    def __init__(self) -> None:
        self._serial = 0
        #: Waiter → its number, from 1, and its deadline.
        self._waiting: Final[OrderedDict[Any, tuple[int, float]]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._waiting)

    @property
    def last(self) -> int:
        """Number of whoever came last, gone or not."""
        return self._serial

    @property
    def deadline(self) -> float:
        """That of the first; infinite: nobody waits."""
        for _, deadline in self._waiting.values():
            return deadline
        return inf

    def add(self, waiter: Any, deadline: float) -> None:
        self._serial += 1
        self._waiting[waiter] = self._serial, deadline

    def leave(self, waiter: Any) -> bool:
        """Whether it was there."""
        return self._waiting.pop(waiter, None) is not None

    def pop(self) -> Any:
        """The first."""
        return self._waiting.popitem(last=False)[0]

    def upto(self, number: int) -> list[Any]:
        """Take out those up to a number."""
        found = []
        while self._waiting and next(iter(self._waiting.values()))[0] <= number:
            found.append(self.pop())
        return found


class StaleStore:
    """Values that ended by expiry, for when nothing better can be had. Least recent go first."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.bytes = 0
        self._values: Final[OrderedDict[Hashable, tuple[bytes, float]]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._values)

    def put(self, key: Hashable, reply: bytes, expired: float) -> None:
        """Keep the reply whose time was over at ``expired``."""
        self.drop(key)
        size = len(reply) + _OVERHEAD
        if size > self.max_bytes:
            return
        self._values[key] = reply, expired
        self.bytes += size
        while self.bytes > self.max_bytes:
            _, (oldest, _) = self._values.popitem(last=False)
            self.bytes -= len(oldest) + _OVERHEAD

    def drop(self, key: Hashable) -> None:
        """There is something newer, or there may not be anything."""
        found = self._values.pop(key, None)
        if found is not None:
            self.bytes -= len(found[0]) + _OVERHEAD

    def drop_before(self, key: Hashable, now: float) -> None:
        """The value changed; unless it is one that has expired, which says so by itself."""
        found = self._values.get(key)
        if found is not None and now < found[1]:
            self.drop(key)

    def clear(self) -> None:
        """Forget everything."""
        self._values.clear()
        self.bytes = 0

    def get(self, key: Hashable, now: float, most: float) -> bytes | None:
        """The reply, if it expired no longer than ``most`` seconds ago."""
        found = self._values.get(key)
        if found is None:
            return None
        if now - found[1] > most:
            self.drop(key)
            return None
        return found[0]
