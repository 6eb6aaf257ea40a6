"""Nexus beside its peers, in one run on one machine.

::

    python -m bench.peers [SCENARIO…] [--quick] [--rounds N] [--seconds S] [--only NAME,…] [--more]
    python -m bench.peers --list
    python -m bench.peers --agree A B      do two runs (files or directories) agree within 10 %?

Every peer runs as one process with one worker thread, with the configuration in ``bench/peers/``;
the scenarios are in :mod:`bench.scenarios`. Every round starts all afresh (where a process's memory
happens to lie moves its cost by a tenth and more), and puts each under each load twice: alone for
0.4 s, which gives the latencies, and then in turns of 50 ms with all others
(:mod:`bench.turns`), which gives the rate and the CPU of the proxy and of what is behind it per
operation (user + system, all threads of a service summed). Ratios are taken within a round
(:class:`bench.report.Ratio`); everything else is a median over the rounds, memory (PSS) that after
the load. JSON, Markdown and a chart go to ``bench/results/``; with ``--more`` the rounds are added
to those that are there. A peer that is not installed is named and left out.

Open loops run alone only, four times as long, and get no ratio: below saturation most requests wake
an idle processor, and what that costs a virtual machine is its host's affair, another from one run
to the next, and counts differently for who is woken once or twice a request.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from bench.engine import EngineError
from bench.loads import ClosedLoad, Load, LoadError, LoadResult, OpenLoad, RedisLoad
from bench.processes import ProcessError
from bench.record import RESULTS, about
from bench.report import AGREEMENT, COLUMNS, Row, disagreements, path_of, ratios_of, rows_of, write
from bench.scenarios import SCENARIOS, Scenario
from bench.stage import SOURCES, Stage, Target, which
from bench.turns import TURN, Contender, Share, TurnsError, at_rest, in_turns

__all__ = ["main"]

_ROOT = Path(__file__).resolve().parents[1]
#: Turns of every peer in a round, in runs of its own.
_TURNS: Final = 3
#: Of a run, to warm up what was started afresh.
_WARM: Final = 0.2
#: Of a load that is to be refused: a bucket may still hold a token.
_LET_THROUGH = 0.001


#: Runs, and peers that are not installed: name → why.
Found = tuple[list[Row], dict[str, str]]


def _check(target: Target, operations: int, refused: int) -> None:
    """Raise :class:`LoadError` where the replies are not those that were wanted."""
    if not operations:
        raise LoadError(f"{target.name}: no reply within a run; make it longer: --seconds")
    answered = operations - refused
    if refused if not target.refuses else answered > operations * _LET_THROUGH:
        raise LoadError(f"{target.name}: {refused} of {operations} replies were refusals")


def _open_loop(
    targets: Sequence[Target], load: OpenLoad, sizes: Mapping[tuple[str, str], float]
) -> list[Row]:
    """Each alone."""
    rows = []
    for target in targets:
        services = [one for one in (target.proxy, target.backend) if one is not None]
        pids = [service.pids() for service in services]
        before = [one.cpu_seconds(of) for one, of in zip(services, pids, strict=True)]
        result = load.run(target.port, sizes[load.name, target.name])
        _check(target, result.operations, result.refused)
        *proxy, backend = (
            (at_rest(one, of) - used) * 1e6 / result.operations
            for one, of, used in zip(services, pids, before, strict=True)
        )
        share = Share(
            result.operations,
            result.refused,
            proxy[0] if proxy else None,
            backend,
            result.per_second,
        )
        rows.append(_row(target, load, result, share))
    return rows


def _round(
    targets: Sequence[Target], load: ClosedLoad, sizes: Mapping[tuple[str, str], float], turns: int
) -> list[Row]:
    """Each alone, then all in turns."""
    alone: dict[str, LoadResult] = {}
    for target in targets:
        result = alone[target.name] = load.run(target.port, sizes[load.name, target.name])
        _check(target, result.operations, result.refused)
    shares = in_turns(
        {
            target.name: Contender(
                load.client(target.port, sizes[load.name, target.name] * _TURNS, turns),
                target.proxy,
                target.backend,
            )
            for target in targets
        }
    )
    rows = []
    for target in targets:
        result, share = alone[target.name], shares[target.name]
        _check(target, share.operations, share.refused)
        rows.append(_row(target, load, result, share))
    return rows


def _row(target: Target, load: Load, result: LoadResult, share: Share) -> Row:
    return Row(
        target=target.name,
        load=load.name,
        per_second=share.per_second,
        p50_ms=result.p50_ms,
        p99_ms=result.p99_ms,
        p999_ms=result.p999_ms,
        proxy_us=share.proxy_us,
        backend_us=share.backend_us,
        memory_mib=target.service.memory_mib(),
        open_loop=isinstance(load, OpenLoad),
    )


def _fill(load: Load, filled: int, targets: Sequence[Target]) -> int:
    """Write the keys where their values are not yet so long, and read each through everybody.

    What keeps keys is to be measured with what it keeps, each of its workers.
    """
    filler = load if isinstance(load, RedisLoad) else RedisLoad("get", 1)
    if filler.value_bytes != filled:
        filler.fill(targets[0].port)
        reader = RedisLoad("get", 16, filler.value_bytes)
        for target in targets:
            reader.run(target.port, 20 * reader.keys)
    return filler.value_bytes


def _compare(scenario: Scenario, only: Sequence[str], rounds: int, seconds: float) -> Found:
    rows: list[Row] = []
    skipped: dict[str, str] = {}
    sizes: dict[tuple[str, str], float] = {}
    turns = max(1, round(seconds * _TURNS / TURN))
    loads = scenario.loads()
    for number in range(rounds):
        with Stage(scenario, only) as stage:
            skipped |= stage.skipped
            # There and back: what changes steadily meanwhile cancels out.
            targets = stage.targets if number % 2 == 0 else stage.targets[::-1]
            filled = 0
            for load in loads:
                if scenario.redis:
                    filled = _fill(load, filled, stage.targets)
                for target in targets:
                    if size := sizes.get((load.name, target.name)):
                        load.run(target.port, size * _WARM)
                    else:
                        sizes[load.name, target.name] = load.size(target.port, seconds)
                if isinstance(load, OpenLoad):
                    found = _open_loop(targets, load, sizes)
                else:
                    found = _round(targets, load, sizes, turns)
                for row in found:
                    rows.append(replace(row, group=number))
                    print(f"{number + 1}/{rounds} {row}", flush=True)
    return rows, skipped


def _missing(scenario: Scenario) -> list[str]:
    return [f"{tool} ({SOURCES[tool]})" for tool in scenario.needs if which(tool) is None]


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.peers", description="Nexus and peers")
    parser.add_argument("scenarios", nargs="*", metavar="SCENARIO", help="default: all; see --list")
    parser.add_argument("--list", action="store_true", help="the scenarios, their peers and loads")
    parser.add_argument("--quick", action="store_true", help="two rounds: does it run")
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument(
        "--seconds", type=float, default=0.4, help="of each run alone; thrice that in turns"
    )
    parser.add_argument("--only", default="", help="peers whose names begin so, comma-separated")
    parser.add_argument("--results", type=Path, help="directory; bench/results, quick: build/bench")
    parser.add_argument("--more", action="store_true", help="add the rounds to earlier results")
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
        count = sum(len(ratios_of(one[n]).keys() & ratios_of(other[n]).keys()) for n in common)
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


#: What must be the same where rounds are added.
_SAME: Final = ("reference", "machine", "python", "seconds", "in_turns", "quick", "only")


def _earlier(document: dict[str, Any], directory: Path) -> list[Row]:
    """Rows of earlier results, whose rounds ``document`` counts from here on; ``ValueError``."""
    path = path_of(directory, document)
    if not path.exists():
        return []
    earlier = json.loads(path.read_text())
    differing = [key for key in _SAME if earlier.get(key) != document[key]]
    if earlier["columns"] != COLUMNS:
        differing.append("columns")
    if differing:
        raise ValueError(f"{path} has another {', '.join(differing)}; no rounds can be added")
    document["rounds"] += earlier["rounds"]
    return rows_of(earlier)


def _run(scenario: Scenario, options: argparse.Namespace) -> int:
    if missing := _missing(scenario):
        print(f"bench.peers: {scenario.name}: missing: {', '.join(missing)}", file=sys.stderr)
        return 2
    document: dict[str, Any] = {
        "scenario": scenario.name,
        "title": scenario.title,
        "reference": scenario.reference,
        **about(),
        "rounds": options.rounds,
        "seconds": options.seconds,
        "in_turns": options.seconds * _TURNS,
        "quick": options.quick,
        "only": options.only,
    }
    try:
        earlier = _earlier(document, options.results) if options.more else []
    except (OSError, ValueError, KeyError, TypeError) as error:
        print(f"bench.peers: {scenario.name}: {error}", file=sys.stderr)
        return 2
    try:
        only = [name for name in options.only.split(",") if name]
        rows, skipped = _compare(scenario, only, options.rounds, options.seconds)
    except (ProcessError, LoadError, EngineError, TurnsError, OSError) as error:
        print(f"bench.peers: {scenario.name}: {error}", file=sys.stderr)
        return 1
    document |= {"left_out": skipped, "taken": about()["taken"]}
    first = 1 + max((row.group for row in earlier), default=-1)
    rows = earlier + [replace(row, group=first + row.group) for row in rows]
    for name, why in skipped.items():
        print(f"left out: {name}: {why}", file=sys.stderr)
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
