"""Loads: what is asked of a target, by redis-benchmark, wrk, or :mod:`bench.engine`.

Each has a ``name``, ``size(port, seconds)``, how much work takes about that long (it also warms
up), and ``run(port, size)``. Those that keep their connections busy, all but :class:`OpenLoad`,
have ``client(port, size, turns)``, too, which does the same in turns (:mod:`bench.turns`).
"""

from __future__ import annotations

import random
import re
import signal
import subprocess
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Final, Protocol

from bench.engine import Crowd, EngineError, drive, http_replies, resp_replies
from bench.turns import Client, CrowdClient, StoppedClient
from loadtests.zipf import Zipf
from nexus.wire.resp import encode_command

__all__ = [
    "ClosedLoad",
    "Load",
    "LoadError",
    "LoadResult",
    "OpenLoad",
    "RedisLoad",
    "StreamLoad",
    "WrkLoad",
    "http_get",
    "parse_redis",
    "parse_wrk",
    "transactions",
    "zipf_mix",
]

#: Requests of the short run that finds how many a run of the wanted length takes.
_PROBE: Final = 20_000
#: Seconds of the shortest run of wrk.
_WRK_LEAST: Final = 0.3
#: Bytes of a value above which fewer requests say as much.
_BIG: Final = 65_536
_UNITS: Final = {"us": 0.001, "ms": 1.0, "s": 1000.0, "m": 60_000.0}
#: Keys of all Redis loads, named as redis-benchmark names them.
KEYS: Final = 10_000


class LoadError(Exception):
    """A load generator failed, or the replies were errors: the row would mean nothing."""


@dataclass(frozen=True)
class LoadResult:
    """What one run of a load generator saw."""

    operations: int
    per_second: float
    p50_ms: float
    p99_ms: float
    p999_ms: float
    #: Replies that were neither 2xx nor 3xx.
    refused: int = 0


class Load(Protocol):
    """See the module."""

    @property
    def name(self) -> str: ...

    def size(self, port: int, seconds: float) -> float: ...

    def run(self, port: int, size: float) -> LoadResult: ...


class ClosedLoad(Load, Protocol):
    """One that keeps its connections busy; see the module."""

    def client(self, port: int, size: float, turns: int) -> Client: ...


def parse_redis(output: str, operations: int) -> LoadResult:
    """From redis-benchmark's report: the rate, and its latency distribution."""
    rate = re.search(r"throughput summary: ([\d.]+) requests per second", output)
    steps = [
        (float(percent), float(value))
        for percent, value in re.findall(
            r"^([\d.]+)% <= ([\d.]+) milliseconds \(cumulative count", output, re.MULTILINE
        )
    ]
    if rate is None or not steps:
        raise LoadError(f"redis-benchmark printed no result: {output.strip()[-300:]}")
    values = [
        next((value for reached, value in steps if reached >= wanted), steps[-1][1])
        for wanted in (50.0, 99.0, 99.9)
    ]
    return LoadResult(operations, float(rate.group(1)), values[0], values[1], values[2])


def parse_wrk(output: str) -> LoadResult:
    """From ``wrk --latency`` with :meth:`WrkLoad.script`."""
    if problem := re.search(r"Socket errors:.*", output):
        raise LoadError(problem.group())
    refused = re.search(r"Non-2xx or 3xx responses: (\d+)", output)
    total = re.search(r"(\d+) requests in", output)
    rate = re.search(r"Requests/sec:\s+([\d.]+)", output)
    times = {
        percent: float(value) * _UNITS[unit]
        for percent, value, unit in re.findall(r"\s(50|99)%\s+([\d.]+)(us|ms|s|m)\b", output)
    }
    last = re.search(r"99\.9%: (\d+) us", output)
    if total is None or rate is None or len(times) != 2 or last is None:
        raise LoadError(f"wrk printed no result: {output.strip()[-300:]}")
    return LoadResult(
        int(total.group(1)),
        float(rate.group(1)),
        times["50"],
        times["99"],
        int(last.group(1)) / 1000,
        int(refused.group(1)) if refused else 0,
    )


def _run(command: list[str], seconds: float, *, interrupt: bool = False) -> str:
    """What it prints; ``interrupt``: it runs until it is told to stop, after ``seconds``."""
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            if interrupt:
                time.sleep(seconds)
                process.send_signal(signal.SIGINT)
            out, errors = process.communicate(timeout=seconds * 10 + 60)
        except subprocess.TimeoutExpired:
            process.kill()
            raise LoadError(f"{command[0]} did not end") from None
        except BaseException:
            process.kill()
            raise
    if process.returncode:
        raise LoadError(f"{command[0]} failed: {(errors or out).strip()[-300:]}")
    return out


@dataclass(frozen=True)
class RedisLoad:
    """redis-benchmark over random keys."""

    command: str
    pipeline: int
    value_bytes: int = 64
    connections: int = 50
    keys: int = KEYS
    #: Of the client; one cannot keep two workers busy.
    threads: int = 1

    @property
    def name(self) -> str:
        more = "" if self.value_bytes == 64 else f", {self.value_bytes} bytes"
        more += "" if self.connections == 50 else f", {self.connections} connections"
        more += "" if self.keys == KEYS else f", {self.keys} keys"
        more += "" if self.threads == 1 else f", {self.threads} client threads"
        return f"{self.command.upper()} P={self.pipeline}{more}"

    def run(self, port: int, size: float) -> LoadResult:
        """That many requests."""
        return parse_redis(_run(self._command(port, int(size)), 60), int(size))

    def client(self, port: int, size: float, turns: int) -> Client:  # noqa: ARG002
        """That many requests, in however many turns."""
        operations = int(size)

        def read(output: str) -> tuple[int, int]:
            return parse_redis(output, operations).operations, 0

        return StoppedClient(self._command(port, operations), read)

    def _command(self, port: int, operations: int) -> list[str]:
        command = ["redis-benchmark", "-h", "127.0.0.1", "-p", str(port)]
        command += ["-c", str(self.connections), "-r", str(self.keys)]
        command += ["-d", str(self.value_bytes), "-P", str(self.pipeline)]
        command += ["-t", self.command, "-n", str(operations)]
        if self.threads > 1:
            command += ["--threads", str(self.threads)]
        return command

    def size(self, port: int, seconds: float) -> float:
        # With threads redis-benchmark looks only every quarter of a second whether it is done.
        alone = replace(self, threads=1)
        least = _PROBE if self.value_bytes <= _BIG else _PROBE // 20
        probe = alone.run(port, least * (4 if self.pipeline > 1 else 1))
        # Enough for each connection that opening it does not count.
        return max(least, 50 * self.connections, int(probe.per_second * seconds))

    def fill(self, port: int) -> None:
        """Write the keys, so that GETs find them: 20 random writes for each leave none out."""
        writes = replace(self, command="set", pipeline=16, connections=50)
        writes.run(port, 20 * self.keys if self.value_bytes <= 4096 else 2 * self.keys)


_SCRIPT = """\
wrk.method = "{method}"
wrk.body = {body}
{headers}
function done(summary, latency, requests)
  io.write(string.format("99.9%%: %d us\\n", latency:percentile(99.9)))
end
"""


@dataclass(frozen=True)
class WrkLoad:
    """wrk: one thread, keep-alive."""

    name: str
    path: str
    connections: int = 64
    method: str = "GET"
    body_bytes: int = 0
    headers: dict[str, str] = field(default_factory=dict)

    def script(self) -> str:
        """The Lua that wrk runs."""
        headers = "\n".join(f'wrk.headers["{k}"] = "{v}"' for k, v in self.headers.items())
        body = f'string.rep("x", {self.body_bytes})' if self.body_bytes else "nil"
        return _SCRIPT.format(method=self.method, body=body, headers=headers)

    def run(self, port: int, size: float) -> LoadResult:
        """That many seconds, by SIGINT: wrk itself takes whole seconds only.

        Not less than :data:`_WRK_LEAST`: until it has started, it ignores SIGINT.
        """
        with tempfile.NamedTemporaryFile("w", suffix=".lua") as script:
            script.write(self.script())
            script.flush()
            command = self._command(port, script.name)
            return parse_wrk(_run(command, max(size, _WRK_LEAST), interrupt=True))

    def client(self, port: int, size: float, turns: int) -> Client:  # noqa: ARG002
        """That many seconds of turns."""

        def read(output: str) -> tuple[int, int]:
            result = parse_wrk(output)
            return result.operations, result.refused

        script = tempfile.NamedTemporaryFile("w", suffix=".lua")  # noqa: SIM115  (the client's)
        script.write(self.script())
        script.flush()
        # Stopped, it counts the pause as waiting, and that is no timeout.
        wrk, *rest = self._command(port, script.name)
        command = [wrk, "--timeout=60s", *rest]
        return StoppedClient(command, read, size, holds=script)

    def _command(self, port: int, script: str) -> list[str]:
        command = ["wrk", "-t1", f"-c{self.connections}", "-d3000s", "--latency"]
        return [*command, "-s", script, f"http://127.0.0.1:{port}{self.path}"]

    def size(self, port: int, seconds: float) -> float:
        # Hundreds of connections take a while to be opened.
        seconds *= 2 if self.connections > 256 else 1
        self.run(port, min(1.0, seconds))
        return seconds


def _driven(
    load: StreamLoad | OpenLoad,
    port: int,
    operations: int,
    rate: float | None = None,
    *,
    http: bool = False,
) -> LoadResult:
    """What :func:`bench.engine.drive` saw."""
    replies = http_replies if http else resp_replies
    try:
        outcome = drive(
            port,
            load.requests,
            replies,
            connections=load.connections,
            operations=operations,
            rate=rate,
        )
    except (EngineError, OSError) as error:
        raise LoadError(f"{load.name}: {error}") from None
    p50, p99, p999 = (outcome.percentile(percent) * 1000 for percent in (50, 99, 99.9))
    return LoadResult(operations, operations / outcome.seconds, p50, p99, p999)


@dataclass(frozen=True)
class StreamLoad:
    """Prepared RESP requests over 50 connections, each with one operation in flight."""

    name: str
    requests: Sequence[tuple[bytes, int]]
    connections: int = 50

    def run(self, port: int, size: float) -> LoadResult:
        """That many operations."""
        return _driven(self, port, int(size))

    def client(self, port: int, size: float, turns: int) -> Client:
        """That many operations."""

        def gather() -> Crowd:
            return Crowd(port, self.requests, resp_replies, connections=self.connections)

        return CrowdClient(gather, int(size), max(1, int(size) // turns))

    def size(self, port: int, seconds: float) -> float:
        return max(_PROBE, int(self.run(port, _PROBE).per_second * seconds))


@dataclass(frozen=True)
class OpenLoad:
    """Open loop: Poisson arrivals at ``rate`` per second, latencies from when each was due.

    It runs four times as long as the others: its rate is low, and its latencies are those to quote.
    """

    name: str
    requests: Sequence[tuple[bytes, int]]
    rate: float
    http: bool
    connections: int = 64

    def run(self, port: int, size: float) -> LoadResult:
        """That many operations."""
        return _driven(self, port, int(size), self.rate, http=self.http)

    def size(self, port: int, seconds: float) -> float:
        self.run(port, max(50.0, self.rate / 4))
        return max(100, int(4 * self.rate * seconds))


def _key(rank: int) -> bytes:
    return b"key:%012d" % rank


def zipf_mix(writes: float, count: int = 50_000) -> list[tuple[bytes, int]]:
    """GETs and this share of SETs of 64 bytes, over Zipf 1.1 keys."""
    rng = random.Random(7)
    zipf = Zipf(KEYS, 1.1, rng)
    value = b"x" * 64
    requests = []
    for _ in range(count):
        key = _key(zipf.draw())
        write = rng.random() < writes
        command = [b"SET", key, value] if write else [b"GET", key]
        requests.append((encode_command(command), 1))
    return requests


def transactions(count: int = 5_000) -> list[tuple[bytes, int]]:
    """MULTI, SET, GET, EXEC in one piece."""
    rng = random.Random(7)
    requests = []
    for _ in range(count):
        key = _key(rng.randrange(KEYS))
        parts = ([b"MULTI"], [b"SET", key, b"x" * 64], [b"GET", key], [b"EXEC"])
        requests.append((b"".join(encode_command(part) for part in parts), 4))
    return requests


def http_get(path: str, headers: dict[str, str] | None = None) -> list[tuple[bytes, int]]:
    """One GET, for :class:`OpenLoad`."""
    fields = "".join(f"{name}: {value}\r\n" for name, value in (headers or {}).items())
    return [(f"GET {path} HTTP/1.1\r\nHost: bench\r\n{fields}\r\n".encode(), 1)]
