"""Load generators: redis-benchmark and wrk, run once and read."""

from __future__ import annotations

import csv
import re
import subprocess
from dataclasses import dataclass

__all__ = ["LoadError", "LoadResult", "RedisLoad", "WrkLoad", "parse_redis", "parse_wrk"]

#: Requests of the short run that finds how many a run of the wanted length takes.
_PROBE = 20_000
_UNITS = {"us": 0.001, "ms": 1.0, "s": 1000.0, "m": 60_000.0}


class LoadError(Exception):
    """A load generator failed, or the replies were errors: the row would mean nothing."""


@dataclass(frozen=True)
class LoadResult:
    """What one run of a load generator saw."""

    operations: int
    per_second: float
    p50_ms: float
    p99_ms: float


def parse_redis(output: str, operations: int) -> LoadResult:
    """From ``redis-benchmark --csv``."""
    rows = list(csv.DictReader(line for line in output.splitlines() if line.startswith('"')))
    if len(rows) != 1 or "rps" not in rows[0]:
        raise LoadError(f"redis-benchmark printed no result: {output.strip()[-300:]}")
    row = rows[0]
    return LoadResult(
        operations, float(row["rps"]), float(row["p50_latency_ms"]), float(row["p99_latency_ms"])
    )


def parse_wrk(output: str) -> LoadResult:
    """From ``wrk --latency``; raises :class:`LoadError` for anything but 2xx and 3xx."""
    if problem := re.search(r"Non-2xx.*|Socket errors:.*", output):
        raise LoadError(problem.group())
    total = re.search(r"(\d+) requests in", output)
    rate = re.search(r"Requests/sec:\s+([\d.]+)", output)
    times = {
        percent: float(value) * _UNITS[unit]
        for percent, value, unit in re.findall(r"\s(50|99)%\s+([\d.]+)(us|ms|s|m)\b", output)
    }
    if total is None or rate is None or len(times) != 2:
        raise LoadError(f"wrk printed no result: {output.strip()[-300:]}")
    return LoadResult(int(total.group(1)), float(rate.group(1)), times["50"], times["99"])


def _run(command: list[str], seconds: float) -> str:
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=seconds * 10 + 60, check=False
    )
    if done.returncode:
        raise LoadError(f"{command[0]} failed: {(done.stderr or done.stdout).strip()[-300:]}")
    return done.stdout


@dataclass(frozen=True)
class RedisLoad:
    """50 connections, 64-byte values, 10 000 keys."""

    command: str
    pipeline: int

    @property
    def name(self) -> str:
        return f"{self.command.upper()} P={self.pipeline}"

    def run(self, port: int, operations: int) -> LoadResult:
        """That many requests."""
        command = ["redis-benchmark", "-h", "127.0.0.1", "-p", str(port), "-c", "50", "-d", "64"]
        command += ["-r", "10000", "-P", str(self.pipeline), "-t", self.command, "--csv"]
        return parse_redis(_run([*command, "-n", str(operations)], 60), operations)

    def operations(self, port: int, seconds: float) -> int:
        """How many requests take about ``seconds``; also warms up."""
        probe = self.run(port, _PROBE * (4 if self.pipeline > 1 else 1))
        return max(_PROBE, int(probe.per_second * seconds))


@dataclass(frozen=True)
class WrkLoad:
    """64 connections, one thread, keep-alive."""

    name: str
    path: str
    connections: int = 64

    def run(self, port: int, seconds: float) -> LoadResult:
        """wrk takes whole seconds."""
        whole = max(1, round(seconds))
        command = ["wrk", "-t1", f"-c{self.connections}", f"-d{whole}s", "--latency"]
        return parse_wrk(_run([*command, f"http://127.0.0.1:{port}{self.path}"], whole))
