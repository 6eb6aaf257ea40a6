"""Circuit breakers in shared memory: one per upstream URL, the same in every worker.

::

              error share ≥ threshold and volume ≥ minimum, over the last 10 s
    closed ──────────────────────────────────────────────────────────────────► open
      ▲                                                                         │ reset time over:
      │ trial succeeded                                                         │ first to ask gets
      │                          trial failed                                   ▼ the trial
      └───────────────────────────────────────────────── half-open ─────────────┘
                                                            │ ▲
                                   lease of the trial over ─┘ └─ a new trial

A breaker's state is one word, ``generation << 2 | state``. Every transition is a write of that word
under a record lock that the kernel releases when its owner dies; whatever the new state needs is
written before it, so a worker killed between the two leaves a valid breaker. The generation doubles
as the permit that :meth:`Breaker.allow` hands out: a result that comes back with an older permit
belongs to a request from before the transition and is ignored. The half-open trial is a lease with
a deadline, so that of a dead worker expires.

Results are counted in ten buckets of one second per worker, each written by that worker alone and
inherited by its replacement; only a failure adds up all workers.
"""

from __future__ import annotations

import hashlib
import mmap
from dataclasses import dataclass
from typing import Final, Literal

from nexus._speedups._rangelock import RangeLock

__all__ = ["Breaker", "BreakerConfig", "BreakerTable", "State"]

State = Literal["closed", "open", "half-open"]
Buffer = bytearray | memoryview | mmap.mmap

BUCKETS: Final = 10
BUCKET_NS: Final = 1_000_000_000

_CLOSED, _OPEN, _HALF_OPEN = 0, 1, 2
_NAMES: Final[tuple[State, ...]] = ("closed", "open", "half-open")

_WORD: Final = 8
_MAGIC: Final = int.from_bytes(b"NXBRKR1\0", "little")
#: Words of the table's header: magic, slots, workers.
_HEADER: Final = 8
#: Words of a slot's head; then one block per worker. Two cache lines each keep workers from
#: writing into each other's lines (blocks are four).
_IDENTITY, _STATE, _UNTIL, _OPENS, _CHANGED, _SLOT_HEAD = 0, 2, 3, 4, 5, 16
#: Words of a worker's block: in use, generation of the counts, then (second, successes, failures)
#: for each bucket.
_IN_USE, _GENERATION, _COUNTS, _BLOCK = 0, 1, 2, 32

#: Allocation has a lock of its own, behind those of the slots.
_MAX_SLOTS: Final = 65_536


@dataclass(frozen=True, slots=True)
class BreakerConfig:
    """When to open and for how long; the defaults are the contract's."""

    #: Share of failed requests at which it opens, percent, reached or exceeded.
    error_threshold_percentage: float = 50.0
    #: Time open before a trial.
    reset_timeout_ms: int = 10_000
    #: Requests in the window below which it never opens.
    volume_threshold: int = 3
    #: Lease of the trial. Longer than one attempt may take (connect 3 s + response head 5 s), or a
    #: slow trial would be doubled.
    trial_timeout_ms: int = 10_000
    #: Off: always closed, nothing counted.
    enabled: bool = True

    def __post_init__(self) -> None:
        if not 0 < self.error_threshold_percentage <= 100:
            raise ValueError(
                "error_threshold_percentage must be above 0 and at most 100, "
                f"got {self.error_threshold_percentage}"
            )
        for name in ("reset_timeout_ms", "volume_threshold", "trial_timeout_ms"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")


class BreakerTable:
    """``slots`` breakers for ``workers`` workers in ``buffer``.

    Make it once, before the fork, over zeroed memory that the workers inherit
    (``mmap.mmap(-1, BreakerTable.size(slots, workers))``). Raises ``ValueError`` for a buffer that
    is too small, not zeroed or not writable.
    """

    __slots__ = ("_lock", "_slots", "_stride", "_words", "_workers", "overflows")

    def __init__(self, buffer: Buffer, slots: int, workers: int) -> None:
        size = self.size(slots, workers)
        view = memoryview(buffer).cast("B")
        if view.readonly:
            raise ValueError("the buffer must be writable")
        if len(view) < size:
            raise ValueError(
                f"{slots} slots of {workers} workers need {size} bytes, the buffer has {len(view)}"
            )
        # Native 8-byte items: one aligned load or store each.
        self._words = view[:size].cast("q")
        if any(self._words[:_HEADER]):
            raise ValueError("the buffer is not zeroed: make the table once, before the fork")
        self._words[1] = slots
        self._words[2] = workers
        self._words[0] = _MAGIC
        self._slots = slots
        self._workers = workers
        self._stride = _SLOT_HEAD + workers * _BLOCK
        self._lock = RangeLock("nexus-breakers")
        #: Breakers that had to be private to this process because the table was full.
        self.overflows = 0

    @staticmethod
    def size(slots: int, workers: int) -> int:
        """Bytes that a table needs."""
        if not 1 <= slots <= _MAX_SLOTS:
            raise ValueError(f"slots must be from 1 to {_MAX_SLOTS}, got {slots}")
        if not 1 <= workers <= 4096:
            raise ValueError(f"workers must be from 1 to 4096, got {workers}")
        return _WORD * (_HEADER + slots * (_SLOT_HEAD + workers * _BLOCK))

    def adopt(self, worker_index: int) -> None:
        """A worker starts in this place: give up what a dead predecessor held.

        Call it before the first :meth:`breaker`. State and counts stay; slots that nobody uses any
        more become free.
        """
        self._check(worker_index)
        self._lock.acquire(self._slots)
        try:
            for slot in range(self._slots):
                self._words[self._block(slot, worker_index) + _IN_USE] = 0
        finally:
            self._lock.release(self._slots)

    def breaker(self, url: str, worker_index: int, config: BreakerConfig) -> Breaker:
        """The breaker of ``url`` for this worker; the same state for the same URL in all workers.

        With every slot in use by other URLs the breaker is private to this process, and counted in
        :attr:`overflows`.
        """
        self._check(worker_index)
        digest = hashlib.blake2b(url.encode(), digest_size=16).digest()
        low = int.from_bytes(digest[:8], "little", signed=True)
        high = int.from_bytes(digest[8:], "little", signed=True) or 1
        self._lock.acquire(self._slots)
        try:
            slot = self._find(low, high)
            if slot is not None:
                self._words[self._block(slot, worker_index) + _IN_USE] = 1
        finally:
            self._lock.release(self._slots)
        if slot is None:
            self.overflows += 1
            return Breaker(url, config, _private_words(), 0, 1, None, 0)
        start = _HEADER + slot * self._stride
        words = self._words[start : start + self._stride]
        return Breaker(url, config, words, worker_index, self._workers, self._lock, slot)

    def _check(self, worker_index: int) -> None:
        if not 0 <= worker_index < self._workers:
            raise ValueError(f"worker_index must be from 0 to {self._workers - 1}")

    def _block(self, slot: int, worker: int) -> int:
        return _HEADER + slot * self._stride + _SLOT_HEAD + worker * _BLOCK

    def _find(self, low: int, high: int) -> int | None:
        """The slot of this identity, else a free one made ready for it."""
        words = self._words
        free: int | None = None
        for slot in range(self._slots):
            head = _HEADER + slot * self._stride
            if words[head] == low and words[head + 1] == high:
                return slot
            if free is None and self._is_free(slot):
                free = slot
        if free is not None:
            head = _HEADER + free * self._stride
            # Identity last: one killed in between leaves a slot that still belongs to nobody.
            words[head] = words[head + 1] = 0
            words[head + _UNTIL] = words[head + _OPENS] = words[head + _CHANGED] = 0
            # The generation only grows, so that counts of the former owner stay void.
            words[head + _STATE] = ((words[head + _STATE] >> 2) + 1) << 2 | _CLOSED
            words[head] = low
            words[head + 1] = high
        return free

    def _is_free(self, slot: int) -> bool:
        return not any(self._words[self._block(slot, w) + _IN_USE] for w in range(self._workers))


def _private_words() -> memoryview[int]:
    """A slot with one block, in memory of this process alone."""
    words = memoryview(bytearray(_WORD * (_SLOT_HEAD + _BLOCK))).cast("q")
    words[_STATE] = 1 << 2 | _CLOSED
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
        self._reset_ns = config.reset_timeout_ms * 1_000_000
        self._trial_ns = config.trial_timeout_ms * 1_000_000

    def ready(self, now_ns: int) -> bool:
        """Would :meth:`allow` say yes? Changes nothing: made for a balancer's ``usable``."""
        word = self._words[_STATE]
        return word & 3 == _CLOSED or not self._config.enabled or now_ns >= self._words[_UNTIL]

    def allow(self, now_ns: int) -> int:
        """A permit (truthy) for one request, or 0. Open and half-open: for one trial only."""
        word = self._words[_STATE]
        if word & 3 == _CLOSED or not self._config.enabled:
            return word >> 2
        if now_ns < self._words[_UNTIL]:
            return 0
        self._acquire()
        try:
            if self._words[_STATE] != word or now_ns < self._words[_UNTIL]:
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
            if permit in (0, word >> 2) and self._config.enabled:
                self._count(now_ns, word >> 2, 0)
        elif self._is_trial(word, permit):
            self._end_trial(now_ns, word, _CLOSED)

    def record_failure(self, now_ns: int, permit: int = 0) -> bool:
        """5xx, timeout or connection error. True when this call opened the breaker."""
        word = self._words[_STATE]
        if word & 3 == _CLOSED:
            if permit not in (0, word >> 2) or not self._config.enabled:
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

    def state(self, now_ns: int) -> State:
        """As the outside sees it: open becomes half-open when the next request would be let in."""
        if not self._config.enabled:
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
        wait = self._words[_UNTIL] - now_ns if word & 3 != _CLOSED else 0
        return {
            "state": self.state(now_ns),
            "successes": successes,
            "failures": failures,
            "errorPercentage": round(100 * failures / total, 2) if total else 0.0,
            "opens": self._words[_OPENS],
            "retryInMs": max(0, -(-wait // 1_000_000)),
        }

    def close(self) -> None:
        """The URL left this worker: its slot is free when no worker uses it.

        Requests still under way may report; it reaches nobody.
        """
        if self._lock is not None:
            self._words[self._block + _IN_USE] = 0
            self._words, self._block = _private_words(), _SLOT_HEAD
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
        words = self._words
        if state == _OPEN:
            words[_OPENS] += 1
        words[_CHANGED] = now_ns
        words[_STATE] = ((words[_STATE] >> 2) + 1) << 2 | state

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
        words, block = self._words, self._block
        if words[block + _GENERATION] != generation:
            # Seconds first: a reader must not take old counts for the new generation's.
            for at in range(block + _COUNTS, block + _COUNTS + 3 * BUCKETS, 3):
                words[at] = -1
            words[block + _GENERATION] = generation
        second = now_ns // BUCKET_NS
        at = block + _COUNTS + second % BUCKETS * 3
        if words[at] != second:
            words[at + 1] = words[at + 2] = 0
            words[at] = second
        words[at + 1 + failed] += 1

    def _sum(self, now_ns: int, generation: int) -> tuple[int, int]:
        words = self._words
        oldest = now_ns // BUCKET_NS - BUCKETS + 1
        successes = failures = 0
        for worker in range(self._workers):
            block = _SLOT_HEAD + worker * _BLOCK
            if words[block + _GENERATION] != generation:
                continue
            for at in range(block + _COUNTS, block + _COUNTS + 3 * BUCKETS, 3):
                if words[at] >= oldest:
                    successes += words[at + 1]
                    failures += words[at + 2]
        return successes, failures

    def _over_threshold(self, now_ns: int, generation: int) -> bool:
        successes, failures = self._sum(now_ns, generation)
        total = successes + failures
        config = self._config
        return (
            total >= config.volume_threshold
            and failures * 100 >= config.error_threshold_percentage * total
        )
