"""Clients that all want one key: ``python -m proofs.crowd`` is one process of them.

:func:`get_product` is the cache-aside code that an application has, with redis-py as it is. What
stands behind ``load`` takes its time and is counted, as the database would.

The process opens its connections, says ``ready``, waits for a line on its standard input, lets all
clients go at once, and prints what happened as JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Final

import redis.asyncio
import uvloop

__all__ = ["KEY", "Plan", "Report", "run"]

KEY: Final = "product:42"
#: Connections that are opened at the same time.
_AT_ONCE: Final = 250


@dataclass(frozen=True)
class Plan:
    """What one process does."""

    port: int
    clients: int
    #: Seconds that loading takes, and that the loaded value lives.
    load_seconds: float = 0.1
    ttl_seconds: float = 60.0
    #: Seconds that every client goes on asking; 0: it asks once.
    seconds: float = 0.0
    #: Pause of a client between two questions, seconds.
    pause: float = 0.0
    #: A file: whoever creates it dies while loading.
    victim: str = ""


@dataclass
class Report:
    """What came of it; times are seconds of the monotonic clock."""

    #: When each call of the loader began.
    loads: list[float] = field(default_factory=list)
    #: When each client had its value, and after how long.
    done: list[tuple[float, float]] = field(default_factory=list)
    #: Longest time that a GET took by itself.
    slowest_get: float = 0.0
    failed: int = 0
    killed: int = 0


class _KilledError(Exception):
    """The client is no more."""


class _Crowd:
    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.report = Report()

    async def load(self) -> str:
        """The database."""
        self.report.loads.append(time.monotonic())
        if self.plan.victim and _first(self.plan.victim):
            await asyncio.sleep(self.plan.load_seconds / 2)
            raise _KilledError
        await asyncio.sleep(self.plan.load_seconds)
        return f"product 42 as of {time.monotonic()}"

    async def get_product(self, cache: redis.asyncio.Redis) -> str:
        """Cache-aside: the code under test, which knows nothing of a proxy."""
        began = time.monotonic()
        value = await cache.get(KEY)
        self.report.slowest_get = max(self.report.slowest_get, time.monotonic() - began)
        if value is None:
            value = await self.load()
            await cache.set(KEY, value, px=int(self.plan.ttl_seconds * 1000))
        return str(value)

    async def client(self, cache: redis.asyncio.Redis, start: float) -> None:
        until = start + self.plan.seconds
        while True:
            began = time.monotonic()
            try:
                await self.get_product(cache)
            except _KilledError:
                self.report.killed += 1
                await cache.aclose()
                return
            except redis.exceptions.RedisError:
                self.report.failed += 1
                return
            now = time.monotonic()
            self.report.done.append((now, now - began))
            if now >= until:
                return
            await asyncio.sleep(self.plan.pause)


def _first(path: str) -> bool:
    try:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return False
    return True


async def run(plan: Plan) -> Report:
    """All clients of one process."""
    crowd = _Crowd(plan)
    gate = asyncio.Semaphore(_AT_ONCE)

    async def connect() -> redis.asyncio.Redis:
        cache = redis.asyncio.Redis(
            host="127.0.0.1", port=plan.port, single_connection_client=True, socket_timeout=60
        )
        async with gate:
            await cache.ping()
        return cache

    caches = await asyncio.gather(*(connect() for _ in range(plan.clients)))
    print("ready", flush=True)
    loop = asyncio.get_running_loop()
    await loop.run_in_executor(None, sys.stdin.readline)
    start = time.monotonic()
    await asyncio.gather(*(crowd.client(cache, start) for cache in caches))
    for cache in caches:
        await cache.aclose()
    return crowd.report


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m proofs.crowd", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("plan", type=Path, help="JSON of a Plan")
    plan = Plan(**json.loads(parser.parse_args().plan.read_text()))
    print(json.dumps(asdict(uvloop.run(run(plan)))), flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
