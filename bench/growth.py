"""What an operation costs as the work grows: connections, values, keys, workers, routes, series.

::

    python -m bench.growth [AXIS…] [--quick] [--rounds N] [--seconds S]
    python -m bench.growth --list

All points of an axis are up at the same time, each a service of its own, and take turns
(:mod:`bench.turns`): a machine whose speed changes meanwhile does it to all. Every round starts
them afresh. Reported are the CPU of the service per operation as a multiple of the
first point's, over all rounds, and medians of that CPU, the rate, and memory afterwards. A flat
line is the wish. JSON, Markdown and a chart go to ``bench/results/growth.*``.
"""

from __future__ import annotations

import argparse
import http.client
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any, Final

import yaml

from bench.charts import lines
from bench.loads import KEYS, ClosedLoad, LoadError, RedisLoad, WrkLoad
from bench.processes import ProcessError
from bench.record import RESULTS, about, dumped, rounded, taken_on
from bench.scenarios import SCENARIOS, Peer
from bench.stage import SOURCES, Stage, which
from bench.turns import TURN, Contender, TurnsError, in_turns

__all__ = ["AXES", "Axis", "Point", "main", "points_of"]

_ROOT: Final = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Axis:
    """``point(n)`` is the peer and the load at ``n``, in the role of ``scenario``."""

    name: str
    title: str
    scenario: str
    points: tuple[int, ...]
    point: Callable[[int], tuple[Peer, ClosedLoad]]


@dataclass(frozen=True)
class Point:
    """Operations per second, CPU µs per operation, multiple of the first point's, MiB."""

    axis: str
    n: int
    per_second: float
    cpu_us: float
    multiple: float
    memory_mib: float


def _peer(scenario: str, name: str) -> Peer:
    return next(peer for peer in SCENARIOS[scenario].peers if peer.name == name)


_PROXY: Final = _peer("redis", "nexus")
_CACHED: Final = _peer("redis-cached", "nexus, near-cache")
_GATEWAY: Final = _peer("http", "nexus")
_OBSERVED: Final = _peer("http-features", "nexus, observed")
_GET: Final = "/api/products"


def _workers(peer: Peer, n: int) -> Peer:
    return replace(peer, command=(*peer.command, "--workers", str(n)))


def _with_routes(peer: Peer, n: int) -> Peer:
    routes = [{"path": f"/svc-{i}/items/{{id}}", "name": f"svc-{i}"} for i in range(n)]
    return replace(peer, appended=yaml.safe_dump({"routes": routes}))


def _routed(n: int) -> tuple[Peer, ClosedLoad]:
    """``n`` routes, of which the load asks one in the middle."""
    return _with_routes(_GATEWAY, n), WrkLoad(f"{n} routes", f"/svc-{n // 2}/items/7")


@dataclass(frozen=True)
class _Scrapes(WrkLoad):
    """``/metrics``, one after the other, when each of ``routes`` routes was asked once."""

    routes: int = 1

    def size(self, port: int, seconds: float) -> float:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
        with closing(connection):
            for i in range(self.routes):
                connection.request("GET", f"/svc-{i}/items/7")
                connection.getresponse().read()
        return super().size(port, seconds)


def _scraped(n: int) -> tuple[Peer, ClosedLoad]:
    load = _Scrapes(f"{n} routes", "/metrics", connections=1, routes=n)
    return _with_routes(_OBSERVED, n), load


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
            "Cacheproxy: bytes of a value, SET P=1",
            "redis",
            (16, 1024, 16_384, 262_144),
            lambda n: (_PROXY, RedisLoad("set", 1, n)),
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
        Axis(
            "gateway-series",
            "Gateway: routes with series of their own, a scrape",
            "http",
            (1, 10, 100, 1000),
            _scraped,
        ),
    )
}


def _measure(axis: Axis, rounds: int, seconds: float) -> list[Point]:
    chosen = {n: axis.point(n) for n in axis.points}
    peers = tuple(replace(peer, name=f"n={n}") for n, (peer, _) in chosen.items())
    scenario = replace(SCENARIOS[axis.scenario], peers=peers)
    rates: dict[int, list[float]] = {n: [] for n in chosen}
    costs: dict[int, list[float]] = {n: [] for n in chosen}
    memory: dict[int, list[float]] = {n: [] for n in chosen}
    turns = max(1, round(seconds / TURN))
    for number in range(rounds):
        with Stage(scenario, ()) as stage:
            backend, *targets = stage.targets
            running = dict(zip(chosen, targets, strict=True))
            sizes = {}
            for n, target in running.items():
                load = chosen[n][1]
                if isinstance(load, RedisLoad) and load.command == "get":
                    load.fill(backend.port)
                    # Each key is asked for alone, so that what keeps keys has them.
                    replace(load, pipeline=1, connections=50).run(target.port, 10 * load.keys)
                sizes[n] = load.size(target.port, seconds)
            order = list(chosen) if number % 2 == 0 else list(chosen)[::-1]
            shares = in_turns(
                {
                    n: Contender(
                        chosen[n][1].client(running[n].port, sizes[n], turns),
                        running[n].proxy,
                        backend.backend,
                    )
                    for n in order
                }
            )
            for n, share in shares.items():
                costs[n].append(share.proxy_us or 0.0)
                rates[n].append(share.per_second)
                memory[n].append(running[n].service.memory_mib())
    first = costs[axis.points[0]]
    return [
        Point(
            axis.name,
            n,
            median(rates[n]),
            median(costs[n]),
            sum(costs[n]) / sum(first),
            median(memory[n]),
        )
        for n in axis.points
    ]


def markdown(document: Mapping[str, Any], points: Sequence[Point]) -> str:
    """A table for each axis."""
    how = (
        f"{taken_on(document)}; {document['rounds']} starts, each point {document['seconds']:g} s "
        f"in turns of {TURN:g} s. Command: `python -m bench.growth`"
    )
    text = ["# Cost as the work grows", "", how]
    if document["quick"]:
        text += ["", "**A quick run: shows that it works, measures nothing.**"]
    for axis in AXES.values():
        rows = [point for point in points if point.axis == axis.name]
        if rows:
            text += ["", f"## {axis.title}", ""]
            text += ["| n | per s | CPU µs/op | × the first | MiB |", "|---|---|---|---|---|"]  # noqa: RUF001
            text += [
                f"| {p.n:,} | {p.per_second:,.0f} | {p.cpu_us:.2f} | {p.multiple:.2f} "
                f"| {p.memory_mib:.0f} |"
                for p in rows
            ]
    return "\n".join(text) + "\n"


def points_of(document: Mapping[str, Any]) -> list[Point]:
    """The points of a document that was written here."""
    return [Point(**point) for point in document["points"]]


def _write(directory: Path, about: Mapping[str, Any], points: Sequence[Point]) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    stem = "growth-quick" if about["quick"] else "growth"
    rows = [{name: rounded(value) for name, value in asdict(point).items()} for point in points]
    (directory / f"{stem}.json").write_text(dumped({**about, "points": rows}))
    (directory / f"{stem}.md").write_text(markdown(about, points))
    series: dict[str, list[tuple[float, float]]] = {}
    for point in points:
        if point.axis not in ("proxy-values", "gateway-series"):  # these cost by themselves
            series.setdefault(AXES[point.axis].title, []).append((point.n, point.multiple))
    if series:
        chart = directory / f"{stem}.svg"
        title = f"CPU per operation as the work grows, {about['taken'][:10]}"
        lines(chart, title, "n", "as a multiple of the first point's", series, log=True)
    print(directory / f"{stem}.md")


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status: 0, 1 a service or a load failed, 2 a tool is missing."""
    parser = argparse.ArgumentParser(prog="python -m bench.growth")
    parser.add_argument("axes", nargs="*", metavar="AXIS", help="default: all; see --list")
    parser.add_argument("--list", action="store_true")
    parser.add_argument("--quick", action="store_true", help="two rounds: does it run")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=1.0, help="of each point, in turns")
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
        options.rounds = 2
    directory = options.results or (_ROOT / "build" / "bench" if options.quick else RESULTS)
    os.environ["PYTHONPATH"] = os.pathsep.join(
        part for part in (str(_ROOT), os.environ.get("PYTHONPATH", "")) if part
    )
    points: list[Point] = []
    status = 0
    for axis in [AXES[name] for name in options.axes or AXES]:
        needs = SCENARIOS[axis.scenario].needs
        if missing := [f"{tool} ({SOURCES[tool]})" for tool in needs if which(tool) is None]:
            print(f"bench.growth: {axis.name}: missing: {', '.join(missing)}", file=sys.stderr)
            return 2
        try:
            found = _measure(axis, options.rounds, options.seconds)
        except (ProcessError, LoadError, TurnsError, OSError, http.client.HTTPException) as error:
            print(f"bench.growth: {axis.name}: {error}", file=sys.stderr)
            status = 1  # what the others have found is written all the same
            continue
        print(*found, sep="\n", flush=True)
        points += found
    if not points:
        return status
    document = about() | {
        "rounds": options.rounds,
        "seconds": options.seconds,
        "quick": options.quick,
    }
    _write(directory, document, points)
    return status


if __name__ == "__main__":
    sys.exit(main())
