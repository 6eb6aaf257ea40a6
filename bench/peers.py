"""Nexus beside its peers, in one run on one machine.

::

    python -m bench.peers [SCENARIO…] [--quick] [--rounds N] [--seconds S] [--only NAME,…]
    python -m bench.peers --list
    python -m bench.peers --agree A B      do two runs (files or directories) agree within 10 %?

Every peer runs as one process with one worker thread, with the configuration in ``bench/peers/``;
the scenarios are in :mod:`bench.scenarios`. All are started, and every round puts them all under
the load, half a second each: a virtual machine's speed may double within minutes, but it hardly
changes within a second. So each peer runs right before or right after the reference
(:func:`groups`), and its ratio is the median over the rounds of the ratios to *that* run. Besides:
rate, p50, p99, p99.9, CPU of the proxy and of what is behind it per operation (user + system, all
threads of a service summed), memory (PSS) after the load, all medians over the rounds. JSON,
Markdown and a chart go to ``bench/results/``. A peer that is not installed is named and left out.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

from bench.loads import Load, LoadError, RedisLoad
from bench.processes import ProcessError
from bench.record import RESULTS, about
from bench.report import AGREEMENT, Row, disagreements, ratios_of, write
from bench.scenarios import SCENARIOS, Scenario
from bench.stage import SOURCES, Stage, Target, which

__all__ = ["groups", "main"]

_ROOT = Path(__file__).resolve().parents[1]
#: Of a load that is to be refused: a bucket may still hold a token.
_LET_THROUGH = 0.001


def _measure(target: Target, load: Load, size: float, group: int) -> Row:
    backend_before = target.backend.cpu_seconds()
    proxy_before = target.proxy.cpu_seconds() if target.proxy else 0.0
    result = load.run(target.port, size)
    if not result.operations:
        raise LoadError(f"{target.name}: no reply within a run; make it longer: --seconds")
    answered = result.operations - result.refused
    if result.refused if not target.refuses else answered > result.operations * _LET_THROUGH:
        raise LoadError(
            f"{target.name}: {result.refused} of {result.operations} replies were refusals"
        )
    proxy = (target.proxy.cpu_seconds() - proxy_before) if target.proxy else None
    backend = target.backend.cpu_seconds() - backend_before
    return Row(
        target=target.name,
        load=load.name,
        per_second=result.per_second,
        p50_ms=result.p50_ms,
        p99_ms=result.p99_ms,
        p999_ms=result.p999_ms,
        proxy_us=None if proxy is None else proxy * 1e6 / result.operations,
        backend_us=backend * 1e6 / result.operations,
        memory_mib=(target.proxy or target.backend).memory_mib(),
        group=group,
    )


def groups(names: Sequence[str], reference: str) -> list[list[str]]:
    """What runs in one go: the reference between two others, as often as it takes."""
    others = [name for name in names if name != reference]
    if reference not in names:
        return [others]
    return [
        [name for name in (first, reference, second) if name]
        for first, second in zip_longest(others[::2], others[1::2])
    ] or [[reference]]


def _compare(stage: Stage, rounds: int, seconds: float) -> list[Row]:
    rows: list[Row] = []
    targets = {target.name: target for target in stage.targets}
    turns = groups(list(targets), stage.scenario.reference)
    for load in stage.scenario.loads():
        if stage.scenario.redis:
            filler = load if isinstance(load, RedisLoad) else RedisLoad("get", 1)
            filler.fill(stage.targets[0].port)
        sizes = {target.name: load.size(target.port, seconds) for target in stage.targets}
        for number in range(rounds):
            for turn, names in enumerate(turns):
                # There and back: what changes steadily meanwhile cancels out.
                for name in names if number % 2 == 0 else names[::-1]:
                    group = number * len(turns) + turn
                    row = _measure(targets[name], load, sizes[name], group)
                    rows.append(row)
                    print(f"{number + 1}/{rounds} {row}", flush=True)
    return rows


def _missing(scenario: Scenario) -> list[str]:
    return [f"{tool} ({SOURCES[tool]})" for tool in scenario.needs if which(tool) is None]


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.peers", description="Nexus and peers")
    parser.add_argument("scenarios", nargs="*", metavar="SCENARIO", help="default: all; see --list")
    parser.add_argument("--list", action="store_true", help="the scenarios, their peers and loads")
    parser.add_argument("--quick", action="store_true", help="two rounds: does it run")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--seconds", type=float, default=0.5, help="of each run")
    parser.add_argument("--only", default="", help="peers whose names begin so, comma-separated")
    parser.add_argument("--results", type=Path, help="directory; bench/results, quick: build/bench")
    parser.add_argument("--agree", nargs=2, type=Path, metavar="PATH", help="compare two results")
    options = parser.parse_args(arguments)
    for name in options.scenarios:
        if name not in SCENARIOS:
            parser.error(f"unknown scenario {name!r}; there are: {', '.join(SCENARIOS)}")
    options.scenarios = options.scenarios or list(SCENARIOS)
    if options.results is None:
        options.results = _ROOT / "build" / "bench" if options.quick else RESULTS
    if options.quick:
        options.rounds = 2
    return options


def _list() -> None:
    for scenario in SCENARIOS.values():
        print(f"{scenario.name}: {scenario.title}")
        print(f"  peers: {', '.join(peer.name for peer in scenario.peers)}")
        print(f"  loads: {'; '.join(load.name for load in scenario.loads())}")


def _documents(path: Path) -> dict[str, Any]:
    """Scenario → document, of one file or of all in a directory."""
    files = sorted(path.glob("peers-*.json")) if path.is_dir() else [path]
    documents = [json.loads(file.read_text()) for file in files]
    return {document["scenario"]: document for document in documents}


def _agree(first: Path, second: Path) -> int:
    try:
        one, other = _documents(first), _documents(second)
        common = [name for name in one if name in other]
        found = [line for name in common for line in disagreements(one[name], other[name])]
        count = sum(len(ratios_of(one[name])) for name in common)
    except (OSError, ValueError, KeyError, TypeError) as error:
        print(f"bench.peers: not results of a comparison: {error!r}", file=sys.stderr)
        return 2
    if not common:
        print("bench.peers: no scenario is in both", file=sys.stderr)
        return 2
    for line in found:
        print(line)
    print(
        f"{', '.join(common)}: {len(found)} of {count} ratios of CPU per operation differ by more "
        f"than {AGREEMENT:.0%}"
    )
    return 1 if found else 0


def _run(scenario: Scenario, options: argparse.Namespace) -> int:
    if missing := _missing(scenario):
        print(f"bench.peers: {scenario.name}: missing: {', '.join(missing)}", file=sys.stderr)
        return 2
    try:
        with Stage(scenario, [name for name in options.only.split(",") if name]) as stage:
            for name, why in stage.skipped.items():
                print(f"left out: {name}: {why}", file=sys.stderr)
            rows = _compare(stage, options.rounds, options.seconds)
    except (ProcessError, LoadError) as error:
        print(f"bench.peers: {scenario.name}: {error}", file=sys.stderr)
        return 1
    document = {
        "scenario": scenario.name,
        "title": scenario.title,
        "reference": scenario.reference,
        **about(),
        "rounds": options.rounds,
        "seconds": options.seconds,
        "quick": options.quick,
        "left_out": stage.skipped,
    }
    for path in write(options.results, document, rows):
        print(path)
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status: 0, 1 a peer failed, 2 something that every row needs is missing."""
    options = _parse(arguments)
    if options.list:
        _list()
        return 0
    if options.agree:
        return _agree(*options.agree)
    # Services find the package whatever directory they run in.
    os.environ["PYTHONPATH"] = os.pathsep.join(
        part for part in (str(_ROOT), os.environ.get("PYTHONPATH", "")) if part
    )
    return max(_run(SCENARIOS[name], options) for name in options.scenarios)


if __name__ == "__main__":
    sys.exit(main())
