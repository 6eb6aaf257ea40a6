"""A watched file as workers last put it to use, in memory that all workers share.

A worker that is replaced while the file is broken goes on with what the others have in force.
"""

from __future__ import annotations

import mmap
import struct
import zlib
from typing import Final

__all__ = ["MAX_FILE_BYTES", "FileMemory"]

#: Of one file; 256 upstreams with the longest host name are 80 KiB.
MAX_FILE_BYTES: Final = 1 << 20
#: Of one copy: when it was written, nanoseconds of the monotonic clock; bytes; CRC-32 of time and
#: content.
_COPY: Final = struct.Struct("<QII")


class FileMemory:
    """The file as each of ``workers`` last put it to use; made before the fork, over shared memory.

    A worker writes two copies in turn, its own, so whoever dies while writing leaves the other one.
    Pages that nobody wrote take no memory.
    """

    __slots__ = ("_map", "_size")

    def __init__(self, workers: int) -> None:
        # Whole pages: copies share none.
        self._size: Final = -(-(_COPY.size + MAX_FILE_BYTES) // mmap.PAGESIZE) * mmap.PAGESIZE
        # One more writer: whoever makes this, before the first worker.
        self._map: Final = mmap.mmap(-1, 2 * (workers + 1) * self._size)

    def write(self, content: bytes, now_ns: int, worker: int = -1) -> None:
        """``worker`` (-1: none yet) has put this content of the file to use."""
        first = 2 * (worker + 1)
        copies = (self._read(first), self._read(first + 1))
        # The older one is overwritten, or the one that is not whole.
        times = [copy[0] if copy is not None else -1 for copy in copies]
        at = (first + times.index(min(times))) * self._size
        start = at + _COPY.size
        self._map[start : start + len(content)] = content
        _COPY.pack_into(self._map, at, now_ns, len(content), _checksum(now_ns, content))

    def newest(self) -> bytes | None:
        """What any worker put to use last; ``None`` before the first did."""
        copies = (self._read(copy) for copy in range(len(self._map) // self._size))
        found = max((copy for copy in copies if copy is not None), default=None)
        return None if found is None else found[1]

    def _read(self, copy: int) -> tuple[int, bytes] | None:
        """Time and content; ``None`` where there is nothing, or half of it."""
        at = copy * self._size
        now_ns, size, checksum = _COPY.unpack_from(self._map, at)
        if not 0 < size <= MAX_FILE_BYTES:
            return None
        content = self._map[at + _COPY.size : at + _COPY.size + size]
        return (now_ns, content) if _checksum(now_ns, content) == checksum else None


def _checksum(now_ns: int, content: bytes) -> int:
    return zlib.crc32(content, zlib.crc32(now_ns.to_bytes(8, "little")))
