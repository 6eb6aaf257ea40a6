"""Kafka goes away under load, and no request notices: ``python -m proofs.brokeroutage``.

::

    before ────────► outage (broker stopped or frozen) ────────► after (broker is back)
    five windows       five windows                                until nothing is queued

A real broker of its own (``scripts/kafka-dev``), a gateway with every event on, two demo upstreams,
and requests at a steady rate: an open loop, each request measured from when it was due, so that a
stall is not hidden by the requests that it held back. Held against each other are medians of five
windows: CPU per request and the 99th percentile of latency, each no worse than the bounds below.
Besides: memory stays within the buffer, and every request is accounted for in the end, as an event
sent or one dropped with its reason; nobody helps the gateway to find the broker again.

``freeze`` stops the broker's process (SIGSTOP): its sockets stay open and nothing is answered,
which is what a broken network looks like.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import math
import os
import re
import secrets
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

import uvloop
import yaml

from bench.processes import Process, free_ports
from proofs.report import RESULTS, Result, save
from proofs.rig import RigError

__all__ = ["Plan", "prove"]

_ROOT: Final = Path(__file__).parents[1]
_KAFKA_DEV: Final = _ROOT / "scripts" / "kafka-dev"

#: Windows of a phase; their median counts.
_WINDOWS: Final = 5
#: CPU per request and p99 during the outage, as multiples of those before it.
MOST_CPU: Final = 1.10
MOST_P99: Final = 1.25
#: Memory that may come beside the buffer itself: its objects, the allocator, the machine.
_MEMORY_FACTOR: Final = 2.0
_MEMORY_SPARE_MIB: Final = 16.0
#: Seconds for the gateway to find the broker again and send what it held.
_RECOVERY_SECONDS: Final = 60.0

How = Literal["stop", "freeze"]


@dataclass(frozen=True)
class Plan:
    """What is done; ``seconds`` of each phase."""

    how: How = "stop"
    seconds: float = 60.0
    rate: int = 400
    clients: int = 32
    buffer_bytes: int = 8_388_608
    #: Whether CPU and latency count for the verdict: not in a few seconds on a busy machine.
    speed: bool = True


@dataclass
class _Window:
    """What was seen in one window."""

    latencies_ms: list[float] = field(default_factory=list)
    bad: int = 0
    cpu_seconds: float = 0.0

    @property
    def p99_ms(self) -> float:
        ordered = sorted(self.latencies_ms)
        return ordered[math.ceil(len(ordered) * 0.99) - 1]

    @property
    def cpu_us(self) -> float:
        """Per request."""
        return self.cpu_seconds / len(self.latencies_ms) * 1e6


class _Broker:
    """One node of ``scripts/kafka-dev``, of this run's own."""

    def __init__(self) -> None:
        self._name = f"outage-{secrets.token_hex(4)}"
        self.bootstrap = ""

    def _run(self, *words: str, fine: tuple[int, ...] = (0,)) -> str:
        done = subprocess.run(
            [sys.executable, str(_KAFKA_DEV), *words, "--name", self._name],
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        if done.returncode not in fine:
            raise RigError(done.stderr.strip() or done.stdout.strip())
        return done.stdout

    def start(self) -> None:
        port = self.bootstrap.rpartition(":")[2] or "0"
        self.bootstrap = self._run("start", "--port", port).split()[-1]

    def stop(self) -> None:
        self._run("stop")

    def purge(self) -> None:
        self._run("stop", "--purge")

    def signal(self, number: int) -> None:
        # One that is frozen does not answer: its status is 1, and tells its process all the same.
        pid = re.search(r", pid (\d+),", self._run("status", fine=(0, 1)))
        if pid is None:
            raise RigError("the broker does not run")
        os.kill(int(pid[1]), number)


class _Load:
    """Requests at a steady rate over keep-alive connections."""

    def __init__(self, port: int, plan: Plan) -> None:
        self._port = port
        self._pause = plan.clients / plan.rate
        self._clients = plan.clients
        self.window = _Window()
        self.requests = 0
        self._stop = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        self._tasks = [
            asyncio.create_task(self._client(i * self._pause / self._clients))
            for i in range(self._clients)
        ]

    async def stop(self) -> None:
        self._stop.set()
        await asyncio.gather(*self._tasks)

    async def _client(self, offset: float) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
        due = time.perf_counter() + offset
        try:
            while not self._stop.is_set():
                await asyncio.sleep(max(0.0, due - time.perf_counter()))
                writer.write(b"GET /api/products HTTP/1.1\r\nHost: proof\r\n\r\n")
                self.requests += 1
                async with asyncio.timeout(30):
                    head = await reader.readuntil(b"\r\n\r\n")
                    length = re.search(rb"(?i)\r\ncontent-length: (\d+)\r\n", head)
                    if length is None:
                        raise RigError(f"a response without a length: {head!r}")
                    await reader.readexactly(int(length[1]))
                window = self.window
                window.latencies_ms.append((time.perf_counter() - due) * 1000)
                window.bad += not head.startswith(b"HTTP/1.1 200")
                due += self._pause
        finally:
            writer.close()


def _command(module: str, *words: str) -> list[str]:
    return ["env", f"PYTHONPATH={_ROOT}", sys.executable, "-m", module, *words]


@contextlib.contextmanager
def _gateway(directory: Path, kafka: str, plan: Plan) -> Iterator[tuple[Process, int, int]]:
    port, admin_port, *upstreams = free_ports(4)
    services = [{"url": f"http://127.0.0.1:{upstream}"} for upstream in upstreams]
    (directory / "services.json").write_text(json.dumps({"services": services}))
    config = {
        "host": "127.0.0.1",
        "port": port,
        "admin_port": admin_port,
        "services_file": str(directory / "services.json"),
        "rate_limit": {"enabled": False},
        "block_list": {"enabled": False},
        "auth": {"enabled": False},
        "tracing": {"enabled": False},
        "access_log": {"path": str(directory / "access.log")},
        "kafka": {"bootstrap_servers": kafka, "buffer_bytes": plan.buffer_bytes},
    }
    (directory / "gateway.yaml").write_text(yaml.safe_dump(config))
    with contextlib.ExitStack() as stack:
        for number, upstream in enumerate(upstreams):
            words = _command("nexus.demo.upstream", "--port", str(upstream))
            stack.enter_context(Process(f"upstream-{number}", words, directory))
        words = _command("nexus.gateway", "--config", str(directory / "gateway.yaml"))
        process = stack.enter_context(Process("gateway", words, directory))
        yield process, port, admin_port


async def _metrics(port: int) -> str:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"GET /metrics HTTP/1.1\r\nHost: proof\r\nConnection: close\r\n\r\n")
    text = (await reader.read()).decode()
    writer.close()
    return text


def _sum(text: str, name: str) -> int:
    values = re.findall(rf"^{name}(?:{{.*}})? (\S+)$", text, re.MULTILINE)
    return int(sum(map(float, values)))


async def _until(admin: int, name: str, wanted: int, seconds: float) -> float:
    """Wait until a metric is ``wanted``; the seconds it took. Raises ``TimeoutError``."""
    began = time.monotonic()
    async with asyncio.timeout(seconds):
        while _sum(await _metrics(admin), name) != wanted:  # noqa: ASYNC110  (another process)
            await asyncio.sleep(0.1)
    return time.monotonic() - began


async def _accounted(admin: int, requests: int) -> None:
    """Wait until every request is an event that was sent or dropped; not for ever."""
    limit = time.monotonic() + _RECOVERY_SECONDS
    while time.monotonic() < limit:
        text = await _metrics(admin)
        if _sum(text, "nexus_events_(?:sent|dropped)_total") >= requests:
            return
        await asyncio.sleep(0.1)


async def _phase(load: _Load, process: Process, seconds: float) -> list[_Window]:
    windows = []
    for _ in range(_WINDOWS):
        load.window = window = _Window()
        before = process.cpu_seconds()
        await asyncio.sleep(seconds / _WINDOWS)
        window.cpu_seconds = process.cpu_seconds() - before
        windows.append(window)
    return windows


async def _run(plan: Plan, directory: Path, broker: _Broker) -> dict[str, Any]:
    with _gateway(directory, broker.bootstrap, plan) as (process, port, admin):
        ready = f"127.0.0.1:{port}"
        await asyncio.to_thread(
            process.wait_for, lambda: ready in (directory / "gateway.log").read_text()
        )
        await _until(admin, "nexus_events_connected", 1, 30)
        load = _Load(port, plan)
        load.start()
        await asyncio.sleep(min(5.0, plan.seconds / 4))  # everything warm
        before = await _phase(load, process, plan.seconds)
        memory = [process.memory_mib()]
        if plan.how == "freeze":
            broker.signal(signal.SIGSTOP)
        else:
            await asyncio.to_thread(broker.stop)
        during = await _phase(load, process, plan.seconds)
        memory.append(process.memory_mib())
        at_end = await _metrics(admin)
        if plan.how == "freeze":
            broker.signal(signal.SIGCONT)
        else:
            await asyncio.to_thread(broker.start)
        try:
            recovery = await _until(admin, "nexus_events_connected", 1, _RECOVERY_SECONDS)
            after = await _phase(load, process, plan.seconds / 2)
            await load.stop()
            await _accounted(admin, load.requests)
            recovered = True
        except TimeoutError:
            await load.stop()
            recovery, after, recovered = _RECOVERY_SECONDS, during, False
        end = await _metrics(admin)
        sent, dropped = (
            _sum(end, "nexus_events_sent_total"),
            _sum(end, "nexus_events_dropped_total"),
        )
        return {
            "requests": load.requests,
            "bad_responses": sum(w.bad for w in (*before, *during, *after)),
            "sent": sent,
            "dropped": dropped,
            "dropped_for": sorted(set(re.findall(r'events_dropped_total{.*reason="(\w+)"', end))),
            "unaccounted": load.requests - sent - dropped,
            "held_in_outage": _sum(at_end, "nexus_events_queued"),
            "recovered": recovered,
            "recovery_seconds": round(recovery, 1),
            "memory_mib": [round(mib, 1) for mib in memory],
            "cpu_us": {n: _median(w, "cpu_us") for n, w in _named(before, during, after)},
            "p99_ms": {n: _median(w, "p99_ms") for n, w in _named(before, during, after)},
        }


def _named(*phases: list[_Window]) -> Iterator[tuple[str, list[_Window]]]:
    return iter(zip(("before", "outage", "after"), phases, strict=True))


def _median(windows: list[_Window], what: str) -> float:
    values: list[float] = [getattr(window, what) for window in windows]
    return round(statistics.median(values), 2)


def _judge(plan: Plan, seen: dict[str, Any]) -> list[str]:
    """What does not hold, in words; empty: all does."""
    faults = []
    if seen["bad_responses"]:
        faults.append(f"{seen['bad_responses']} requests were not answered 200")
    if not seen["recovered"]:
        faults.append("the gateway did not find the broker again")
    if seen["unaccounted"]:
        faults.append(f"{seen['unaccounted']} events are neither sent nor counted as dropped")
    if not seen["held_in_outage"]:
        faults.append("there was no outage: nothing was held")
    room = plan.buffer_bytes / 1048576 * _MEMORY_FACTOR + _MEMORY_SPARE_MIB
    grown = seen["memory_mib"][1] - seen["memory_mib"][0]
    if grown > room:
        faults.append(f"memory grew by {grown:.1f} MiB, {room:.1f} are allowed")
    if plan.speed:
        cpu, p99 = seen["cpu_us"], seen["p99_ms"]
        if cpu["outage"] > cpu["before"] * MOST_CPU:
            faults.append(f"CPU per request went from {cpu['before']} to {cpu['outage']} µs")
        if p99["outage"] > p99["before"] * MOST_P99:
            faults.append(f"p99 went from {p99['before']} to {p99['outage']} ms")
    return faults


def prove(plan: Plan) -> Result:
    """Run it and judge. Raises ``RigError`` where there is no verdict."""
    broker = _Broker()
    with tempfile.TemporaryDirectory(prefix="nexus-outage-") as name:
        try:
            broker.start()
            seen = uvloop.run(_run(plan, Path(name), broker))
        finally:
            with contextlib.suppress(RigError, ProcessLookupError):
                broker.signal(signal.SIGCONT)
            broker.purge()
    faults = _judge(plan, seen)
    cpu, p99 = seen["cpu_us"], seen["p99_ms"]
    return Result(
        proof="broker-outage",
        passed=not faults,
        summary=f"{plan.how} for {plan.seconds:g} s at {plan.rate}/s: CPU per request "
        f"{cpu['before']:.0f} → {cpu['outage']:.0f} µs, p99 {p99['before']} → {p99['outage']} ms, "
        f"{seen['sent']} sent + {seen['dropped']} dropped = {seen['requests']} requests, "
        f"back after {seen['recovery_seconds']} s" + "".join(f"; {fault}" for fault in faults),
        numbers={
            "how": plan.how,
            "seconds_of_outage": plan.seconds,
            "rate": plan.rate,
            "buffer_bytes": plan.buffer_bytes,
            **seen,
            "faults": faults,
        },
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--how", choices=("stop", "freeze"), default="stop")
    parser.add_argument("--seconds", type=float, default=60.0, help="of the outage")
    parser.add_argument("--rate", type=int, default=400, help="requests per second")
    parser.add_argument("--results", type=Path, default=RESULTS, help="directory of the record")
    arguments = parser.parse_args()
    plan = Plan(how=arguments.how, seconds=arguments.seconds, rate=arguments.rate)
    try:
        return save(prove(plan), arguments.results)
    except RigError as error:
        print(f"proofs.brokeroutage: no verdict: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
