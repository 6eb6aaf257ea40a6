"""The check at the end of a load test, and the distribution that it draws keys from."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass

import pytest

from loadtests.loads import Loads
from loadtests.objectives import Objective, misses, report
from loadtests.zipf import Zipf


@dataclass
class Entry:
    num_requests: int
    num_failures: int
    p99: float

    def get_response_time_percentile(self, percent):
        assert percent == 0.99
        return self.p99


OBJECTIVE = Objective("GET /x", p99_ms=100, error_ratio=0.01, min_requests=10)


@pytest.mark.parametrize(
    ("entry", "missed"),
    [
        (Entry(100, 1, 100.0), []),
        (Entry(100, 2, 100.0), ["GET /x: 2.00% errors (2 of 100), at most 1.00% allowed"]),
        (Entry(100, 0, 101.0), ["GET /x: p99 101 ms, at most 100 ms allowed"]),
        (Entry(9, 0, 1.0), ["GET /x: 9 requests, at least 10 expected"]),
        (
            Entry(10, 10, 500.0),
            [
                "GET /x: 100.00% errors (10 of 10), at most 1.00% allowed",
                "GET /x: p99 500 ms, at most 100 ms allowed",
            ],
        ),
    ],
)
def test_every_missed_bound_is_a_sentence(entry, missed):
    assert misses([OBJECTIVE], {"GET /x": entry}) == missed


def test_a_name_that_was_never_requested_is_missed():
    assert misses([OBJECTIVE], {}) == ["GET /x: 0 requests, at least 10 expected"]
    assert "GET /x" in report([OBJECTIVE], {})


def test_slack_widens_latency_but_not_errors():
    entry = Entry(100, 50, 150.0)
    assert [m.split(":")[1][:4] for m in misses([OBJECTIVE], {"GET /x": entry}, slack=2)] == [
        " 50."
    ]


def test_zipf_follows_its_law():
    zipf = Zipf(1000, 1.0, random.Random(7))
    seen = Counter(zipf.draw() for _ in range(50_000))
    assert set(seen) <= set(range(1000))
    # Rank 0 is drawn twice as often as rank 1 and ten times as often as rank 9.
    assert seen[0] / seen[1] == pytest.approx(2, rel=0.1)
    assert seen[0] / seen[9] == pytest.approx(10, rel=0.15)


def test_zipf_of_nothing_is_refused():
    with pytest.raises(ValueError, match="at least one rank"):
        Zipf(0, 1.0, random.Random(1))


def test_one_loader_call_is_needed_for_each_expiry():
    loads = Loads(ttl=2.0)
    assert loads.begin(0.0) is None
    assert "under way" in loads.begin(0.05)
    loads.write(0.1)
    assert "0.10 s before the value expires" in loads.begin(2.0)
    loads.write(2.1)
    assert loads.begin(4.1) is None
