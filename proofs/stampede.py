"""Many clients miss one key, and one of them loads it: ``python -m proofs.stampede``.

::

    4 processes of clients ──► 1 or 2 cacheproxies, 1 or 4 workers ──► redis-server
    redis-py, cache-aside      stampede: {mode: lease}

The clients are connected before the start, and ask for the same key at the same moment; loading it
takes 100 ms and is counted (:mod:`proofs.crowd`). ``--demo`` shows it in two runs, with Redis alone
and with the proxy in between, and draws a chart; without it, every claim of the documentation is
put to the test.
"""

from __future__ import annotations

import asyncio
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import uvloop

from bench.charts import lines as curves
from bench.record import RESULTS, about, dumped
from proofs.client import Connection
from proofs.crowd import KEY, Plan, Report
from proofs.report import Result, conclude, parser_of
from proofs.rig import Proxy, Redis, RigError, raise_file_limit

__all__ = ["Case", "Options", "Outcome", "cases", "main", "measure", "prove"]

#: Where README looks for the chart.
_PICTURE: Final = Path(__file__).parents[1] / "docs" / "images" / "stampede.svg"
#: Seconds for the connections of one process to be open, and for a run to end: many, for a machine
#: that is busy with something else.
_PATIENCE: Final = 600.0
#: Seconds that a held GET may take longer than its wait, on a machine that is busy with thousands
#: of clients at the same moment.
_SLACK: Final = 1.5
_QUANTILES: Final = ("50", "99", "99.9")
#: Hot keys are not prolonged, or the expiry that is to be seen would not come.
_POLICY: Final = """\
policies:
  - match: GET
    keys: "product:*"
    ttl: 60
    near_cache: always
    hot: {{extend_seconds: 0}}
    stampede: {{mode: lease, lease_wait_ms: {wait}, early_refresh: {early}}}
"""


@dataclass(frozen=True)
class Case:
    """One run. ``proxies`` 0: Redis alone."""

    name: str
    proxies: int = 1
    workers: int = 1
    wait_ms: int = 10_000
    early_refresh: bool = False
    kill_holder: bool = False
    #: Loader calls that are right; ``None``: any number.
    loads: tuple[int, ...] | None = (1,)
    plan: Plan = field(default_factory=lambda: Plan(0, 0))
    #: Seconds that the key has lived, and still lives, at the start; 0: it is not there.
    alive: float = 0.0
    #: Most clients: where it is the time that counts, of which thousands in one process of Python
    #: spend seconds on sending.
    most_clients: int | None = None
    #: Most reads, of a hundred, that may have waited for who loads; ``None``: any number.
    most_held: float | None = None


@dataclass(frozen=True)
class Options:
    clients: int
    processes: int = 4
    backend: str = ""


@dataclass
class Outcome:
    """What one run came to; times are seconds from the start."""

    case: Case
    loads: list[float]
    answered: int
    wanted: int
    failed: int
    killed: int
    slowest: float
    slowest_get: float
    #: From the end of the last loading to the last answer. The others hold what a process of
    #: thousands of clients takes to send its questions, before it reads the first answer.
    spread: float
    #: Seconds within which so many of a hundred clients' calls were answered.
    quantiles: dict[str, float]
    stats: dict[str, int]

    def wrong(self, slack: float = _SLACK) -> list[str]:
        """What is not as it should be."""
        found = []
        if self.case.loads is not None and len(self.loads) not in self.case.loads:
            found.append(f"{len(self.loads)} loader calls, expected {self.case.loads}")
        if self.answered + self.killed < self.wanted or self.failed:
            found.append(f"{self.answered} of {self.wanted} answered, {self.failed} failed")
        if self.case.proxies and self.slowest_get > self.case.wait_ms / 1000 + slack:
            found.append(f"a GET took {self.slowest_get:.2f} s")
        held = self.stats.get("lease_waits_held", 0)
        if self.case.most_held is not None and 100 * held > self.case.most_held * self.answered:
            found.append(f"{held} of {self.answered} reads waited for who loads")
        return found

    def numbers(self) -> dict[str, Any]:
        return {
            "case": self.case.name,
            "loader_calls": len(self.loads),
            "clients": self.wanted,
            "answered": self.answered,
            "slowest_seconds": round(self.slowest, 3),
            "slowest_get_seconds": round(self.slowest_get, 3),
            "last_answer_after_load_seconds": round(self.spread, 3),
            **{f"p{name}_ms": round(took * 1000, 2) for name, took in self.quantiles.items()},
            "stats": self.stats,
            "wrong": self.wrong(),
        }


class _Process:
    """One process of clients."""

    def __init__(self, child: asyncio.subprocess.Process) -> None:
        self._child = child

    @classmethod
    async def start(cls, plan: Plan, directory: Path, number: int) -> _Process:
        path = directory / f"plan-{number}.json"
        path.write_text(json.dumps(asdict(plan)))
        child = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "proofs.crowd", str(path)),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            limit=1 << 26,
        )
        return cls(child)

    async def _line(self) -> bytes:
        assert self._child.stdout is not None  # noqa: S101
        try:
            async with asyncio.timeout(_PATIENCE):
                line = await self._child.stdout.readline()
        except TimeoutError:
            raise RigError(f"clients took longer than {_PATIENCE:g} s; --clients fewer?") from None
        if not line:
            raise RigError("a process of clients ended by itself")
        return line

    async def ready(self) -> None:
        if await self._line() != b"ready\n":
            raise RigError("a process of clients did not get ready")

    def go(self) -> None:
        assert self._child.stdin is not None  # noqa: S101
        self._child.stdin.write(b"go\n")

    async def report(self) -> Report:
        return Report(**json.loads(await self._line()))

    async def stop(self) -> None:
        if self._child.returncode is None:
            self._child.kill()
        await self._child.wait()


async def measure(case: Case, options: Options, directory: Path) -> Outcome:
    """One case with its own servers, logs in ``directory``."""
    redis = Redis(directory, "redis-server", "--maxclients", "20000")
    proxies: list[Proxy] = []
    processes: list[_Process] = []
    policy = directory / "policy.yaml"
    policy.write_text(_POLICY.format(wait=case.wait_ms, early=str(case.early_refresh).lower()))
    environ = {"NEXUS_CACHEPROXY_LIMITS__MAX_CLIENTS": "20000"}
    if options.backend == "pure":
        environ["NEXUS_NO_EXTENSIONS"] = "1"
    try:
        await redis.start()
        ports = [redis.port]
        for number in range(case.proxies):
            place = directory / f"proxy-{number}"
            place.mkdir()
            proxy = Proxy(place, environ)
            proxies.append(proxy)
            arguments = ("--workers", str(case.workers), "--policy", str(policy))
            await proxy.start(f"redis://{redis.host}:{redis.port}", *arguments)
        ports = [proxy.port for proxy in proxies] or ports
        plan = case.plan
        if case.kill_holder:
            plan = replace(plan, victim=str(directory / "victim"))
        for number in range(options.processes):
            share = options.clients // options.processes
            share += number < options.clients % options.processes
            one = replace(plan, port=ports[number % len(ports)], clients=share)
            processes.append(await _Process.start(one, directory, number))
        for process in processes:
            await process.ready()
        await _put(redis, case.alive)
        start = time.monotonic()
        for process in processes:
            process.go()
        reports = [await process.report() for process in processes]
        stats = await _stats(proxies)
    finally:
        for process in processes:
            await process.stop()
        for proxy in proxies:
            proxy.stop()
        redis.stop()
    return _outcome(case, options, reports, start, stats)


async def _put(redis: Redis, alive: float) -> None:
    """The key as it is at the start: about to end, or just ended."""
    connection = await Connection.open(redis.host, redis.port)
    milliseconds = b"%d" % max(1, int(alive * 1000))
    await connection.ask(b"SET", KEY.encode(), b"the value before", b"PX", milliseconds)
    if not alive:
        await asyncio.sleep(0.01)
    connection.close()


async def _stats(proxies: Sequence[Proxy]) -> dict[str, int]:
    found: dict[str, int] = {}
    for proxy in proxies:
        await asyncio.sleep(0.3)  # workers publish their counters four times a second
        for name, value in (await proxy.stats()).items():
            if name.startswith("lease") and value.isdigit():
                found[name] = found.get(name, 0) + int(value)
    return found


def _outcome(
    case: Case, options: Options, reports: list[Report], start: float, stats: dict[str, int]
) -> Outcome:
    took = sorted(seconds for report in reports for _, seconds in report.done)
    loads = sorted(moment - start for report in reports for moment in report.loads)
    last = max((moment - start for report in reports for moment, _ in report.done), default=0.0)
    return Outcome(
        case=case,
        loads=loads,
        answered=len(took),
        wanted=options.clients,
        failed=sum(report.failed for report in reports),
        killed=sum(report.killed for report in reports),
        slowest=took[-1] if took else 0.0,
        spread=last - (loads[-1] + case.plan.load_seconds) if loads else 0.0,
        slowest_get=max(report.slowest_get for report in reports),
        quantiles={q: took[int(len(took) * float(q) / 100)] for q in _QUANTILES if took},
        stats=stats,
    )


def cases() -> list[Case]:
    """Every claim; ``plan`` is completed by :func:`measure`."""
    burst = Plan(0, 0)
    hot = Plan(0, 0, ttl_seconds=1.5, seconds=4.0, pause=0.02)
    return [
        Case("redis alone", proxies=0, loads=None, plan=burst),
        Case("one worker", plan=burst),
        Case("four workers", workers=4, plan=burst),
        Case("two proxies", proxies=2, plan=burst),
        Case("holder killed while loading", kill_holder=True, loads=(2,), plan=burst),
        Case(
            "default wait, loader of 3 s",
            wait_ms=1000,
            loads=None,
            plan=replace(burst, load_seconds=3.0),
            most_clients=2000,
        ),
        # Lives of 1.5 s in 4 s, each ended early by what was loaded anew, with nobody waiting: the
        # first is there at the start.
        Case(
            "hot key, early refresh",
            early_refresh=True,
            loads=(2, 3, 4),
            plan=hot,
            alive=1.5,
            most_clients=200,
            most_held=1.0,
        ),
    ]


async def prove(options: Options, directory: Path, chosen: Sequence[Case] = ()) -> Result:
    """Run all cases (or the ``chosen``), each with its own servers."""
    raise_file_limit(options.clients + 1000)
    outcomes: list[Outcome] = []
    for number, case in enumerate(chosen or cases()):
        place = directory / f"case-{number}"
        place.mkdir()
        most = case.most_clients or options.clients
        fitting = replace(options, clients=min(options.clients, most))
        outcome = await measure(case, fitting, place)
        outcomes.append(outcome)
        wrong = "; ".join(outcome.wrong()) or "as it should be"
        print(f"{case.name}: {len(outcome.loads)} loader calls: {wrong}", file=sys.stderr)
    summary = ", ".join(f"{one.case.name}: {len(one.loads):,}" for one in outcomes)
    return Result(
        proof="stampede",
        passed=not any(one.wrong() for one in outcomes),
        summary=f"{options.clients:,} clients, loader calls: {summary}",
        numbers={
            "clients": options.clients,
            "processes": options.processes,
            "cases": [one.numbers() for one in outcomes],
        },
    )


async def demo(options: Options, directory: Path, picture: Path, record: Path | None) -> int:
    """Two runs, a table, a chart; the exit code. ``record``: what README shows is written there."""
    raise_file_limit(options.clients + 1000)
    alone, one = cases()[:2]
    print(f"{options.clients:,} clients ask for one expired key; loading it takes 100 ms.\n")
    print(f"{'':22}{'database calls':>14}{'slowest client':>18}", flush=True)
    outcomes = []
    runs = (replace(alone, name="Redis alone"), replace(one, name="Redis behind Nexus"))
    for number, case in enumerate(runs):
        place = directory / str(number)
        place.mkdir()
        outcome = await measure(case, options, place)
        outcomes.append(outcome)
        print(f"{case.name:22}{len(outcome.loads):>14,}{outcome.slowest:>16.2f} s", flush=True)
    _draw(picture, options.clients, outcomes)
    if record is not None:
        _keep(record, options.clients, outcomes)
    found = outcomes[1].wrong()
    print(*found, sep="\n", end="\n" if found else "")
    return 1 if found else 0


def _keep(record: Path, clients: int, outcomes: Sequence[Outcome]) -> None:
    runs = [
        {"case": one.case.name, "loads": len(one.loads), "slowest_seconds": round(one.slowest, 2)}
        for one in outcomes
    ]
    record.write_text(dumped(about() | {"clients": clients, "runs": runs}))
    print(f"record: {record}")


def _draw(picture: Path, clients: int, outcomes: Sequence[Outcome]) -> None:
    """Calls so far over time; a curve goes on until the last client has its value."""
    end = max(outcome.slowest for outcome in outcomes)
    series = {}
    for outcome in outcomes:
        calls = len(outcome.loads)
        points = [(moment, float(number + 1)) for number, moment in enumerate(outcome.loads)]
        name = f"{outcome.case.name}: {calls:,} database call{'s' * (calls != 1)}"
        series[name] = [(0.0, 0.0), *points, (max(end, *outcome.loads), float(calls))]
    title = f"{clients:,} clients miss one key at once"
    curves(picture, title, "seconds from the start", "database calls so far", series)
    print(f"\nchart: {picture}")


def main(argv: list[str] | None = None) -> int:
    parser = parser_of("stampede", __doc__)
    parser.add_argument("--clients", type=int, default=12_000)
    parser.add_argument("--processes", type=int, default=4, help="of clients")
    parser.add_argument("--demo", action="store_true", help="two runs and a chart")
    parser.add_argument("--case", action="append", default=[], help="only this; repeatable")
    parser.add_argument("--chart", type=Path, default=Path(".nexus/stampede.svg"))
    parser.add_argument(
        "--record", action="store_true", help="with --demo: chart and numbers that README shows"
    )
    arguments = parser.parse_args(argv)
    options = Options(arguments.clients, arguments.processes, arguments.backend)
    chosen = [case for case in cases() if case.name in arguments.case]
    if len(chosen) != len(arguments.case):
        parser.error(f"--case: one of {', '.join(repr(case.name) for case in cases())}")
    if not arguments.demo:
        return conclude(lambda directory: prove(options, directory, chosen), arguments.results)
    picture, record = arguments.chart, None
    if arguments.record:
        picture, record = _PICTURE, RESULTS / "stampede.json"
    with tempfile.TemporaryDirectory(prefix="nexus-proof-") as name:
        try:
            return uvloop.run(demo(options, Path(name), picture, record))
        except RigError as error:
            print(f"no demonstration: {error}", file=sys.stderr)
            return 2


if __name__ == "__main__":
    raise SystemExit(main())
