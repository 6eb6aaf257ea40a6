"""Reloads fail no request, a killed worker only those it had: ``python -m proofs.reload``.

Clients keep asking two workers. First SIGHUP comes every 100 ms: every request must be answered 200
and no connection be refused or cut. Then workers are killed (SIGKILL), one after the other, each
when both serve: what may fail are requests that were under way at the killed worker, at most one
for each client and kill; whoever connects anew must be served, and so must everybody else.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Final

import uvloop

from proofs.gatewayrig import Gateway, gateway, keep_asking, origin
from proofs.report import RESULTS, Result, save
from proofs.rig import RigError

__all__ = ["prove"]

_BETWEEN: Final = 0.1
_CLIENTS: Final = 32


async def _load(running: Gateway, seconds: float) -> tuple[Counter[str], int]:
    """Ask while SIGHUPs come."""
    answers: Counter[str] = Counter()
    end = time.monotonic() + seconds
    reloads = 0
    async with asyncio.TaskGroup() as group:
        for _ in range(_CLIENTS):
            group.create_task(keep_asking(running.port, answers, lambda: time.monotonic() < end))
        while time.monotonic() < end:
            running.process.send_signal(signal.SIGHUP)
            reloads += 1
            await asyncio.sleep(_BETWEEN)
    return answers, reloads


async def _kills(running: Gateway, kills: int) -> Counter[str]:
    answers: Counter[str] = Counter()
    going = True
    async with asyncio.TaskGroup() as group:
        for _ in range(_CLIENTS):
            group.create_task(keep_asking(running.port, answers, lambda: going))
        try:
            for kill in range(kills):
                await asyncio.sleep(0.3)
                workers = running.workers()
                victim = workers[kill % len(workers)]
                os.kill(victim, signal.SIGKILL)
                await _replaced(running, victim, len(workers))
            await asyncio.sleep(0.3)
        finally:
            going = False
    return answers


async def _replaced(running: Gateway, victim: int, wanted: int) -> None:
    end = time.monotonic() + 20
    while time.monotonic() < end:
        workers = running.workers()
        if victim not in workers and len(workers) == wanted:
            await asyncio.sleep(0.7)  # from fork to serving
            return
        await asyncio.sleep(0.02)
    raise RigError("a killed worker was not replaced")


def prove(seconds: float, kills: int) -> Result:
    """Run it and judge."""
    with (
        origin() as a,
        origin() as b,
        gateway(a, b, workers=2, log={"level": "warning"}) as running,
    ):
        reloaded, reloads = uvloop.run(_load(running, seconds))
        killed = uvloop.run(_kills(running, kills))
    clean = set(reloaded) == {"200"}
    allowed = _CLIENTS * kills
    honest = set(killed) <= {"200", "lost", "between"} and killed["lost"] <= allowed
    return Result(
        proof="reload",
        passed=clean and honest and reloads >= seconds / _BETWEEN / 2,
        summary=f"{reloaded['200']} requests through {reloads} reloads, "
        f"{sum(reloaded.values()) - reloaded['200']} failed; {killed['200']} requests through "
        f"{kills} killed workers, {killed['lost']} lost that were under way (at most {allowed})",
        numbers={
            "seconds": seconds,
            "reloads": reloads,
            "reload_answers": dict(reloaded),
            "kills": kills,
            "kill_answers": dict(killed),
            "clients": _CLIENTS,
        },
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=30.0, help="of reloads")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--results", type=Path, default=RESULTS, help="directory of the record")
    arguments = parser.parse_args()
    return save(prove(arguments.seconds, arguments.kills), arguments.results)


if __name__ == "__main__":
    sys.exit(main())
