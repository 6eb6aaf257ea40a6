"""Big values pass through the cacheproxy, not into it: ``python -m proofs.bigvalue``.

A value is written and read back through the proxy, byte-compared, while another client goes on with
small commands. Reported: the worker's peak resident set over its idle one (``VmHWM``, reset before
each step), and the slowest small command meanwhile.

A session's first big reply comes down the connection that it shares with others, which is left to
it when it reads slowly; from then on it reads from a connection of its own. Both with
back-pressure, so a reader however slow costs nothing; both are measured, with a slow reader, too.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from proofs.client import Connection
from proofs.report import Result, conclude, parser_of
from proofs.rig import Proxy, Redis, RigError, memory_kib

__all__ = ["Options", "main", "prove"]

#: Bytes written or read in one step.
_STEP: Final = 262_144
#: Growth of the worker that is allowed where there is back-pressure, MiB: what both event loops'
#: transports buffer at their high-water marks, and the allocator.
MOST_MIB: Final = 32.0


@dataclass(frozen=True)
class Options:
    mebibytes: int
    backend: str = ""


def _pattern(position: int) -> bytes:
    """One step of the value; every step is different."""
    return hashlib.sha256(b"%d" % position).digest() * (_STEP // 32)


def _reset_peak(pid: int) -> None:
    Path(f"/proc/{pid}/clear_refs").write_text("5")


_Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


async def _write(proxy: Proxy, key: bytes, size: int) -> bool:
    reader, writer = await asyncio.open_connection(proxy.host, proxy.port)
    writer.write(b"*3\r\n$3\r\nSET\r\n$%d\r\n%b\r\n$%d\r\n" % (len(key), key, size))
    for position in range(0, size, _STEP):
        writer.write(_pattern(position))
        await writer.drain()
    writer.write(b"\r\n")
    reply = await reader.readline()
    writer.close()
    return reply == b"+OK\r\n"


async def _read(streams: _Streams, key: bytes, size: int, *, slow: bool = False) -> bool:
    """Whether the value came back as it went."""
    reader, writer = streams
    writer.write(b"*2\r\n$3\r\nGET\r\n$%d\r\n%b\r\n" % (len(key), key))
    right = await reader.readline() == b"$%d\r\n" % size
    for position in range(0, size, _STEP):
        right &= await reader.readexactly(_STEP) == _pattern(position)
        if slow and position % (_STEP * 16) == 0:
            await asyncio.sleep(0.01)
    return right and await reader.readexactly(2) == b"\r\n"


async def _ping(proxy: Proxy, stop: asyncio.Event) -> float:
    """Small commands until ``stop``; the slowest, seconds."""
    connection = await Connection.open(proxy.host, proxy.port)
    slowest, number = 0.0, 0
    while not stop.is_set():
        number += 1
        began = time.monotonic()
        if await connection.ask(b"ECHO", b"%d" % number) != b"%d" % number:
            raise RigError("a small command got the wrong reply")
        slowest = max(slowest, time.monotonic() - began)
        await asyncio.sleep(0.005)
    connection.close()
    return slowest


async def prove(options: Options, directory: Path) -> Result:
    """Run the proof with its own servers, logs in ``directory``."""
    size = options.mebibytes << 20
    redis = Redis(directory)
    proxy = Proxy(directory, {"NEXUS_NO_EXTENSIONS": "1"} if options.backend == "pure" else {})
    stop = asyncio.Event()
    grown: dict[str, float] = {}
    right = True
    try:
        await redis.start()
        await proxy.start(f"redis://{redis.host}:{redis.port}")
        backend = (await proxy.stats())["backend"]
        await _write(proxy, b"warm", _STEP * 8)
        idle = memory_kib(proxy.pid)
        pinging = asyncio.create_task(_ping(proxy, stop))
        streams = await asyncio.open_connection(proxy.host, proxy.port, limit=_STEP)
        steps: dict[str, Callable[[], Awaitable[bool]]] = {
            "write": lambda: _write(proxy, b"big", size),
            "first read, slow": lambda: _read(streams, b"big", size, slow=True),
            "next read": lambda: _read(streams, b"big", size),
            "next read, slow": lambda: _read(streams, b"big", size, slow=True),
        }
        for name, step in steps.items():
            _reset_peak(proxy.pid)
            right &= await step()
            grown[name] = round((memory_kib(proxy.pid, "VmHWM") - idle) / 1024, 1)
        stop.set()
        streams[1].close()
        slowest = await pinging
        end = memory_kib(proxy.pid)
    finally:
        proxy.stop()
        redis.stop()
    peaks = ", ".join(f"{name} +{mib:g} MiB" for name, mib in grown.items())
    return Result(
        proof="bigvalue",
        passed=right and all(mib <= MOST_MIB for mib in grown.values()),
        summary=f"{options.mebibytes} MiB through the proxy: {peaks}",
        numbers={
            "backend": backend,
            "mebibytes": options.mebibytes,
            "peak_growth_mib": grown,
            "allowed_mib": MOST_MIB,
            "idle_kib": idle,
            "end_kib": end,
            "intact": right,
            "slowest_small_command_ms": round(slowest * 1000, 1),
        },
    )


def main(argv: list[str] | None = None) -> int:
    parser = parser_of("bigvalue", __doc__)
    parser.add_argument("--mebibytes", type=int, default=100)
    arguments = parser.parse_args(argv)
    options = Options(arguments.mebibytes, arguments.backend)
    return conclude(lambda directory: prove(options, directory), arguments.results)


if __name__ == "__main__":
    raise SystemExit(main())
