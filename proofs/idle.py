"""What an idle client of the cacheproxy costs: ``python -m proofs.idle --clients 10000``.

Memory of the worker (resident set) per client, of connections that never sent anything and of
connections that did some commands and then fell silent. Socket buffers are the kernel's and not
counted. Every tenth client is asked something at the end: they are idle, not dead.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from proofs.client import Connection, encode
from proofs.report import Result, conclude, parser_of
from proofs.rig import Proxy, Redis, memory_kib, open_files, raise_file_limit

__all__ = ["MOST_KIB", "Options", "main", "prove"]

#: KiB that an idle client may cost.
MOST_KIB: Final = 20.0
#: Connections that are opened at the same time, below the proxy's accept queue.
_AT_ONCE: Final = 500
_VALUE: Final = b"v" * 100


@dataclass(frozen=True)
class Options:
    clients: int
    backend: str = ""


async def _open(proxy: Proxy, count: int) -> list[Connection]:
    opened: list[Connection] = []
    for start in range(0, count, _AT_ONCE):
        size = min(_AT_ONCE, count - start)
        opened += await asyncio.gather(
            *(Connection.open(proxy.host, proxy.port) for _ in range(size))
        )
    return opened


async def _until(proxy: Proxy, clients: int) -> None:
    """Until the proxy counts so many clients (without the asking one)."""
    async with asyncio.timeout(30):
        while int((await proxy.stats())["clients"]) - 1 != clients:  # noqa: ASYNC110
            await asyncio.sleep(0.05)


async def _use(number: int, client: Connection) -> bool:
    """A few commands, pipelined, of a kilobyte and more; whether all were answered."""
    key = b"idle:%d" % number
    client.write(encode(b"SET", key, _VALUE) + encode(b"GET", key) * 10)
    replies = [await client.reply() for _ in range(11)]
    return replies == [b"OK", *[_VALUE] * 10]


async def prove(options: Options, directory: Path) -> Result:
    """Run the proof with its own servers, logs in ``directory``."""
    count = options.clients
    raise_file_limit(count + 200)
    redis = Redis(directory)
    environ = {"NEXUS_CACHEPROXY_LIMITS__MAX_CLIENTS": str(count + 100)}
    if options.backend == "pure":
        environ["NEXUS_NO_EXTENSIONS"] = "1"
    proxy = Proxy(directory, environ)
    try:
        await redis.start()
        await proxy.start(f"redis://{redis.host}:{redis.port}")
        backend = (await proxy.stats())["backend"]
        before = memory_kib(proxy.pid)
        files = open_files(proxy.pid)
        clients = await _open(proxy, count)
        await _until(proxy, count)
        silent = memory_kib(proxy.pid)
        held = open_files(proxy.pid) - files
        answers = [await _use(n, client) for n, client in enumerate(clients)]
        used = memory_kib(proxy.pid)
        alive = [await client.ask(b"ECHO", b"%d" % n) for n, client in enumerate(clients[::10])]
        for client in clients:
            client.close()
        await _until(proxy, 0)
        after = memory_kib(proxy.pid)
        left = open_files(proxy.pid) - files
    finally:
        proxy.stop()
        redis.stop()
    each_silent, each_used = (silent - before) / count, (used - before) / count
    all_right = all(answers) and alive == [b"%d" % n for n in range(len(alive))]
    return Result(
        proof="idle",
        passed=all_right and max(each_silent, each_used) <= MOST_KIB and left <= 1,
        summary=(
            f"{count:,} idle clients: {each_silent:.1f} KiB each when new, "
            f"{each_used:.1f} KiB each after use (allowed {MOST_KIB:g})"
        ),
        numbers={
            "backend": backend,
            "clients": count,
            "kib_per_new_client": round(each_silent, 2),
            "kib_per_used_client": round(each_used, 2),
            "worker_kib": {"before": before, "new": silent, "used": used, "closed": after},
            "files_held": held,
            "files_left": left,
            "answered_right": all_right,
        },
    )


def main(argv: list[str] | None = None) -> int:
    parser = parser_of("idle", __doc__)
    parser.add_argument("--clients", type=int, default=10_000)
    arguments = parser.parse_args(argv)
    options = Options(arguments.clients, arguments.backend)
    return conclude(lambda directory: prove(options, directory), arguments.results)


if __name__ == "__main__":
    raise SystemExit(main())
