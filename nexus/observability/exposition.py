"""The scrape: shared memory → Prometheus' text format, through prometheus-client.

Whichever worker is scraped answers for all of them: the sums are taken over every block. The series
of a gauge or counter that is told apart by worker get a label ``worker``.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import accumulate
from typing import Final

from prometheus_client import CollectorRegistry
from prometheus_client import Metric as Family
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
)
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest
from prometheus_client.registry import Collector

from nexus.observability.catalogue import CATALOGUE, Metric
from nexus.observability.registry import Registry, Series

__all__ = ["CONTENT_TYPE", "SharedMemoryCollector", "render"]

CONTENT_TYPE: Final = CONTENT_TYPE_PLAIN_0_0_4

_Totals = dict[tuple[str, ...], list[float]]


class SharedMemoryCollector(Collector):
    """A prometheus-client collector over all blocks of a registry."""

    def __init__(self, registry: Registry) -> None:
        self._registry: Final = registry

    def collect(self) -> Iterator[Family]:
        by_metric: dict[str, _Totals] = {}
        for worker, series, numbers in self._registry.read():
            totals = by_metric.setdefault(series.metric.name, {})
            _add(totals, worker, series, numbers)
        for name, metric in CATALOGUE.items():
            if name in by_metric:
                yield _family(metric, by_metric[name])


def render(registry: Registry) -> bytes:
    """Everything counted so far, over all workers, as Prometheus' text format (version 0.0.4)."""
    collectors = CollectorRegistry(auto_describe=False)
    collectors.register(SharedMemoryCollector(registry))
    return generate_latest(collectors)


def _add(totals: _Totals, worker: str, series: Series, numbers: list[float]) -> None:
    """Fold one worker's numbers of a series into what is there, by the metric's rule."""
    aggregation = series.metric.aggregation
    key = (*series.values, worker) if aggregation == "worker" else series.values
    before = totals.get(key)
    if before is None:
        totals[key] = numbers
    elif aggregation == "max":
        totals[key] = max(before, numbers)
    elif aggregation == "last":
        totals[key] = max(before, numbers, key=_stamp)
    else:
        totals[key] = [a + b for a, b in zip(before, numbers, strict=True)]


def _stamp(numbers: list[float]) -> float:
    return numbers[1]


def _family(metric: Metric, totals: _Totals) -> Family:
    labels = (*metric.labels, "worker") if metric.aggregation == "worker" else metric.labels
    if metric.kind == "histogram":
        histogram = HistogramMetricFamily(metric.name, metric.help, labels=labels)
        bounds = [*(_bound(b) for b in metric.buckets), "+Inf"]
        for values, numbers in totals.items():
            counts = accumulate(numbers[:-1])
            buckets = list(zip(bounds, counts, strict=True))
            histogram.add_metric(values, buckets, sum_value=numbers[-1])
        return histogram
    return _plain(metric, labels, totals.items())


def _plain(
    metric: Metric, labels: Iterable[str], totals: Iterable[tuple[tuple[str, ...], list[float]]]
) -> Family:
    made: CounterMetricFamily | GaugeMetricFamily
    if metric.kind == "counter":
        made = CounterMetricFamily(metric.name, metric.help, labels=tuple(labels))
    else:
        made = GaugeMetricFamily(metric.name, metric.help, labels=tuple(labels))
    for values, numbers in totals:
        made.add_metric(values, numbers[0])
    return made


def _bound(value: float) -> str:
    """``1.0`` → ``1.0``: the form that prometheus-client itself gives to ``le``."""
    return repr(float(value))
