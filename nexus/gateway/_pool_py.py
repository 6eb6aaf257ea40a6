# cython: annotation_typing=False
"""The connections of one worker to one upstream: reused last-in first-out, bounded, queued for.

``acquire`` gives an idle connection at once; otherwise the sink waits, oldest first, for the next
one that is released or made. Connections are made by tasks of their own, never per request.

A request whose body is still arriving holds its connection for as long as its client likes. Such
uploads have a share of the connections only, else a few hundred clients that drip their bodies
would have all of them and everybody else would wait.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
import ssl
from collections import deque
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

import cython  # type: ignore[import-untyped]

from nexus.errors import ConfigError
from nexus.net.tls import client_context

if not cython.compiled:
    from nexus.gateway._ports_py import PoolPort, ResponseSink
    from nexus.gateway._upstream_py import UpstreamConnection
    from nexus.gateway._wheel_py import Wheel

if TYPE_CHECKING:
    from nexus.gateway.settings import TimeoutSettings, UpstreamSettings

__all__ = ["Pool", "why_not_connected"]

#: What we speak behind TLS (RFC 7301).
ALPN: Final = ("http/1.1",)

#: X509_V_ERR_… (openssl's x509_vfy.h) → reason code.
_VERIFICATION: Final = {
    9: "tls_expired",  # not valid yet
    10: "tls_expired",
    18: "tls_untrusted",  # self-signed
    19: "tls_untrusted",  # self-signed somewhere in the chain
    20: "tls_untrusted",  # issuer not found
    21: "tls_untrusted",  # its first certificate cannot be verified
    62: "tls_wrong_name",
    64: "tls_wrong_name",  # of an address
}


def why_not_connected(error: Exception) -> str:
    """The reason code of a connection that could not be made."""
    if isinstance(error, TimeoutError):
        return "connect_timeout"
    if isinstance(error, ConfigError):  # a file that was there at start is not any more
        return "tls_error"
    if isinstance(error, ssl.SSLCertVerificationError):
        return _VERIFICATION.get(error.verify_code, "tls_error")
    if isinstance(error, ssl.SSLError):
        return "tls_error"
    if isinstance(error, socket.gaierror):
        return "name_not_resolved"
    if isinstance(error, ConnectionRefusedError | FileNotFoundError):
        return "connect_refused"
    if isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE):
        return "out_of_descriptors"
    return "connect_failed"


class Pool(PoolPort):
    """Keep-alive connections to ``url``: ``http://host:port``, ``https://…``, ``unix:///path``."""

    def __init__(
        self, url: str, wheel: Wheel, upstream: UpstreamSettings, timeouts: TimeoutSettings
    ) -> None:
        parts = urlsplit(url)
        self.url = url
        self._tls = parts.scheme == "https"
        self._host = parts.hostname or ""
        self._port = parts.port or (443 if self._tls else 80)
        #: Path of the unix socket; "" where the upstream has a host.
        self._path = parts.path if parts.scheme == "unix" else ""
        if self._path:
            super().__init__(b"localhost", b"")
        else:
            authority = parts.netloc.rpartition("@")[2]
            super().__init__(authority.encode(), parts.path.rstrip("/").encode())
        self._upstream: UpstreamSettings | None = None
        self._context: ssl.SSLContext | None = None
        self._wheel = wheel
        self._idle: list[UpstreamConnection] = []
        self._waiting: deque[ResponseSink] = deque()
        #: Those that take none but a new connection; served before the others.
        self._waiting_new: deque[ResponseSink] = deque()
        #: Requests whose bodies are still arriving: those that have a place, and those that wait
        #: for one, oldest first.
        self._uploads: set[ResponseSink] = set()
        self._waiting_uploads: dict[ResponseSink, None] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._open: set[UpstreamConnection] = set()
        self._closed = False
        self.configure(upstream, timeouts)

    def configure(self, upstream: UpstreamSettings, timeouts: TimeoutSettings) -> None:
        """Apply new limits; open connections stay."""
        if self._upstream is None or upstream.tls != self._upstream.tls:
            self._context = None  # made with the next connection
        self._upstream = upstream
        self._max = upstream.max_connections
        self._max_uploads = upstream.upload_connections or (self._max + 1) // 2
        self._queue_size = upstream.queue_size
        self._keep_alive_ns = int(upstream.keep_alive_seconds * 1e9)
        self._connect_seconds = timeouts.connect
        self._next_upload()

    def __repr__(self) -> str:
        return (
            f"<Pool {self.url} open={len(self._open)} idle={len(self._idle)} "
            f"connecting={len(self._tasks)} waiting={self.waiting}>"
        )

    @property
    def idle(self) -> int:
        """Connections at rest."""
        return len(self._idle)

    @property
    def busy(self) -> int:
        """Connections in use."""
        return len(self._open) - len(self._idle)

    @property
    def waiting(self) -> int:
        """Requests that wait for a connection."""
        return len(self._waiting) + len(self._waiting_new) + len(self._waiting_uploads)

    def acquire(self, sink: ResponseSink) -> UpstreamConnection | None:
        """An idle connection, or ``None`` and later ``on_connected`` or ``on_connect_failed``.

        A full queue is reported at once, by a call of ``on_connect_failed("pool_full")``.
        """
        connection = self._take_idle()
        if connection is not None:
            return connection
        # Those for whom a connection can still be made do not count as queued.
        if len(self._waiting) >= self._queue_size + self._max - len(self._open):
            sink.on_connect_failed("pool_full")
            return None
        self._waiting.append(sink)
        self._grow()
        return None

    def _take_idle(self) -> UpstreamConnection | None:
        idle = self._idle
        while idle:
            connection = idle.pop()
            if connection.alive(self._wheel.now):
                connection.rested = True
                return connection
            connection.discard()
        return None

    def acquire_upload(self, sink: ResponseSink, at_hand: bool) -> UpstreamConnection | None:
        """As :meth:`acquire`, for a request whose body is still arriving.

        The caller says :meth:`body_complete` when it is there, or :meth:`cancel`. ``at_hand``: its
        first bytes are here, perhaps all of them, so it is refused only when :meth:`crowded`.
        """
        if len(self._uploads) < self._max_uploads:
            self._uploads.add(sink)
            return self.acquire(sink)
        if len(self._waiting_uploads) >= self._queue_size and not at_hand:
            sink.on_connect_failed("pool_full")
        else:
            self._waiting_uploads[sink] = None
        return None

    def crowded(self, sink: ResponseSink) -> bool:
        """Whether more uploads wait than may, and ``sink`` came last."""
        waiting = self._waiting_uploads
        return len(waiting) > self._queue_size and next(reversed(waiting)) is sink

    def waits_for_place(self, sink: ResponseSink) -> bool:
        """Whether ``sink`` is an upload that waits for others to end."""
        return sink in self._waiting_uploads

    def body_complete(self, sink: ResponseSink) -> None:
        """The body of an upload is there: it is a request as any other now."""
        if sink in self._uploads:
            self._uploads.remove(sink)
            self._next_upload()
        elif sink in self._waiting_uploads:
            del self._waiting_uploads[sink]
            self._serve(sink)

    def _next_upload(self) -> None:
        while self._waiting_uploads and len(self._uploads) < self._max_uploads:
            sink = next(iter(self._waiting_uploads))
            del self._waiting_uploads[sink]
            self._uploads.add(sink)
            self._serve(sink)

    def _serve(self, sink: ResponseSink) -> None:
        """``sink`` has waited among the uploads, and is not asked whether the queue has room."""
        connection = self._take_idle()
        if connection is not None:
            sink.on_connected(connection)
        else:
            self._waiting.append(sink)
            self._grow()

    def acquire_new(self, sink: ResponseSink, upload: bool = False) -> None:
        """As :meth:`acquire`, but a connection that has carried no request; before all others.

        In a full pool the connection that rests longest makes room for it. ``upload``: its body is
        still arriving; it counts, but does not wait for others to end.
        """
        if upload:
            self._uploads.add(sink)
        self._waiting_new.append(sink)
        if self._idle and len(self._open) + len(self._tasks) >= self._max:
            self._idle.pop(0).discard()
        self._grow()

    def cancel(self, sink: ResponseSink) -> None:
        """``sink`` waits no longer, and is no upload any more."""
        self._waiting_uploads.pop(sink, None)
        for waiting in (self._waiting, self._waiting_new):
            with contextlib.suppress(ValueError):
                waiting.remove(sink)
        if sink in self._uploads:
            self._uploads.remove(sink)
            self._next_upload()

    def give_back(self, connection: UpstreamConnection) -> None:
        """A connection whose exchange is over and that can be used again."""
        rested = connection
        rested.rest(self._wheel.now)
        waiting = self._waiting
        if self._waiting_new:
            if rested.requests == 0:
                waiting = self._waiting_new
            elif len(self._open) + len(self._tasks) >= self._max:
                rested.discard()  # its place is wanted for a new one
                return
        if waiting:
            waiting.popleft().on_connected(rested)
        elif self._closed:
            rested.discard()
        else:
            self._idle.append(rested)
            self._wheel.schedule(rested, self._wheel.now + self._keep_alive_ns)

    def forget(self, connection: UpstreamConnection) -> None:
        """The connection is closed."""
        self._open.discard(connection)
        self._wheel.drop(connection)
        if connection in self._idle:
            self._idle.remove(connection)
        self._grow()

    def close(self) -> None:
        """No new connections are kept; those in use end with their exchanges."""
        self._closed = True
        while self._idle:
            self._idle.pop().discard()

    def abort(self) -> None:
        """End everything now."""
        self.close()
        for task in tuple(self._tasks):
            task.cancel()
        for connection in tuple(self._open):
            connection.discard()

    def _grow(self) -> None:
        wanted = len(self._waiting) + len(self._waiting_new)
        if len(self._tasks) < wanted and len(self._open) + len(self._tasks) < self._max:
            task = asyncio.get_running_loop().create_task(self._connect())
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    def _make(self) -> Any:
        return UpstreamConnection(self)

    async def _connect(self) -> None:
        try:
            async with asyncio.timeout(self._connect_seconds):
                connection: UpstreamConnection = await self._dial()
        except (OSError, ConfigError) as error:
            self._failed(why_not_connected(error))
        else:
            if connection.lost:
                # Accepted and closed before we were told of it: nobody may wait for a response.
                self._failed("connect_refused")
                return
            self._open.add(connection)
            self._leave_tasks()
            self.give_back(connection)

    async def _dial(self) -> Any:
        loop = asyncio.get_running_loop()
        if self._path:
            made: Any = await loop.create_unix_connection(self._make, self._path)
            return made[1]
        if self._tls and self._context is None:
            # Once: reading the system's authorities takes tens of milliseconds.
            self._context = client_context(
                self._upstream.tls,  # type: ignore[union-attr]
                path="upstream.tls",
                alpn=ALPN,
            )
        # Resolved anew for every connection: an upstream may move.
        made = await loop.create_connection(
            self._make,
            self._host,
            self._port,
            ssl=self._context if self._tls else None,
            server_hostname=self._host if self._tls else None,
        )
        return made[1]

    def _failed(self, reason: str) -> None:
        # First: who hears of it may answer its client, and the client's next request may be here
        # before this task counts as done; it must find that nobody is connecting.
        self._leave_tasks()
        # One attempt failed, so one waiter hears of it; the others have attempts of their own.
        waiting = self._waiting_new or self._waiting
        if waiting:
            waiting.popleft().on_connect_failed(reason)
        if not self._closed:
            self._grow()

    def _leave_tasks(self) -> None:
        task = asyncio.current_task()
        if task is not None:
            self._tasks.discard(task)
