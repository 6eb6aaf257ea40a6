"""Latency spikes: compared before inserted, per route, bounded."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nexus.consumer.duplicates import RecentIds
from nexus.consumer.spikes import LatencySpikes


def test_more_than_three_times_the_mean_of_the_last_fifty_is_a_spike():
    spikes = LatencySpikes(factor=3, window=50, min_samples=10)
    for _ in range(50):
        assert spikes.observe("/api/*", 10) is None
    assert spikes.observe("/api/*", 30) is None  # exactly three times is none
    spike = spikes.observe("/api/*", 32)
    assert spike is not None
    assert spike.samples == 50
    assert spike.mean_ms == pytest.approx((49 * 10 + 30) / 50)


def test_a_spike_is_compared_before_it_raises_the_mean():
    spikes = LatencySpikes(factor=3, window=2, min_samples=2)
    spikes.observe("r", 1)
    spikes.observe("r", 1)
    # With itself in the window the mean would be 50.5, and 100 no spike.
    assert spikes.observe("r", 100) is not None


def test_routes_are_told_apart_and_few_samples_are_no_ground_for_an_alert():
    spikes = LatencySpikes(factor=3, window=50, min_samples=10)
    for _ in range(50):
        spikes.observe("fast", 1)
    for _ in range(9):
        assert spikes.observe("slow", 100) is None
    assert spikes.observe("slow", 1000) is None  # only nine before it
    assert spikes.observe("fast", 4) is not None


def test_the_number_of_routes_is_bounded():
    spikes = LatencySpikes(factor=3, window=2, min_samples=1)
    for i in range(3 * LatencySpikes.MAX_ROUTES):
        spikes.observe("kept", 1)
        spikes.observe(f"route-{i}", 1)
    assert len(spikes._routes) == LatencySpikes.MAX_ROUTES
    assert spikes.observe("kept", 10) is not None


@given(
    st.lists(st.floats(0, 1e6), max_size=200),
    st.integers(2, 20),
    st.integers(1, 20),
)
def test_like_the_naive_mean(latencies, window, min_samples):
    spikes = LatencySpikes(factor=3, window=window, min_samples=min_samples)
    past = []
    for latency in latencies:
        last = past[-window:]
        spike = spikes.observe("r", latency)
        if len(last) < min(min_samples, window):
            assert spike is None
        else:
            mean = sum(last) / len(last)
            if abs(latency - 3 * mean) > 1e-6 * max(1.0, mean) * 1e3:
                assert (spike is not None) == (latency > 3 * mean)
        past.append(latency)


def test_an_id_is_claimed_once_until_it_is_released_or_forgotten():
    seen = RecentIds(3)
    assert seen.claim("a")
    assert not seen.claim("a")
    seen.release("a")
    assert seen.claim("a")
    for name in "bcd":
        assert seen.claim(name)
    assert len(seen) == 3
    assert seen.claim("a")  # the oldest was forgotten
    assert not seen.claim("d")


def test_no_capacity_remembers_nothing():
    seen = RecentIds(0)
    assert seen.claim("a")
    assert seen.claim("a")
    assert len(seen) == 0
