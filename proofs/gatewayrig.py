"""A gateway as a user starts it, an upstream behind it, and clients that keep their connections."""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import yaml

from bench.processes import free_ports
from proofs.rig import RigError, memory_kib

__all__ = ["Gateway", "fetch", "gateway", "keep_asking", "metric", "origin"]

_ROOT: Final = Path(__file__).parents[1]
_PATIENCE: Final = 20.0
#: Seconds for one response.
_TIMEOUT: Final = 30.0


@dataclass
class Gateway:
    """A running one; ``process`` is its supervisor."""

    port: int
    process: subprocess.Popen[bytes]
    log: Path

    def workers(self) -> list[int]:
        """Process ids."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        return [int(pid) for pid in children.read_text().split()]

    def memory_kib(self) -> int:
        """Resident memory of the workers together."""
        return sum(memory_kib(pid) for pid in self.workers())


@contextmanager
def origin() -> Iterator[int]:
    """The port of an upstream (:mod:`proofs.origin`)."""
    process = subprocess.Popen(
        [sys.executable, "-m", "proofs.origin"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=_ROOT,
    )
    try:
        yield int(process.stdout.readline())  # type: ignore[union-attr]
    finally:
        process.communicate(timeout=10)


@contextmanager
def gateway(*upstreams: int, **settings: Any) -> Iterator[Gateway]:
    """In front of these ports, with everything optional off but ``settings``."""
    with tempfile.TemporaryDirectory(prefix="nexus-proof-") as name:
        directory = Path(name)
        port, admin_port = free_ports(2)
        services = [{"url": f"http://127.0.0.1:{u}", "weight": 1} for u in upstreams]
        (directory / "services.json").write_text(json.dumps({"services": services}))
        off = {"enabled": False}
        base: dict[str, Any] = {
            "host": "127.0.0.1",
            "port": port,
            "admin_port": admin_port,
            "services_file": str(directory / "services.json"),
            **dict.fromkeys(("rate_limit", "auth", "kafka", "tracing", "access_log"), off),
            "block_list": off,
            "drain_seconds": 0.5,
        }
        config = directory / "gateway.yaml"
        config.write_text(yaml.safe_dump(base | settings))
        log = directory / "gateway.log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                [sys.executable, "-m", "nexus.gateway", "--config", str(config)],
                cwd=_ROOT,
                stdout=output,
                stderr=output,
            )
        running = Gateway(port, process, log)
        try:
            _await_ready(running)
            yield running
        finally:
            process.terminate()
            try:
                process.wait(_PATIENCE)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _await_ready(running: Gateway) -> None:
    end = time.monotonic() + _PATIENCE
    while time.monotonic() < end:
        try:
            if asyncio.run(fetch(running.port, b"/ready")).startswith(b"HTTP/1.1 200"):
                return
        except OSError:
            pass
        if running.process.poll() is not None:
            break
        time.sleep(0.05)
    raise RigError(f"the gateway did not start:\n{running.log.read_text()}")


async def fetch(port: int, path: bytes) -> bytes:
    """A whole response, by a connection that is closed behind it."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"GET " + path + b" HTTP/1.1\r\nHost: proof\r\nConnection: close\r\n\r\n")
    data = await reader.read()
    writer.close()
    return data


def metric(text: bytes, name: str) -> float:
    """The sum of a metric's series."""
    found = re.findall(rf"^{name}(?:{{.*}})? (\S+)$", text.decode(), re.MULTILINE)
    return sum(float(value) for value in found)


async def keep_asking(
    port: int,
    answers: Counter[str],
    more: Callable[[], bool],
    *,
    times: list[float] | None = None,
    pause: float = 0.0,
) -> None:
    """One client on one connection, as long as ``more()``; a new one where that one ends.

    ``answers`` counts ``200``, other statuses, ``refused`` (no connection), ``between`` (ended
    while nothing was asked: no request failed) and ``lost`` (ended while an answer was due).
    """
    while more():
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
        except OSError:
            answers["refused"] += 1
            await asyncio.sleep(0.01)
            continue
        try:
            while more():
                if reader.at_eof():
                    answers["between"] += 1
                    break
                begin = time.perf_counter()
                writer.write(b"GET /api/ HTTP/1.1\r\nHost: proof\r\n\r\n")
                async with asyncio.timeout(_TIMEOUT):
                    head = await reader.readuntil(b"\r\n\r\n")
                    length = re.search(rb"\r\nContent-Length: (\d+)\r\n", head)
                    if length is not None:
                        await reader.readexactly(int(length[1]))
                if times is not None:
                    times.append(time.perf_counter() - begin)
                answers[head[9:12].decode()] += 1
                if b"\r\nConnection: close" in head:
                    break
                if pause:
                    await asyncio.sleep(pause)
        except (asyncio.IncompleteReadError, ConnectionError, TimeoutError):
            answers["lost"] += 1
        finally:
            writer.close()
