"""Token buckets in shared memory, exact over any number of processes.

::

    one 64-bit number per bucket: the theoretical arrival time (TAT) of GCRA, nanoseconds

    base = max(TAT, now)                     a bucket whose TAT has passed is full, so a slot
    admit  when base + T - now <= T * burst  whose TAT has passed is free
    then   TAT = base + T                    T = ns per token

That is the token bucket ``tokens = min(capacity, tokens + Δt·rate)`` with
``tokens = burst - max(TAT - now, 0) / T``, in integers, so nothing drifts (GCRA: ITU-T I.371).

Layout: a 64-byte header, then sets of eight 16-byte slots ``{uint64 key, int64 TAT}``: two cache
lines, chosen by the key's hash, no probing beyond them. A set that is full of live buckets
overwrites the one with the least debt and counts an eviction.

The guarantee, for any number of processes: a key is admitted at most ``burst + elapsed / T`` times
unless it was evicted. A process that dies at any instruction leaves the table usable.

* Compiled: lock-free, one 16-byte compare-and-swap per admitted request, none held ever.
* Pure Python: one record lock per set, which the kernel releases when its owner dies.

Make the table once, before the fork, over memory that the workers inherit
(``mmap.mmap(-1, BucketTable.size(sets))``). The header names the backend that wrote it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from nexus._speedups import BACKEND

if TYPE_CHECKING or BACKEND == "pure":
    from nexus._speedups._buckets_py import BucketTable, hash_key
else:
    from nexus._speedups._buckets_c import BucketTable, hash_key

__all__ = ["BucketTable", "hash_key"]
