"""An upstream that hangs up on idle connections all the time: `python -m proofs.closing --seed S`.

After each response a connection lives for a random moment more, often none, and is then ended from
this side: half of the time by FIN, half by RST, never announced by ``Connection: close``. This is
what an upstream with a shorter keep-alive timeout than its proxy does, made frequent. It never
hangs up in the middle of a response, a request that it has read is always answered, and a new
connection has some time for its first request: otherwise it would refuse service, not idleness.

Prints its port, then serves until its standard input ends.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import socket
import struct
import sys
from typing import Any, Final

import uvloop

_OK: Final = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 2\r\n\r\nok"
#: Shares of the responses behind which the connection is ended at once, within a moment (the
#: ordinary pause between two requests of a busy proxy, where the race is), or after a rest.
_AT_ONCE: Final = 0.05
_IN_A_MOMENT: Final = 0.15
_MOMENT_SECONDS: Final = 0.004
_REST_SECONDS: Final = 0.4
#: A connection without a request is idle after that.
_FIRST_SECONDS: Final = 1.0
#: SO_LINGER on, zero seconds: close sends RST.
_RESET: Final = struct.pack("ii", 1, 0)


class _Connection(asyncio.Protocol):
    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._buffer = b""
        self._end: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        self._transport = transport
        self._end = asyncio.get_running_loop().call_later(_FIRST_SECONDS, self._close)

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        while b"\r\n\r\n" in self._buffer and not self._transport.is_closing():
            _, _, self._buffer = self._buffer.partition(b"\r\n\r\n")
            self._transport.write(_OK)
            chance = self._rng.random()
            if chance < _AT_ONCE:
                self._close()
            elif chance < _AT_ONCE + _IN_A_MOMENT:
                self._rest(_MOMENT_SECONDS)
            else:
                self._rest(_REST_SECONDS)

    def connection_lost(self, _exc: Exception | None) -> None:
        if self._end is not None:
            self._end.cancel()

    def _rest(self, most: float) -> None:
        if self._end is not None:
            self._end.cancel()
        self._end = asyncio.get_running_loop().call_later(self._rng.uniform(0, most), self._close)

    def _close(self) -> None:
        # Never in the middle of a response: RST would take back what is not yet sent.
        if self._transport.get_write_buffer_size() == 0 and self._rng.random() < 0.5:
            sock: socket.socket = self._transport.get_extra_info("socket")
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        self._transport.close()


async def _serve(seed: int) -> None:
    rng = random.Random(seed)
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: _Connection(rng), "127.0.0.1", 0, backlog=1024)
    print(server.sockets[0].getsockname()[1], flush=True)
    await loop.run_in_executor(None, sys.stdin.buffer.read)  # until whoever started us ends
    server.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seed", type=int, default=1)
    uvloop.run(_serve(parser.parse_args().seed))


if __name__ == "__main__":
    main()
