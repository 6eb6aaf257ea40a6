"""The proxy's own commands (``NEXUS …``), and admission of clients."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from nexus import __version__
from nexus._speedups import BACKEND
from nexus.cacheproxy.commands import GROUPS
from nexus.cacheproxy.counts import SharedCounts, Stats
from nexus.cacheproxy.metrics import OUTCOMES
from nexus.clock import monotonic
from nexus.wire.resp import BulkError, SimpleError, SimpleString, VerbatimString, encode_reply

if TYPE_CHECKING:
    from nexus.cacheproxy.metrics import Publisher, Totals
    from nexus.cacheproxy.pools import Pools
    from nexus.cacheproxy.session import Session

__all__ = ["LocalCommands"]

_HELP: Final = (
    "NEXUS <subcommand>. Subcommands are:",
    "HELP",
    "    Print this help.",
    "STATS",
    "    Counters over all workers: clients, commands by way and group, connections to Redis.",
)

#: Line of ``NEXUS STATS`` → metric and label values, summed over all workers.
_LINES: Final[tuple[tuple[str, tuple[str, ...]], ...]] = (
    ("clients_accepted", ("nexus_cache_clients_total",)),
    ("clients_refused", ("nexus_cache_clients_closed_total", "max_clients")),
    ("clients_closed_idle", ("nexus_cache_clients_closed_total", "idle")),
    ("clients_closed_output_limit", ("nexus_cache_clients_closed_total", "output_limit")),
    ("protocol_errors", ("nexus_cache_clients_closed_total", "protocol_error")),
    ("commands_refused", ("nexus_cache_errors_total", "refused")),
    ("commands_lost", ("nexus_cache_errors_total", "lost")),
    ("pins_opened", ("nexus_cache_pins_total", "opened")),
    ("pins_reused", ("nexus_cache_pins_total", "reused")),
    ("pins_refused", ("nexus_cache_pins_total", "refused")),
    ("client_bytes_in", ("nexus_cache_bytes_total", "client_in")),
    ("client_bytes_out", ("nexus_cache_bytes_total", "client_out")),
    ("upstream_bytes_in", ("nexus_cache_bytes_total", "upstream_in")),
    ("upstream_bytes_out", ("nexus_cache_bytes_total", "upstream_out")),
    ("upstream_shared_connections", ("nexus_cache_upstream_connections", "shared")),
    ("upstream_shared_down", ("nexus_cache_upstream_connections", "shared_down")),
    ("upstream_pinned_connections", ("nexus_cache_upstream_connections", "pinned")),
    ("upstream_warm_connections", ("nexus_cache_upstream_connections", "warm")),
    ("upstream_reconnects", ("nexus_cache_reconnects_total",)),
    ("upstream_retired", ("nexus_cache_retired_connections_total",)),
    ("upstream_lost_shared", ("nexus_cache_upstream_lost_total", "shared")),
    ("upstream_lost_pinned", ("nexus_cache_upstream_lost_total", "pinned")),
)
_COMMANDS: Final = "nexus_cache_commands_total"


class LocalCommands:
    """What a session asks its worker: admission, and answers to ``NEXUS``."""

    def __init__(
        self, pools: Pools, counts: SharedCounts, worker: int, stats: Stats, publisher: Publisher
    ) -> None:
        self.pools: Final = pools
        self.counts: Final = counts
        self.worker: Final = worker
        self.stats: Final = stats
        self.publisher: Final = publisher
        #: Over all workers.
        self.max_clients = 0
        self.started: Final = monotonic()
        self._commands: Final[dict[bytes, Callable[[Session], bytes]]] = {
            b"help": self._help,
            b"stats": self._show_stats,
        }

    def admit(self) -> bool:
        """Whether one more client fits; it is counted if so."""
        if self.counts.clients.total() >= self.max_clients:
            self.stats.refused += 1
            return False
        self.stats.accepted += 1
        self.counts.clients.set(self.worker, len(self.pools.sessions) + 1)
        return True

    def departed(self) -> None:
        """An admitted client is gone (and out of ``pools.sessions``)."""
        self.counts.clients.set(self.worker, len(self.pools.sessions))

    def run(self, session: Session, args: list[bytes]) -> bytes:
        """The reply to ``NEXUS subcommand …``."""
        if len(args) < 2:
            return encode_reply(SimpleError(b"ERR wrong number of arguments for 'nexus' command"))
        run = self._commands.get(args[1].lower())
        if run is None:
            text = b"ERR unknown subcommand '%b'. Try NEXUS HELP." % args[1][:128]
            return encode_reply(BulkError(text), 2)  # a line, with blanks for line ends
        return run(session)

    def _help(self, _session: Session) -> bytes:
        return encode_reply([SimpleString(line.encode()) for line in _HELP])

    def _show_stats(self, session: Session) -> bytes:
        lines = "".join(f"{name}:{value}\r\n" for name, value in self.snapshot(session).items())
        return encode_reply(
            VerbatimString(b"txt:" + lines.encode()), 3 if session.protocol == 3 else 2
        )

    def snapshot(self, session: Session) -> dict[str, Any]:
        """Everything that ``NEXUS STATS`` shows, by name."""
        totals = self.publisher.totals()
        facts: dict[str, Any] = {
            "nexus_version": __version__,
            "backend": BACKEND,
            "workers": self.counts.workers,
            "worker": self.worker,
            "pid": os.getpid(),
            "uptime_seconds": int(monotonic() - self.started),
            "upstream": str(self.pools.target),
            "user": session.identity.label,
            "clients": self.counts.clients.total(),
            "clients_this_worker": len(self.pools.sessions),
            "dedicated_connections": self.counts.dedicated.total(),
        }
        facts |= {
            f"commands_{way}": sum(
                int(totals.get((_COMMANDS, group, outcome), 0)) for group in GROUPS
            )
            for way, outcome in zip(("shared", "pinned", "local"), OUTCOMES, strict=True)
        }
        facts |= {name: int(totals.get(key, 0)) for name, key in _LINES}
        facts["pins"] = facts["pins_opened"] + facts["pins_reused"]
        return facts | _by_group(totals)


def _by_group(totals: Totals) -> dict[str, str]:
    """``group_string`` → ``shared=1,pinned=0,local=0``; without groups that were never used."""
    lines = {}
    for group in GROUPS:
        counts = [int(totals.get((_COMMANDS, group, outcome), 0)) for outcome in OUTCOMES]
        if any(counts):
            name = f"group_{group.replace('-', '_')}"
            lines[name] = "shared={},pinned={},local={}".format(*counts)
    return lines
