"""What must be true before anything is started, so that a refusal leaves nothing behind."""

from __future__ import annotations

import contextlib
import errno
import random
import socket
from pathlib import Path
from typing import TYPE_CHECKING, Final

from nexus.demo.settings import UpSettings, flag_of, variable_of
from nexus.errors import ListenError

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["claim_ports", "holder_of"]

#: Port setting → who needs it, in the words of the refusal.
_USERS: Final = {
    "gateway_port": "the gateway",
    "upstream_a_port": "demo upstream a",
    "upstream_b_port": "demo upstream b",
    "gateway_admin_port": "the gateway's admin listener",
    "consumer_admin_port": "the consumer's admin listener",
    "redis_port": "Redis",
    "cacheproxy_port": "the cacheproxy",
    "cacheproxy_admin_port": "the cacheproxy's admin listener",
}


#: Drawn ports lie between this and the kernel's own range: above those that services are known by.
_LOWEST_DRAWN: Final = 20_000

#: Draws before the kernel is asked instead; most ports there are free.
_DRAWS: Final = 50


def claim_ports(settings: UpSettings) -> dict[str, int]:
    """Port setting → port number: each is free at this moment, and no two are the same.

    Raises :class:`~nexus.errors.ListenError` with one line for every port that is taken: who
    needs it, who seems to have it, and what to change.
    """
    ports: dict[str, int] = {}
    refusals: list[str] = []
    # All sockets stay open until the last is bound: two free ports asked for must differ.
    with contextlib.ExitStack() as sockets:
        for name, user in _USERS.items():
            if name == "redis_port" and settings.redis_url:
                continue
            host = settings.gateway_host if name == "gateway_port" else "127.0.0.1"
            port: int = getattr(settings, name)
            try:
                taken = _bound(host, port) if port else _bound_anywhere(host)
                ports[name] = sockets.enter_context(taken).getsockname()[1]
            except OSError as error:
                refusals.append(_refusal(name, user, host, port, error))
    if refusals:
        raise ListenError("\n".join(refusals))
    return ports


def holder_of(port: int) -> str:
    """``redis-server, pid 4711``: who listens on a local TCP port; ``""`` where not visible.

    Only sockets of processes whose descriptors this user may read are found.
    """
    inodes = set(_listening_inodes(port))
    if not inodes:
        return ""
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            for descriptor in (process / "fd").iterdir():
                with contextlib.suppress(OSError):
                    if str(descriptor.readlink()) in inodes:
                        command = (process / "comm").read_text().strip()
                        return f"{command}, pid {process.name}"
    return ""


def _bound(host: str, port: int) -> socket.socket:
    family, _, _, _, address = socket.getaddrinfo(
        host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        # As the services do; without it, connections in TIME_WAIT would refuse a second run.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(address)
        # Two sockets with SO_REUSEADDR may share an address until one of them listens.
        sock.listen(1)
    except OSError:
        sock.close()
        raise
    return sock


def _bound_anywhere(host: str) -> socket.socket:
    """A free port that stays free until the child takes it.

    The kernel's own choice (port 0) comes out of the range from which it also serves outgoing
    connections and everybody else who asks for any port, and is given away again at once; so a
    port below that range is drawn.
    """
    candidates = range(_LOWEST_DRAWN, _first_ephemeral())
    for port in random.sample(candidates, min(_DRAWS, len(candidates))):
        with contextlib.suppress(OSError):
            return _bound(host, port)
    return _bound(host, 0)


def _first_ephemeral() -> int:
    """Where the kernel's range of automatic ports begins (32 768 unless changed)."""
    try:
        return int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    except (OSError, ValueError, IndexError):
        return 32_768


def _refusal(name: str, user: str, host: str, port: int, error: OSError) -> str:
    change = f"another port: nexus up {flag_of(name)} N, or {variable_of(name)}=N make run"
    if error.errno != errno.EADDRINUSE:
        reason = error.strerror or str(error)
        return f"{user} cannot listen on {host}:{port}: {reason}; {change}"
    holder = holder_of(port)
    by = f" by {holder}" if holder else ""
    if name == "redis_port":
        change = (
            f"to use the Redis that runs there: NEXUS_REDIS_URL=redis://127.0.0.1:{port} make run; "
            + change
        )
    return f"port {port} is in use{by}, and {user} needs it; {change}"


def _listening_inodes(port: int) -> Iterator[str]:
    """``socket:[inode]`` of every TCP socket that listens on ``port``."""
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        try:
            lines = Path(table).read_text().splitlines()[1:]
        except OSError:
            continue
        for line in lines:
            columns = line.split()
            listening = columns[3] == "0A"  # TCP_LISTEN in the kernel's numbering
            if listening and int(columns[1].rpartition(":")[2], 16) == port:
                yield f"socket:[{columns[9]}]"
