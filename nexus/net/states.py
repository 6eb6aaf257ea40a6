"""What each worker slot is doing, in memory that all processes of a service share."""

from __future__ import annotations

import mmap
import struct
from typing import Final

__all__ = ["DRAINING", "FAILING", "READY", "STARTING", "WorkerStates"]

STARTING: Final = "starting"
READY: Final = "ready"
DRAINING: Final = "draining"
FAILING: Final = "failing"

_NAMES: Final = ("dead", STARTING, READY, DRAINING, FAILING)
_SLOT: Final = struct.Struct("=II")  # state, pid


class WorkerStates:
    """A table of (state, pid) by worker slot. Each slot has one writer at a time."""

    def __init__(self, workers: int) -> None:
        self._workers: Final = workers
        self._map: Final = mmap.mmap(-1, max(_SLOT.size * workers, mmap.PAGESIZE))

    def set(self, index: int, state: str, pid: int) -> None:
        """Record that slot ``index`` is in ``state`` and served by ``pid`` (0: nobody)."""
        _SLOT.pack_into(self._map, index * _SLOT.size, _NAMES.index(state), pid)

    def all(self) -> list[tuple[int, str, int]]:
        """(worker index, state, pid) of every slot."""
        table: list[tuple[int, str, int]] = []
        for index in range(self._workers):
            state, pid = _SLOT.unpack_from(self._map, index * _SLOT.size)
            table.append((index, _NAMES[state], pid))
        return table

    def serving(self) -> bool:
        """Whether new traffic should be sent here: somebody is ready and nobody drains.

        One worker that fails does not take the others out of rotation.
        """
        states = [state for _, state, _ in self.all()]
        return READY in states and DRAINING not in states
