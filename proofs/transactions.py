"""Transactions borrow connections, they do not hoard them: ``python -m proofs.transactions``.

Clients that run WATCH, GET, MULTI, SET, EXEC step by step, 2 700 transactions a second over many
keys, some of which collide. A transaction needs a connection of its own for as long as it lasts, so
the proxy may open at most as many as there were transactions at the same time, however many
clients and transactions there are. Every EXEC is checked: done, or aborted because the key changed.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import uvloop

from proofs.client import Connection
from proofs.report import Result, save
from proofs.rig import Proxy, Redis

__all__ = ["Options", "prove"]

_KEYS: Final = 400


@dataclass(frozen=True)
class Options:
    clients: int = 200
    rate: float = 2700.0
    seconds: float = 10.0
    seed: int = 1
    #: Share of the rate that must be reached, else it was another load.
    least: float = 0.9


class _Count:
    def __init__(self) -> None:
        self.now = self.peak = self.done = self.aborted = self.wrong = 0


async def _client(proxy: Proxy, options: Options, rng: random.Random, count: _Count) -> None:
    connection = await Connection.open(proxy.host, proxy.port)
    loop = asyncio.get_running_loop()
    pace = options.clients / options.rate
    due = loop.time() + rng.random() * pace
    end = loop.time() + options.seconds
    while (due := due + rng.uniform(0.5, 1.5) * pace) < end:
        await asyncio.sleep(due - loop.time())
        key = b"tx:%d" % rng.randrange(_KEYS)
        count.now += 1
        count.peak = max(count.peak, count.now)
        await _transaction(connection, key, count)
        count.now -= 1
    connection.close()


async def _transaction(connection: Connection, key: bytes, count: _Count) -> None:
    """Add one to a number by compare-and-set."""
    watched = await connection.ask(b"WATCH", key)
    value = await connection.ask(b"GET", key)
    begun = await connection.ask(b"MULTI")
    queued = await connection.ask(b"SET", key, b"%d" % (int(value or 0) + 1))
    result = await connection.ask(b"EXEC")
    if (watched, begun, queued) != (b"OK", b"OK", b"QUEUED"):
        count.wrong += 1
    elif result == [b"OK"]:
        count.done += 1
    elif result is None:
        count.aborted += 1
    else:
        count.wrong += 1


async def prove(options: Options, directory: Path) -> Result:
    """Run the proof with its own servers, logs in ``directory``."""
    redis, proxy, count = Redis(directory), Proxy(directory), _Count()
    rng = random.Random(options.seed)
    try:
        await redis.start()
        await proxy.start(f"redis://{redis.host}:{redis.port}")
        began = time.monotonic()
        async with asyncio.TaskGroup() as group:
            for _ in range(options.clients):
                client = _client(proxy, options, random.Random(rng.random()), count)
                group.create_task(client)
        seconds = time.monotonic() - began
        stats = await proxy.stats()
        direct = await Connection.open(redis.host, redis.port)
        values = await direct.ask(b"MGET", *(b"tx:%d" % number for number in range(_KEYS)))
        direct.close()
    finally:
        proxy.stop()
        redis.stop()
    total = count.done + count.aborted
    opened = int(stats["pins_opened"])
    counted = sum(int(value or 0) for value in values)
    reached = total / seconds
    passed = (
        opened <= count.peak
        and count.wrong == 0
        and counted == count.done  # no update lost, none twice
        and reached >= options.rate * options.least
    )
    return Result(
        proof="transactions",
        passed=passed,
        summary=f"{total} transactions of {options.clients} clients at {reached:.0f}/s, at most "
        f"{count.peak} at once, opened {opened} connections; {count.aborted} aborted, "
        f"{count.wrong} wrong, {count.done - counted} updates lost",
        seed=options.seed,
        numbers={
            "backend": stats["backend"],
            "clients": options.clients,
            "per_second": round(reached),
            "peak": count.peak,
            "connections_opened": opened,
            "connections_reused": int(stats["pins_reused"]),
            "done": count.done,
            "aborted": count.aborted,
            "wrong": count.wrong,
            "counted": counted,
        },
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--clients", type=int, default=Options.clients)
    parser.add_argument("--rate", type=float, default=Options.rate, help="transactions per second")
    parser.add_argument("--seconds", type=float, default=Options.seconds)
    parser.add_argument("--seed", type=int, default=None, help="random and printed by default")
    parser.add_argument("--results", type=Path, help="directory of the record")
    arguments = parser.parse_args()
    seed = arguments.seed if arguments.seed is not None else random.SystemRandom().getrandbits(31)
    options = Options(arguments.clients, arguments.rate, arguments.seconds, seed)
    with tempfile.TemporaryDirectory(prefix="nexus-transactions-") as name:
        return save(uvloop.run(prove(options, Path(name))), arguments.results)


if __name__ == "__main__":
    sys.exit(main())
