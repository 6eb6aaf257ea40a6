"""``NEXUS STATS``: the counters over all workers, as text lines."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, Final

from nexus import __version__
from nexus._speedups import BACKEND
from nexus.cacheproxy.commandgroups import GROUPS
from nexus.cacheproxy.local import Subcommand, text_reply
from nexus.cacheproxy.metrics import OUTCOMES
from nexus.cacheproxy.nearmetrics import LINES as NEAR_LINES
from nexus.clock import monotonic

if TYPE_CHECKING:
    from nexus.cacheproxy.counts import SharedCounts
    from nexus.cacheproxy.metrics import Publisher, Totals
    from nexus.cacheproxy.policies import Policies
    from nexus.cacheproxy.pools import Pools
    from nexus.cacheproxy.session import Session

__all__ = ["StatsCommand"]

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
    ("hot_keys_prolonged", ("nexus_cache_hot_keys_prolonged_total", "prolonged")),
    ("hot_keys_refused", ("nexus_cache_hot_keys_prolonged_total", "refused")),
    ("tags_refused", ("nexus_cache_tags_refused_total",)),
    ("tagged_keys", ("nexus_cache_tagged_keys_total",)),
    ("invalidations", ("nexus_cache_invalidations_total",)),
    ("invalidated_keys", ("nexus_cache_invalidated_keys_total",)),
    ("upstream_reconnects", ("nexus_cache_reconnects_total",)),
    ("upstream_retired", ("nexus_cache_retired_connections_total",)),
    ("upstream_lost_shared", ("nexus_cache_upstream_lost_total", "shared")),
    ("upstream_lost_pinned", ("nexus_cache_upstream_lost_total", "pinned")),
    ("leases_granted", ("nexus_cache_leases_total", "granted")),
    ("leases_early", ("nexus_cache_leases_total", "early")),
    ("leases_written", ("nexus_cache_leases_total", "written")),
    ("leases_handed_over", ("nexus_cache_leases_total", "handed_over")),
    ("leases_expired", ("nexus_cache_leases_total", "expired")),
    ("leases_lock_failed", ("nexus_cache_leases_total", "lock_failed")),
    ("lease_waits_held", ("nexus_cache_lease_waits_total", "held")),
    ("lease_waits_served", ("nexus_cache_lease_waits_total", "served")),
    ("lease_waits_released_late", ("nexus_cache_lease_waits_total", "released_late")),
    ("lease_waits_released_early", ("nexus_cache_lease_waits_total", "released_early")),
    ("lease_waits_not_leased", ("nexus_cache_lease_waits_total", "not_leased")),
    ("lease_waits_stale", ("nexus_cache_lease_waits_total", "stale")),
    ("lease_waiting", ("nexus_cache_lease_waiting",)),
    ("lease_fills_stored", ("nexus_cache_lease_fills_total", "stored")),
    ("lease_fills_refused", ("nexus_cache_lease_fills_total", "refused")),
    ("lease_fills_unguarded", ("nexus_cache_lease_fills_total", "unguarded")),
)
_COMMANDS: Final = "nexus_cache_commands_total"


class StatsCommand:
    """One worker's answer; the numbers are everybody's."""

    def __init__(
        self,
        pools: Pools,
        counts: SharedCounts,
        worker: int,
        publisher: Publisher,
        policies: Policies,
    ) -> None:
        self._pools: Final = pools
        self._counts: Final = counts
        self._worker: Final = worker
        self._publisher: Final = publisher
        self._policies: Final = policies
        self._started: Final = monotonic()

    def subcommands(self) -> dict[bytes, Subcommand]:
        """By lower-case name."""
        what = (
            "Counters over all workers: clients, commands by way and group, connections to Redis."
        )
        return {b"stats": Subcommand(self._show, "STATS", what, 2, 2)}

    def _show(self, session: Session, _args: list[bytes]) -> bytes:
        lines = [f"{name}:{value}" for name, value in self.snapshot(session).items()]
        return text_reply(session, lines)

    def snapshot(self, session: Session) -> dict[str, Any]:
        """Everything that ``NEXUS STATS`` shows, by name."""
        totals = self._publisher.totals()
        facts: dict[str, Any] = {
            "nexus_version": __version__,
            "backend": BACKEND,
            "workers": self._counts.workers,
            "worker": self._worker,
            "pid": os.getpid(),
            "uptime_seconds": int(monotonic() - self._started),
            "upstream": str(self._pools.target),
            "user": session.identity.label,
            "clients": self._counts.clients.total(),
            "clients_this_worker": len(self._pools.sessions),
            "dedicated_connections": self._counts.dedicated.total(),
        }
        facts |= self._policy()
        facts |= {
            f"commands_{way}": sum(
                int(totals.get((_COMMANDS, group, outcome), 0)) for group in GROUPS
            )
            for way, outcome in zip(("shared", "pinned", "local"), OUTCOMES, strict=True)
        }
        facts |= {name: int(totals.get(key, 0)) for name, key in _LINES}
        facts["near_mode"] = self._pools.near.mode()
        facts |= {name: int(totals.get(key, 0)) for name, key in NEAR_LINES}
        facts["upstream_commands_saved"] = facts["near_hits"] + facts["near_coalesced"]
        facts["pins"] = facts["pins_opened"] + facts["pins_reused"]
        return facts | _by_group(totals)

    def _policy(self) -> dict[str, Any]:
        policies = self._policies
        facts: dict[str, Any] = {
            "policy": "none" if policies.book is None else "off" if policies.off else "on",
            "policy_rules": 0 if policies.book is None else len(policies.book.rules),
        }
        if policies.error:
            facts["policy_error"] = policies.error
        return facts


def _by_group(totals: Totals) -> dict[str, str]:
    """``group_string`` → ``shared=1,pinned=0,local=0``; without groups that were never used."""
    lines = {}
    for group in GROUPS:
        counts = [int(totals.get((_COMMANDS, group, outcome), 0)) for outcome in OUTCOMES]
        if any(counts):
            name = f"group_{group.replace('-', '_')}"
            lines[name] = "shared={},pinned={},local={}".format(*counts)
    return lines
