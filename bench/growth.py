"""What an operation costs as the work grows: connections, values, keys, workers, routes.

::

    python -m bench.growth [AXIS…] [--quick] [--rounds N] [--seconds S]
    python -m bench.growth --list

One point after the other on an otherwise idle machine, several rounds, medians: rate, CPU of the
service per operation, memory afterwards. A flat line is the wish. JSON, Markdown and a chart go to
``bench/results/growth.*``.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Final

import yaml

from bench.charts import lines
from bench.loads import KEYS, Load, LoadError, RedisLoad, WrkLoad
from bench.processes import ProcessError
from bench.scenarios import SCENARIOS, Peer, Scenario
from bench.stage import SOURCES, Stage, which
from nexus._speedups import BACKEND

__all__ = ["AXES", "main"]

_ROOT: Final = Path(__file__).resolve().parents[1]
_RESULTS: Final = Path(__file__).with_name("results")


@dataclass(frozen=True)
class Axis:
    """``point(n)`` is the peer and the load at ``n``, in the role of ``scenario``."""

    name: str
    title: str
    scenario: str
    points: tuple[int, ...]
    point: Callable[[int], tuple[Peer, Load]]


@dataclass(frozen=True)
class Point:
    """Medians: operations per second, CPU µs per operation, MiB."""

    axis: str
    n: int
    per_second: float
    cpu_us: float
    memory_mib: float


def _peer(scenario: str, name: str) -> Peer:
    return next(peer for peer in SCENARIOS[scenario].peers if peer.name == name)


_PROXY: Final = _peer("redis", "nexus")
_CACHED: Final = _peer("redis-cached", "nexus, near-cache")
_GATEWAY: Final = _peer("http", "nexus")
_GET: Final = "/api/products"


def _workers(peer: Peer, n: int) -> Peer:
    return replace(peer, command=(*peer.command, "--workers", str(n)))


def _routed(n: int) -> tuple[Peer, Load]:
    """``n`` routes, of which the load asks one in the middle."""
    routes = [{"path": f"/svc-{i}/items/{{id}}", "name": f"svc-{i}"} for i in range(n)]
    text = yaml.safe_dump({"routes": routes})
    peer = replace(_GATEWAY, appended=text)
    return peer, WrkLoad(f"{n} routes", f"/svc-{n // 2}/items/7")


AXES: Final = {
    axis.name: axis
    for axis in (
        Axis(
            "proxy-connections",
            "Cacheproxy: client connections, GET P=1",
            "redis",
            (1, 10, 100, 1000, 4000),
            lambda n: (_PROXY, RedisLoad("get", 1, connections=n)),
        ),
        Axis(
            "proxy-values",
            "Cacheproxy: bytes of a value, GET P=1",
            "redis",
            (16, 1024, 16_384, 262_144),
            lambda n: (_PROXY, RedisLoad("get", 1, n)),
        ),
        Axis(
            "proxy-workers",
            "Cacheproxy: workers, GET P=1",
            "redis",
            (1, 2),
            lambda n: (_workers(_PROXY, n), RedisLoad("get", 1)),
        ),
        Axis(
            "cache-keys",
            "Near-cache: keys, GET P=16",
            "redis-cached",
            (100, KEYS, 100_000),
            lambda n: (_CACHED, RedisLoad("get", 16, keys=n)),
        ),
        Axis(
            "cache-workers",
            "Near-cache: workers, GET P=16",
            "redis-cached",
            (1, 2),
            lambda n: (_workers(_CACHED, n), RedisLoad("get", 16)),
        ),
        Axis(
            "gateway-connections",
            "Gateway, bare: client connections",
            "http",
            (1, 16, 64, 256, 1024),
            lambda n: (_GATEWAY, WrkLoad(f"{n} connections", _GET, connections=n)),
        ),
        Axis(
            "gateway-workers",
            "Gateway, bare: workers",
            "http",
            (1, 2),
            lambda n: (_workers(_GATEWAY, n), WrkLoad("64 connections", _GET)),
        ),
        Axis("gateway-routes", "Gateway, bare: routes", "http", (1, 10, 100, 1000), _routed),
    )
}


def _measure(axis: Axis, n: int, rounds: int, seconds: float) -> Point:
    peer, load = axis.point(n)
    scenario: Scenario = replace(SCENARIOS[axis.scenario], peers=(peer,))
    with Stage(scenario, ()) as stage:
        backend, target = stage.targets
        if isinstance(load, RedisLoad):
            load.fill(backend.port)
        size = load.size(target.port, seconds)
        rates, costs = [], []
        for _ in range(rounds):
            assert target.proxy is not None
            before = target.proxy.cpu_seconds()
            result = load.run(target.port, size)
            costs.append((target.proxy.cpu_seconds() - before) * 1e6 / result.operations)
            rates.append(result.per_second)
        memory = target.proxy.memory_mib() if target.proxy else 0.0
    return Point(axis.name, n, median(rates), median(costs), memory)


def markdown(about: dict[str, object], points: Sequence[Point]) -> str:
    """A table for each axis."""
    how = (
        f"{about['taken']}, {about['cpus']} CPUs, {about['backend']} kernels; medians of "
        f"{about['rounds']} runs of {about['seconds']} s. Command: `python -m bench.growth`"
    )
    text = ["# Cost as the work grows", "", how]
    if about["quick"]:
        text += ["", "**A quick run: shows that it works, measures nothing.**"]
    for axis in AXES.values():
        rows = [point for point in points if point.axis == axis.name]
        if rows:
            text += [
                "",
                f"## {axis.title}",
                "",
                "| n | per s | CPU µs/op | MiB |",
                "|---|---|---|---|",
            ]
            text += [
                f"| {p.n:,} | {p.per_second:,.0f} | {p.cpu_us:.2f} | {p.memory_mib:.0f} |"
                for p in rows
            ]
    return "\n".join(text) + "\n"


def _write(directory: Path, about: dict[str, object], points: Sequence[Point]) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    stem = "growth-quick" if about["quick"] else "growth"
    document = about | {"points": [vars(point) for point in points]}
    (directory / f"{stem}.json").write_text(json.dumps(document, indent=1) + "\n")
    (directory / f"{stem}.md").write_text(markdown(about, points))
    series: dict[str, list[tuple[float, float]]] = {}
    for point in points:
        least = min(p.cpu_us for p in points if p.axis == point.axis)
        if point.axis != "proxy-values":  # bytes cost by themselves
            series.setdefault(point.axis, []).append((point.n, point.cpu_us / least))
    if series:
        chart = directory / f"{stem}.svg"
        lines(chart, "CPU per operation as the work grows", "n", "× the least", series, log=True)  # noqa: RUF001
    print(directory / f"{stem}.md")


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status: 0, 1 a service or a load failed, 2 a tool is missing."""
    parser = argparse.ArgumentParser(prog="python -m bench.growth")
    parser.add_argument("axes", nargs="*", metavar="AXIS", help="default: all; see --list")
    parser.add_argument("--list", action="store_true")
    parser.add_argument("--quick", action="store_true", help="one round of one second: does it run")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--results", type=Path, help="directory; bench/results, quick: build/bench")
    options = parser.parse_args(arguments)
    if options.list:
        for axis in AXES.values():
            print(f"{axis.name}: {axis.title}: {', '.join(map(str, axis.points))}")
        return 0
    for name in options.axes:
        if name not in AXES:
            parser.error(f"unknown axis {name!r}; there are: {', '.join(AXES)}")
    if options.quick:
        options.rounds, options.seconds = 1, 1.0
    directory = options.results or (_ROOT / "build" / "bench" if options.quick else _RESULTS)
    os.environ["PYTHONPATH"] = os.pathsep.join(
        part for part in (str(_ROOT), os.environ.get("PYTHONPATH", "")) if part
    )
    points: list[Point] = []
    for axis in [AXES[name] for name in options.axes or AXES]:
        needs = SCENARIOS[axis.scenario].needs
        if missing := [f"{tool} ({SOURCES[tool]})" for tool in needs if which(tool) is None]:
            print(f"bench.growth: {axis.name}: missing: {', '.join(missing)}", file=sys.stderr)
            return 2
        for n in axis.points:
            try:
                points.append(_measure(axis, n, options.rounds, options.seconds))
            except (ProcessError, LoadError) as error:
                print(f"bench.growth: {axis.name} at {n}: {error}", file=sys.stderr)
                return 1
            print(points[-1], flush=True)
    about: dict[str, object] = {
        "taken": datetime.now(UTC).isoformat(timespec="seconds"),
        "cpus": os.cpu_count(),
        "load_average": round(os.getloadavg()[2], 2),
        "backend": BACKEND,
        "rounds": options.rounds,
        "seconds": options.seconds,
        "quick": options.quick,
    }
    _write(directory, about, points)
    return 0


if __name__ == "__main__":
    sys.exit(main())
