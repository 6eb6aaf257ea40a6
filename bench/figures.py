"""The figures in README.md and docs/, written from the committed results.

::

    python -m bench.figures           write them
    python -m bench.figures --check   1 where a page says something else than the results

A page has places for them, ``<!-- figures: NAME -->`` to ``<!-- end of figures -->``; what is in
between is replaced, so that no figure is ever typed. What has not been measured is not shown.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from bench.growth import AXES, points_of
from bench.record import RESULTS, taken_on

__all__ = ["BLOCKS", "PAGES", "main", "written"]

_ROOT: Final = Path(__file__).resolve().parents[1]
PAGES: Final = (_ROOT / "README.md", _ROOT / "docs" / "performance.md")
_PLACE: Final = re.compile(
    r"(?P<begin><!-- figures: (?P<name>[a-z-]+) -->\n).*?(?P<end><!-- end of figures -->)",
    re.DOTALL,
)

#: Scenarios in the order of the tables, and what they are called there.
_SCENARIOS: Final = {
    "redis": "cacheproxy, pass-through",
    "redis-transactions": "cacheproxy, transactions",
    "redis-cached": "cacheproxy, near-cache",
    "redis-workers": "cacheproxy, near-cache, a second worker",
    "http": "gateway, bare",
    "http-full": "gateway, everything on",
    "http-rejected": "gateway, refusing",
    "http-features": "gateway, what is on",
}
_NOTHING: Final = "Nothing is measured yet.\n"


def _documents(results: Path) -> dict[str, dict[str, Any]]:
    found = {}
    for name in _SCENARIOS:
        path = results / f"peers-{name}.json"
        if path.exists():
            found[name] = json.loads(path.read_text())
    return found


def _cost(row: Mapping[str, Any]) -> float:
    return float(row["backend_us"] if row["proxy_us"] is None else row["proxy_us"])


def _load(row: Mapping[str, Any]) -> str:
    """The load, and which of ours it is where there are several."""
    which = row["target"].removeprefix("nexus").lstrip(", ")
    return f"{row['load']}: {which}" if which else str(row["load"])


def _pairs(document: Mapping[str, Any]) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """(one of ours, the reference) for each load that both ran."""
    rows = {(row["load"], row["target"]): row for row in document["medians"]}
    return [
        (row, rows[load, document["reference"]])
        for (load, target), row in rows.items()
        if target.startswith("nexus")
        and target != document["reference"]
        and (load, document["reference"]) in rows
    ]


def _taken(documents: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """When and where, runs that say the same of themselves together."""
    groups: dict[str, list[str]] = {}
    for name, document in documents.items():
        told = (
            f"{document['taken'][:10]}, {document['machine']}, Python {document['python']}; "
            f"{document['rounds']} rounds"
        )
        groups.setdefault(told, []).append(name)
    return [f"{', '.join(names)}: {told}." for told, names in groups.items()]


def peers(results: Path) -> str:
    """CPU per operation beside the reference of each role."""
    documents = _documents(results)
    if not documents:
        return _NOTHING
    lines = ["| | load | Nexus, CPU µs/op | beside | its CPU µs/op | ratio (quartiles) |"]
    lines.append("|---|---|---|---|---|---|")
    for name, document in documents.items():
        role = f"[{_SCENARIOS[name]}](@bench/results/peers-{name}.md)"
        for row, other in _pairs(document):
            if not row["ratio"]:
                continue
            middle, low, high = row["ratio"]
            lines.append(
                f"| {role} | {_load(row)} | {_cost(row):.2f} "
                f"| {document['reference']} | {_cost(other):.2f} "
                f"| **{middle:.2f}** ({low:.2f} to {high:.2f}) |"
            )
            role = ""
    lines += ["", "Less is better; a ratio below 1 means that Nexus costs less. "]
    lines[-1] += "Command: `make bench-peers`. " + " ".join(_taken(documents))
    return "\n".join(lines) + "\n"


def latencies(results: Path) -> str:
    """Open-loop latencies, ours beside the reference's."""
    lines = ["| | load | Nexus p50 / p99 / p99.9 ms | beside | its p50 / p99 / p99.9 ms |"]
    lines.append("|---|---|---|---|---|")
    for name, document in _documents(results).items():
        title = _SCENARIOS[name]
        for row, other in _pairs(document):
            if row["open_loop"]:
                mine, its = (
                    " / ".join(f"{of[key]:.2f}" for key in ("p50_ms", "p99_ms", "p999_ms"))
                    for of in (row, other)
                )
                lines.append(
                    f"| {title} | {_load(row)} | {mine} | {document['reference']} | {its} |"
                )
    return "\n".join(lines) + "\n" if len(lines) > 2 else _NOTHING


def growth(results: Path) -> str:
    """A row for each axis."""
    path = results / "growth.json"
    if not path.exists():
        return _NOTHING
    document = json.loads(path.read_text())
    points = points_of(document)
    lines = ["| axis | CPU per operation as a multiple of the first point's |", "|---|---|"]
    for axis in AXES.values():
        rows = [point for point in points if point.axis == axis.name]
        if rows:
            told = ", ".join(f"{point.n:,}: {point.multiple:.2f}" for point in rows)
            lines.append(f"| {axis.title} ({rows[0].cpu_us:.2f} µs at {rows[0].n}) | {told} |")
    lines += ["", f"{taken_on(document)}. Command: `make bench-growth`; all of it: "]
    lines[-1] += "[growth.md](@bench/results/growth.md)."
    return "\n".join(lines) + "\n"


def pillars(results: Path) -> str:
    """What observability costs a request."""
    path = results / "pillars-gateway.json"
    if not path.exists():
        return _NOTHING
    document = json.loads(path.read_text())
    lines = ["| on | µs CPU per request | of bare | throughput, of bare |", "|---|---|---|---|"]
    lines += [
        f"| {row['on']} | {row['cpu_us']:.1f} | {row['multiple']:.2f} | {row['share']:.0%} |"
        for row in document["rows"]
    ]
    lines += ["", f"{taken_on(document)}. Command: `python -m bench.pillars --gateway --record`."]
    return "\n".join(lines) + "\n"


def stampede(results: Path) -> str:
    """The demonstration: two numbers and the chart."""
    path = results / "stampede.json"
    if not path.exists():
        return _NOTHING
    document = json.loads(path.read_text())
    crowd = f"{document['clients']:,} clients miss one key"
    lines = [f"![{crowd}: database calls](@docs/images/stampede.svg)", ""]
    lines += [f"| {crowd} | database calls | slowest client |", "|---|---|---|"]
    lines += [
        f"| {row['case']} | **{row['loads']:,}** | {row['slowest_seconds']:.2f} s |"
        for row in document["runs"]
    ]
    lines += ["", f"{taken_on(document)}. Command: `make demo-stampede`."]
    return "\n".join(lines) + "\n"


def consumer(results: Path) -> str:
    """Throughput of the consumer with its effects."""
    path = results / "consumer.json"
    if not path.exists():
        return _NOTHING
    document = json.loads(path.read_text())
    one = document["median"]
    return (
        "| events | per second | µs CPU per event | MiB at start | MiB at end |\n"
        "|---|---|---|---|---|\n"
        f"| {one['events']:,} | **{one['events_per_second']:,}** | {one['cpu_us_per_event']:.1f} "
        f"| {one['rss_mib_at_start']:.0f} | {one['rss_mib_at_end']:.0f} |\n\n"
        f"Median of {len(document['rounds'])} rounds. {taken_on(document)}. "
        "Command: `make bench-consumer`.\n"
    )


BLOCKS: Final[dict[str, Callable[[Path], str]]] = {
    "peers": peers,
    "latencies": latencies,
    "growth": growth,
    "pillars": pillars,
    "stampede": stampede,
    "consumer": consumer,
}


def written(page: Path, results: Path = RESULTS) -> str:
    """The page as it ought to be; links are relative to it. Raises ``KeyError``: unknown block."""
    depth = len(page.resolve().relative_to(_ROOT).parts) - 1 if page.is_relative_to(_ROOT) else 0

    def fill(place: re.Match[str]) -> str:
        text = BLOCKS[place["name"]](results).replace("(@", "(" + "../" * depth)
        return f"{place['begin']}{text}{place['end']}"

    return _PLACE.sub(fill, page.read_text())


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status: 0, 1 a page differs (``--check``)."""
    parser = argparse.ArgumentParser(prog="python -m bench.figures", description="see the module")
    parser.add_argument("--check", action="store_true", help="change nothing; 1: something differs")
    options = parser.parse_args(arguments)
    differing = [page for page in PAGES if written(page) != page.read_text()]
    for page in differing:
        print(f"{page.relative_to(_ROOT)}: {'differs' if options.check else 'written'}")
        if not options.check:
            page.write_text(written(page))
    return 1 if differing and options.check else 0


if __name__ == "__main__":
    sys.exit(main())
