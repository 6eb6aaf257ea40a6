"""Nexus beside its peers, in one run on one machine.

::

    python -m bench.peers [SCENARIO…] [--quick] [--rounds N] [--seconds S] [--only NAME,…]
    python -m bench.peers --list
    python -m bench.peers --agree first.json second.json     do two runs agree within 10 %?

Every peer runs as one process with one worker thread, with the configuration in ``bench/peers/``;
the scenarios are in :mod:`bench.scenarios`. All are started; then rounds alternate over loads and
peers, so that what the machine does at the time hits all alike, and medians over the rounds are
reported: rate, p50, p99, p99.9, CPU of the proxy and of what is behind it per operation (user +
system from /proc/PID/stat, all processes of a service summed), memory (PSS) after the load. JSON,
Markdown and a chart go to ``bench/results/``. A peer that is not installed is named and left out.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from bench.loads import Load, LoadError, RedisLoad
from bench.processes import ProcessError
from bench.report import AGREEMENT, Row, disagreements, write
from bench.scenarios import SCENARIOS, Scenario
from bench.stage import SOURCES, Stage, Target, which
from nexus._speedups import BACKEND

__all__ = ["main"]

_ROOT = Path(__file__).resolve().parents[1]
#: Of a load that is to be refused: a bucket may still hold a token.
_LET_THROUGH = 0.001
_RESULTS = Path(__file__).with_name("results")


def _measure(target: Target, load: Load, size: float) -> Row:
    backend_before = target.backend.cpu_seconds()
    proxy_before = target.proxy.cpu_seconds() if target.proxy else 0.0
    result = load.run(target.port, size)
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
    )


def _compare(stage: Stage, rounds: int, seconds: float) -> list[Row]:
    rows: list[Row] = []
    for load in stage.scenario.loads():
        if stage.scenario.redis:
            filler = load if isinstance(load, RedisLoad) else RedisLoad("get", 1)
            filler.fill(stage.targets[0].port)
        sizes = {target.name: load.size(target.port, seconds) for target in stage.targets}
        for number in range(rounds):
            for target in stage.targets:
                row = _measure(target, load, sizes[target.name])
                rows.append(row)
                print(f"{number + 1}/{rounds} {row}", flush=True)
    return rows


def _missing(scenario: Scenario) -> list[str]:
    return [f"{tool} ({SOURCES[tool]})" for tool in scenario.needs if which(tool) is None]


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.peers", description="Nexus and peers")
    parser.add_argument("scenarios", nargs="*", metavar="SCENARIO", help="default: all; see --list")
    parser.add_argument("--list", action="store_true", help="the scenarios, their peers and loads")
    parser.add_argument("--quick", action="store_true", help="one round of one second: does it run")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=5.0, help="of each run")
    parser.add_argument("--only", default="", help="peers whose names begin so, comma-separated")
    parser.add_argument("--results", type=Path, help="directory; bench/results, quick: build/bench")
    parser.add_argument("--agree", nargs=2, type=Path, metavar="JSON", help="compare two results")
    options = parser.parse_args(arguments)
    for name in options.scenarios:
        if name not in SCENARIOS:
            parser.error(f"unknown scenario {name!r}; there are: {', '.join(SCENARIOS)}")
    options.scenarios = options.scenarios or list(SCENARIOS)
    if options.results is None:
        options.results = _ROOT / "build" / "bench" if options.quick else _RESULTS
    if options.quick:
        options.rounds, options.seconds = 1, 1.0
    return options


def _list() -> None:
    for scenario in SCENARIOS.values():
        print(f"{scenario.name}: {scenario.title}")
        print(f"  peers: {', '.join(peer.name for peer in scenario.peers)}")
        print(f"  loads: {'; '.join(load.name for load in scenario.loads())}")


def _agree(first: Path, second: Path) -> int:
    try:
        found = disagreements(*(json.loads(path.read_text()) for path in (first, second)))
    except (OSError, ValueError, KeyError, TypeError) as error:
        print(f"bench.peers: not two results of the same scenario: {error!r}", file=sys.stderr)
        return 2
    for line in found:
        print(line)
    print(f"{len(found)} ratios of CPU per operation differ by more than {AGREEMENT:.0%}")
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
    about = {
        "scenario": scenario.name,
        "title": scenario.title,
        "reference": scenario.reference,
        "taken": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": f"{platform.machine()}, {os.cpu_count()} CPUs, Linux {platform.release()}",
        "load_average": round(os.getloadavg()[2], 2),
        "python": f"{platform.python_version()} ({BACKEND} kernels)",
        "rounds": options.rounds,
        "seconds": options.seconds,
        "quick": options.quick,
        "left_out": stage.skipped,
    }
    for path in write(options.results, about, rows):
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
