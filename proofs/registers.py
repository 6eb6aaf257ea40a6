"""What a read may return: registers, the writes on them as intervals, and the judge of each read.

A write takes effect at some unknown instant between ``invoked`` and ``answered``. Of two writes one
is *certainly later* where it was invoked after the other was answered; where they overlap, nobody
can say. A read that returns a value is right if some write of that value

- was invoked before the read was answered (nothing comes out of the future);
- was not *certainly overwritten* before ``invoked - staleness``: no certainly later write was over
  by then;
- had not certainly expired when the read was invoked (no staleness is granted there);
- is not certainly older than what the same connection wrote, or read, before.

A nil is the value of a DEL, a FLUSHALL, a RENAME away, and of a write whose time to live may be
over. A write that a read has shown was over when that read was, whatever became of its answer: so
reads are held to each other, too. With ``staleness = 0`` that is the interval-order condition of a
linearizable register.

Reads are judged as they come: whatever certainly overwrote their value is known by then.
All times are seconds of one monotonic clock.
"""

from __future__ import annotations

from math import inf
from typing import Final

__all__ = ["EARLY", "LATE", "Judge", "Register", "Write"]

#: Seconds by which Redis may end a key before, or after, what its TTL says to an observer: its
#: clock counts whole milliseconds, and is read once for many commands.
EARLY: Final = 0.05
LATE: Final = 0.003
#: Writes of one register that are kept until the dead ones are looked for.
_PRUNE_AT: Final = 48


class Write:
    """One change of one register. ``value`` is what is there afterwards; ``None``: nothing."""

    __slots__ = ("answered", "expires_early", "expires_late", "invoked", "ttl", "value")

    def __init__(self, value: bytes | None, invoked: float, ttl: float = inf) -> None:
        self.value = value
        self.invoked = invoked
        #: When it had certainly taken effect; infinite while nobody knows.
        self.answered = inf
        self.ttl = ttl
        self.expires_early = invoked + ttl - EARLY
        self.expires_late = inf

    def done(self, now: float) -> None:
        """It was answered, or seen: it has taken effect."""
        self.expires_late = min(self.expires_late, now + self.ttl + LATE)
        self.answered = min(self.answered, now)


class Register:
    """One key of one database."""

    __slots__ = ("_next_prune", "name", "writes")

    def __init__(self, name: bytes, now: float = -inf) -> None:
        self.name = name
        nothing = Write(None, now)
        nothing.answered = now
        self.writes: list[Write] = [nothing]
        self._next_prune = _PRUNE_AT

    def begin(self, value: bytes | None, now: float, ttl: float = inf) -> Write:
        """A write is about to be sent."""
        write = Write(value, now, ttl)
        self.writes.append(write)
        return write

    def undo(self, write: Write) -> None:
        """It is certain that ``write`` did nothing."""
        self.writes.remove(write)

    def prune(self, before: float) -> None:
        """Forget what was certainly overwritten before ``before``."""
        newest = max((w.invoked for w in self.writes if w.answered < before), default=-inf)
        self.writes = [w for w in self.writes if w.answered >= newest]
        self._next_prune = max(_PRUNE_AT, 2 * len(self.writes))

    @property
    def crowded(self) -> bool:
        return len(self.writes) > self._next_prune


class Judge:
    """Holds reads to a bound; see the module."""

    def __init__(self, staleness: float) -> None:
        self.staleness: Final = staleness
        #: Longest time that a value was read after it was certainly overwritten, seconds.
        self.oldest = 0.0

    def read(
        self,
        register: Register,
        value: bytes | None,
        invoked: float,
        answered: float,
        floor: Write | None,
    ) -> tuple[str | None, Write | None]:
        """What is wrong with a read (``None``: nothing), and the connection's new ``floor``.

        ``floor``: the last write of this register that the connection made or saw.
        """
        writes = register.writes
        horizon = invoked - self.staleness
        newest = max((w.invoked for w in writes if w.answered < horizon), default=-inf)
        right: list[Write] = []
        by_expiry = False
        reasons: set[str] = set()
        for write in writes:
            own = write.value == value
            if not own and (value is not None or write.expires_early > answered):
                continue
            if write.invoked > answered:
                reasons.add("comes from the future")
            elif write.answered < newest:
                reasons.add("was overwritten before the bound")
            elif own and write.expires_late < invoked:
                reasons.add("had expired")
            elif floor is not None and write is not floor and write.answered < floor.invoked:
                reasons.add("is older than what the connection wrote or read before")
            elif own:
                right.append(write)
            else:
                by_expiry = True
        if not right and not by_expiry:
            return ", ".join(sorted(reasons)) or "was never written here, or long ago", floor
        if value is None and (by_expiry or len(right) > 1):
            return None, floor
        self._measure(writes, right, invoked)
        first = min(right, key=lambda w: w.invoked)
        if value is not None:
            first.done(answered)
        return None, first if floor is None or first.invoked > floor.invoked else floor

    def _measure(self, writes: list[Write], right: list[Write], invoked: float) -> None:
        last = max(w.answered for w in right)
        for write in writes:
            if write.invoked > last and invoked - write.answered > self.oldest:
                self.oldest = invoked - write.answered
