"""docs/metrics.md: every metric, from the catalogue."""

from __future__ import annotations

from typing import Final

from nexus.observability.catalogue import CATALOGUE, Metric

__all__ = ["render"]

_INTRODUCTION: Final = """\
# Metrics

*Written by `make docs` from `nexus/observability/catalogue.py`; edit that instead.*

`/metrics` of a service's admin listener, and of the gateway itself, shows the sum over all workers
whichever of them is asked; totals never fall when a worker is replaced. A label set that finds no
room (`series` below, over all workers) is counted with all its labels `other`, and that is counted
too.

| metric | kind | labels | what |
|---|---|---|---|
"""

_OVER: Final = {
    "sum": "",
    "max": " Largest of all workers.",
    "last": " Last one written by any worker.",
    "worker": " One series for each worker.",
}


def render() -> str:
    """The whole page as Markdown."""
    return _INTRODUCTION + "".join(_row(metric) for metric in CATALOGUE.values())


def _row(metric: Metric) -> str:
    labels = ", ".join(f"`{label}`" for label in metric.labels)
    if metric.labels and metric.kind != "gauge":
        labels += f" (≤ {metric.max_series} series)"
    text = metric.help + _OVER[metric.aggregation]
    if metric.buckets:
        text += f" Buckets: {', '.join(f'{bound:g}' for bound in metric.buckets)}."
    return f"| `{metric.name}` | {metric.kind} | {labels} | {text} |\n"
