"""The proxy's own commands (``NEXUS …``), and the numbers they show."""

from __future__ import annotations

import mmap
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from nexus import __version__
from nexus._speedups import BACKEND
from nexus.cacheproxy.dial import Identity
from nexus.clock import monotonic

if TYPE_CHECKING:
    from nexus.cacheproxy.pools import Pools
    from nexus.cacheproxy.session import Session

__all__ = ["ClientCounts", "LocalCommands", "Stats"]

_HELP: Final = (
    "NEXUS <subcommand>. Subcommands are:",
    "HELP",
    "    Print this help.",
    "STATS",
    "    Counters of this worker: clients, commands by way, connections to Redis.",
)


@dataclass(slots=True)
class Stats:
    """Counted in Python, as it is rare; the rest is in :class:`~nexus.cacheproxy.flow.Plane`."""

    accepted: int = 0
    refused: int = 0
    pins: int = 0
    protocol_errors: int = 0
    idle_closed: int = 0
    output_limit_closed: int = 0
    lost_shared: int = 0
    lost_pinned: int = 0


class ClientCounts:
    """Open clients of every worker, in memory that all workers share; one writer per slot."""

    def __init__(self, workers: int) -> None:
        self._workers: Final = workers
        self._map: Final = mmap.mmap(-1, max(workers * 8, mmap.PAGESIZE))
        self._slots: Final = memoryview(self._map).cast("q")

    def set(self, worker: int, count: int) -> None:
        self._slots[worker] = count

    def total(self) -> int:
        return sum(self._slots[: self._workers])


class LocalCommands:
    """What a session asks its worker: admission, and answers to ``NEXUS``."""

    def __init__(self, pools: Pools, counts: ClientCounts, worker: int, max_clients: int) -> None:
        self.pools: Final = pools
        self.counts: Final = counts
        self.worker: Final = worker
        self.max_clients = max_clients
        self.stats: Final = Stats()
        self.started: Final = monotonic()
        self._commands: Final[dict[bytes, Callable[[Session, list[bytes]], bytes]]] = {
            b"help": self._help,
            b"stats": self._show_stats,
        }

    def admit(self) -> bool:
        """Whether one more client fits; it is counted if so."""
        if self.counts.total() >= self.max_clients:
            self.stats.refused += 1
            return False
        self.stats.accepted += 1
        self.counts.set(self.worker, len(self.pools.sessions) + 1)
        return True

    def departed(self) -> None:
        """An admitted client is gone (and out of ``pools.sessions``)."""
        self.counts.set(self.worker, len(self.pools.sessions))

    def run(self, session: Session, args: list[bytes]) -> bytes:
        """The reply to ``NEXUS subcommand …``."""
        if len(args) < 2:
            return b"-ERR wrong number of arguments for 'nexus' command\r\n"
        run = self._commands.get(args[1].lower())
        if run is None:
            shown = args[1][:128].decode("latin-1").replace("\r", " ").replace("\n", " ")
            return f"-ERR unknown subcommand '{shown}'. Try NEXUS HELP.\r\n".encode("latin-1")
        return run(session, args)

    def _help(self, _session: Session, _args: list[bytes]) -> bytes:
        lines = b"".join(b"+%b\r\n" % line.encode() for line in _HELP)
        return b"*%d\r\n" % len(_HELP) + lines

    def _show_stats(self, session: Session, _args: list[bytes]) -> bytes:
        text = "".join(f"{name}:{value}\r\n" for name, value in self.snapshot(session).items())
        data = text.encode()
        if session.protocol == 3:
            return b"=%d\r\ntxt:%b\r\n" % (len(data) + 4, data)
        return b"$%d\r\n%b\r\n" % (len(data), data)

    def snapshot(self, session: Session | None = None) -> dict[str, Any]:
        """Everything that ``NEXUS STATS`` shows, by name."""
        plane, pools = self.pools.plane, self.pools
        who: Identity = session.identity if session is not None else pools.base
        links = pools.stats()
        return {
            "nexus_version": __version__,
            "backend": BACKEND,
            "worker": self.worker,
            "pid": os.getpid(),
            "uptime_seconds": int(monotonic() - self.started),
            "upstream": str(pools.target),
            "user": who.label,
            "clients": len(pools.sessions),
            "clients_all_workers": self.counts.total(),
            "clients_accepted": self.stats.accepted,
            "clients_refused": self.stats.refused,
            "clients_closed_idle": self.stats.idle_closed,
            "clients_closed_output_limit": plane.output_limit_kills,
            "protocol_errors": self.stats.protocol_errors,
            "commands_shared": plane.shared_commands,
            "commands_pinned": plane.pinned_commands,
            "commands_local": plane.local_commands,
            "commands_failed": plane.failed_commands,
            "pins": self.stats.pins,
            "client_bytes_in": plane.client_bytes_in,
            "client_bytes_out": plane.client_bytes_out,
            "upstream_bytes_in": plane.upstream_bytes_in,
            "upstream_bytes_out": plane.upstream_bytes_out,
            "upstream_shared_connections": links["shared"],
            "upstream_shared_down": links["shared_down"],
            "upstream_pinned_connections": links["pinned"],
            "upstream_warm_connections": links["warm"],
            "upstream_reconnects": links["reconnects"],
            "upstream_lost_shared": self.stats.lost_shared,
            "upstream_lost_pinned": self.stats.lost_pinned,
        }
