"""The whole system for a soak, and what is done to it: processes, faults, memory, descriptors."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import sys
from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import aiohttp
import yaml

from bench.processes import Process, free_ports
from nexus.demo.kafka import BOOTSTRAP_PREFIX
from proofs.rig import Redis, open_files

__all__ = ["SECRET", "SERVICES", "Fault", "System", "Usage"]

_ROOT: Final = Path(__file__).parents[1]
SECRET: Final = "soak-client-secret"  # noqa: S105  (loopback, minutes)
#: Sampled: what must stay flat.
SERVICES: Final = ("gateway", "cacheproxy", "consumer")


@dataclass(frozen=True)
class Usage:
    """Of one service with all its processes."""

    mib: float
    descriptors: int


@dataclass(frozen=True)
class Fault:
    """``begin``, a wait of ``seconds``, ``end``; errors of ``hits`` (http, redis) are its own.

    They are also its own for ``recovery`` seconds behind the end: a breaker that opened stays open
    for its reset time, a connection that was refused is tried again with backoff.
    """

    name: str
    begin: Callable[[], Awaitable[None]]
    end: Callable[[], Awaitable[None]]
    seconds: float
    hits: frozenset[str] = frozenset()
    recovery: float = 3.0


class System:
    """``async with System(directory) as system``: everything is up."""

    def __init__(self, directory: Path, *, kafka: str, policy: str) -> None:
        self._directory = directory
        self._stack = ExitStack()
        self._policy = policy
        self._kafka = kafka
        self.redis = Redis(directory)
        ports = free_ports(7)
        self.gateway_port, self.gateway_admin, self.proxy_port, self.proxy_admin = ports[:4]
        self.consumer_admin, *self._upstream_ports = ports[4:]
        self._processes: dict[str, Process] = {}

    async def __aenter__(self) -> System:
        try:
            await self._start()
        except BaseException:
            self._stop()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await asyncio.to_thread(self._stop)

    def _stop(self) -> None:
        self._stack.close()
        self.redis.stop()

    async def _start(self) -> None:
        await self.redis.start()
        if not self._kafka:
            self._launch("kafka", "nexus.demo.kafka")
            await self._until("kafka", lambda: BOOTSTRAP_PREFIX in self.log("kafka"))
            self._kafka = self.log("kafka").split(BOOTSTRAP_PREFIX)[1].split()[0]
        for number, port in enumerate(self._upstream_ports):
            self._upstream(number, port)
        self._configure()
        for service in SERVICES:
            config = str(self._directory / f"{service}.yaml")
            self._launch(service, f"nexus.{service}", "--config", config)
        for service in SERVICES:
            await self._until(service, lambda s=service: " ready" in self.log(s))  # type: ignore[misc]

    def _configure(self) -> None:
        services = [{"url": f"http://127.0.0.1:{port}"} for port in self._upstream_ports]
        (self._directory / "services.json").write_text(json.dumps({"services": services}))
        (self._directory / "policy.yaml").write_text(self._policy)
        redis = {"url": f"redis://127.0.0.1:{self.redis.port}"}
        kafka = {"bootstrap_servers": self._kafka}
        configs = {
            "gateway": {
                "host": "127.0.0.1",
                "port": self.gateway_port,
                "admin_port": self.gateway_admin,
                "workers": 2,
                "services_file": str(self._directory / "services.json"),
                # Everybody comes from one address here.
                "rate_limit": {"capacity": 1_000_000, "refill_per_second": 1_000_000},
                "auth": {
                    "jwt_secret": "soak-signing-secret-of-more-than-32-bytes",
                    "clients": [{"client_id": "soak", "client_secret": SECRET}],
                },
                "tracing": {"enabled": False},
                "access_log": {"path": str(self._directory / "access.log")},
                "kafka": kafka,
                "redis": redis,
            },
            "cacheproxy": {
                "port": self.proxy_port,
                "admin_port": self.proxy_admin,
                "workers": 2,
                "redis": redis,
                "policy_file": str(self._directory / "policy.yaml"),
            },
            "consumer": {"admin_port": self.consumer_admin, "kafka": kafka, "redis": redis},
        }
        for name, config in configs.items():
            (self._directory / f"{name}.yaml").write_text(yaml.safe_dump(config))

    def _launch(self, name: str, module: str, *arguments: str) -> None:
        command = ["env", f"PYTHONPATH={_ROOT}", sys.executable, "-m", module, *arguments]
        process = Process(name, command, self._directory)
        self._processes[name] = self._stack.enter_context(process)

    def _upstream(self, number: int, port: int) -> None:
        arguments = "--port", str(port), "--name", f"upstream-{number}"
        self._launch(f"upstream-{number}", "nexus.demo.upstream", *arguments)

    def log(self, name: str) -> str:
        """What a process has printed."""
        return (self._directory / f"{name}.log").read_text(errors="replace")

    async def _until(self, name: str, there: Callable[[], bool]) -> None:
        await asyncio.to_thread(self._processes[name].wait_for, there)

    # -- looking

    def usage(self) -> dict[str, Usage]:
        """Service → what it holds now."""
        found = {}
        for service in SERVICES:
            process = self._processes[service]
            descriptors = 0
            for pid in process.pids():
                try:
                    descriptors += open_files(pid)
                except OSError:  # it has just ended
                    continue
            found[service] = Usage(process.memory_mib(), descriptors)
        return found

    async def metric(self, admin_port: int, name: str) -> float:
        """Sum of a metric's samples."""
        url = f"http://127.0.0.1:{admin_port}/metrics"
        async with aiohttp.ClientSession() as session, session.get(url) as reply:
            text = await reply.text()
        pattern = rf"^{name}(?:{{.*}})? (\S+)$"
        return sum(float(value) for value in re.findall(pattern, text, re.MULTILINE))

    # -- breaking

    def _pids(self, name: str) -> list[int]:
        return self._processes[name].pids()

    async def _kill_worker(self, service: str) -> None:
        workers = self._pids(service)[1:]
        os.kill(workers[-1], signal.SIGKILL)

    async def _signal(self, name: str, number: int) -> None:
        for pid in self._pids(name):
            os.kill(pid, number)

    async def _reload(self, service: str) -> None:
        os.kill(self._pids(service)[0], signal.SIGHUP)

    async def _switch(self, **switches: object) -> None:
        url = f"http://127.0.0.1:{self._upstream_ports[0]}/_switch"
        async with aiohttp.ClientSession() as session, session.put(url, json=switches) as reply:
            reply.raise_for_status()

    async def _restart_redis(self) -> None:
        await self.redis.start()

    async def _kill_redis(self) -> None:
        self.redis.kill()

    async def _nothing(self) -> None:
        """Nothing is to be undone."""

    async def _kill(self, name: str) -> None:
        await asyncio.to_thread(self._processes[name].stop)

    async def _restart_upstream(self) -> None:
        self._upstream(1, self._upstream_ports[1])
        await self._until("upstream-1", lambda: self._listens(self._upstream_ports[1]))

    @staticmethod
    def _listens(port: int) -> bool:
        import socket

        with socket.create_connection(("127.0.0.1", port), timeout=1):
            return True

    def faults(self) -> list[Fault]:
        """One of each, mildest first. What names no ``hits`` may cost no client anything."""
        stop, go = signal.SIGSTOP, signal.SIGCONT
        redis = frozenset({"redis"})
        return [
            Fault("gateway reload", lambda: self._reload("gateway"), self._nothing, 1),
            Fault("cacheproxy reload", lambda: self._reload("cacheproxy"), self._nothing, 1),
            Fault(
                "consumer worker killed", lambda: self._kill_worker("consumer"), self._nothing, 2
            ),
            Fault(
                "broker stopped",
                lambda: self._signal("kafka", stop),
                lambda: self._signal("kafka", go),
                8,
            ),
            Fault(
                "upstream slow",
                lambda: self._switch(slow_ms=300),
                lambda: self._switch(slow_ms=0),
                5,
            ),
            Fault(
                "upstream ended and back",
                lambda: self._kill("upstream-1"),
                self._restart_upstream,
                4,
                # A POST that may have reached it is not sent again.
                frozenset({"http"}),
                recovery=12,
            ),
            Fault(
                "redis stopped",
                lambda: self._redis_signal(stop),
                lambda: self._redis_signal(go),
                2,
                redis,
            ),
            Fault("redis killed", self._kill_redis, self._restart_redis, 2, redis),
            Fault(
                "gateway worker killed",
                lambda: self._kill_worker("gateway"),
                self._nothing,
                2,
                frozenset({"http"}),
            ),
            Fault(
                "cacheproxy worker killed",
                lambda: self._kill_worker("cacheproxy"),
                self._nothing,
                2,
                redis,
            ),
        ]

    async def _redis_signal(self, number: int) -> None:
        self.redis.signal(number)
