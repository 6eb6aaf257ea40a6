"""Rows of a comparison: medians over the rounds, as JSON, Markdown and a chart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, astuple, dataclass, fields
from itertools import combinations_with_replacement
from math import exp, log
from pathlib import Path
from statistics import median, quantiles
from typing import Any, Final

from bench.charts import Bar, bars
from bench.record import dumped, rounded, taken_on
from bench.turns import TURN

__all__ = [
    "AGREEMENT",
    "COLUMNS",
    "Ratio",
    "Row",
    "disagreements",
    "medians",
    "path_of",
    "ratios",
    "ratios_of",
    "rows_of",
    "write",
]

#: Two runs agree when no ratio of CPU per operation differs by more.
AGREEMENT: Final = 0.10


@dataclass(frozen=True)
class Row:
    """One run of one load against one target; also a median of such runs.

    ``proxy_us`` and ``backend_us`` are CPU microseconds per operation; ``proxy_us`` is None where
    the backend was loaded directly. Runs of one load with the same ``group`` took turns with one
    another.
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
    group: int = 0
    #: At a fixed rate, alone: no ratio.
    open_loop: bool = False

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


#: Of a run in the JSON.
COLUMNS: Final = [field.name for field in fields(Row)]


@dataclass(frozen=True)
class Ratio:
    """CPU per operation as a multiple of the reference's.

    ``middle`` is the Hodges-Lehmann estimate of the rounds' own ratios, ``low`` and ``high`` are
    their quartiles.
    """

    middle: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.middle:.2f} ({self.low:.2f} to {self.high:.2f})"


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
        open_loop=group[0].open_loop,
    )


def ratios(rows: Sequence[Row], reference: str) -> dict[tuple[str, str], Ratio]:
    """(load, target) → the target beside the reference under that load.

    Each run is compared with the reference's run in the same group: they took turns, so what the
    machine did at the time divides out.
    """
    base = {
        (row.load, row.group): row.cost_us
        for row in rows
        if row.target == reference and row.cost_us > 0 and not row.open_loop
    }
    found: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for row in rows:
        if row.target != reference and row.cost_us > 0 and (row.load, row.group) in base:
            pair = (row.cost_us, base[row.load, row.group])
            found.setdefault((row.load, row.target), []).append(pair)
    return {key: _ratio(pairs) for key, pairs in found.items()}


def _ratio(pairs: Sequence[tuple[float, float]]) -> Ratio:
    """The median of the geometric means of all pairs of rounds.

    J. L. Hodges and E. L. Lehmann, "Estimates of Location Based on Rank Tests" (1963), on
    logarithms: nearly as precise as the mean, and a round in which a service cost double, as some
    do, moves it little.
    """
    ratios = [ours / theirs for ours, theirs in pairs]
    if len(ratios) == 1:
        return Ratio(ratios[0], ratios[0], ratios[0])
    low, _, high = quantiles(ratios, n=4, method="inclusive")
    logs = [log(ratio) for ratio in ratios]
    middle = exp(median((a + b) / 2 for a, b in combinations_with_replacement(logs, 2)))
    return Ratio(middle, low, high)


def markdown(about: Mapping[str, Any], rows: Sequence[Row]) -> str:
    """A table for each load; the last column compares CPU per operation."""
    reference = about["reference"]
    multiples = ratios(rows, reference)
    lines = [f"# {about['title']}", ""]
    lines.append(
        f"{taken_on(about)}; {about['rounds']} rounds, each with all services started afresh: "
        f"{about['seconds']:g} s alone for the latencies, {about['in_turns']:g} s in turns of "
        f"{TURN:g} s with the others for all else (hundreds of connections: twice as long; open "
        "loops: alone only, four times as long); medians. Compare ratios within a table and CPU "
        "per operation, not absolute rates. The last column is CPU per operation as a multiple of "
        f"{reference}'s: the Hodges-Lehmann estimate and the quartiles of the rounds' own ratios."
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
            multiple = multiples.get((load, row.target), "")
            lines.append(
                f"| {row.target} | {row.per_second:,.0f} | {row.p50_ms:.2f} | {row.p99_ms:.2f} "
                f"| {row.p999_ms:.2f} | {proxy} | {row.backend_us:.2f} | {row.memory_mib:.1f} "
                f"| {multiple} |"
            )
    lines += [f"\nLeft out: {name} ({why})." for name, why in about["left_out"].items()]
    return "\n".join(lines) + "\n"


def rows_of(document: Mapping[str, Any]) -> list[Row]:
    """The runs of a document that :func:`write` wrote."""
    return [Row(**dict(zip(document["columns"], run, strict=True))) for run in document["runs"]]


def ratios_of(document: Mapping[str, Any]) -> dict[tuple[str, str], Ratio]:
    """Its ratios."""
    return ratios(rows_of(document), document["reference"])


def disagreements(first: Mapping[str, Any], second: Mapping[str, Any]) -> list[str]:
    """Ratios that differ by more than :data:`AGREEMENT` between two documents of one scenario."""
    if first["scenario"] != second["scenario"]:
        raise ValueError(f"{first['scenario']} and {second['scenario']}")
    one, other = ratios_of(first), ratios_of(second)
    found = []
    for key in sorted(one.keys() & other.keys()):
        a, b = one[key].middle, other[key].middle
        off = max(a, b) / min(a, b) - 1
        if off > AGREEMENT:
            found.append(f"{key[0]}, {key[1]}: {a:.2f} and {b:.2f} ({off:+.0%})")
    return found


def _summary(row: Row, multiple: Ratio | None) -> dict[str, object]:
    found = {name: rounded(value) for name, value in asdict(row).items() if name != "group"}
    found["ratio"] = multiple and [rounded(part) for part in astuple(multiple)]
    return found


def path_of(directory: Path, about: Mapping[str, Any]) -> Path:
    """Where :func:`write` puts the JSON."""
    return directory / f"peers-{about['scenario']}{'-quick' if about['quick'] else ''}.json"


def write(directory: Path, about: Mapping[str, Any], rows: Sequence[Row]) -> list[Path]:
    """``peers-<scenario>.json`` with every run, ``.md`` with the medians, ``.svg``."""
    directory.mkdir(parents=True, exist_ok=True)
    middle = medians(rows)
    multiples = ratios(rows, about["reference"])
    document: dict[str, Any] = dict(about)
    document["medians"] = [_summary(row, multiples.get((row.load, row.target))) for row in middle]
    document["columns"] = COLUMNS
    document["runs"] = [[rounded(value) for value in astuple(row)] for row in rows]
    path = path_of(directory, about)
    paths = [path, path.with_suffix(".md"), path.with_suffix(".svg")]
    paths[0].write_text(dumped(document))
    paths[1].write_text(markdown(about, rows))
    groups: dict[str, list[Bar]] = {}
    for row in middle:
        if row.open_loop:
            continue
        multiple = multiples.get((row.load, row.target))
        ratio = 1.0 if row.target == about["reference"] else multiple.middle if multiple else 0.0
        label = f"{ratio:.2f}  ({row.cost_us:.2f} µs)" if ratio else f"{row.cost_us:.2f} µs"
        bar = Bar(row.target, ratio, label, "nexus" in row.target)
        groups.setdefault(row.load, []).append(bar)
    note = f"as a multiple of {about['reference']}'s; less is better. {about['taken'][:10]}"
    bars(paths[2], f"{about['title']}: CPU per operation", note, groups, one=True)
    return paths
