"""What a rate limit tells its clients."""

from __future__ import annotations

import mmap
import re
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nexus._speedups.buckets import BucketTable
from nexus.policy.ratelimit import RateLimit, Verdict

SECOND = 1_000_000_000


def test_the_contract_s_defaults_against_a_real_bucket() -> None:
    limit = RateLimit(10, 2)
    table = BucketTable(mmap.mmap(-1, BucketTable.size(16)), 16)
    answers = [table.take(1, SECOND, limit.interval_ns, limit.burst) for _ in range(11)]
    assert limit.policy_field == b'"default";q=10;w=5'
    assert [limit.fields(answer) for answer in answers[:3]] == [
        b'"default";r=9;t=1',
        b'"default";r=8;t=1',
        b'"default";r=7;t=2',
    ]
    assert limit.verdict(answers[9]) == Verdict(True, 0, 0, 5)
    assert limit.verdict(answers[10]) == Verdict(False, 0, 1, 1)
    assert limit.fields(answers[10]) == b'"default";r=0;t=1'


@pytest.mark.parametrize(
    ("taken", "seconds"),
    [(-1, 1), (-SECOND, 1), (-SECOND - 1, 2), (-10 * SECOND, 10), (-(1 << 61), 2305843010)],
)
def test_retry_after_is_rounded_up(taken: int, seconds: int) -> None:
    limit = RateLimit(1, 0.1)
    assert limit.retry_after(taken) == seconds
    assert limit.verdict(taken) == Verdict(False, 0, seconds, seconds)
    assert limit.fields(taken) == b'"default";r=0;t=%d' % seconds


@given(rate=st.floats(1e-3, 1e6), capacity=st.integers(1, 10**6))
def test_never_faster_than_configured_and_hardly_slower(rate: float, capacity: int) -> None:
    limit = RateLimit(capacity, rate)
    exact = Fraction(SECOND) / Fraction(rate)
    assert exact <= limit.interval_ns < exact + 1
    assert exact / limit.interval_ns >= Fraction(99, 100)


@given(capacity=st.integers(1, 10**6), rate=st.floats(1e-3, 1e6), data=st.data())
def test_fields_are_structured_and_agree_with_the_verdict(
    capacity: int, rate: float, data: st.DataObject
) -> None:
    limit = RateLimit(capacity, rate, name="by address")
    taken = data.draw(st.integers(-(10**12), capacity - 1))
    for _ in range(2):  # computed, then remembered
        match = re.fullmatch(rb'"by address";r=(\d+);t=([1-9]\d*)', limit.fields(taken))
        assert match
        verdict = limit.verdict(taken)
        assert (int(match[1]), int(match[2])) == (verdict.remaining, verdict.reset)
    match = re.fullmatch(rb'"by address";q=(\d+);w=([1-9]\d*)', limit.policy_field)
    assert match
    assert int(match[1]) == capacity


def test_remembered_fields_are_bounded() -> None:
    limit = RateLimit(10**6, 1000)
    for left in range(5000):
        limit.fields(left)
    assert len(limit._fields) == 1024


@pytest.mark.parametrize(
    ("capacity", "rate", "name", "message"),
    [
        (0, 1, "x", "capacity must be at least 1, got 0"),
        (1, 0, "x", "refill_per_second must be above 0"),
        (1, -1, "x", "refill_per_second must be above 0"),
        (1, float("nan"), "x", "refill_per_second must be above 0"),
        (1, 1e10, "x", "refill_per_second must be above 0"),
        (10**6, 1e-6, "x", "more than 73 years"),
        (1, 1, 'a"b', "printable ASCII without quotes"),
        (1, 1, "a\r\nb", "printable ASCII without quotes"),
        (1, 1, "é", "printable ASCII without quotes"),
    ],
)
def test_refused(capacity: int, rate: float, name: str, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        RateLimit(capacity, rate, name=name)
