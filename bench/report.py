"""Rows of a comparison: medians over the rounds, as JSON, Markdown and a chart."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any, Final

from bench.charts import bars

__all__ = ["AGREEMENT", "Row", "disagreements", "medians", "write"]

#: Two runs agree when no ratio of CPU per operation differs by more.
AGREEMENT: Final = 0.10


@dataclass(frozen=True)
class Row:
    """One run of one load against one target; also a median of such runs.

    ``proxy_us`` and ``backend_us`` are CPU microseconds per operation; ``proxy_us`` is None where
    the backend was loaded directly.
    """

    target: str
    load: str
    per_second: float
    p50_ms: float
    p99_ms: float
    p999_ms: float
    proxy_us: float | None
    backend_us: float
    memory_mib: float

    @property
    def cost_us(self) -> float:
        """What the ratios compare: the proxy's CPU, or, without one, the backend's own."""
        return self.backend_us if self.proxy_us is None else self.proxy_us

    def __str__(self) -> str:
        proxy = "" if self.proxy_us is None else f", proxy {self.proxy_us:.2f} µs/op"
        return (
            f"{self.load}, {self.target}: {self.per_second:,.0f}/s, p50 {self.p50_ms:.2f} ms, "
            f"p99 {self.p99_ms:.2f} ms{proxy}, behind it {self.backend_us:.2f} µs/op, "
            f"{self.memory_mib:.0f} MiB"
        )


def medians(rows: Sequence[Row]) -> list[Row]:
    """One row for each load and target, in the order they came: each number's own median."""
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        groups.setdefault((row.load, row.target), []).append(row)
    return [_median(group) for group in groups.values()]


def _median(group: Sequence[Row]) -> Row:
    proxy = [row.proxy_us for row in group if row.proxy_us is not None]
    return Row(
        target=group[0].target,
        load=group[0].load,
        per_second=median(row.per_second for row in group),
        p50_ms=median(row.p50_ms for row in group),
        p99_ms=median(row.p99_ms for row in group),
        p999_ms=median(row.p999_ms for row in group),
        proxy_us=median(proxy) if proxy else None,
        backend_us=median(row.backend_us for row in group),
        memory_mib=median(row.memory_mib for row in group),
    )


def ratios(rows: Sequence[Row], reference: str) -> dict[tuple[str, str], float]:
    """(load, target) → CPU per operation as a multiple of the reference's under that load.

    The median over the rounds of the ratio *within* each round: both ran right after one another,
    so what the machine did at the time divides out.
    """
    costs: dict[tuple[str, str], list[float]] = {}
    for row in rows:
        costs.setdefault((row.load, row.target), []).append(row.cost_us)
    found = {}
    for (load, target), values in costs.items():
        base = costs.get((load, reference))
        if base and target != reference and all(base):
            found[load, target] = median(a / b for a, b in zip(values, base, strict=False))
    return found


def markdown(about: Mapping[str, Any], rows: Sequence[Row]) -> str:
    """A table for each load; the last column compares CPU per operation."""
    reference = about["reference"]
    multiples = ratios(rows, reference)
    lines = [f"# {about['title']}", ""]
    lines.append(
        f"{about['taken']}, {about['machine']} (load average {about['load_average']}), Python "
        f"{about['python']}; medians of {about['rounds']} alternating runs of "
        f"{about['seconds']:g} s. Compare ratios within a table and CPU per operation, not "
        f"absolute rates. The last column is CPU per operation as a multiple of {reference}'s: the "
        "median of the ratios within each round."
    )
    lines += ["", f"Command: `python -m bench.peers {about['scenario']}`"]
    if about["quick"]:
        lines += ["", "**A quick run: shows that it works, measures nothing.**"]
    for load in dict.fromkeys(row.load for row in rows):
        lines += ["", f"## {load}", ""]
        lines += [
            "| system | per s | p50 ms | p99 ms | p99.9 ms | proxy µs | backend µs | MiB | ratio |"
        ]
        lines += ["|---|---|---|---|---|---|---|---|---|"]
        for row in medians([row for row in rows if row.load == load]):
            proxy = "" if row.proxy_us is None else f"{row.proxy_us:.2f}"
            multiple = multiples.get((load, row.target))
            lines.append(
                f"| {row.target} | {row.per_second:,.0f} | {row.p50_ms:.2f} | {row.p99_ms:.2f} "
                f"| {row.p999_ms:.2f} | {proxy} | {row.backend_us:.2f} | {row.memory_mib:.1f} "
                f"| {'' if multiple is None else f'{multiple:.2f}'} |"
            )
    lines += [f"\nLeft out: {name} ({why})." for name, why in about["left_out"].items()]
    return "\n".join(lines) + "\n"


def disagreements(first: Mapping[str, Any], second: Mapping[str, Any]) -> list[str]:
    """Ratios that differ by more than :data:`AGREEMENT` between two documents of one scenario."""
    if first["scenario"] != second["scenario"]:
        raise ValueError(f"{first['scenario']} and {second['scenario']}")
    one, other = (
        ratios([Row(**run) for run in document["runs"]], document["reference"])
        for document in (first, second)
    )
    found = []
    for key in one.keys() & other.keys():
        off = max(one[key], other[key]) / min(one[key], other[key]) - 1
        if off > AGREEMENT:
            found.append(f"{key[0]}, {key[1]}: {one[key]:.2f} and {other[key]:.2f} ({off:+.0%})")
    return sorted(found)


def write(directory: Path, about: Mapping[str, Any], rows: Sequence[Row]) -> list[Path]:
    """``peers-<scenario>.json`` with every run, ``.md`` with the medians, ``.svg``."""
    directory.mkdir(parents=True, exist_ok=True)
    stem = f"peers-{about['scenario']}" + ("-quick" if about["quick"] else "")
    middle = medians(rows)
    document = {**about, "medians": [asdict(r) for r in middle], "runs": [asdict(r) for r in rows]}
    paths = [directory / f"{stem}{suffix}" for suffix in (".json", ".md", ".svg")]
    paths[0].write_text(json.dumps(document, indent=1) + "\n")
    paths[1].write_text(markdown(about, rows))
    groups: dict[str, dict[str, float]] = {}
    for row in middle:
        groups.setdefault(row.load, {})[row.target] = row.cost_us
    bars(paths[2], about["title"], "CPU µs per operation", groups)
    return paths
