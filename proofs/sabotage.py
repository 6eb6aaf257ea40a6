"""Faults that no proxy could be blamed for, put in to see that the checkers notice.

``SABOTAGE`` changes one place in a chunk of replies, sometimes, and is used by
``python -m proofs.crossed --sabotage NAME``, which must then fail; so must
``python -m proofs.staleness`` with those of ``STALE``.
"""

from __future__ import annotations

import random
import re
import time
from collections.abc import Callable
from itertools import pairwise
from typing import Final

__all__ = ["SABOTAGE", "STALE", "sabotage", "stale"]

_BULK: Final = re.compile(rb"\$(\d+)\r\n")


def _bulks(data: bytes) -> list[tuple[int, int]]:
    """Start and end of the complete bulk strings in ``data``, as far as they follow each other."""
    found: list[tuple[int, int]] = []
    position = 0
    while match := _BULK.search(data, position):
        end = match.end() + int(match[1]) + 2
        if end > len(data):
            break
        found.append((match.start(), end))
        position = end
    return found


def _neighbours(data: bytes) -> tuple[int, int, int] | None:
    """Start, border and end of two bulk strings side by side that differ."""
    bulks = _bulks(data)
    for (start, border), (begin, end) in pairwise(bulks):
        if border == begin and data[start:border] != data[begin:end]:
            return start, border, end
    return None


def swap(data: bytes) -> bytes:
    """Two neighbouring replies change places."""
    found = _neighbours(data)
    if found is None:
        return data
    start, border, end = found
    return data[:start] + data[border:end] + data[start:border] + data[end:]


def drop(data: bytes) -> bytes:
    """One reply is missing: all later ones come one too early."""
    found = _neighbours(data)
    return data if found is None else data[: found[0]] + data[found[1] :]


def double(data: bytes) -> bytes:
    """One reply comes twice: all later ones come one too late."""
    found = _neighbours(data)
    return data if found is None else data[: found[1]] + data[found[0] :]


SABOTAGE: Final[dict[str, Callable[[bytes], bytes]]] = {
    "swap": swap,
    "drop": drop,
    "double": double,
}


def sabotage(name: str, rng: random.Random, share: float = 0.01) -> Callable[[bytes], bytes]:
    """``SABOTAGE[name]`` on this share of the chunks."""
    change = SABOTAGE[name]
    return lambda data: change(data) if rng.random() < share else data


#: An invalidation, as Redis tells of it: of one key, or of all.
_INVALIDATION: Final = re.compile(
    rb">2\r\n\$10\r\ninvalidate\r\n(?:_\r\n|\*1\r\n\$\d+\r\n[^\r]*\r\n)"
)
#: A register's value (``proofs.staleness``); all of one register are of one length.
_VALUE: Final = re.compile(rb"(?<=\r\n)(r[\d.]+)=\d+(?=\r\n)")
#: Seconds after which a value is old enough to be put in place of a newer one.
_OLD: Final = 0.15


def unpushed(_rng: random.Random, _share: float) -> Callable[[bytes], bytes]:
    """Nobody hears of changes."""
    return lambda data: _INVALIDATION.sub(b"", data)


def outdated(rng: random.Random, share: float) -> Callable[[bytes], bytes]:
    """Sometimes a value that was there some time ago, in place of the present one."""
    known: dict[bytes, tuple[float, bytes]] = {}

    def change(found: re.Match[bytes]) -> bytes:
        now = time.monotonic()
        since, value = known.setdefault(found[1], (now, found[0]))
        if now - since < _OLD:
            return found[0]
        if rng.random() < share:
            return value
        known[found[1]] = now, found[0]
        return found[0]

    return lambda data: _VALUE.sub(change, data)


STALE: Final[dict[str, Callable[[random.Random, float], Callable[[bytes], bytes]]]] = {
    "outdated": outdated,
    "unpushed": unpushed,
}


def stale(name: str, rng: random.Random, share: float = 0.2) -> Callable[[bytes], bytes] | None:
    """``STALE[name]``; ``None`` without a name."""
    return STALE[name](rng, share) if name else None
