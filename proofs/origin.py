"""An upstream for proofs of the gateway: `python -m proofs.origin`.

``GET /`` answers a few bytes, ``GET /bytes/N`` so many, ``POST`` and ``PUT`` how many they brought.
Bodies are made and swallowed in pieces; nothing is kept. Prints its port, then serves until its
standard input ends.
"""

from __future__ import annotations

import asyncio
import re
import sys
from typing import Final

import uvloop

_PIECE: Final = bytes(262_144)
_LENGTH: Final = re.compile(rb"\r\nContent-Length: (\d+)\r\n", re.IGNORECASE)
_SIZE: Final = re.compile(rb"GET /bytes/(\d+) ")


def _reply(body: bytes) -> bytes:
    return b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: %d\r\n\r\n%b" % (
        len(body),
        body,
    )


async def _answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while True:
        head = await reader.readuntil(b"\r\n\r\n")
        length = _LENGTH.search(head)
        if length is not None:
            left = total = int(length[1])
            while left:
                piece = await reader.read(min(left, 262_144))
                if not piece:
                    return
                left -= len(piece)
            writer.write(_reply(b"%d" % total))
        elif size := _SIZE.match(head):
            left = int(size[1])
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % left)
            while left:
                writer.write(_PIECE[: min(left, len(_PIECE))])
                left -= min(left, len(_PIECE))
                await writer.drain()
        else:
            writer.write(_reply(b"ok"))
        await writer.drain()


async def _serve_one(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        await _answer(reader, writer)
    except (asyncio.IncompleteReadError, ConnectionError):
        pass
    finally:
        writer.close()


async def _serve() -> None:
    server = await asyncio.start_server(_serve_one, "127.0.0.1", 0, limit=1 << 20, backlog=1024)
    print(server.sockets[0].getsockname()[1], flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.buffer.read)
    server.close()


if __name__ == "__main__":
    uvloop.run(_serve())
