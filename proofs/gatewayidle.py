"""An idle client connection of the gateway costs at most 20 KiB: ``python -m proofs.gatewayidle``.

Each connection makes one request through the proxy, so that it has everything that a connection
ever has, and then stays open in silence. Resident memory of the worker, before and after.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import sys
from pathlib import Path
from typing import Final

import uvloop

from proofs.gatewayrig import Gateway, gateway, origin
from proofs.report import RESULTS, Result, save
from proofs.rig import raise_file_limit

__all__ = ["prove"]

_LIMIT_KIB: Final = 20.0
_WARM_UP: Final = 200

Stream = tuple[asyncio.StreamReader, asyncio.StreamWriter]


async def _open(port: int, count: int) -> list[Stream]:
    streams: list[Stream] = []
    for _ in range(count):
        reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1024)
        writer.write(b"GET /api/ HTTP/1.1\r\nHost: proof\r\n\r\n")
        await reader.readuntil(b"\r\n\r\n")
        await reader.readexactly(2)
        streams.append((reader, writer))
    return streams


async def _measure(running: Gateway, clients: int) -> tuple[int, int, int]:
    """Memory before and with them, KiB; and how many are still open and served at the end."""
    for _, writer in await _open(running.port, min(_WARM_UP, clients)):
        writer.close()
    await asyncio.sleep(0.3)
    before = running.memory_kib()
    streams = await _open(running.port, clients)
    await asyncio.sleep(0.5)
    after = running.memory_kib()
    served = 0
    for reader, writer in streams:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            writer.write(b"GET /health HTTP/1.1\r\nHost: proof\r\n\r\n")
            head = await reader.readuntil(b"\r\n\r\n")
            served += head.startswith(b"HTTP/1.1 200")
    for _, writer in streams:
        writer.close()
    return before, after, served


def prove(clients: int) -> Result:
    """Run it and judge."""
    raise_file_limit(clients + 200)
    patient = {"keep_alive": 600, "head": 600}
    with (
        origin() as upstream,
        gateway(upstream, timeouts=patient, limits={"connections": clients + 100}) as running,
    ):
        before, after, served = uvloop.run(_measure(running, clients))
    each = (after - before) / clients
    return Result(
        proof="gatewayidle",
        passed=each <= _LIMIT_KIB and served == clients,
        summary=f"{clients} idle clients cost {each:.1f} KiB each (at most {_LIMIT_KIB:.0f}); "
        f"{served} of them were served afterwards",
        numbers={"clients": clients, "before_kib": before, "after_kib": after, "served": served},
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--clients", type=int, default=10_000)
    parser.add_argument("--results", type=Path, default=RESULTS, help="directory of the record")
    arguments = parser.parse_args()
    return save(prove(arguments.clients), arguments.results)


if __name__ == "__main__":
    sys.exit(main())
