"""Weighted sequences: the contract's order, exact shares, bounded length."""

from __future__ import annotations

from collections import Counter
from math import gcd
from types import ModuleType

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kernel_sides import both, sides

from nexus._speedups.wrr import MAX_SEQUENCE

weights_lists = st.lists(st.integers(0, 40), max_size=12)
any_weights = st.lists(st.one_of(st.integers(0, 9), st.integers(0, 10**30)), max_size=30)


@pytest.fixture(scope="module", params=sides("wrr"))
def wrr(request: pytest.FixtureRequest) -> ModuleType:
    return request.param


@pytest.mark.parametrize(
    ("weights", "expected"),
    [
        ([2, 1], [0, 0, 1]),
        ([20, 10], [0, 0, 1]),
        ([1], [0]),
        ([7], [0]),
        ([1, 1, 1], [0, 1, 2]),
        ([0, 3, 0, 6], [1, 3, 3]),
        ([], []),
        ([0, 0], []),
    ],
)
def test_order_of_the_contract(wrr: ModuleType, weights: list[int], expected: list[int]) -> None:
    assert wrr.build_sequence(weights) == expected


def test_smooth_order_is_nginx_s(wrr: ModuleType) -> None:
    # The example of the commit that brought it to nginx: a a b a c a a.
    assert wrr.build_smooth_sequence([5, 1, 1]) == [0, 0, 1, 0, 2, 0, 0]
    assert wrr.build_smooth_sequence([2, 1]) == [0, 1, 0]
    assert wrr.build_smooth_sequence([0, 0]) == []
    assert 0 not in wrr.build_smooth_sequence([0, 3, 2])


@given(weights=weights_lists)
@pytest.mark.parametrize("order", ["build_sequence", "build_smooth_sequence"])
def test_shares_are_exact_and_as_short_as_can_be(
    wrr: ModuleType, order: str, weights: list[int]
) -> None:
    sequence = getattr(wrr, order)(weights)
    divisor = gcd(*weights) or 1
    turns = Counter(sequence)
    assert [turns[i] for i in range(len(weights))] == [w // divisor for w in weights]


@given(weights=weights_lists)
def test_smooth_never_leaves_a_server_more_than_its_due_behind(
    wrr: ModuleType, weights: list[int]
) -> None:
    sequence = wrr.build_smooth_sequence(weights)
    total = sum(weights)
    positive = sum(1 for weight in weights if weight)
    seen: Counter[int] = Counter()
    for turn, server in enumerate(sequence, 1):
        seen[server] += 1
        for i, weight in enumerate(weights):
            assert abs(seen[i] - turn * weight / total) < max(positive, 1)


@given(weights=any_weights)
def test_length_is_bounded_and_shares_stay_close(wrr: ModuleType, weights: list[int]) -> None:
    turns = wrr.reduce_weights(weights)
    total = sum(weights)
    length = sum(turns)
    assert length <= MAX_SEQUENCE
    assert len(wrr.build_sequence(weights)) == length
    for weight, turn in zip(weights, turns, strict=True):
        assert (turn > 0) == (weight > 0)
        if weight:
            # Off by the kept turns of the small ones at most.
            assert abs(turn / length - weight / total) <= (len(weights) + 1) / MAX_SEQUENCE or (
                sum(weights) // gcd(*weights) <= MAX_SEQUENCE
            )


def test_the_largest_list_fits_and_one_more_is_refused(wrr: ModuleType) -> None:
    assert wrr.build_sequence([1] * MAX_SEQUENCE) == list(range(MAX_SEQUENCE))
    assert len(wrr.build_sequence([10**9] + [1] * (MAX_SEQUENCE - 1))) == MAX_SEQUENCE
    with pytest.raises(ValueError, match="at most 4096 weights can be positive, got 4097"):
        wrr.build_sequence([1] * (MAX_SEQUENCE + 1))


@pytest.mark.parametrize("order", ["build_sequence", "build_smooth_sequence", "reduce_weights"])
def test_what_is_no_weight_is_refused(wrr: ModuleType, order: str) -> None:
    with pytest.raises(ValueError, match="weight 1 must be at least 0, got -2"):
        getattr(wrr, order)([1, -2])
    with pytest.raises(TypeError):
        getattr(wrr, order)([1, 2.5])


@given(weights=st.lists(st.one_of(st.integers(-1, 60), st.integers(0, 10**20)), max_size=10))
def test_both_sides_agree(weights: list[int]) -> None:
    outcomes = []
    for side in both("wrr"):
        for order in (side.build_sequence, side.build_smooth_sequence, side.reduce_weights):
            try:
                outcomes.append(order(weights))
            except ValueError as error:
                outcomes.append(str(error))
    assert outcomes[:3] == outcomes[3:]
