"""Where a worker accepts clients: each address is a door, plain or TLS, with PROXY headers or not.

A renewed certificate, and other TLS settings, make new servers on the same sockets before the old
ones stop accepting: nobody is refused in between, and open connections go on as they are.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final, Protocol

from nexus.errors import ConfigError
from nexus.gateway.clients import Clients, canonical
from nexus.net.acceptor import Entry, HeaderAcceptor
from nexus.net.listeners import Endpoint
from nexus.net.settings import ListenerSettings
from nexus.net.tls import ServerContexts, fingerprint

if TYPE_CHECKING:
    from nexus.gateway.settings import GatewaySettings
    from nexus.observability.registry import LocalMetrics

__all__ = ["Listening", "check_listeners", "more_endpoints"]

log = logging.getLogger("nexus.gateway.listening")

#: What we speak behind TLS (RFC 7301).
ALPN: Final = ("http/1.1",)

#: How often certificate files are looked at, seconds.
WATCH_SECONDS: Final = 1.0

#: Makes the protocol of a connection, from its scheme and the client's address ("": the socket's).
MakeSession = Callable[[bytes, str], Any]


class _Server(Protocol):
    def close(self) -> None: ...


def _doors(settings: GatewaySettings) -> list[tuple[str, ListenerSettings]]:
    """Every address and where its settings stand, in the order of the sockets."""
    first = ListenerSettings(
        host=settings.host,
        port=settings.port,
        tls=settings.tls,
        proxy_protocol=settings.proxy_protocol,
    )
    others = [(f"listeners[{i}].", door) for i, door in enumerate(settings.listeners)]
    return [("", first), *others]


def more_endpoints(settings: GatewaySettings) -> list[Endpoint]:
    """What the supervisor binds beside host and port."""
    return [
        Endpoint(
            f"listeners[{i}] of the configuration",
            door.host,
            door.port,
            door.unix,
            int(door.unix_mode, 8),
        )
        for i, door in enumerate(settings.listeners)
    ]


def check_listeners(settings: GatewaySettings) -> None:
    """Raises ``ConfigError`` for an address that is none, and for files that cannot be used."""
    for place, door in _doors(settings):
        if place and bool(door.unix) == bool(door.host):
            raise ConfigError("expected either host and port, or unix", path=place.rstrip("."))
        ServerContexts().make(door.tls, path=f"{place}tls", alpn=ALPN)
        _proxies(place, door)


def _proxies(place: str, door: ListenerSettings) -> Clients:
    clients = Clients(door.proxy_protocol.trusted, setting=f"{place}proxy_protocol.trusted")
    if door.proxy_protocol.enabled and not door.proxy_protocol.trusted:
        raise ConfigError(
            "expected the networks of the balancers that send the header",
            path=f"{place}proxy_protocol.trusted",
        )
    return clients


class Listening:
    """The servers of one worker."""

    def __init__(
        self, sockets: Sequence[socket.socket], make: MakeSession, metrics: LocalMetrics
    ) -> None:
        self._sockets: Final = sockets
        self._make: Final = make
        self._refused: Final = metrics.counter("nexus_proxy_headers_refused_total")
        self._reloads: Final = metrics.counters("nexus_tls_reloads_total")
        self._contexts: Final = ServerContexts()
        self._servers: list[_Server] = []
        self._seen: list[Any] = []
        self._opening: Final = asyncio.Lock()

    async def open(
        self, settings: GatewaySettings, broken: list[ConfigError] | None = None
    ) -> None:
        """Accept as ``settings`` say, in place of how it was before. Raises ``ConfigError``.

        ``broken`` as in :meth:`ServerContexts.make`.
        """
        doors = _doors(settings)
        seen = [fingerprint(door.tls) for _, door in doors]
        # All that may fail is made before anything is opened.
        contexts = [
            self._contexts.make(door.tls, path=f"{place}tls", alpn=ALPN, broken=broken)
            for place, door in doors
        ]
        proxies = [_proxies(place, door) for place, door in doors]
        async with self._opening:
            fresh: list[_Server] = []
            try:
                for sock, (_, door), context, trusted in zip(
                    self._sockets, doors, contexts, proxies, strict=True
                ):
                    # A copy: the supervisor's own socket must outlive this worker.
                    fresh.append(await self._open(sock.dup(), door, context, trusted, settings))
            except BaseException:
                for server in fresh:
                    server.close()
                raise
            old, self._servers, self._seen = self._servers, fresh, seen
            for server in old:
                server.close()

    async def reopen(self, before: GatewaySettings, settings: GatewaySettings) -> None:
        """After a reload: as :meth:`open`, where something changed."""
        doors = _doors(settings)
        same = [d for _, d in doors] == [d for _, d in _doors(before)]
        if not same or self._seen != [fingerprint(door.tls) for _, door in doors]:
            await self.open(settings)

    async def watch(self, settings: Callable[[], GatewaySettings]) -> None:
        """Take renewed certificate files; a broken pair is reported once and changes nothing."""
        while True:
            await asyncio.sleep(WATCH_SECONDS)
            if [fingerprint(door.tls) for _, door in _doors(settings())] == self._seen:
                continue
            broken: list[ConfigError] = []
            try:
                await self.open(settings(), broken)
            except OSError as error:  # no descriptor is left: in a second, perhaps
                log.error("certificates not renewed yet: %s", error)  # noqa: TRY400
                continue
            for error_of in broken:  # perhaps the first of two files that are being replaced
                self._reloads.labels("broken").inc()
                log.error("certificate not renewed, keeping the last good one: %s", error_of)
            if not broken:
                self._reloads.labels("applied").inc()
                log.info("certificates renewed")

    def close(self) -> None:
        """Accept no more."""
        for server in self._servers:
            server.close()

    async def _open(
        self,
        sock: socket.socket,
        door: ListenerSettings,
        context: ssl.SSLContext | None,
        trusted: Clients,
        settings: GatewaySettings,
    ) -> _Server:
        loop = asyncio.get_running_loop()
        make = self._make
        scheme = b"https" if context is not None else b"http"
        options: dict[str, Any] = {}
        if context is not None:
            options = {"ssl": context, "ssl_handshake_timeout": settings.timeouts.head}
        if door.proxy_protocol.enabled:

            async def serve(connection: socket.socket, entry: Entry) -> None:
                spoken = b"https" if entry.tls else scheme
                peer = canonical(entry.peer) if entry.peer else ""
                await loop.connect_accepted_socket(
                    lambda: make(spoken, peer), connection, **options
                )

            return HeaderAcceptor(
                sock,
                is_trusted=trusted.is_trusted,
                timeout_seconds=door.proxy_protocol.timeout_seconds,
                serve=serve,
                refused=self._refused.inc,
            )
        if sock.family == socket.AF_UNIX:
            return await loop.create_unix_server(
                lambda: make(scheme, ""), sock=sock, backlog=4096, **options
            )
        return await loop.create_server(
            lambda: make(scheme, ""), sock=sock, backlog=4096, **options
        )
