"""Rows of a comparison: medians over the rounds, as JSON and Markdown."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

__all__ = ["Row", "medians", "write"]


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
    proxy_us: float | None
    backend_us: float
    memory_mib: float

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
        proxy_us=median(proxy) if proxy else None,
        backend_us=median(row.backend_us for row in group),
        memory_mib=median(row.memory_mib for row in group),
    )


def markdown(about: Mapping[str, object], rows: Sequence[Row]) -> str:
    """A table for each load."""
    lines = [f"# Peers: {about['kind']}", ""]
    lines.append(
        f"{about['taken']}, {about['machine']}, Python {about['python']}; medians of "
        f"{about['rounds']} alternating runs of {about['seconds']:g} s. Compare ratios within a "
        "table and CPU per operation, not absolute rates."
    )
    if about["quick"]:
        lines += ["", "**A quick run: shows that it works, measures nothing.**"]
    for load in dict.fromkeys(row.load for row in rows):
        lines += ["", f"## {load}", ""]
        lines += ["| system | per second | p50 ms | p99 ms | proxy µs/op | backend µs/op | MiB |"]
        lines += ["|---|---|---|---|---|---|---|"]
        for row in rows:
            if row.load == load:
                proxy = "" if row.proxy_us is None else f"{row.proxy_us:.2f}"
                lines.append(
                    f"| {row.target} | {row.per_second:,.0f} | {row.p50_ms:.2f} | {row.p99_ms:.2f} "
                    f"| {proxy} | {row.backend_us:.2f} | {row.memory_mib:.1f} |"
                )
    left_out = about["left_out"]
    if isinstance(left_out, Mapping):
        lines += [f"\nLeft out: {name} ({why})." for name, why in left_out.items()]
    return "\n".join(lines) + "\n"


def write(directory: Path, about: Mapping[str, object], rows: Sequence[Row]) -> list[Path]:
    """``<kind>.json`` with every run, ``<kind>.md`` with the medians; ``-quick`` runs apart."""
    directory.mkdir(parents=True, exist_ok=True)
    stem = f"peers-{about['kind']}" + ("-quick" if about["quick"] else "")
    middle = medians(rows)
    document = {**about, "medians": [asdict(r) for r in middle], "runs": [asdict(r) for r in rows]}
    paths = [directory / f"{stem}.json", directory / f"{stem}.md"]
    paths[0].write_text(json.dumps(document, indent=1) + "\n")
    paths[1].write_text(markdown(about, middle))
    return paths
