"""The near-cache's table: replies kept as bytes, found by the bytes of the request.

::

    request ──► NearTable.probe ──► the reply appended to ``buffer``, or why not
    write   ──► NearTable.note  ──► its keys dropped now, and noted for when the write is answered
    push    ──► NearTable.invalidate

An entry is known by (space, command number, the bytes of the arguments behind the name), where a
*space* stands for one Redis user, database and protocol version; the bytes are compared, never
only their hash. Entries are also chained by Redis key over all spaces, which is what writes and
pushes name. What is on its way from Redis is in the table, too, as a *pending* entry with a token:
whatever drops the key drops that entry, and :meth:`NearTable.commit` finds it gone.

Eviction is SIEVE (Zhang et al., NSDI 2024): one bit for each entry, no move on a hit. The budget
is bytes, the table's own included.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from nexus._speedups import BACKEND

if TYPE_CHECKING or BACKEND == "pure":
    from nexus._speedups._nearcache_py import NearTable, Notes, Rate
else:
    from nexus._speedups._nearcache_c import NearTable, Notes, Rate

__all__ = [
    "BUSY",
    "CHANGED",
    "COMMITTED",
    "FLUSH",
    "FULL",
    "HIT",
    "LATE",
    "MISS",
    "PENDING",
    "READ",
    "TOO_BIG",
    "UNKNOWN",
    "WRITE",
    "NearTable",
    "Notes",
    "Rate",
]

#: Answers of ``NearTable.probe``: nothing known; the reply is in ``buffer``; a fill is on its way;
#: known, and no fence is young enough; known, and the caller's own read of it may be outstanding;
#: ``buffer`` is to be emptied first.
MISS: Final = 0
HIT: Final = 1
PENDING: Final = 2
LATE: Final = 3
BUSY: Final = 4
FULL: Final = 5

#: Kinds of notes: the keys are read; written; nobody knows; everything changes.
READ: Final = 1
WRITE: Final = 2
UNKNOWN: Final = 3
FLUSH: Final = 4

#: Answers of ``NearTable.commit``: the key changed on the way; kept; too big to keep.
CHANGED: Final = 0
COMMITTED: Final = 1
TOO_BIG: Final = 2
