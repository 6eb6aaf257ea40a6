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
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from nexus._speedups import BACKEND
from nexus._speedups._rangelock import RangeLock
from nexus.policy._breaker_py import (
    BLOCK,
    CHANGED_WORD,
    IN_USE,
    OPENS_WORD,
    SLOT_HEAD,
    STATE_WORD,
    UNTIL_WORD,
    WORD,
    State,
    private_words,
)
from nexus.policy.upstreamstate import FIRST, LAST, VERSION_WORD, UpstreamState

if TYPE_CHECKING or BACKEND == "pure":
    from nexus.policy._breaker_py import Breaker
else:
    from nexus.policy._breaker_c import Breaker

__all__ = ["Breaker", "BreakerConfig", "BreakerTable", "State"]

Buffer = bytearray | memoryview | mmap.mmap

_CLOSED: Final = 0

_MAGIC: Final = int.from_bytes(b"NXBRKR1\0", "little")
#: Words of the table's header: magic, slots, workers, version, leader, end of its lease.
_HEADER: Final = 8
_LEADER, _LEASE = 4, 5

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
        self._stride = SLOT_HEAD + workers * BLOCK
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
        return WORD * (_HEADER + slots * (SLOT_HEAD + workers * BLOCK))

    def adopt(self, worker_index: int) -> None:
        """A worker starts in this place: give up what a dead predecessor held.

        Call it before the first :meth:`breaker`. State and counts stay; slots that nobody uses any
        more become free.
        """
        self._check(worker_index)
        self._lock.acquire(self._slots)
        try:
            for slot in range(self._slots):
                self._words[self._block(slot, worker_index) + IN_USE] = 0
        finally:
            self._lock.release(self._slots)

    def breaker(self, url: str, worker_index: int, config: BreakerConfig) -> Breaker:
        """The breaker of ``url`` for this worker; the same state for the same URL in all workers.

        With every slot in use by other URLs the breaker is private to this process, and counted in
        :attr:`overflows`.
        """
        self._check(worker_index)
        low, high = _identity(url)
        self._lock.acquire(self._slots)
        try:
            slot = self._find(low, high)
            if slot is not None:
                self._words[self._block(slot, worker_index) + IN_USE] = 1
        finally:
            self._lock.release(self._slots)
        if slot is None:
            self.overflows += 1
            return Breaker(url, config, private_words(), 0, 1, None, 0)
        start = _HEADER + slot * self._stride
        words = self._words[start : start + self._stride]
        return Breaker(url, config, words, worker_index, self._workers, self._lock, slot)

    def state_of(self, url: str) -> UpstreamState:
        """What the workers know of an upstream beside its breaker; ask for its breaker first.

        Without a slot it is private to this process, as the breaker is.
        """
        low, high = _identity(url)
        for slot in range(self._slots):
            start = _HEADER + slot * self._stride
            words = self._words[start : start + SLOT_HEAD]
            if words[0] == low and words[1] == high:
                return UpstreamState(words, self._words[:_HEADER], self._lock, slot)
        return UpstreamState(private_words(), self._words[:_HEADER], None, 0)

    @property
    def version(self) -> int:
        """Another number after every change of an :class:`UpstreamState`."""
        return self._words[VERSION_WORD]

    @contextmanager
    def deciding(self) -> Iterator[None]:
        """Between processes, one at a time: for what looks at several upstreams."""
        self._lock.acquire(self._slots + 1)
        try:
            yield
        finally:
            self._lock.release(self._slots + 1)

    def leads(self, worker_index: int, now_ns: int, lease_ns: int) -> bool:
        """Whether this worker does what only one may do, for ``lease_ns`` from now; ask again
        before they are over. A dead leader's lease runs out."""
        words = self._words
        with self.deciding():
            if words[_LEADER] not in (0, worker_index + 1) and now_ns < words[_LEASE]:
                return False
            words[_LEASE] = now_ns + lease_ns
            words[_LEADER] = worker_index + 1
            return True

    def _check(self, worker_index: int) -> None:
        if not 0 <= worker_index < self._workers:
            raise ValueError(f"worker_index must be from 0 to {self._workers - 1}")

    def _block(self, slot: int, worker: int) -> int:
        return _HEADER + slot * self._stride + SLOT_HEAD + worker * BLOCK

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
            words[head + UNTIL_WORD] = words[head + OPENS_WORD] = words[head + CHANGED_WORD] = 0
            for word in range(FIRST, LAST + 1):
                words[head + word] = 0
            # The generation only grows, so that counts of the former owner stay void.
            words[head + STATE_WORD] = ((words[head + STATE_WORD] >> 2) + 1) << 2 | _CLOSED
            words[head] = low
            words[head + 1] = high
        return free

    def _is_free(self, slot: int) -> bool:
        return not any(self._words[self._block(slot, w) + IN_USE] for w in range(self._workers))


def _identity(url: str) -> tuple[int, int]:
    digest = hashlib.blake2b(url.encode(), digest_size=16).digest()
    low = int.from_bytes(digest[:8], "little", signed=True)
    return low, int.from_bytes(digest[8:], "little", signed=True) or 1
