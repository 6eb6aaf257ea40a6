"""Retry decisions, their budget and their delays."""

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nexus.policy.retry import (
    IDEMPOTENT,
    MAX_DELAY_NS,
    Failure,
    RetryBudget,
    RetryPolicy,
    decide,
    delay_ns,
)

SECOND = 1_000_000_000
POLICY = RetryPolicy()


def outcome(budget: RetryBudget | None = None, **given_: Any) -> str:
    arguments: dict[str, Any] = {
        "attempt": 1,
        "method": b"GET",
        "failure": Failure.CONNECT,
        "sent": False,
        "now_ns": 0,
        "deadline_ns": 30 * SECOND,
    }
    decision = decide(POLICY, budget or RetryBudget(), random.Random(1), **arguments | given_)
    assert decision.retry == (decision.why_not == "")
    return decision.why_not or "again"


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({}, "again"),
        ({"failure": Failure.RESET, "sent": True}, "again"),
        ({"failure": Failure.TIMEOUT, "sent": True}, "again"),
        ({"failure": Failure.STATUS, "status": 502, "sent": True}, "again"),
        ({"failure": Failure.STATUS, "status": 503, "sent": True}, "again"),
        ({"failure": Failure.STATUS, "status": 504, "sent": True}, "again"),
        ({"failure": Failure.STATUS, "status": 500, "sent": True}, "not_retriable"),
        ({"failure": Failure.STATUS, "status": 404, "sent": True}, "not_retriable"),
        ({"failure": Failure.MALFORMED, "sent": True}, "not_retriable"),
        ({"attempt": 2}, "again"),
        ({"attempt": 3}, "attempts"),
        ({"response_started": True, "sent": True}, "response_started"),
        ({"method": b"POST"}, "again"),  # nothing was sent, so nothing can happen twice
        ({"method": b"POST", "sent": True}, "not_idempotent"),
        ({"method": b"PATCH", "sent": True, "failure": Failure.TIMEOUT}, "not_idempotent"),
        ({"method": b"get", "sent": True}, "not_idempotent"),
        ({"method": b"POST", "sent": True, "idempotency_key": True}, "again"),
        ({"body_replayable": False}, "body"),
        ({"now_ns": 30 * SECOND}, "deadline"),
    ],
)
def test_decision(changed: dict[str, Any], expected: str) -> None:
    assert outcome(**changed) == expected


@pytest.mark.parametrize("method", sorted(IDEMPOTENT))
def test_idempotent_methods_of_rfc_9110(method: bytes) -> None:
    assert outcome(method=method, sent=True) == "again"


def test_a_pause_that_would_outlast_the_deadline_is_not_made() -> None:
    rng = random.Random(3)
    pause = delay_ns(1, POLICY.base_delay_ns, random.Random(3))
    arguments: dict[str, Any] = {
        "attempt": 1, "method": b"GET", "failure": Failure.CONNECT, "sent": False, "now_ns": 5,
    }  # fmt: skip
    late = decide(POLICY, RetryBudget(), rng, deadline_ns=5 + pause, **arguments)
    assert late == (False, "deadline", 0)
    rng = random.Random(3)
    assert decide(POLICY, RetryBudget(), rng, deadline_ns=6 + pause, **arguments) == (
        True,
        "",
        pause,
    )


def test_a_no_takes_nothing_from_the_budget() -> None:
    budget = RetryBudget(0.2, 1)
    for changed in ({"attempt": 3}, {"now_ns": 31 * SECOND}, {"body_replayable": False}):
        assert outcome(budget, **changed) != "again"
    assert (budget.retrying, budget.refused) == (0, 0)
    assert outcome(budget) == "again"
    assert outcome(budget) == "budget"
    assert (budget.retrying, budget.refused) == (1, 1)
    budget.release()
    assert outcome(budget) == "again"


@given(
    ratio=st.floats(0, 1),
    floor=st.integers(0, 10),
    steps=st.lists(st.sampled_from(["begin", "end", "retry", "release"]), max_size=200),
)
def test_budget_is_never_exceeded(ratio: float, floor: int, steps: list[str]) -> None:
    budget = RetryBudget(ratio, floor)
    active = retrying = 0
    for step in steps:
        if step == "begin":
            budget.begin()
            active += 1
        elif step == "end" and active:
            budget.end()
            active -= 1
        elif step == "retry":
            room = retrying < max(floor, int(ratio * active))
            assert budget.try_acquire() is room
            retrying += room
        elif step == "release" and retrying:
            budget.release()
            retrying -= 1
        assert (budget.active, budget.retrying) == (active, retrying)


@given(attempt=st.integers(1, 200), base=st.integers(0, 60 * SECOND), seed=st.integers())
def test_delay_lies_in_its_interval(attempt: int, base: int, seed: int) -> None:
    pause = delay_ns(attempt, base, random.Random(seed))
    assert 0 <= pause <= min(MAX_DELAY_NS, base * 2 ** (attempt - 1))


@pytest.mark.parametrize("attempt", [1, 2, 40])
def test_delays_spread_over_the_whole_interval_even_at_the_cap(attempt: int) -> None:
    rng = random.Random(11)
    ceiling = min(MAX_DELAY_NS, 200_000_000 * 2 ** (attempt - 1))
    pauses = sorted(delay_ns(attempt, 200_000_000, rng) for _ in range(1000))
    assert pauses[10] < 0.05 * ceiling
    assert abs(pauses[500] - ceiling / 2) < 0.08 * ceiling
    assert pauses[990] > 0.95 * ceiling


def test_out_of_range() -> None:
    with pytest.raises(ValueError, match="max_attempts must be at least 1, got 0"):
        RetryPolicy(max_attempts=0)
    with pytest.raises(ValueError, match="base_delay_ns must be at least 0"):
        RetryPolicy(base_delay_ns=-1)
    with pytest.raises(ValueError, match="ratio must be from 0 to 1"):
        RetryBudget(1.5)
    with pytest.raises(ValueError, match="floor must be at least 0"):
        RetryBudget(0.1, -1)
