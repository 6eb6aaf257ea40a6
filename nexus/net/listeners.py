"""Listening sockets, owned by the supervisor and kept over worker restarts.

Every worker slot has a socket of its own in one ``SO_REUSEPORT`` group, so the kernel spreads
connections without a lock and a worker's restart loses none: the socket stays open in the
supervisor and its queue waits for the replacement.
"""

from __future__ import annotations

import errno
import os
import socket
from typing import Final

from nexus.errors import ListenError

__all__ = ["BACKLOG", "bind_group", "format_address"]

#: Connections waiting for accept(); the kernel caps it at net.core.somaxconn (4096 by default).
BACKLOG: Final = 4096


def bind_group(host: str, port: int, count: int, *, setting: str) -> list[socket.socket]:
    """``count`` sockets bound to one address and listening; port 0 takes one free port for all.

    ``setting`` names the flag and the variable that change the port, for the error text. Raises
    :class:`~nexus.errors.ListenError`.
    """
    family, address = _resolve(host, port, setting)
    # A second bind into a SO_REUSEPORT group succeeds silently, and half of the connections would
    # go to whoever was there first: so ask with a plain bind before.
    probe = socket.socket(family, socket.SOCK_STREAM)
    try:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        _bind(probe, address, host, port, setting)
        address = probe.getsockname()
    finally:
        probe.close()
    group: list[socket.socket] = []
    try:
        for _ in range(count):
            group.append(_listen(family, address, host, setting))  # noqa: PERF401  (closed on error)
    except BaseException:
        for sock in group:
            sock.close()
        raise
    return group


def format_address(sock: socket.socket) -> str:
    """``127.0.0.1:3000`` or ``[::1]:3000``."""
    host, port = sock.getsockname()[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _resolve(host: str, port: int, setting: str) -> tuple[socket.AddressFamily, tuple[object, ...]]:
    try:
        found = socket.getaddrinfo(
            host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
    except socket.gaierror as error:
        raise ListenError(f"cannot resolve {host!r} to listen on: {error.strerror}") from None
    if not found:
        raise ListenError(f"cannot resolve {host!r} to listen on ({setting})")
    family, _, _, _, address = found[0]
    return family, address


def _listen(
    family: socket.AddressFamily, address: tuple[object, ...], host: str, setting: str
) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        sock.setblocking(False)
        _bind(sock, address, host, int(str(address[1])), setting)
        sock.listen(BACKLOG)
    except BaseException:
        sock.close()
        raise
    return sock


def _bind(
    sock: socket.socket, address: tuple[object, ...], host: str, port: int, setting: str
) -> None:
    try:
        sock.bind(address)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            reason = "is already in use"
        elif error.errno == errno.EACCES:
            reason = "may not be bound by this user"
        else:
            reason = f"cannot be bound ({os.strerror(error.errno or 0)})"
        raise ListenError(f"{host}:{port} {reason}; choose another with {setting}") from None
