"""Regression gate of the kernels: fails when one got slower, and names it.

::

    python -m bench.gate                      compare with bench/baselines.json; 0 or 1
    python -m bench.gate --update             measure and write the baselines
    python -m bench.gate --only resp          kernels or cases whose name begins so
    python -m bench.gate --slow resp=1.3      pretend: these compiled kernels do 1.3 times the work
    python -m bench.gate --prove              each compiled kernel slowed by 30 % must be caught

What noise cannot move is a ratio of two pieces of work that alternate in one process: machines
differ, frequencies change and neighbours steal time, but they do it to both. So the baseline holds
only ratios, compiled ÷ pure and compiled ÷ hiredis, of CPU times measured one right after the
other: the median of many such pairs.

A slower kernel is slower against everything; one ratio alone may only say that its reference
changed (:func:`change`). Where memory happens to lie moves a process's ratios by up to 30 %, so the
median of several processes counts, with one seed for the hashes of strings; and a case that is not
clearly as fast as it was is measured in some more. Ratios still depend somewhat on the processor
and the Python version; those of the baseline are recorded beside it.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import platform
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from statistics import median
from time import thread_time_ns

from bench.kernels import CASES, Case, NotBuiltError, Work, variants

__all__ = ["TOLERANCE", "Finding", "change", "judge", "main", "measure", "slowed"]

BASELINES = Path(__file__).with_name("baselines.json")

#: How much slower a case may be: above the noise of a busy 2-core machine (10 % seen), well below
#: the 30 % that must be caught.
TOLERANCE = 0.15
#: From here on a case is in doubt.
DOUBT = 0.05
#: Thread CPU time of one sample, long against the clock's own 0.3 µs and short against the
#: scheduler's slice, so that most samples are undisturbed.
SAMPLE_NS = 1_500_000
#: Pairs of samples in one process.
ROUNDS = 25
#: Processes of a first look, of a further one at cases in doubt, and of a baseline.
FIRST, MORE, BASELINE = 3, 4, 11

#: ``{"pure": compiled ÷ pure, …}`` of one case.
Ratios = dict[str, float]


def measure(works: Mapping[str, Work], rounds: int) -> Ratios:
    """The median of ``rounds`` ratios to each reference, of samples one after the other."""
    counts = {name: _calls_for_a_sample(work) for name, work in works.items()}
    found: dict[str, list[float]] = {name: [] for name in works if name != "compiled"}
    collecting = gc.isenabled()
    gc.disable()
    try:
        for _ in range(rounds):
            times = {name: _time(work, counts[name]) / counts[name] for name, work in works.items()}
            for name, ratios in found.items():
                ratios.append(times["compiled"] / times[name])
    finally:
        if collecting:
            gc.enable()
    return {name: median(ratios) for name, ratios in found.items()}


def pool(looks: Sequence[Ratios]) -> Ratios:
    """The median of several looks."""
    return {name: median(look[name] for look in looks) for name in looks[0]}


def _time(work: Work, count: int) -> int:
    begun = thread_time_ns()
    for _ in range(count):
        work()
    return thread_time_ns() - begun


def _calls_for_a_sample(work: Work) -> int:
    """How many calls take about ``SAMPLE_NS``; also warms up."""
    count = 1
    while (taken := _time(work, count)) < SAMPLE_NS // 4:
        count *= 2
    return max(1, round(count * SAMPLE_NS / taken))


def slowed(work: Work, factor: float) -> Work:
    """The same work, ``factor`` times as slow: a kernel that got that much slower.

    It is done more often, exact in hundredths. Where a sample has room for a few calls only, that
    would leave some samples without any more of it, so there the time is waited for instead.
    """
    owed, more = 0, round(100 * (factor - 1))

    def oftener() -> None:
        nonlocal owed
        work()
        owed += more
        while owed >= 100:
            work()
            owed -= 100

    def longer() -> None:
        begun = thread_time_ns()
        work()
        until = begun + (thread_time_ns() - begun) * factor
        while thread_time_ns() < until:
            pass

    return longer if _calls_for_a_sample(work) < 30 else oftener


@dataclass(frozen=True)
class Finding:
    """What became of one ratio of a case."""

    against: str
    baseline: float | None
    ratio: float

    def __str__(self) -> str:
        if self.baseline is None:
            return f"{self.against} {self.ratio:.4f} (new)"
        change = self.ratio / self.baseline - 1
        return f"{self.against} {self.ratio:.4f}, baseline {self.baseline:.4f} ({change:+.0%})"


def judge(ratios: Ratios, baseline: Mapping[str, float]) -> list[Finding]:
    """One finding for each reference."""
    return [Finding(name, baseline.get(name), ratio) for name, ratio in ratios.items()]


def change(findings: Sequence[Finding]) -> float:
    """By how much the case got slower, 0.3 for 30 %.

    The geometric mean over its references, each of which has noise of its own; but no more than
    twice what the least of them says, so that a reference that changed convicts nobody.
    0 when there is no baseline yet.
    """
    factors = [each.ratio / each.baseline for each in findings if each.baseline is not None]
    if not factors:
        return 0.0
    return min(prod(factors) ** (1 / len(factors)) - 1, max(0.0, 2 * (min(factors) - 1)))


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.gate", description="kernel speed gate")
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument("--update", action="store_true", help="write the baselines")
    mode.add_argument("--prove", action="store_true", help="slow each kernel by 30 %%: all red?")
    parser.add_argument("--only", default="", metavar="PREFIX", help="cases that begin so")
    parser.add_argument("--slow", action="append", default=[], metavar="PREFIX=FACTOR")
    parser.add_argument("--measure", default="", metavar="CASE,…", help="print ratios as JSON")
    parser.add_argument("--tolerance", type=float, default=TOLERANCE)
    parser.add_argument("--baselines", type=Path, default=BASELINES)
    return parser.parse_args(arguments)


def _slow_factor(name: str, rules: Sequence[str]) -> float:
    for rule in rules:
        prefix, _, factor = rule.partition("=")
        if name.startswith(prefix):
            return float(factor)
    return 1.0


def _works(case: Case, factor: float) -> dict[str, Work]:
    works = variants(case)
    if factor != 1.0:
        works["compiled"] = slowed(works["compiled"], factor)
    return works


def _look(names: Sequence[str], slow: Sequence[str]) -> dict[str, Ratios]:
    """Those cases in a process whose memory lies elsewhere."""
    command = [sys.executable, "-m", "bench.gate", "--measure", ",".join(names)]
    command += [part for rule in slow for part in ("--slow", rule)]
    root = Path(__file__).resolve().parents[1]
    seeded = os.environ | {"PYTHONHASHSEED": "1"}
    done = subprocess.run(
        command, cwd=root, env=seeded, stdout=subprocess.PIPE, text=True, check=True
    )
    found: dict[str, Ratios] = json.loads(done.stdout)
    return found


def _pooled(looks: Sequence[dict[str, Ratios]]) -> dict[str, Ratios]:
    """The median of those looks in which a case was measured."""
    return {name: pool([look[name] for look in looks if name in look]) for name in looks[0]}


def _update(names: Sequence[str], path: Path) -> int:
    kept = json.loads(path.read_text())["ratios"] if path.exists() else {}
    for name, ratios in _pooled([_look(names, ()) for _ in range(BASELINE)]).items():
        kept[name] = {reference: float(f"{ratio:.3g}") for reference, ratio in ratios.items()}
        print(f"{name}: {kept[name]}", flush=True)
    known = {case.name for case in CASES}
    made_with = {"python": platform.python_version(), "machine": platform.machine()}
    document = {"made_with": made_with, "ratios": {n: kept[n] for n in sorted(kept) if n in known}}
    path.write_text(json.dumps(document, indent=2) + "\n")
    return 0


def _slower(names: Sequence[str], options: argparse.Namespace) -> list[str]:
    """Names of the cases that are slower, confirmed; says what was found of each."""
    baselines = json.loads(options.baselines.read_text())["ratios"]

    def findings(looks: Sequence[dict[str, Ratios]]) -> dict[str, list[Finding]]:
        return {
            name: judge(ratios, baselines.get(name, {})) for name, ratios in _pooled(looks).items()
        }

    looks = [_look(names, options.slow) for _ in range(FIRST)]
    doubtful = [name for name, found in findings(looks).items() if change(found) > DOUBT]
    if doubtful:
        print(f"measured in {MORE} more processes: {', '.join(doubtful)}", flush=True)
        looks += [_look(doubtful, options.slow) for _ in range(MORE)]
    changes = {}
    for name, found in findings(looks).items():
        changed = changes[name] = change(found)
        verdict = "SLOWER" if changed > options.tolerance else "ok"
        print(f"{name}: {verdict} ({changed:+.0%}): {'; '.join(map(str, found))}")
    return [name for name, changed in changes.items() if changed > options.tolerance]


def _prove(names: Sequence[str], options: argparse.Namespace) -> int:
    """Every case is slowed by 30 %; each must be found slower."""
    options.slow = ["=1.3"]
    caught = _slower(names, options)
    missed = [name for name in names if name not in caught]
    print(f"caught {len(caught)} of {len(names)}" + "".join(f"\nMISSED {name}" for name in missed))
    return 1 if missed else 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status: 0 no kernel is slower, 1 one is, 2 nothing could be measured."""
    options = _parse(arguments)
    options.baselines = options.baselines.resolve()
    names = [case.name for case in CASES if case.name.startswith(options.only)]
    if not names:
        print(f"bench.gate: no case begins with {options.only!r}", file=sys.stderr)
        return 2
    try:
        if options.measure:
            wanted = options.measure.split(",")
            found = {
                case.name: measure(_works(case, _slow_factor(case.name, options.slow)), ROUNDS)
                for case in CASES
                if case.name in wanted
            }
            print(json.dumps(found))
            return 0
        if options.update:
            return _update(names, options.baselines)
        if options.prove:
            return _prove(names, options)
        slower = _slower(names, options)
    except (NotBuiltError, FileNotFoundError, subprocess.CalledProcessError) as error:
        print(f"bench.gate: {error}", file=sys.stderr)
        return 2
    if slower:
        print(f"slower than the baseline: {', '.join(slower)}", file=sys.stderr)
    return 1 if slower else 0


if __name__ == "__main__":
    sys.exit(main())
