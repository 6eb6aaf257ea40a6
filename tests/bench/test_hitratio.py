"""The comparison of evictions compares what it says."""

from __future__ import annotations

import random

from bench.hitratio import belady, lru, scanned, sieve, zipf


def test_the_optimum_and_lru_on_traces_done_by_hand() -> None:
    # Room for two: LRU never hits a loop over three, the optimum keeps one of them.
    loop = [0, 1, 2] * 4
    assert lru(loop, 2) == 0
    assert belady(loop, 2) == 5 / 12
    assert lru([0, 0, 1, 0], 1) == belady([0, 0, 1, 0], 1) == 1 / 4
    assert lru(loop, 3) == belady(loop, 3) == 9 / 12


def test_no_eviction_beats_the_optimum_and_scans_cost_sieve_less_than_lru() -> None:
    trace = scanned(zipf(random.Random(3), 3000, 1.0, 30_000), 0.3)
    assert len(trace) > 40_000
    ours, entries, size = sieve(trace, 300 * 254)
    assert size <= 300 * 254
    assert entries >= 295
    assert lru(trace, entries) < ours < belady(trace, entries)
