"""Regression gate of the kernels: fails when one got slower, and names it.

::

    python -m bench.gate                      compare with bench/baselines.json; 0 or 1
    python -m bench.gate --update             measure and write the baselines
    python -m bench.gate --only resp          kernels or cases whose name begins so
    python -m bench.gate --slow resp=1.3      pretend: these compiled kernels do 1.3 times the work
    python -m bench.gate --prove              each compiled kernel slowed by 30 % must be caught

What noise cannot move is a ratio of two pieces of work that alternate in one process: machines
differ, frequencies change and neighbours steal time, but they do it to both. So the baseline holds
only ratios, compiled ÷ pure and compiled ÷ hiredis, of the least CPU time over many short rounds.

A slower kernel is slower against everything; one ratio alone only says that its reference changed.
Where memory happens to lie moves a process's times by up to 20 %, so the baseline takes the least
times of five processes, and a case that looks slower is measured again in new ones, until the least
times of all are not slower any more or it is. Ratios still depend somewhat on the processor and the
Python version; those of the baseline are recorded beside it.
"""

from __future__ import annotations

import argparse
import gc
import json
import platform
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import thread_time_ns

from bench.kernels import CASES, Case, NotBuiltError, Work, variants

__all__ = ["TOLERANCE", "Finding", "judge", "main", "measure", "slowed"]

BASELINES = Path(__file__).with_name("baselines.json")

#: How much worse a ratio may be: above the noise of a busy 2-core machine (6 % seen, re-measured),
#: well below the 30 % that must be caught.
TOLERANCE = 0.15
#: Thread CPU time of one sample, long against the clock's own 0.3 µs and short against the
#: scheduler's slice, so that many samples are undisturbed.
SAMPLE_NS = 1_500_000
ROUNDS = 40
#: Rounds of a careful look: for baselines, and at a case that seems slower.
CAREFUL_ROUNDS = 160
#: New processes of a careful look, beside this one.
PROCESSES = 4

#: Nanoseconds of thread CPU time for one call, of each variant.
Times = dict[str, float]


def measure(works: Mapping[str, Work], rounds: int) -> Times:
    """The least time of each variant over ``rounds`` alternations."""
    counts = {name: _calls_for_a_sample(work) for name, work in works.items()}
    least = dict.fromkeys(works, float("inf"))
    collecting = gc.isenabled()
    gc.disable()
    try:
        for _ in range(rounds):
            for name, work in works.items():
                least[name] = min(least[name], _time(work, counts[name]) / counts[name])
    finally:
        if collecting:
            gc.enable()
    return least


def pool(looks: Sequence[Times]) -> Times:
    """The least times of several looks."""
    return {name: min(look[name] for look in looks) for name in looks[0]}


def ratios(times: Times) -> dict[str, float]:
    """``{"pure": compiled ÷ pure, …}``"""
    return {name: times["compiled"] / time for name, time in times.items() if name != "compiled"}


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
    """The same work done ``factor`` times on average: a kernel that got that much slower."""
    owed = 0.0

    def slow() -> None:
        nonlocal owed
        work()
        owed += factor - 1
        while owed >= 1:
            work()
            owed -= 1

    return slow


@dataclass(frozen=True)
class Finding:
    """What became of one ratio of one case."""

    case: str
    against: str
    baseline: float | None
    ratio: float
    tolerance: float

    @property
    def slower(self) -> bool:
        """Whether the gate must fail."""
        return self.baseline is not None and self.ratio > self.baseline * (1 + self.tolerance)

    def __str__(self) -> str:
        if self.baseline is None:
            return f"{self.case}: new against {self.against}: {self.ratio:.4f}"
        change = self.ratio / self.baseline - 1
        verdict = "SLOWER" if self.slower else "faster" if change < -self.tolerance else "ok"
        return (
            f"{self.case}: {verdict} against {self.against}: "
            f"{self.ratio:.4f}, baseline {self.baseline:.4f} ({change:+.0%})"
        )


def judge(
    case: str, times: Times, baseline: Mapping[str, float], tolerance: float
) -> list[Finding]:
    """One finding for each reference; the case is slower when all of them are."""
    return [
        Finding(case, name, baseline.get(name), ratio, tolerance)
        for name, ratio in ratios(times).items()
    ]


def _all_slower(findings: Sequence[Finding]) -> bool:
    return all(finding.slower for finding in findings)


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.gate", description="kernel speed gate")
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument("--update", action="store_true", help="write the baselines")
    mode.add_argument("--prove", action="store_true", help="slow each kernel by 30 %%: all red?")
    parser.add_argument("--only", default="", metavar="PREFIX", help="cases that begin so")
    parser.add_argument("--slow", action="append", default=[], metavar="PREFIX=FACTOR")
    parser.add_argument("--measure", default="", metavar="CASE", help="print its times as JSON")
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


def _in_new_process(case: Case, slow: Sequence[str]) -> Times:
    """The case's times in a process whose memory lies elsewhere."""
    command = [sys.executable, "-m", "bench.gate", "--measure", case.name]
    command += [part for rule in slow for part in ("--slow", rule)]
    root = Path(__file__).resolve().parents[1]
    done = subprocess.run(command, cwd=root, stdout=subprocess.PIPE, text=True, check=True)
    times: Times = json.loads(done.stdout)
    return times


def _update(cases: Sequence[Case], path: Path) -> int:
    kept = json.loads(path.read_text())["ratios"] if path.exists() else {}
    for case in cases:
        times = pool([_in_new_process(case, ()) for _ in range(PROCESSES + 1)])
        kept[case.name] = {name: round(ratio, 5) for name, ratio in ratios(times).items()}
        print(f"{case.name}: {kept[case.name]}", flush=True)
    known = {case.name for case in CASES}
    made_with = {"python": platform.python_version(), "machine": platform.machine()}
    document = {"made_with": made_with, "ratios": {n: kept[n] for n in sorted(kept) if n in known}}
    path.write_text(json.dumps(document, indent=2) + "\n")
    return 0


def _slower(cases: Sequence[Case], options: argparse.Namespace) -> list[str]:
    """Names of the cases that are slower, confirmed; says what was found of each."""
    baselines = json.loads(options.baselines.read_text())["ratios"]
    slower: list[str] = []
    for case in cases:
        baseline = baselines.get(case.name, {})
        works = _works(case, _slow_factor(case.name, options.slow))
        times = measure(works, ROUNDS)
        findings = judge(case.name, times, baseline, options.tolerance)
        looks = 0
        while _all_slower(findings) and looks < PROCESSES:
            looks += 1
            times = pool([times, _in_new_process(case, options.slow)])
            findings = judge(case.name, times, baseline, options.tolerance)
        print(*findings, sep="\n", flush=True)
        if looks:
            print(f"{case.name}: looked again in {looks} new processes", flush=True)
        if _all_slower(findings):
            slower.append(case.name)
    return slower


def _prove(cases: Sequence[Case], options: argparse.Namespace) -> int:
    """Every case is slowed by 30 %; each must be found slower."""
    options.slow = ["=1.3"]
    caught = _slower(cases, options)
    missed = [case.name for case in cases if case.name not in caught]
    print(f"caught {len(caught)} of {len(cases)}" + "".join(f"\nMISSED {name}" for name in missed))
    return 1 if missed else 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status: 0 no kernel is slower, 1 one is, 2 nothing could be measured."""
    options = _parse(arguments)
    options.baselines = options.baselines.resolve()
    cases = [case for case in CASES if case.name.startswith(options.only)]
    if not cases:
        print(f"bench.gate: no case begins with {options.only!r}", file=sys.stderr)
        return 2
    try:
        if options.measure:
            (case,) = (case for case in CASES if case.name == options.measure)
            works = _works(case, _slow_factor(case.name, options.slow))
            print(json.dumps(measure(works, CAREFUL_ROUNDS)))
            return 0
        if options.update:
            return _update(cases, options.baselines)
        if options.prove:
            return _prove(cases, options)
        slower = _slower(cases, options)
    except (NotBuiltError, FileNotFoundError, subprocess.CalledProcessError) as error:
        print(f"bench.gate: {error}", file=sys.stderr)
        return 2
    if slower:
        print(f"slower than the baseline: {', '.join(slower)}", file=sys.stderr)
    return 1 if slower else 0


if __name__ == "__main__":
    sys.exit(main())
