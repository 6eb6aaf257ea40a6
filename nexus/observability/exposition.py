"""The scrape: shared memory → Prometheus' text format 0.0.4, or OpenMetrics 1.0 with exemplars.

Whichever worker is scraped answers for all of them: the sums are taken over every block. The series
of a gauge or counter that is told apart by worker get a label ``worker``.

A scrape runs in a thread beside the loop that serves requests and shares its interpreter, so what
never changes about a line, all but its number, is made once and kept (as many lines as series,
which are bounded): some 2 ms of CPU for a thousand lines. The format's authority
stays prometheus-client: :class:`SharedMemoryCollector` gives it the same numbers, and a test
compares the two byte by byte.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Iterable, Iterator, Mapping
from itertools import accumulate
from operator import add
from typing import Any, Final
from weakref import WeakKeyDictionary

from prometheus_client import Metric as Family
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
)
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from nexus.observability.catalogue import CATALOGUE, Metric
from nexus.observability.exemplars import Exemplar, ExemplarKey
from nexus.observability.registry import Registry, Series

__all__ = [
    "CONTENT_TYPE",
    "OPENMETRICS_TYPE",
    "SharedMemoryCollector",
    "render",
    "render_openmetrics",
    "wants_openmetrics",
]

CONTENT_TYPE: Final = CONTENT_TYPE_PLAIN_0_0_4
OPENMETRICS_TYPE: Final = "application/openmetrics-text; version=1.0.0; charset=utf-8"

_as_go: Final[Any] = floatToGoString  # has no types

_Key = tuple[str, ...]
_Totals = dict[_Key, list[float]]

#: Below this prometheus-client writes a positive number as Python does; above, with an exponent.
_PLAIN_BELOW: Final = 1e6


class _Lines:
    """The lines of one registry's series without their numbers."""

    def __init__(self) -> None:
        self._lock: Final = threading.Lock()
        self._heads: Final = {name: _head(metric) for name, metric in CATALOGUE.items()}
        self._starts: Final[dict[str, dict[_Key, list[str]]]] = {name: {} for name in CATALOGUE}

    def render(self, totals: dict[str, _Totals]) -> bytes:
        with self._lock:  # scrapes run in threads
            return self._render(totals)

    def render_openmetrics(
        self, totals: dict[str, _Totals], exemplars: Mapping[ExemplarKey, Exemplar]
    ) -> bytes:
        """The same lines; heads without ``_total``, exemplars behind buckets, an end mark."""
        with self._lock:
            out: list[str] = []
            for name, metric in CATALOGUE.items():
                if name not in totals:
                    continue
                out.append(_open_head(metric))
                kept = self._starts[name]
                for key, numbers in totals[name].items():
                    starts = kept.get(key)
                    if starts is None:
                        starts = kept[key] = _starts(metric, key)
                    if metric.kind != "histogram":
                        out.append(f"{starts[0]}{_number(numbers[0])}\n")
                        continue
                    *counts, total = numbers
                    values = list(accumulate(counts))
                    for index, (start, value) in enumerate(zip(starts, values, strict=False)):
                        shown = _exemplar(exemplars.get((name, key, index)))
                        out.append(f"{start}{_number(value)}{shown}\n")
                    out.append(f"{starts[-2]}{_number(values[-1])}\n")
                    out.append(f"{starts[-1]}{_number(total)}\n")
            out.append("# EOF\n")
            return "".join(out).encode()

    def _render(self, totals: dict[str, _Totals]) -> bytes:
        out: list[str] = []
        for name, metric in CATALOGUE.items():
            if name not in totals:
                continue
            out.append(self._heads[name])
            kept = self._starts[name]
            histogram = metric.kind == "histogram"
            for key, numbers in totals[name].items():
                starts = kept.get(key)
                if starts is None:
                    starts = kept[key] = _starts(metric, key)
                if histogram:
                    *counts, total = numbers
                    values = list(accumulate(counts))
                    values += (values[-1], total)
                    for start, value in zip(starts, values, strict=True):
                        text = repr(value) if 0.0 <= value < _PLAIN_BELOW else _number(value)
                        out.append(f"{start}{text}\n")
                else:
                    out.append(f"{starts[0]}{_number(numbers[0])}\n")
        return "".join(out).encode()


#: A registry's lines live as long as the registry.
_kept: Final[WeakKeyDictionary[Registry, _Lines]] = WeakKeyDictionary()


def render(registry: Registry) -> bytes:
    """Everything counted so far, over all workers."""
    return _lines_of(registry).render(_sums(registry))


def render_openmetrics(registry: Registry) -> bytes:
    """The same as OpenMetrics, with the traces of requests beside the buckets that they fell in."""
    return _lines_of(registry).render_openmetrics(_sums(registry), registry.exemplars.read())


def wants_openmetrics(accept: str) -> bool:
    """Whether a scraper's ``Accept`` asks for OpenMetrics: by its name, and not with ``q=0``."""
    for part in accept.split(","):
        media, *parameters = (piece.strip().lower() for piece in part.split(";"))
        if media == "application/openmetrics-text":
            return not any(re.fullmatch(r"q=0(\.0*)?", p) for p in parameters)
    return False


def _lines_of(registry: Registry) -> _Lines:
    lines = _kept.get(registry)
    if lines is None:
        lines = _kept[registry] = _Lines()
    return lines


class SharedMemoryCollector(Collector):
    """A prometheus-client collector over all blocks of a registry."""

    def __init__(self, registry: Registry) -> None:
        self._registry: Final = registry

    def collect(self) -> Iterator[Family]:
        totals = _sums(self._registry)
        for name, metric in CATALOGUE.items():
            if name in totals:
                yield _family(metric, totals[name])


# -- sums over workers ----------------------------------------------------------------------------


def _sums(registry: Registry) -> dict[str, _Totals]:
    """Metric name → label values → numbers, over all workers."""
    by_metric: dict[str, _Totals] = {}
    for worker, series, numbers in registry.read():
        totals = by_metric.get(series.metric.name)
        if totals is None:
            totals = by_metric[series.metric.name] = {}
        _add(totals, worker, series, numbers)
    return by_metric


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
        totals[key] = list(map(add, before, numbers))


def _stamp(numbers: list[float]) -> float:
    return numbers[1]


def _labels(metric: Metric) -> tuple[str, ...]:
    return (*metric.labels, "worker") if metric.aggregation == "worker" else metric.labels


def _bounds(metric: Metric) -> list[str]:
    """``1.0`` → ``1.0``: the form that prometheus-client itself gives to ``le``."""
    return [*(repr(float(bound)) for bound in metric.buckets), "+Inf"]


# -- lines ----------------------------------------------------------------------------------------


def _number(value: float) -> str:
    return repr(value) if 0.0 <= value < _PLAIN_BELOW else _as_go(value)


def _head(metric: Metric) -> str:
    text = metric.help.replace("\\", r"\\").replace("\n", r"\n")
    return f"# HELP {metric.name} {text}\n# TYPE {metric.name} {metric.kind}\n"


def _open_head(metric: Metric) -> str:
    name = metric.name.removesuffix("_total") if metric.kind == "counter" else metric.name
    text = metric.help.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")
    return f"# HELP {name} {text}\n# TYPE {name} {metric.kind}\n"


def _exemplar(exemplar: Exemplar | None) -> str:
    if exemplar is None:
        return ""
    ids = f'trace_id="{exemplar.trace_id}",span_id="{exemplar.span_id}"'
    return f" # {{{ids}}} {exemplar.value:.6g} {exemplar.at:.3f}"


def _starts(metric: Metric, key: _Key) -> list[str]:
    """Every line of one series up to its number, in the order of its numbers."""
    labels = list(zip(_labels(metric), key, strict=True))
    if metric.kind != "histogram":
        return [_start(metric.name, labels)]
    buckets = [
        _start(f"{metric.name}_bucket", [*labels, ("le", bound)]) for bound in _bounds(metric)
    ]
    return [*buckets, _start(f"{metric.name}_count", labels), _start(f"{metric.name}_sum", labels)]


def _start(name: str, labels: Iterable[tuple[str, str]]) -> str:
    pairs = ",".join(f'{label}="{_escaped(value)}"' for label, value in sorted(labels))
    return f"{name}{{{pairs}}} " if pairs else f"{name} "


def _escaped(value: str) -> str:
    return value.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")


# -- the reference --------------------------------------------------------------------------------


def _family(metric: Metric, totals: _Totals) -> Family:
    labels = _labels(metric)
    if metric.kind == "histogram":
        histogram = HistogramMetricFamily(metric.name, metric.help, labels=labels)
        for values, numbers in totals.items():
            counts = accumulate(numbers[:-1])
            buckets = list(zip(_bounds(metric), counts, strict=True))
            histogram.add_metric(values, buckets, sum_value=numbers[-1])
        return histogram
    made: CounterMetricFamily | GaugeMetricFamily
    if metric.kind == "counter":
        made = CounterMetricFamily(metric.name, metric.help, labels=labels)
    else:
        made = GaugeMetricFamily(metric.name, metric.help, labels=labels)
    for values, numbers in totals.items():
        made.add_metric(values, numbers[0])
    return made
