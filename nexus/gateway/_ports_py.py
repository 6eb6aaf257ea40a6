# cython: annotation_typing=False
"""Who may call whom on the data path: the two seams between its three parts.

::

    client ══ Session ──(ClientPort)── Exchange ──(ResponseSink)── UpstreamConnection ══ upstream
                 reads requests,         one request:                 reads responses,
                 writes replies          attempts, retry, envelope    writes requests

A session knows its exchange, an exchange knows its session only as a :class:`ClientPort`, and a
connection knows the exchange that uses it only as a :class:`ResponseSink`. One source, compiled as
``_ports_c``, so that calls through the seams are C calls there.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import cython  # type: ignore[import-untyped]

if not cython.compiled:
    from nexus._speedups._http1_py import ResponseHead
    from nexus.gateway._wheel_py import Timed

if TYPE_CHECKING:
    from nexus.gateway._upstream_py import UpstreamConnection

__all__ = ["ClientPort", "Nobody", "PoolPort", "ResponseSink"]


class PoolPort:
    """What a connection asks of the pool that it belongs to."""

    __slots__ = ("authority", "base_path")

    def __init__(self, authority: bytes, base_path: bytes) -> None:
        #: The ``Host`` field of requests to this upstream, and what it puts before the path.
        self.authority = authority
        self.base_path = base_path

    def give_back(self, connection: UpstreamConnection) -> None:
        """A connection whose exchange is over and that can be used again."""
        raise NotImplementedError

    def forget(self, connection: UpstreamConnection) -> None:
        """A connection that is gone."""
        raise NotImplementedError


class ResponseSink(Timed):
    """What an upstream connection and a pool tell the exchange that uses them."""

    __slots__ = ()

    def on_connected(self, connection: UpstreamConnection) -> None:
        """The connection that was asked for; it is the sink's until it is released."""
        raise NotImplementedError

    def on_connect_failed(self, reason: str) -> None:
        """No connection: nothing of the request was sent."""
        raise NotImplementedError

    def on_informational(self, connection: UpstreamConnection, head: ResponseHead) -> None:
        """A 1xx response other than 101; ``head`` is valid during the call."""
        raise NotImplementedError

    def on_response(
        self, connection: UpstreamConnection, head: ResponseHead, body: bytes, complete: bool
    ) -> None:
        """The final response's head and as much of its body as came with it."""
        raise NotImplementedError

    def on_upgraded(self, connection: UpstreamConnection, head: ResponseHead, data: bytes) -> None:
        """101 Switching Protocols; ``data`` came behind it."""
        raise NotImplementedError

    def on_body(self, connection: UpstreamConnection, data: bytes, complete: bool) -> None:
        """More of the body (or of the tunnel), without framing."""
        raise NotImplementedError

    def on_lost(self, connection: UpstreamConnection, reason: str) -> None:
        """The connection ended or broke the protocol before the response was complete."""
        raise NotImplementedError

    def on_upstream_blocked(self) -> None:
        """The upstream takes no more bytes for now."""
        raise NotImplementedError

    def on_upstream_writable(self) -> None:
        """The upstream takes bytes again."""
        raise NotImplementedError


class ClientPort(Timed):
    """What an exchange asks of the client's side."""

    __slots__ = ()

    def send(self, data: bytes) -> None:
        """Write to the client; ignored once it is gone."""
        raise NotImplementedError

    def response_done(self, keep: bool) -> None:
        """The response is complete; ``keep`` False closes the connection behind it."""
        raise NotImplementedError

    def tunnel(self) -> None:
        """From now on both directions are bytes without meaning to us."""
        raise NotImplementedError

    def tunnel_ended(self) -> None:
        """The upstream has closed its side of the tunnel."""
        raise NotImplementedError

    def break_off(self) -> None:
        """Close so that the client can see that the response is incomplete."""
        raise NotImplementedError

    def pause_request(self) -> None:
        """Stop reading the request's body."""
        raise NotImplementedError

    def resume_request(self) -> None:
        """Read on."""
        raise NotImplementedError


class Nobody(ClientPort):
    """The client's side once the client is gone: what is still said to it is not heard."""

    __slots__ = ()

    def send(self, data: bytes) -> None:
        pass

    def response_done(self, keep: bool) -> None:
        pass

    def tunnel(self) -> None:
        pass

    def tunnel_ended(self) -> None:
        pass

    def break_off(self) -> None:
        pass

    def pause_request(self) -> None:
        pass

    def resume_request(self) -> None:
        pass


NOBODY: Final = Nobody()
