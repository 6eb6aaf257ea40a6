"""The scrape's text is prometheus-client's, byte by byte, and quick enough for the event loop."""

from __future__ import annotations

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import generate_latest

from nexus.observability.catalogue import CATALOGUE
from nexus.observability.exposition import SharedMemoryCollector, render
from nexus.observability.registry import LocalMetrics, Registry

#: Numbers at which the text changes its form, and label values that need escaping.
NUMBERS = (0.0, 1.0, 0.1, 1e-7, 999_999.0, 999_999.5, 1e6, 1234567.0, 1e15, 1e16, 2.5e300)
VALUES = ("a", "", 'quo"te', "back\\slash", "new\nline", "é€", "{},=", "\\n")


def reference(registry: Registry) -> bytes:
    collectors = CollectorRegistry(auto_describe=False)
    collectors.register(SharedMemoryCollector(registry))
    return generate_latest(collectors)


def write(metrics: LocalMetrics, name: str, value: str, number: float) -> None:
    metric = CATALOGUE[name]
    labels = dict.fromkeys(metric.labels, value)
    if metric.kind == "counter":
        metrics.counter(name, **labels).inc(number)
    elif metric.kind == "gauge":
        metrics.gauge(name, **labels).set(number)
    else:
        metrics.histogram(name, **labels).observe(number)


def test_every_metric_is_written_as_prometheus_client_writes_it():
    registry = Registry(workers=2)
    assert render(registry) == reference(registry) == b""
    for round_ in range(2):  # the second time from what was kept
        for worker in (0, 1):
            metrics = registry.open(worker)
            for index, name in enumerate(CATALOGUE):
                for step, value in enumerate(VALUES):
                    number = NUMBERS[(index + step + round_) % len(NUMBERS)]
                    write(metrics, name, value, number)
        assert render(registry) == reference(registry)


@pytest.mark.parametrize("number", [-1.0, -1e9, -0.0, float("inf"), float("-inf"), float("nan")])
def test_odd_numbers_of_a_gauge(number, registry):
    registry.open(0).gauge("nexus_consumer_lag", topic="t").set(number)
    assert render(registry) == reference(registry)


@given(
    st.lists(
        st.tuples(
            st.sampled_from(sorted(CATALOGUE)),
            st.text(st.characters(exclude_categories=["Cs"]), max_size=5),
            st.floats(0, 1e300),
        ),
        max_size=20,
    )
)
@settings(max_examples=40, deadline=None)
def test_whatever_is_counted(writes):
    registry = Registry(workers=1)
    metrics = registry.open(0)
    for name, value, number in writes:
        write(metrics, name, value, number)
        assert render(registry) == reference(registry)


def test_registries_do_not_share_lines(metrics, registry):
    other = Registry(workers=1)
    write(metrics, "nexus_consumer_lag", "a", 1.0)
    write(other.open(0), "nexus_consumer_lag", "b", 2.0)
    assert render(registry) == reference(registry)
    assert render(other) == reference(other)


def test_a_scrape_of_four_workers_is_quicker_than_prometheus_client():
    """A ratio within one process, which a busy machine does not move: it is about ten."""
    registry = Registry(workers=4)
    for worker in range(4):
        metrics = registry.open(worker)
        for route in range(80):
            write(metrics, "nexus_http_request_duration_ms", f"/r{route}", 3.0)
            write(metrics, "nexus_http_requests_total", f"/r{route}", 3.0)
    render(registry)

    def least(work) -> float:
        taken = []
        for _ in range(5):
            started = time.process_time()
            work(registry)
            taken.append(time.process_time() - started)
        return min(taken)

    assert least(render) * 3 < least(reference)
