"""Hostile clients slow nobody else down: ``python -m proofs.hostile``.

A process of its own (``--attack PORT``) opens and drops connections, feeds heads and bodies a byte
at a time, and asks for big bodies that it never reads. Meanwhile well-behaved clients ask at a
steady rate. Alternating spells without and with it; the median of the spells' 99th percentiles with
it may be at most 1.25 times that without, no request of theirs may fail, and memory is bounded.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import statistics
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Final

import uvloop

from proofs.gatewayrig import Gateway, gateway, keep_asking, origin
from proofs.report import RESULTS, Result, save

__all__ = ["prove"]

_ROOT: Final = Path(__file__).parents[1]
_RATIO: Final = 1.25
_GROWTH_KIB: Final = 65_536
_CLIENTS: Final = 16
_PAUSE: Final = 0.01

#: The attack: so many at once of each kind, and new connections in a second.
_SLOW: Final = 300
_DEAF: Final = 20
_FLOOD_PER_SECOND: Final = 200


async def _slow(port: int, opening: bytes, drip: bytes) -> None:
    while True:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            _, writer = await asyncio.open_connection("127.0.0.1", port, limit=1024)
            try:
                writer.write(opening)
                while not writer.transport.is_closing():
                    await asyncio.sleep(1.0)
                    writer.write(drip)
            finally:
                writer.close()
        await asyncio.sleep(0.5)


async def _deaf(port: int) -> None:
    while True:
        with contextlib.suppress(OSError):
            _, writer = await asyncio.open_connection("127.0.0.1", port, limit=1024)
            writer.transport.pause_reading()  # type: ignore[attr-defined]
            writer.write(b"GET /api/bytes/100000000 HTTP/1.1\r\nHost: proof\r\n\r\n")
            await asyncio.sleep(60)
            writer.close()


async def _flood(port: int) -> None:
    """Connections that are dropped: at once, in the middle of a head, or unread."""
    parts = (
        b"",
        b"GET /api/ HTTP/1.1\r\nHo",
        b"GET /api/ HTTP/1.1\r\nHost: proof\r\n\r\n",
        b"\x16\3",
    )
    number = 0
    while True:
        number += 1
        with contextlib.suppress(OSError):
            _, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(parts[number % len(parts)])
            writer.transport.abort()
        await asyncio.sleep(1 / _FLOOD_PER_SECOND)


async def _attack(port: int) -> None:
    head = b"GET /api/ HTTP/1.1\r\nHost: proof\r\n"
    body = b"POST /api/ HTTP/1.1\r\nHost: proof\r\nContent-Length: 100000\r\n\r\n"
    async with asyncio.TaskGroup() as group:
        for _ in range(_SLOW):
            group.create_task(_slow(port, head, b"x"))
            group.create_task(_slow(port, body, b"x"))
        for _ in range(_DEAF):
            group.create_task(_deaf(port))
        group.create_task(_flood(port))


async def _spell(port: int, seconds: float, answers: Counter[str]) -> float:
    """99th percentile of a steady load, milliseconds."""
    times: list[float] = []
    end = time.monotonic() + seconds
    async with asyncio.TaskGroup() as group:
        for _ in range(_CLIENTS):
            group.create_task(
                keep_asking(
                    port, answers, lambda: time.monotonic() < end, times=times, pause=_PAUSE
                )
            )
    times.sort()
    return times[int(len(times) * 0.99)] * 1000


def _with_attack(running: Gateway, seconds: float, answers: Counter[str]) -> tuple[float, int]:
    attacker = subprocess.Popen(
        [sys.executable, "-m", "proofs.hostile", "--attack", str(running.port)], cwd=_ROOT
    )
    try:
        time.sleep(min(2.0, seconds))
        p99 = uvloop.run(_spell(running.port, seconds, answers))
        return p99, running.memory_kib()
    finally:
        attacker.terminate()
        attacker.wait(10)


def prove(alternations: int, seconds: float) -> Result:
    """Run it and judge."""
    answers: Counter[str] = Counter()
    calm: list[float] = []
    attacked: list[float] = []
    with origin() as upstream, gateway(upstream, log={"level": "error"}) as running:
        uvloop.run(_spell(running.port, seconds, Counter()))
        before = most = running.memory_kib()
        for _ in range(alternations):
            calm.append(uvloop.run(_spell(running.port, seconds, answers)))
            p99, memory = _with_attack(running, seconds, answers)
            attacked.append(p99)
            most = max(most, memory)
    ratio = statistics.median(attacked) / statistics.median(calm)
    failed = sum(answers.values()) - answers["200"] - answers["between"]
    return Result(
        proof="hostile",
        passed=ratio <= _RATIO and failed == 0 and most - before <= _GROWTH_KIB,
        summary=f"p99 of others {statistics.median(attacked):.2f} ms under attack, "
        f"{statistics.median(calm):.2f} ms without: {ratio:.2f} x (at most {_RATIO}); {failed} of "
        f"{answers['200']} failed; memory grew by {(most - before) / 1024:.0f} MiB",
        numbers={
            "alternations": alternations,
            "seconds": seconds,
            "calm_p99_ms": calm,
            "attacked_p99_ms": attacked,
            "ratio": ratio,
            "answers": dict(answers),
            "before_kib": before,
            "most_kib": most,
        },
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--alternations", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=8.0, help="of each spell")
    parser.add_argument("--results", type=Path, default=RESULTS, help="directory of the record")
    parser.add_argument("--attack", type=int, metavar="PORT", help="be the attacker, until killed")
    arguments = parser.parse_args()
    if arguments.attack is not None:
        uvloop.run(_attack(arguments.attack))
        return 0
    return save(prove(arguments.alternations, arguments.seconds), arguments.results)


if __name__ == "__main__":
    sys.exit(main())
