"""Metric handles: both backends, against the specified answer and against each other."""

from __future__ import annotations

import importlib
import math
import os
from array import array
from bisect import bisect_left
from types import ModuleType

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nexus._speedups import counters as facade


def load(name: str) -> ModuleType:
    try:
        return importlib.import_module(f"nexus._speedups._counters_{name}")
    except ImportError:
        if name == "c" and not os.environ.get("NEXUS_REQUIRE_EXTENSIONS"):
            pytest.skip("_counters_c is not built")
        raise


@pytest.fixture(params=["py", "c"])
def backend(request: pytest.FixtureRequest) -> ModuleType:
    return load(request.param)


def slots(n: int = 32) -> memoryview:
    return memoryview(array("d", [0.0] * n))


BOUNDS = (1.0, 5.0, 10.0, 25.0)


def test_a_counter_adds_to_its_own_slot_only(backend):
    memory = slots()
    counter = backend.Counter(memory, 3)
    counter.inc()
    counter.inc(4)
    counter.inc(0.5)
    assert counter.value == 5.5
    assert memory.tolist() == [0.0] * 3 + [5.5] + [0.0] * 28


@pytest.mark.parametrize("n", [-1, -0.001, math.nan, -math.inf])
def test_a_counter_never_falls(backend, n):
    counter = backend.Counter(slots(), 0)
    counter.inc(2)
    with pytest.raises(ValueError, match=r"^a counter only rises$"):
        counter.inc(n)
    assert counter.value == 2


@pytest.mark.parametrize("kind", ["Counter", "Gauge"])
def test_only_numbers_are_added(backend, kind):
    handle = getattr(backend, kind)(slots(), 0)
    with pytest.raises(TypeError):
        handle.inc("1")
    assert handle.value == 0


def test_a_gauge_goes_both_ways(backend):
    gauge = backend.Gauge(slots(), 1)
    gauge.set(7)
    gauge.inc()
    gauge.dec(3)
    assert gauge.value == 5


def test_a_stamped_gauge_says_when(backend):
    memory = slots()
    gauge = backend.StampedGauge(memory, 4)
    assert memory[5] == 0
    gauge.set(2)
    first = memory[5]
    gauge.inc(2)
    gauge.dec()
    assert gauge.value == 3
    assert 0 < first <= memory[5]


@pytest.mark.parametrize(
    ("value", "bucket"),
    [(-3, 0), (0, 0), (1.0, 0), (1.0000001, 1), (5, 1), (10, 2), (24.9, 3), (25, 3), (25.1, 4)],
)
def test_a_bound_belongs_to_its_bucket(backend, value, bucket):
    memory = slots()
    histogram = backend.Histogram(memory, 2, memoryview(array("d", BOUNDS)))
    histogram.observe(value)
    assert memory[2 : 2 + 5].tolist() == [float(i == bucket) for i in range(5)]
    assert histogram.sum == value
    assert histogram.count == 1


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_would_spoil_the_sum_is_refused(backend, value):
    histogram = backend.Histogram(slots(), 0, memoryview(array("d", BOUNDS)))
    with pytest.raises(ValueError, match=r"^only finite values are observed$"):
        histogram.observe(value)
    assert histogram.count == 0
    assert histogram.sum == 0


@given(st.lists(st.floats(allow_nan=False, allow_infinity=False, width=32), max_size=50))
def test_backends_agree_with_the_definition(values):
    expected = [0.0] * 6
    for value in values:
        expected[bisect_left(BOUNDS, value)] += 1
        expected[5] += value
    for name in ("py", "c"):
        memory = slots(6)
        histogram = load(name).Histogram(memory, 0, memoryview(array("d", BOUNDS)))
        for value in values:
            histogram.observe(value)
        assert memory.tolist() == expected, name


def test_the_facade_offers_the_chosen_backend():
    from nexus._speedups import BACKEND

    expected = "_counters_py" if BACKEND == "pure" else "_counters_c"
    assert facade.Counter.__module__.endswith(expected)
