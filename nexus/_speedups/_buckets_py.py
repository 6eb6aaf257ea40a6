"""The bucket table in pure Python; see ``buckets.py`` for layout and guarantees."""

from __future__ import annotations

import ctypes
import mmap
import struct
from operator import index
from typing import Final

from nexus._speedups._rangelock import RangeLock

__all__ = ["BucketTable", "hash_key"]

_M64: Final = 0xFFFF_FFFF_FFFF_FFFF
_WAYS: Final = 8
_SLOT_BYTES: Final = 16
_SET_BYTES: Final = _WAYS * _SLOT_BYTES
_HEADER_BYTES: Final = 64
_ALIGNMENT: Final = 64
#: 2**26 sets are 8 GiB; more is a mistake in units.
_MAX_SETS: Final = 1 << 26
#: 73 years in nanoseconds: a TAT stays below 2**62, and one more token below 2**63.
_MAX_TIME: Final = 1 << 61

#: What a table may lie in.
Buffer = bytearray | memoryview | mmap.mmap

_MAGIC: Final = b"NXBUCK1"
_BACKEND: Final = b"P"
_BACKEND_NAMES: Final = {b"P": "pure", b"C": "compiled"}

_HEADER: Final = struct.Struct("=7scQ")
_SET: Final = struct.Struct("=" + "Qq" * _WAYS)
_SLOT: Final = struct.Struct("=Qq")
_TAT: Final = struct.Struct("=q")


class BucketTable:
    """GCRA buckets in ``buffer``, in ``sets`` sets of eight.

    ``buffer`` is writable, zeroed, aligned to 64 bytes and at least ``size(sets)`` long; ``sets``
    is a power of two. Raises ``ValueError`` otherwise, also when the buffer holds a table already.
    """

    __slots__ = ("_evictions", "_lock", "_mask", "_view")

    def __init__(self, buffer: Buffer, sets: int) -> None:
        sets = index(sets)
        size = BucketTable.size(sets)
        view = memoryview(buffer).cast("B")
        if view.readonly:
            raise ValueError("the buffer must be writable")
        if len(view) < size:
            raise ValueError(f"{sets} sets need {size} bytes, the buffer has {len(view)}")
        if ctypes.addressof(ctypes.c_char.from_buffer(view)) % _ALIGNMENT:
            raise ValueError(f"the buffer must be aligned to {_ALIGNMENT} bytes; use mmap")
        _claim(view, sets)
        self._view = view
        self._mask = sets - 1
        self._evictions = 0
        self._lock = RangeLock("nexus-buckets")

    @staticmethod
    def size(sets: int) -> int:
        """Bytes that a table of ``sets`` sets needs."""
        sets = index(sets)
        if not 1 <= sets <= _MAX_SETS or sets & (sets - 1):
            raise ValueError(f"sets must be a power of two from 1 to {_MAX_SETS}, got {sets}")
        return _HEADER_BYTES + sets * _SET_BYTES

    @property
    def evictions(self) -> int:
        """Live buckets overwritten by this process."""
        return self._evictions

    def take(self, key: int, now_ns: int, interval_ns: int, burst: int) -> int:
        """Take one token from the bucket of ``key`` (64 bits; see :func:`hash_key`).

        ``now_ns`` is the monotonic clock, ``interval_ns`` the time that one token takes to grow,
        ``burst`` the capacity in tokens. Returns the tokens left (>= 0) when admitted, else
        ``-(ns until one token is there)``. Raises ``ValueError`` when an argument is out of range.
        """
        key = index(key) & _M64
        now, interval, burst = index(now_ns), index(interval_ns), index(burst)
        if not (
            0 <= now < _MAX_TIME
            and interval >= 1
            and burst >= 1
            and interval < _MAX_TIME
            and burst <= _MAX_TIME // interval
        ):
            raise ValueError(
                "now_ns must be >= 0, interval_ns and burst >= 1, "
                "now_ns and interval_ns * burst at most 2**61"
            )
        number = (key >> 32) & self._mask
        self._lock.acquire(number)
        try:
            return self._take(_HEADER_BYTES + number * _SET_BYTES, key, now, interval, burst)
        finally:
            self._lock.release(number)

    def _take(self, start: int, key: int, now: int, interval: int, burst: int) -> int:
        slots: tuple[int, ...] = _SET.unpack_from(self._view, start)
        keys, tats = slots[::2], slots[1::2]
        try:
            at = keys.index(key)
            base = max(tats[at], now)
        except ValueError:
            # The least debt; the first of equals, as in the compiled table.
            at = tats.index(min(tats))
            base = now
        tat = base + interval
        wait = tat - now - interval * burst
        if wait > 0:
            return -wait
        if keys[at] != key:
            if tats[at] > now:
                self._evictions += 1
            _SLOT.pack_into(self._view, start + at * _SLOT_BYTES, key, tat)
        else:
            _TAT.pack_into(self._view, start + at * _SLOT_BYTES + 8, tat)
        return -wait // interval


def _claim(view: memoryview, sets: int) -> None:
    """Write the header, or say whose it is already."""
    magic, backend, found = _HEADER.unpack_from(view)
    if magic == _MAGIC:
        name = _BACKEND_NAMES.get(backend, "unknown")
        raise ValueError(
            f"the buffer holds a table already ({name} backend, {found} sets): "
            "make it once, before the fork"
        )
    if (magic, backend, found) != (bytes(7), b"\0", 0):
        raise ValueError("the buffer is not zeroed")
    _HEADER.pack_into(view, 0, _MAGIC, _BACKEND, sets)


def hash_key(data: bytes, seed: int) -> int:
    """SipHash-1-3 of ``data`` as an unsigned 64-bit number, the same in every process.

    ``seed`` is the secret key (its low 128 bits): drawn at start-up, so that nobody can choose
    addresses which all fall into one set. SipHash: Aumasson and Bernstein, 2012; one compression
    and three finalisation rounds as in CPython's own ``hash(bytes)``.
    """
    if not isinstance(data, bytes):
        raise TypeError(f"expected bytes, got {type(data).__name__}")
    seed = index(seed)
    k0, k1 = seed & _M64, (seed >> 64) & _M64
    v0, v1 = k0 ^ 0x736F6D6570736575, k1 ^ 0x646F72616E646F6D
    v2, v3 = k0 ^ 0x6C7967656E657261, k1 ^ 0x7465646279746573
    whole = len(data) & ~7
    words = list(struct.unpack_from(f"<{whole // 8}Q", data))
    words.append(int.from_bytes(data[whole:], "little") | (len(data) & 0xFF) << 56)
    for word in words:
        v0, v1, v2, v3 = _round(v0, v1, v2, v3 ^ word)
        v0 ^= word
    v2 ^= 0xFF
    for _ in range(3):
        v0, v1, v2, v3 = _round(v0, v1, v2, v3)
    return v0 ^ v1 ^ v2 ^ v3


def _round(v0: int, v1: int, v2: int, v3: int) -> tuple[int, int, int, int]:
    v0 = (v0 + v1) & _M64
    v2 = (v2 + v3) & _M64
    v1 = ((v1 << 13 | v1 >> 51) & _M64) ^ v0
    v3 = ((v3 << 16 | v3 >> 48) & _M64) ^ v2
    v0 = (v0 << 32 | v0 >> 32) & _M64
    v2 = (v2 + v1) & _M64
    v0 = (v0 + v3) & _M64
    v1 = ((v1 << 17 | v1 >> 47) & _M64) ^ v2
    v3 = ((v3 << 21 | v3 >> 43) & _M64) ^ v0
    v2 = (v2 << 32 | v2 >> 32) & _M64
    return v0, v1, v2, v3
