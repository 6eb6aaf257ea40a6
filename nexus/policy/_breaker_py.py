# cython: annotation_typing=False
"""The handle of one circuit breaker. One source, compiled as ``_breaker_c``.

The table, the layout's reasons and the state diagram are in :mod:`nexus.policy.breaker`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Literal

import cython  # type: ignore[import-untyped]

if TYPE_CHECKING:
    from nexus._speedups._rangelock import RangeLock
    from nexus.policy.breaker import BreakerConfig

__all__ = ["Breaker", "State", "private_words"]

State = Literal["closed", "open", "half-open"]

#: The window: so many buckets of so many nanoseconds.
BUCKETS: Final = 10
BUCKET_NS: Final = 1_000_000_000

_CLOSED, _OPEN, _HALF_OPEN = 0, 1, 2
#: End of an opening that only an operator ends; beyond any clock (146 years).
_HELD = 1 << 62
_NAMES: Final[tuple[State, ...]] = ("closed", "open", "half-open")

#: Bytes of a word: one aligned load or store.
WORD: Final = 8
#: Words of a slot's head; then one block per worker. Two cache lines each keep workers from
#: writing into each other's lines (blocks are four).
STATE_WORD, UNTIL_WORD, OPENS_WORD, CHANGED_WORD, SLOT_HEAD = 2, 3, 4, 5, 16
#: Words of a worker's block: in use, generation of the counts, then (second, successes, failures)
#: for each bucket.
IN_USE, GENERATION, COUNTS, BLOCK = 0, 1, 2, 32
# The same as C integers in the compiled module.
_BUCKETS, _BUCKET_NS = BUCKETS, BUCKET_NS
_STATE, _UNTIL, _OPENS, _CHANGED, _SLOT_HEAD = (
    STATE_WORD,
    UNTIL_WORD,
    OPENS_WORD,
    CHANGED_WORD,
    SLOT_HEAD,
)
_IN_USE, _GENERATION, _COUNTS, _BLOCK = IN_USE, GENERATION, COUNTS, BLOCK

if not cython.compiled:

    def fence() -> None:
        """What was written above is visible before what is written below; C needs telling."""


def private_words() -> memoryview[int]:
    """A slot with one block, in memory of this process alone."""
    words = memoryview(bytearray(WORD * (SLOT_HEAD + BLOCK))).cast("q")
    words[STATE_WORD] = 1 << 2 | _CLOSED
    return words


class Breaker:
    """One worker's handle of one URL's breaker. ``now_ns`` is the monotonic clock everywhere.

    ::

        permit = breaker.allow(now)     0: refused, anything else: go on, and remember it
        breaker.record_success(now, permit) | record_failure(now, permit) | release(now, permit)

    Exactly one of the three ends each permit. Without a permit a result counts as one of the
    current state, and as the trial's while this worker holds the trial.
    """

    __slots__ = (
        "_block",
        "_config",
        "_enabled",
        "_lock",
        "_reset_ns",
        "_slot",
        "_trial",
        "_trial_ns",
        "_words",
        "_workers",
        "url",
    )

    def __init__(
        self,
        url: str,
        config: BreakerConfig,
        words: memoryview[int],
        worker_index: int,
        workers: int,
        lock: RangeLock | None,
        slot: int,
    ) -> None:
        self.url = url
        self._words = words
        self._workers = workers
        self._block = _SLOT_HEAD + worker_index * _BLOCK
        self._lock = lock
        self._slot = slot
        #: The generation of the trial that this worker holds; 0: none.
        self._trial = 0
        self.config = config

    @property
    def config(self) -> BreakerConfig:
        return self._config

    @config.setter
    def config(self, config: BreakerConfig) -> None:
        """Take effect from the next call on; the state stays."""
        self._config = config
        self._enabled = config.enabled
        self._reset_ns = config.reset_timeout_ms * 1_000_000
        self._trial_ns = config.trial_timeout_ms * 1_000_000

    def ready(self, now_ns: int) -> bool:
        """Would :meth:`allow` say yes? Changes nothing: made for a balancer's ``usable``."""
        word = self._words[_STATE]
        return word & 3 == _CLOSED or not self._enabled or now_ns >= self._words[_UNTIL]

    def allow(self, now_ns: int) -> int:
        """A permit (truthy) for one request, or 0. Open and half-open: for one trial only."""
        word = self._words[_STATE]
        if word & 3 == _CLOSED or not self._enabled:
            return word >> 2
        if now_ns < self._words[_UNTIL]:
            return 0
        self._acquire()
        try:
            word = self._words[_STATE]
            if word & 3 == _CLOSED:  # somebody's trial went well while we waited
                return word >> 2
            if now_ns < self._words[_UNTIL]:  # somebody else has the trial
                return 0
            self._words[_UNTIL] = now_ns + self._trial_ns
            self._enter(_HALF_OPEN, now_ns)
            self._trial = self._words[_STATE] >> 2
            return self._trial
        finally:
            self._release_lock()

    def record_success(self, now_ns: int, permit: int = 0) -> None:
        """The upstream answered, below 500."""
        word = self._words[_STATE]
        if word & 3 == _CLOSED:
            if permit in (0, word >> 2) and self._enabled:
                self._count(now_ns, word >> 2, 0)
        elif self._is_trial(word, permit):
            self._end_trial(now_ns, word, _CLOSED)

    def record_failure(self, now_ns: int, permit: int = 0) -> bool:
        """5xx, timeout or connection error. True when this call opened the breaker."""
        word = self._words[_STATE]
        if word & 3 == _CLOSED:
            if permit not in (0, word >> 2) or not self._enabled:
                return False
            self._count(now_ns, word >> 2, 1)
            return self._over_threshold(now_ns, word >> 2) and self._trip(now_ns, word)
        return self._is_trial(word, permit) and self._end_trial(now_ns, word, _OPEN)

    def release(self, now_ns: int, permit: int = 0) -> None:
        """No verdict on the upstream (the client went away): a trial becomes free at once."""
        word = self._words[_STATE]
        if self._is_trial(word, permit):
            self._acquire()
            try:
                if self._words[_STATE] == word:
                    self._words[_UNTIL] = now_ns
            finally:
                self._release_lock()
            self._trial = 0

    def force_open(self, now_ns: int) -> None:
        """An operator opens it, until :meth:`force_close`; no trial comes of itself."""
        self._acquire()
        try:
            self._words[_UNTIL] = _HELD
            self._enter(_OPEN, now_ns)
        finally:
            self._release_lock()

    def force_close(self, now_ns: int) -> None:
        """An operator closes it, with empty counts; from then on it decides itself again."""
        self._acquire()
        try:
            self._enter(_CLOSED, now_ns)
        finally:
            self._release_lock()

    def closed_at(self) -> int:
        """When it last closed, monotonic nanoseconds; 0: it is not closed, or was never open."""
        return self._words[_CHANGED] if self._words[_STATE] & 3 == _CLOSED else 0

    def counts(self, now_ns: int) -> tuple[int, int]:
        """(successes, failures) of the window, over all workers."""
        return self._sum(now_ns, self._words[_STATE] >> 2)

    def state(self, now_ns: int) -> State:
        """As the outside sees it: open becomes half-open when the next request would be let in."""
        if not self._enabled:
            return "closed"
        state = self._words[_STATE] & 3
        if state == _OPEN and now_ns >= self._words[_UNTIL]:
            return "half-open"
        return _NAMES[state]

    def snapshot(self, now_ns: int) -> dict[str, object]:
        """For ``/cb-stats``: state, counts of the window over all workers, times in ms."""
        word = self._words[_STATE]
        successes, failures = self._sum(now_ns, word >> 2)
        total = successes + failures
        held = word & 3 == _OPEN and self._words[_UNTIL] == _HELD
        wait = self._words[_UNTIL] - now_ns if word & 3 != _CLOSED and not held else 0
        return {
            "state": self.state(now_ns),
            "successes": successes,
            "failures": failures,
            "errorPercentage": round(100 * failures / total, 2) if total else 0.0,
            "opens": self._words[_OPENS],
            "retryInMs": max(0, -(-wait // 1_000_000)),
            "held": held,
        }

    def close(self) -> None:
        """The URL left this worker: its slot is free when no worker uses it.

        Requests still under way may report; it reaches nobody.
        """
        if self._lock is not None:
            self._words[self._block + _IN_USE] = 0
            self._words, self._block = private_words(), SLOT_HEAD
            self._workers, self._lock, self._trial = 1, None, 0

    def __repr__(self) -> str:
        word = self._words[_STATE]
        return f"<Breaker {self.url} {_NAMES[word & 3]} generation={word >> 2}>"

    def _is_trial(self, word: int, permit: int) -> bool:
        return word & 3 == _HALF_OPEN and (permit or self._trial) == word >> 2

    def _acquire(self) -> None:
        if self._lock is not None:
            self._lock.acquire(self._slot)

    def _release_lock(self) -> None:
        if self._lock is not None:
            self._lock.release(self._slot)

    def _enter(self, state: int, now_ns: int) -> None:
        """Commit point of every transition; under the lock, all else already written."""
        if state == _OPEN:
            self._words[_OPENS] += 1
        self._words[_CHANGED] = now_ns
        fence()
        self._words[_STATE] = ((self._words[_STATE] >> 2) + 1) << 2 | state

    def _trip(self, now_ns: int, word: int) -> bool:
        self._acquire()
        try:
            if self._words[_STATE] != word:
                return False  # another worker was first; the event is its to report
            self._words[_UNTIL] = now_ns + self._reset_ns
            self._enter(_OPEN, now_ns)
            return True
        finally:
            self._release_lock()

    def _end_trial(self, now_ns: int, word: int, state: int) -> bool:
        self._trial = 0
        self._acquire()
        try:
            if self._words[_STATE] != word:
                return False  # the lease ran out and a new trial is under way
            if state == _OPEN:
                self._words[_UNTIL] = now_ns + self._reset_ns
            self._enter(state, now_ns)
            return True
        finally:
            self._release_lock()

    def _count(self, now_ns: int, generation: int, failed: int) -> None:
        block = self._block
        if self._words[block + _GENERATION] != generation:
            # Seconds first: a reader must not take old counts for the new generation's.
            at = block + _COUNTS
            while at < block + _COUNTS + 3 * _BUCKETS:
                self._words[at] = -1
                at += 3
            fence()
            self._words[block + _GENERATION] = generation
        second = now_ns // _BUCKET_NS
        at = block + _COUNTS + second % _BUCKETS * 3
        if self._words[at] != second:
            self._words[at + 1] = self._words[at + 2] = 0
            fence()
            self._words[at] = second
        self._words[at + 1 + failed] += 1

    def _sum(self, now_ns: int, generation: int) -> tuple[int, int]:
        oldest = now_ns // _BUCKET_NS - _BUCKETS + 1
        successes = failures = 0
        for worker in range(self._workers):
            block = _SLOT_HEAD + worker * _BLOCK
            if self._words[block + _GENERATION] != generation:
                continue
            for at in range(block + _COUNTS, block + _COUNTS + 3 * _BUCKETS, 3):
                if self._words[at] >= oldest:
                    successes += self._words[at + 1]
                    failures += self._words[at + 2]
        return successes, failures

    def _over_threshold(self, now_ns: int, generation: int) -> bool:
        successes, failures = self._sum(now_ns, generation)
        total = successes + failures
        config = self._config
        return (
            total >= config.volume_threshold
            and failures * 100 >= config.error_threshold_percentage * total
        )
