"""Accepting behind a balancer that speaks the PROXY protocol.

The header comes in front of everything else, TLS included, so it is read from the plain socket
before a transport is made of it::

    accept ─► peer trusted? ─ yes ─► read the header ─► Entry(peer named by it) ─► transport
                   └──────── no ─────────────────────► Entry(own address)    ───► transport
"""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final

from nexus.errors import ProxyHeaderError
from nexus.wire.proxyprotocol import MAX_HEADER, ProxyHeader, parse_proxy_header

__all__ = ["Entry", "HeaderAcceptor"]

log = logging.getLogger("nexus.acceptor")

#: Connections taken in one turn of the loop.
_AT_ONCE: Final = 64
#: Pause where no descriptor is left, seconds; as asyncio's own servers.
_PAUSE: Final = 1.0
#: Between two looks at a header of which a part has come: senders send it in one piece, so this is
#: for the rare split, and for who does it on purpose.
_LOOK_AGAIN: Final = 0.02

_EXHAUSTED: Final = frozenset((errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM))


@dataclass(frozen=True, slots=True)
class Entry:
    """What a header said of a connection; ``peer`` is ``""`` where the socket's address counts."""

    peer: str = ""
    tls: bool = False


class HeaderAcceptor:
    """Accepts on ``sock`` (its own; closed with it) and hands each connection to ``serve``."""

    def __init__(
        self,
        sock: socket.socket,
        *,
        is_trusted: Callable[[str], bool],
        timeout_seconds: float,
        serve: Callable[[socket.socket, Entry], Awaitable[None]],
        refused: Callable[[], None],
    ) -> None:
        """``is_trusted`` is asked with the peer's address, or ``unix``; ``refused`` is told of each
        connection that was closed for its header."""
        self._sock: Final = sock
        self._is_trusted: Final = is_trusted
        self._timeout: Final = timeout_seconds
        self._serve: Final = serve
        self._refused: Final = refused
        self._tasks: Final[set[asyncio.Task[None]]] = set()
        self._loop: Final = asyncio.get_running_loop()
        self._closed = False
        self._loop.add_reader(sock.fileno(), self._on_readable)

    def close(self) -> None:
        """Accept no more; connections whose header is being read are closed."""
        if self._closed:
            return
        self._closed = True
        self._loop.remove_reader(self._sock.fileno())
        self._sock.close()
        for task in tuple(self._tasks):
            task.cancel()

    def _on_readable(self) -> None:
        for _ in range(_AT_ONCE):
            try:
                connection, address = self._sock.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:
                if error.errno not in _EXHAUSTED:
                    raise
                log.error("no descriptor for another connection, pausing: %s", error.strerror)  # noqa: TRY400
                self._loop.remove_reader(self._sock.fileno())
                self._loop.call_later(_PAUSE, self._resume)
                return
            connection.setblocking(False)
            task = self._loop.create_task(self._begin(connection, address))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    def _resume(self) -> None:
        if not self._closed:
            self._loop.add_reader(self._sock.fileno(), self._on_readable)

    async def _begin(self, connection: socket.socket, address: object) -> None:
        peer = str(address[0]) if isinstance(address, tuple) else "unix"
        entry = Entry()
        handed_over = False
        try:
            if self._is_trusted(peer):
                async with asyncio.timeout(self._timeout):
                    header = await self._read(connection)
                entry = Entry(header.source, header.tls)
            handed_over = True  # the transport closes it from here on
            await self._serve(connection, entry)
        except (ProxyHeaderError, TimeoutError, EOFError) as error:
            self._refused()
            what = "none came in time" if isinstance(error, TimeoutError) else str(error)
            log.warning("connection closed for its PROXY header", extra={"ip": peer, "why": what})
        except OSError:
            pass  # gone before anything was asked, or no TLS handshake
        finally:
            if not handed_over:
                connection.close()

    async def _read(self, connection: socket.socket) -> ProxyHeader:
        """Take exactly the header out of the socket; what follows stays for the transport."""
        while True:
            await self._readable(connection)
            data = connection.recv(MAX_HEADER, socket.MSG_PEEK)
            if not data:
                raise EOFError("the connection ended within it")
            header = parse_proxy_header(data)
            if header is not None:
                connection.recv(header.size)
                return header
            await asyncio.sleep(_LOOK_AGAIN)  # what was peeked at stays readable

    async def _readable(self, connection: socket.socket) -> None:
        ready = self._loop.create_future()
        self._loop.add_reader(connection.fileno(), ready.set_result, None)
        try:
            await ready
        finally:
            self._loop.remove_reader(connection.fileno())
