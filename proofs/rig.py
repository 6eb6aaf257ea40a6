"""The real things under proof: a redis-server and a cacheproxy, as a user starts them."""

from __future__ import annotations

import asyncio
import os
import re
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from bench.processes import free_ports
from proofs.client import ClosedError, Connection

__all__ = ["Proxy", "Redis", "RigError", "memory_kib", "open_files", "raise_file_limit"]

#: Seconds for a server to start on a busy machine.
_PATIENCE: Final = 60.0


class RigError(Exception):
    """Something did not start or ended by itself, which is no verdict on replies."""


def memory_kib(pid: int, field: str = "VmRSS") -> int:
    """A line of ``/proc/PID/status`` that is in KiB: ``VmRSS``, ``VmHWM``."""
    found = re.search(rf"{field}:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    return int(found[1]) if found else 0


def open_files(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))  # noqa: PTH208  (names only, many times)


def raise_file_limit(wanted: int) -> None:
    """Let this process and its children open so many files; raises :class:`RigError`."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    except (OSError, OverflowError, ValueError) as error:
        raise RigError(f"{wanted} open files are needed (ulimit -n): {error}") from None


class _Server:
    """A process with a log file, ended by its id."""

    def __init__(self, name: str, directory: Path, environ: Mapping[str, str]) -> None:
        self.name = name
        self.directory = directory
        self._environ = dict(environ)
        self.log: Final = directory / f"{name}.log"
        self.process: subprocess.Popen[bytes] | None = None

    def launch(self, command: Sequence[str]) -> None:
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=self._environ
            )

    def signal(self, number: int) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(number)

    def check(self) -> None:
        if self.process is None or self.process.poll() is not None:
            words = self.log.read_text(errors="replace").strip().splitlines()[-5:]
            raise RigError(f"{self.name} ended by itself: {' | '.join(words)}")

    def stop(self) -> None:
        """SIGTERM, patience, SIGKILL."""
        if self.process is None:
            return
        self.signal(signal.SIGCONT)
        self.signal(signal.SIGTERM)
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


class Redis(_Server):
    """``redis-server`` without persistence, on one free port for all its lives."""

    def __init__(self, directory: Path, executable: str = "redis-server", *arguments: str) -> None:
        super().__init__("redis", directory, os.environ)
        self._arguments: Final = arguments
        self.host: Final = "127.0.0.1"
        self.port: Final = free_ports(1)[0]
        self._executable = executable

    async def start(self) -> None:
        """Return when it answers."""
        self.launch(
            [
                self._executable,
                *("--port", str(self.port), "--bind", self.host, "--save", ""),
                *("--appendonly", "no", "--dir", str(self.directory)),
                *self._arguments,
            ]
        )
        deadline = time.monotonic() + _PATIENCE
        while not await answers(self.host, self.port):
            self.check()
            if time.monotonic() > deadline:
                raise RigError("redis-server does not answer")
            await asyncio.sleep(0.005)

    def kill(self) -> None:
        """SIGKILL, as a crash; nothing survives."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()

    async def connections(self) -> int:
        """Clients that it has, without the asker."""
        connection = await Connection.open(self.host, self.port)
        try:
            listed = await connection.ask(b"CLIENT", b"LIST")
        finally:
            connection.close()
        return len(listed.splitlines()) - 1


class Proxy(_Server):
    """``python -m nexus.cacheproxy`` on free ports; kernels as the environment says."""

    def __init__(self, directory: Path, environ: Mapping[str, str] | None = None) -> None:
        clean = {k: v for k, v in os.environ.items() if not k.startswith("NEXUS_CACHEPROXY_")}
        environ = dict(environ or {})
        if environ.get("NEXUS_NO_EXTENSIONS") == "1":
            clean.pop("NEXUS_REQUIRE_EXTENSIONS", None)
        super().__init__("cacheproxy", directory, clean | environ)
        self.host: Final = "127.0.0.1"
        self.port = 0
        #: The worker, which holds all connections.
        self.pid = 0

    async def start(self, url: str, *arguments: str) -> None:
        self.launch(
            [
                *(sys.executable, "-m", "nexus.cacheproxy", "--redis", url),
                *("--port", "0", "--admin-port", "0", *arguments),
            ]
        )
        deadline = time.monotonic() + _PATIENCE
        while not (ready := re.search(rb"ready on [\d.]+:(\d+)", self.log.read_bytes())):
            self.check()
            if time.monotonic() > deadline:
                raise RigError("the cacheproxy does not get ready")
            await asyncio.sleep(0.02)
        self.port = int(ready[1])
        self.pid = int((await self.stats())["pid"])

    async def stats(self) -> dict[str, str]:
        """``NEXUS STATS``; the asking client is one of its ``clients``."""
        connection = await Connection.open(self.host, self.port)
        try:
            text = await connection.ask(b"NEXUS", b"STATS")
        finally:
            connection.close()
        return dict(line.split(":", 1) for line in text.decode().split("\r\n") if ":" in line)


async def answers(host: str, port: int) -> bool:
    """Whether a PING is answered with a PONG, within a second."""
    connection: Connection | None = None
    try:
        async with asyncio.timeout(1):
            connection = await Connection.open(host, port)
            return bool(await connection.ask(b"PING") == b"PONG")
    except (OSError, ClosedError, TimeoutError):
        return False
    finally:
        if connection is not None:
            connection.close()
