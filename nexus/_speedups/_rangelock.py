"""A lock per byte of an anonymous file, shared over ``fork`` and released by the kernel at death.

POSIX record locks (``fcntl(2)``, ``F_SETLKW``) belong to a process: the kernel drops them when the
owner dies, at whatever instruction, so no table can stay locked for ever. The file is a ``memfd``
and holds nothing; only its lock ranges are used. Make the lock before the fork and let the workers
inherit it. It excludes processes, not threads of one process.
"""

from __future__ import annotations

import fcntl
import os

__all__ = ["RangeLock"]


class RangeLock:
    """``acquire(i)`` … ``release(i)``: mutual exclusion between processes, one lock per index."""

    __slots__ = ("_fd",)

    def __init__(self, name: str) -> None:
        self._fd = os.memfd_create(name, os.MFD_CLOEXEC)

    def acquire(self, index: int) -> None:
        """Wait for lock ``index``."""
        fcntl.lockf(self._fd, fcntl.LOCK_EX, 1, index)

    def release(self, index: int) -> None:
        fcntl.lockf(self._fd, fcntl.LOCK_UN, 1, index)

    def close(self) -> None:
        """Give the descriptor back; drops every lock of this process."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __del__(self) -> None:
        # Absent when the constructor itself failed (descriptors exhausted).
        if getattr(self, "_fd", -1) >= 0:
            self.close()
