"""Listening sockets, owned by the supervisor and kept over worker restarts.

Every worker slot has a TCP socket of its own in one ``SO_REUSEPORT`` group, so the kernel spreads
connections without a lock and a worker's restart loses none: the socket stays open in the
supervisor and its queue waits for the replacement. A unix socket has no such groups: there all
workers accept from one queue.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import stat
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from nexus.errors import ListenError

__all__ = ["BACKLOG", "Endpoint", "UnixFiles", "bind_endpoint", "bind_group", "format_address"]

#: Connections waiting for accept(); the kernel caps it at net.core.somaxconn (4096 by default).
BACKLOG: Final = 4096

#: Seconds that another process gets to show that it still serves a unix socket.
_PROBE_SECONDS: Final = 1.0


@dataclass(frozen=True, slots=True)
class Endpoint:
    """An address to listen on: host and port, or the path of a unix socket.

    ``setting`` names what to change where it cannot be bound.
    """

    setting: str
    host: str = ""
    port: int = 0
    path: str = ""
    #: Permissions of the unix socket.
    mode: int = 0o660


def bind_endpoint(endpoint: Endpoint, count: int) -> list[socket.socket]:
    """One listening socket for each of ``count`` workers. Raises ``ListenError``."""
    if endpoint.path:
        return _bind_unix(endpoint, count)
    return bind_group(endpoint.host, endpoint.port, count, setting=endpoint.setting)


def bind_group(host: str, port: int, count: int, *, setting: str) -> list[socket.socket]:
    """``count`` sockets bound to one address and listening; port 0 takes one free port for all.

    ``::`` takes IPv4 as well. ``setting`` names the flag and the variable that change the port, for
    the error text. Raises :class:`~nexus.errors.ListenError`.
    """
    family, address = _resolve(host, port, setting)
    group: list[socket.socket] = []
    try:
        for _ in range(count):
            sock = socket.socket(family, socket.SOCK_STREAM)
            group.append(sock)
            sock.setblocking(False)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                # Not left to net.ipv6.bindv6only: a configuration means the same everywhere.
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, host != "::")
            # A bind into a SO_REUSEPORT group succeeds silently, and half of the connections would
            # go to whoever was there first. So the first socket is bound alone, which fails where
            # somebody is, and lets the others in afterwards; the port is never let go of between.
            if len(group) > 1:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            _bind(sock, address, f"{host}:{address[1]}", setting)
            if len(group) == 1:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            sock.listen(BACKLOG)
            address = sock.getsockname()
    except BaseException:
        _close(group)
        raise
    return group


def format_address(sock: socket.socket) -> str:
    """``127.0.0.1:3000``, ``[::1]:3000`` or ``unix:/run/nexus.sock``."""
    name = sock.getsockname()
    if sock.family == socket.AF_UNIX:
        return f"unix:{name}"
    host, port = name[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


class UnixFiles:
    """The socket files that a service made; taken away when it ends, if they are still its own."""

    def __init__(self, sockets: Iterable[socket.socket]) -> None:
        self._files: Final[dict[str, int]] = {}
        for sock in sockets:
            if sock.family == socket.AF_UNIX:
                path = sock.getsockname()
                self._files[path] = Path(path).stat().st_ino

    def remove(self) -> None:
        """Unlink them; a file that another service has put in its place stays."""
        for path, inode in self._files.items():
            with contextlib.suppress(OSError):
                if Path(path).stat().st_ino == inode:
                    Path(path).unlink()


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


def _bind_unix(endpoint: Endpoint, count: int) -> list[socket.socket]:
    path = endpoint.path
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    group = [sock]
    try:
        sock.setblocking(False)
        _remove_stale(path, endpoint.setting)
        mask = os.umask(0o777 & ~endpoint.mode)  # never open to more than it shall be
        try:
            _bind(sock, path, path, endpoint.setting)
        finally:
            os.umask(mask)
        Path(path).chmod(endpoint.mode)
        sock.listen(BACKLOG)
        group.extend(sock.dup() for _ in range(count - 1))
    except BaseException:
        _close(group)
        raise
    return group


def _remove_stale(path: str, setting: str) -> None:
    """Take away the file of a service that died; refuse where one lives, or it is no socket."""
    try:
        is_socket = stat.S_ISSOCK(Path(path).stat().st_mode)
    except OSError:
        return
    if not is_socket:
        raise ListenError(f"{path} exists and is no socket; choose another with {setting}")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(_PROBE_SECONDS)
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            Path(path).unlink(missing_ok=True)
            return
        except OSError:
            pass  # it is there, or we may not know
    raise ListenError(f"{path} is already in use; choose another with {setting}")


def _bind(sock: socket.socket, address: object, shown: str, setting: str) -> None:
    try:
        sock.bind(address)  # type: ignore[arg-type]
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            reason = "is already in use"
        elif error.errno == errno.EACCES:
            reason = "may not be bound by this user"
        else:
            why = os.strerror(error.errno) if error.errno else str(error)
            reason = f"cannot be bound ({why})"
        raise ListenError(f"{shown} {reason}; choose another with {setting}") from None


def _close(sockets: list[socket.socket]) -> None:
    for sock in sockets:
        sock.close()
