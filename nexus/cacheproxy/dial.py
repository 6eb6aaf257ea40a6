"""Opening one connection to Redis: connect, say who we are, be answered."""

from __future__ import annotations

import asyncio
import socket
from dataclasses import dataclass
from typing import Final

from nexus._speedups.respscan import ReplyScanner
from nexus.cacheproxy.target import Target
from nexus.errors import RespError, UpstreamError
from nexus.wire.resp import encode_command

__all__ = ["DialError", "Identity", "dial"]

#: Seconds for connect and handshake together; a healthy Redis answers within one.
DIAL_SECONDS: Final = 3.0
#: Milliseconds that sent bytes may stay unacknowledged before the connection counts as dead
#: (TCP_USER_TIMEOUT): commands themselves have no timeout, a blocking one may take for ever.
UNACKED_MS: Final = 10_000
#: A handshake's replies are some hundred bytes.
_MOST_HANDSHAKE_BYTES: Final = 65_536


@dataclass(slots=True, eq=False)
class Identity:
    """Somebody at Redis; compared by identity, so that users never share what is theirs."""

    user: bytes | None
    #: The last password that Redis accepted; replayed on later connections.
    password: bytes | None

    @property
    def label(self) -> str:
        return (self.user or b"default").decode("utf-8", "replace")


class DialError(UpstreamError):
    """No connection. ``reply`` is Redis's own refusal where it gave one, else ``b""``."""

    def __init__(self, message: str, reply: bytes = b"") -> None:
        super().__init__(message, sent=False)
        self.reply: Final = reply


async def dial(target: Target, who: Identity, protocol: int, db: int) -> asyncio.Transport:
    """Connect to ``target`` as ``who``; raises :class:`DialError`.

    The transport comes back between two replies, with nothing unread; give it its own protocol
    before the loop runs again. An error to the closing PING is no failure (a server that wants
    AUTH first, or is loading, is there), except that of a server that takes no more clients.
    """
    loop = asyncio.get_running_loop()
    handshake = _Handshake(loop)
    transport: asyncio.Transport | None = None
    try:
        async with asyncio.timeout(DIAL_SECONDS):
            transport = await _connect(loop, handshake, target)
            requests = _requests(who, protocol, db)
            replies = await handshake.ask(requests)
    except TimeoutError:
        _drop(transport)
        raise DialError(f"{target} does not answer within {DIAL_SECONDS:g} s") from None
    except (OSError, RespError) as error:
        _drop(transport)
        raise DialError(f"{target}: {error}") from None
    except BaseException:
        _drop(transport)
        raise
    bad = [reply for reply in replies[:-1] if reply.startswith(b"-")]
    if replies[-1].startswith(b"-ERR max number of clients"):
        bad.append(replies[-1])
    if bad:
        _drop(transport)
        raise DialError(f"{target}: {bad[0][1:].strip().decode('utf-8', 'replace')}", bad[0])
    return transport


def _requests(who: Identity, protocol: int, db: int) -> list[bytes]:
    requests = []
    login = (who.user or b"default", who.password) if who.password is not None else None
    if protocol == 3:
        requests.append(encode_command([b"HELLO", 3, *((b"AUTH", *login) if login else ())]))
    elif login:
        user = (login[0],) if who.user is not None else ()  # servers before 6 know no users
        requests.append(encode_command([b"AUTH", *user, login[1]]))
    if db:
        requests.append(encode_command([b"SELECT", db]))
    return [*requests, encode_command([b"PING"])]


async def _connect(
    loop: asyncio.AbstractEventLoop, handshake: _Handshake, target: Target
) -> asyncio.Transport:
    if target.path:
        transport, _ = await loop.create_unix_connection(lambda: handshake, target.path)
        return transport
    transport, _ = await loop.create_connection(
        lambda: handshake, target.host, target.port, ssl=target.tls
    )
    raw = transport.get_extra_info("socket")
    if raw is not None:
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 30)
        raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 5)
        raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3)
        raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, UNACKED_MS)
    return transport


def _drop(transport: asyncio.Transport | None) -> None:
    if transport is not None:
        transport.abort()


class _Handshake(asyncio.Protocol):
    """Collects the replies to the handshake, then waits to be replaced."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._scanner = ReplyScanner()
        self._data = bytearray()
        self._begin = 0
        self._seen = 0
        self._wanted = 0
        self._replies: list[bytes] = []
        self._done: asyncio.Future[list[bytes]] = loop.create_future()
        self._transport: asyncio.Transport | None = None

    async def ask(self, requests: list[bytes]) -> list[bytes]:
        self._wanted = len(requests)
        assert self._transport is not None  # noqa: S101  (set by the loop before connect returns)
        self._transport.write(b"".join(requests))
        self._check()
        return await self._done

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]

    def data_received(self, data: bytes) -> None:
        self._data += data
        if len(self._data) > _MOST_HANDSHAKE_BYTES:
            self._fail(RespError("the handshake's reply is too long"))
        self._check()

    def connection_lost(self, error: Exception | None) -> None:
        self._fail(error or ConnectionResetError("closed during the handshake"))

    def _check(self) -> None:
        try:
            while self._seen < len(self._data) and len(self._replies) < max(self._wanted, 1):
                self._seen = self._scanner.scan(self._data, self._seen, len(self._data), 1)
                if self._scanner.done:
                    self._replies.append(bytes(self._data[self._begin : self._seen]))
                    self._begin = self._seen
        except RespError as error:
            self._fail(error)
            return
        refused = bool(self._replies) and self._replies[0].startswith(b"-ERR max number of clients")
        if self._wanted and (refused or len(self._replies) == self._wanted):
            if not self._done.done():
                self._done.set_result(self._replies)

    def _fail(self, error: Exception) -> None:
        if not self._done.done():
            self._done.set_exception(error)
            self._done.exception()  # whoever gave up waiting is not told a second time
