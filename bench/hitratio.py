"""Hit ratio of the near-cache's eviction beside LRU and the optimum: ``python -m bench.hitratio``.

The table itself is run (SIEVE, the running backend), with every reply of the same size; LRU and
Belady's optimum (evict what is needed again last, or never) get as many entries as fit the table's
budget. Two kinds of traces, both from a seed: Zipf popularity alone, and the same with scans over
keys that are asked for once. What an entry really costs is the growth of the process.
"""

from __future__ import annotations

import argparse
import bisect
import heapq
import itertools
import json
import os
import platform
import random
import sys
from collections import OrderedDict
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from nexus._speedups import BACKEND
from nexus._speedups.nearcache import HIT, NearTable

__all__ = ["belady", "lru", "main", "scanned", "sieve", "zipf"]

_SPACE = 2
_GET = 1
_REPLY = b"$64\r\n" + b"x" * 64 + b"\r\n"


def zipf(rng: random.Random, keys: int, skew: float, requests: int) -> list[int]:
    """Requests for keys ``0…keys - 1``, the n-th with weight ``n ** -skew``."""
    weights = list(itertools.accumulate((rank + 1) ** -skew for rank in range(keys)))
    total = weights[-1]
    return [bisect.bisect_left(weights, rng.random() * total) for _ in range(requests)]


def scanned(trace: Sequence[int], share: float) -> list[int]:
    """The trace with scans in it, runs of 500 keys asked for once; ``share`` of all requests."""
    found: list[int] = []
    fresh = max(trace) + 1
    every = round(500 / share * (1 - share))
    for number, key in enumerate(trace):
        if number and number % every == 0:
            found.extend(range(fresh, fresh + 500))
            fresh += 500
        found.append(key)
    return found


def _request(key: int) -> bytes:
    return b"$16\r\nkey:%012d\r\n" % key


def sieve(trace: Sequence[int], budget: int) -> tuple[float, int, int]:
    """Hit ratio of the table under ``budget`` bytes, its most entries, its bytes then."""
    table = NearTable(budget)
    hits = most = size = 0
    for key in trace:
        request = _request(key)
        data = bytearray(request)
        if table.probe(_SPACE, _GET, data, 0, len(data), 1.0, 1.0, 0.0, 0, False) == HIT:
            hits += 1
            table.used = 0
            continue
        token = table.begin(_SPACE, _GET, request)
        table.commit(_SPACE, _GET, request, token, _REPLY, 2.0, 0)
        if table.entries > most:
            most, size = table.entries, table.bytes
    return hits / len(trace), most, size


def lru(trace: Sequence[int], entries: int) -> float:
    """Hit ratio of least recently used."""
    kept: OrderedDict[int, None] = OrderedDict()
    hits = 0
    for key in trace:
        if key in kept:
            hits += 1
            kept.move_to_end(key)
            continue
        kept[key] = None
        if len(kept) > entries:
            kept.popitem(last=False)
    return hits / len(trace)


def belady(trace: Sequence[int], entries: int) -> float:
    """The most that any eviction could reach with so many entries, filling at each miss."""
    never = len(trace)
    following = [never] * never
    last: dict[int, int] = {}
    for index in range(never - 1, -1, -1):
        following[index] = last.get(trace[index], never)
        last[trace[index]] = index
    kept: dict[int, int] = {}
    order: list[tuple[int, int]] = []  # (-next use, key); outdated ones are skipped
    hits = 0
    for index, key in enumerate(trace):
        hits += key in kept
        if key not in kept and len(kept) >= entries:
            while True:
                use, victim = heapq.heappop(order)
                if kept.get(victim) == -use:
                    del kept[victim]
                    break
        kept[key] = following[index]
        heapq.heappush(order, (-following[index], key))
    return hits / len(trace)


def _resident() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def _per_entry(count: int) -> tuple[float, float]:
    """Bytes of an entry with a 64-byte value: as budgeted, and as the process grows."""
    before = _resident()
    table = NearTable(1 << 40)
    for key in range(count):
        request = _request(key)
        table.commit(_SPACE, _GET, request, table.begin(_SPACE, _GET, request), _REPLY, 2.0, 0)
    return table.bytes / count, (_resident() - before) / count


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table; ``--results`` writes it, too."""
    parser = argparse.ArgumentParser(prog="python -m bench.hitratio", description=__doc__)
    parser.add_argument("--requests", type=int, default=300_000)
    parser.add_argument("--keys", type=int, default=30_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--results", type=Path, default=None, help="directory for the record")
    options = parser.parse_args(arguments)
    budgeted, real = _per_entry(100_000)
    cost = NearTable(1 << 30)
    token = cost.begin(_SPACE, _GET, _request(0))
    cost.commit(_SPACE, _GET, _request(0), token, _REPLY, 2.0, 0)
    rows = []
    for skew, share in itertools.product((0.8, 1.0, 1.2), (0.0, 0.3)):
        rng = random.Random(options.seed)
        trace = zipf(rng, options.keys, skew, options.requests)
        if share:
            trace = scanned(trace, share)
        for part in (0.01, 0.1):
            budget = int(options.keys * part) * cost.bytes
            ours, entries, _size = sieve(trace, budget)
            rows.append(
                {
                    "zipf": skew,
                    "scans": share,
                    "entries": entries,
                    "sieve": round(ours, 4),
                    "lru": round(lru(trace, entries), 4),
                    "optimum": round(belady(trace, entries), 4),
                }
            )
            print(" ".join(f"{name}={value}" for name, value in rows[-1].items()), flush=True)
    print(f"bytes per entry of a 64-byte value: {budgeted:.0f} budgeted, {real:.0f} resident")
    if options.results is not None:
        options.results.mkdir(parents=True, exist_ok=True)
        about = {
            "taken": datetime.now(UTC).isoformat(timespec="seconds"),
            "python": f"{platform.python_version()} ({BACKEND} kernels)",
            "seed": options.seed,
            "requests": options.requests,
            "keys": options.keys,
            "bytes_per_entry": {"budgeted": round(budgeted), "resident": round(real)},
            "rows": rows,
        }
        path = options.results / "hitratio.json"
        path.write_text(json.dumps(about, indent=2) + "\n")
        print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
