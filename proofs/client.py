"""A Redis client with nothing in it: bytes out, replies in, one wait for many replies.

Replies are parsed by hiredis on purpose: the proxy's own scanners must not judge themselves.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Any, cast

import hiredis

__all__ = ["ClosedError", "Connection", "encode"]

#: As redis-py asks for it: text stays bytes, errors come as values.
_NOTHING = object()


class ClosedError(Exception):
    """The other side closed, or the connection broke, before a reply came."""


def encode(*args: bytes) -> bytes:
    """One request as RESP."""
    return b"*%d\r\n" % len(args) + b"".join(b"$%d\r\n%b\r\n" % (len(a), a) for a in args)


class Connection(asyncio.Protocol):
    """``await Connection.open(host, port)``, :meth:`write`, :meth:`reply`."""

    def __init__(self) -> None:
        self._reader = hiredis.Reader(notEnoughData=_NOTHING)
        self._replies: deque[Any] = deque()
        self._waiter: asyncio.Future[None] | None = None
        self._transport: asyncio.Transport | None = None
        self._closed = False

    @classmethod
    async def open(cls, host: str, port: int) -> Connection:
        _, connection = await asyncio.get_running_loop().create_connection(cls, host, port)
        return connection

    def write(self, data: bytes) -> None:
        if self._transport is not None and not self._closed:
            self._transport.write(data)

    async def reply(self) -> Any:
        """The next reply; errors are values (``hiredis.ReplyError``).

        Raises :class:`ClosedError`.
        """
        while not self._replies:
            if self._closed:
                raise ClosedError
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        return self._replies.popleft()

    async def ask(self, *args: bytes) -> Any:
        self.write(encode(*args))
        return await self.reply()

    def close(self) -> None:
        """At once, whatever is outstanding."""
        self._closed = True
        if self._transport is not None:
            self._transport.abort()

    # -- asyncio protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        self._reader.feed(data)
        while (reply := self._reader.gets()) is not _NOTHING:
            self._replies.append(reply)
        self._wake()

    def connection_lost(self, _error: Exception | None) -> None:
        self._closed = True
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
