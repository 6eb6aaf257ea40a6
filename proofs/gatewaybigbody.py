"""Big bodies stream both ways, they are not collected: ``python -m proofs.gatewaybigbody``.

One body goes up and one comes down at the same time, and another comes down to a client that reads
slowly; the most memory that the worker ever had (VmHWM) may be little more than before.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import time
from pathlib import Path
from typing import Final

import uvloop

from proofs.gatewayrig import gateway, origin
from proofs.report import RESULTS, Result, save
from proofs.rig import memory_kib

__all__ = ["prove"]

_MIB: Final = 1 << 20
_PIECE: Final = bytes(262_144)
#: What buffers on the way may hold: a few high-water marks, and what the allocator keeps.
_GROWTH_KIB: Final = 16_384


async def _up(port: int, size: int) -> bool:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(
        b"POST /api/ HTTP/1.1\r\nHost: proof\r\nContent-Length: %d\r\n"
        b"Connection: close\r\n\r\n" % size
    )
    left = size
    while left:
        writer.write(_PIECE[: min(left, len(_PIECE))])
        left -= min(left, len(_PIECE))
        await writer.drain()
    answer = await reader.read()
    writer.close()
    return answer.endswith(b"\r\n\r\n%d" % size)


async def _down(port: int, size: int, pause: float = 0.0) -> bool:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    path = b"/api/bytes/%d" % size
    writer.write(b"GET " + path + b" HTTP/1.1\r\nHost: proof\r\nConnection: close\r\n\r\n")
    head = await reader.readuntil(b"\r\n\r\n")
    got = 0
    while data := await reader.read(1 << 20):
        got += len(data)
        if pause:
            await asyncio.sleep(pause)
    writer.close()
    return head.startswith(b"HTTP/1.1 200") and got == size


async def _all(port: int, size: int) -> list[bool]:
    return list(
        await asyncio.gather(
            _up(port, size), _down(port, size), _down(port, min(size, 32 * _MIB), pause=0.02)
        )
    )


def prove(mebibytes: int) -> Result:
    """Run it and judge."""
    size = mebibytes * _MIB
    with (
        origin() as upstream,
        gateway(upstream, limits={"body_bytes": 0}, breaker={"timeout_ms": 60_000}) as running,
    ):
        uvloop.run(_all(running.port, 4 * _MIB))  # what is allocated once, is
        [worker] = running.workers()
        before = memory_kib(worker)
        started = time.monotonic()
        whole = uvloop.run(_all(running.port, size))
        seconds = time.monotonic() - started
        most = memory_kib(worker, "VmHWM")
    growth = most - before
    return Result(
        proof="gatewaybigbody",
        passed=all(whole) and growth <= _GROWTH_KIB,
        summary=f"{mebibytes} MiB up and down at once, {'whole' if all(whole) else 'NOT whole'}; "
        f"the worker grew by {growth / 1024:.1f} MiB (at most {_GROWTH_KIB // 1024}); "
        f"{seconds:.0f} s",
        numbers={
            "mebibytes": mebibytes,
            "whole": whole,
            "before_kib": before,
            "most_kib": most,
            "seconds": round(seconds, 1),
        },
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--mebibytes", type=int, default=1024)
    parser.add_argument("--results", type=Path, default=RESULTS, help="directory of the record")
    arguments = parser.parse_args()
    return save(prove(arguments.mebibytes), arguments.results)


if __name__ == "__main__":
    sys.exit(main())
