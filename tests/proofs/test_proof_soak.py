"""The soak, small; and its judges, which must find what is wrong."""

from __future__ import annotations

import shutil

import pytest
from support.requirements import missing

from proofs.soak import Window, growth, prove, unexplained
from proofs.soakload import Tally
from proofs.soakrig import SERVICES, Fault, Usage


async def nothing() -> None:
    """No fault at all."""


def samples(memory: list[float], descriptors: list[int]) -> list[tuple[float, dict[str, Usage]]]:
    return [
        (float(i), dict.fromkeys(SERVICES, Usage(m, d)))
        for i, (m, d) in enumerate(zip(memory, descriptors, strict=True))
    ]


def test_flat_is_flat_and_growth_is_found():
    # The first quarter is warming up, and a killed worker is a dip.
    warm = [10.0, 30, 60, 80, 81, 80, 20, 80, 80, 82, 83, 81, 80, 82, 20, 81]
    assert growth(samples(warm, [20] * 16)) == []
    leak = [80.0 + 2 * i for i in range(16)]
    found = growth(samples(leak, [20] * 16))
    assert len(found) == len(SERVICES)
    assert "memory grew" in found[0]
    assert "descriptors grew" in growth(samples([80.0] * 16, [20 + 2 * i for i in range(16)]))[0]
    assert growth([]) == ["too few samples to judge growth"]


def test_errors_are_explained_only_by_a_fault_of_their_time_and_kind():
    fault = Fault("redis killed", nothing, nothing, 2, frozenset({"redis"}), recovery=3)
    windows = [Window(fault, 100.0, 102.0)]

    def judged(began: float, ended: float, kind: str, what: str = "LOADING") -> list[str]:
        tally = Tally()
        tally.errors.append((began, ended, kind, what))
        return unexplained(tally, windows, 90.0)

    assert judged(99.0, 100.5, "redis") == []
    assert judged(104.9, 105.5, "redis") == []
    assert judged(105.1, 105.5, "redis") != []
    assert judged(95.0, 99.9, "redis") != []
    assert judged(101.0, 101.5, "http") != []
    # A wrong reply is wrong whatever happened.
    assert "another request" in judged(101.0, 101.5, "redis", "a response of another request")[0]


def test_errors_that_were_not_kept_fail_the_run():
    tally = Tally()
    tally.uncounted = 3
    assert unexplained(tally, [], 0.0) == ["3 more errors, not looked at"]


@pytest.mark.redis
@pytest.mark.slow
def test_a_short_soak_holds():
    if shutil.which("redis-server") is None:
        missing("no redis-server on PATH")
    result = prove(0.2, seed=1, quiet=2.0)
    assert result.passed, result.numbers["problems"]
    assert result.numbers["operations"]["http"] > 500
    assert result.numbers["operations"]["redis"] > 500
