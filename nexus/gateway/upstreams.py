"""The upstreams of a worker: added, drained and removed, reweighted; pool and breaker of each.

An upstream that stays keeps its pool, its breaker and its counts over every reload.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Sequence
from time import monotonic_ns
from typing import TYPE_CHECKING, Any, Final, cast

from nexus.clock import iso_utc, wall_ms
from nexus.gateway.discovery import DEFAULT_GROUP, ServiceEntry
from nexus.gateway.health import Outliers, state_of
from nexus.gateway.loadtable import LoadTable
from nexus.gateway.pool import Pool
from nexus.gateway.reasons import cause_named
from nexus.policy.balance import Balancer, Server, make_balancer
from nexus.policy.breaker import Breaker, BreakerConfig, BreakerTable

if TYPE_CHECKING:
    from nexus.gateway._wheel_py import Wheel
    from nexus.gateway.settings import GatewaySettings
    from nexus.observability.registry import LocalMetrics

__all__ = ["Upstreams"]

log = logging.getLogger("nexus.gateway.upstreams")

_STATE_NUMBERS: Final = {"closed": 0, "open": 1, "half-open": 2}

#: Gauges of each upstream.
_STATE: Final = "nexus_circuit_breaker_state"
_HEALTHY: Final = "nexus_upstream_healthy"
_CONNECTIONS: Final = "nexus_upstream_connections"
_QUEUE: Final = "nexus_upstream_queue"

#: Between two looks at what changes with time, nanoseconds.
_LOOK_AGAIN_NS: Final = 200_000_000

#: Share of its turns with which a slow start begins.
_LEAST_RAMP: Final = 0.1

#: Beyond connect and response head, before another worker may think a trial's owner dead.
_TRIAL_MARGIN_MS: Final = 1000


def _breaker_config(gateway: GatewaySettings) -> BreakerConfig:
    settings = gateway.breaker
    connect_ms = int(gateway.timeouts.connect * 1000)
    return BreakerConfig(
        error_threshold_percentage=settings.error_threshold_percentage,
        reset_timeout_ms=settings.reset_timeout_ms,
        volume_threshold=settings.volume_threshold,
        trial_timeout_ms=connect_ms + settings.timeout_ms + _TRIAL_MARGIN_MS,
        enabled=settings.enabled,
    )


class Upstreams:
    """Owns every :class:`Server` of a worker."""

    def __init__(
        self,
        settings: GatewaySettings,
        table: BreakerTable,
        worker: int,
        wheel: Wheel,
        metrics: LocalMetrics,
        rng: random.Random,
        loads: LoadTable | None = None,
    ) -> None:
        self._settings = settings
        self._table: Final = table
        self._worker: Final = worker
        self._wheel: Final = wheel
        self._metrics: Final[Any] = metrics
        self._rng: Final = rng
        self._overflows: Final = metrics.counter("nexus_circuit_breaker_overflows_total")
        # The table was made before the fork, but only workers ask it for breakers.
        self._overflows_seen = 0
        self._servers: dict[str, Server] = {}
        self._leaving: list[Server] = []
        self._loads: Final = loads
        #: URL → its row in the table of loads, and the requests that this worker did not send.
        self._rows: Final[dict[str, tuple[int, int]]] = {}
        #: URL → the group that it is in.
        self._groups: dict[str, str] = {}
        #: Group → its balancer; the same object for good, requests look here.
        self.balancers: Final[dict[str, Balancer]] = {}
        #: ``None`` while ejection is switched off.
        self.outliers: Outliers | None = None
        self._weights: dict[str, int] = {}
        self._version = -1
        self._look_again = 0
        self._started = False
        table.adopt(worker)
        self._configure_health()

    @staticmethod
    def usable(server: Server) -> bool:
        """Whether the breaker would let a request through; changes nothing."""
        return cast("Breaker", server.breaker).ready(monotonic_ns())

    def apply(self, entries: Sequence[ServiceEntry]) -> None:
        """This is the list now: add, drain what is gone, change weights."""
        wanted = {entry.url: entry for entry in entries}
        for url in [url for url in self._servers if url not in wanted]:
            server = self._servers.pop(url)
            server.draining = True
            self._leaving.append(server)
            log.info("upstream leaves, draining", extra={"upstream": url, "active": server.active})
        for url, entry in wanted.items():
            known = self._servers.get(url)
            if known is None:
                self._servers[url] = self._add(entry)
            elif self._weights[url] != entry.weight:
                log.info("upstream reweighted", extra={"upstream": url, "weight": entry.weight})
        self._weights = {url: entry.weight for url, entry in wanted.items()}
        self._groups = {url: entry.group for url, entry in wanted.items()}
        self._warn_of_idle_weights(entries)
        # The file's order is the order of the turns.
        self._servers = {url: self._servers[url] for url in wanted}
        self._balance()
        self._started = True
        self.refresh(monotonic_ns())
        self.sweep()
        self.report()

    def _warn_of_idle_weights(self, entries: Sequence[ServiceEntry]) -> None:
        """Weights that differ and do nothing are a mistake, in the file or in the settings."""
        algorithm = self._settings.balancer.algorithm
        if self._worker == 0 and algorithm not in ("weighted", "weighted-smooth"):
            if len({entry.weight for entry in entries}) > 1:
                log.warning(
                    "weights of the services file have no effect, set balancer.algorithm to "
                    "'weighted'",
                    extra={"algorithm": algorithm},
                )

    @property
    def servers(self) -> dict[str, Server]:
        """URL → server, without those that have left the list."""
        return self._servers

    def groups(self) -> dict[str, Sequence[Server]]:
        """The servers in rotation or out of it for a while, by group."""
        return {group: balancer.servers for group, balancer in self.balancers.items()}

    def refresh(self, now: int) -> None:
        """Take over what the workers share: with every tick of the wheel.

        Orders and health are looked at when they have changed, what ends or grows with time
        (ejections, slow start) every fifth of a second.
        """
        version = self._table.version
        if version == self._version and now < self._look_again:
            return
        self._version = version
        self._look_again = now + _LOOK_AGAIN_NS if self._timed else 1 << 62
        reshaped = False
        for url, server in self._servers.items():
            state = state_of(server)
            weight = state.weight or self._weights[url]
            reshaped = reshaped or weight != server.weight or state.drained != server.draining
            server.weight, server.draining = weight, state.drained
            checked = self._settings.health_check.enabled and state.probed == "unhealthy"
            server.healthy = not checked and not (self.outliers is not None and state.ejected(now))
            server.ramp = self._ramp(server, now)
        for balancer in self.balancers.values():
            if reshaped:
                balancer.update(balancer.servers)
            else:
                balancer.assess()

    @property
    def _timed(self) -> bool:
        return self.outliers is not None or self._settings.balancer.slow_start_seconds > 0

    def _ramp(self, server: Server, now: int) -> float:
        window = int(self._settings.balancer.slow_start_seconds * 1e9)
        if not window:
            return 1.0
        since = state_of(server).since(cast("Breaker", server.breaker).closed_at())
        if not since or now - since >= window:
            return 1.0
        return max(_LEAST_RAMP, (now - since) / window)

    def _configure_health(self) -> None:
        settings = self._settings
        self.outliers = None
        if settings.outliers.enabled:
            self.outliers = Outliers(settings.outliers, self._table, self._metrics, self.groups)
        self._version = -1

    def _balance(self) -> None:
        """Each group's balancer gets the servers of its group."""
        members: dict[str, list[Server]] = {}
        for url, server in self._servers.items():
            members.setdefault(self._groups[url], []).append(server)
        for group in [group for group in self.balancers if group not in members]:
            del self.balancers[group]
        for group, servers in members.items():
            balancer = self.balancers.get(group)
            if balancer is None:
                algorithm = self._settings.balancer.algorithm
                percent = self._settings.balancer.panic_threshold_percentage
                balancer = self.balancers[group] = make_balancer(
                    algorithm, self._rng, panic_percent=percent
                )
            balancer.update(servers)

    def _add(self, entry: ServiceEntry) -> Server:
        for server in self._leaving:
            if server.url == entry.url:  # back before it had drained
                self._leaving.remove(server)
                server.draining = False
                return server
        server = Server(entry.url, entry.weight)
        settings = self._settings
        server.extra = Pool(entry.url, self._wheel, settings.upstream, settings.timeouts)
        server.breaker = self._table.breaker(entry.url, self._worker, _breaker_config(settings))
        state = server.state = self._table.state_of(entry.url)
        if self._started:
            state.joins(monotonic_ns())
        log.info("upstream joins", extra={"upstream": entry.url, "weight": entry.weight})
        return server

    def configure(self, settings: GatewaySettings) -> None:
        """Apply new settings to what stays."""
        changed = settings.balancer != self._settings.balancer
        self._settings = settings
        self._configure_health()
        if changed:
            self.balancers.clear()
            self._balance()
        config = _breaker_config(settings)
        for server in (*self._servers.values(), *self._leaving):
            cast("Pool", server.extra).configure(settings.upstream, settings.timeouts)
            cast("Breaker", server.breaker).config = config

    def sweep(self) -> None:
        """Let go of upstreams that have drained."""
        for server in [s for s in self._leaving if s.active == 0]:
            self._leaving.remove(server)
            self._publish(server)
            self._rows.pop(server.url, None)
            cast("Pool", server.extra).close()
            cast("Breaker", server.breaker).close()
            self._retire(server.url)
            log.info("upstream has left", extra={"upstream": server.url})

    def _retire(self, url: str) -> None:
        """Whoever has left is not scraped, as healthy or otherwise."""
        for name in (_STATE, _HEALTHY, _QUEUE):
            self._metrics.retire(name, url)
        for use in ("idle", "busy"):
            self._metrics.retire(_CONNECTIONS, url, use)

    def report(self) -> None:
        """Renew the gauges, also of those that are draining: now and then, off the request path."""
        now = monotonic_ns()
        # Resolved anew: what was retired in between makes handles void.
        states = self._metrics.gauges(_STATE)
        healthy = self._metrics.gauges(_HEALTHY)
        connections = self._metrics.gauges(_CONNECTIONS)
        queue = self._metrics.gauges(_QUEUE)
        for server in (*self._servers.values(), *self._leaving):
            pool = cast("Pool", server.extra)
            state = cast("Breaker", server.breaker).state(now)
            states.labels(server.url).set(_STATE_NUMBERS[state])
            in_rotation = server.healthy and not server.draining
            healthy.labels(server.url).set(1.0 if in_rotation else 0.0)
            connections.labels(server.url, "idle").set(pool.idle)
            connections.labels(server.url, "busy").set(pool.busy)
            queue.labels(server.url).set(pool.waiting)
            self._publish(server)
        self._overflows.inc(self._table.overflows - self._overflows_seen)
        self._overflows_seen = self._table.overflows

    def _publish(self, server: Server) -> tuple[int, int]:
        """Tell the other workers; handled and active over all of them, as far as they have told."""
        if self._loads is None:
            return server.handled, server.active
        place = self._rows.get(server.url)
        if place is None:
            row = self._loads.row(server.url)
            if row is None:
                return server.handled, server.active
            # A server that is new here begins at nothing, its row goes on.
            place = self._rows[server.url] = (row, self._loads.adopt(row, self._worker))
        row, before = place
        self._loads.publish(row, self._worker, before + server.handled, server.active)
        return self._loads.totals(row)

    def balance_stats(self) -> dict[str, Any]:
        """``GET /lb-stats``: over all workers, those of the others as of a second ago."""
        now = monotonic_ns()
        loads = {url: self._publish(server) for url, server in self._servers.items()}
        return {
            "algorithm": self._settings.balancer.algorithm,
            "servers": [
                {
                    "url": server.url,
                    "weight": server.weight,
                    "activeConnections": loads[server.url][1],
                    "requestsHandled": loads[server.url][0],
                    # As requests find it: an open breaker keeps them away.
                    "healthy": server.healthy
                    and cast("Breaker", server.breaker).state(now) != "open",
                    **self._group_of(server),
                }
                for server in self._servers.values()
            ],
        }

    def _group_of(self, server: Server) -> dict[str, str]:
        """Said only where it says something: the default group is as in the contract."""
        group = self._groups[server.url]
        return {} if group == DEFAULT_GROUP else {"group": group}

    def breaker_stats(self) -> dict[str, Any]:
        """``GET /cb-stats``."""
        now = monotonic_ns()
        return {server.url: self._breaker_of(server, now) for server in self._servers.values()}

    def _breaker_of(self, server: Server, now: int) -> dict[str, object]:
        found = cast("Breaker", server.breaker).snapshot(now)
        cause, at = state_of(server).last_error()
        wait = found["retryInMs"]
        wall = wall_ms()
        found["nextTrialAt"] = iso_utc(wall + cast("int", wait)) if wait else None
        found["lastError"] = cause_named(cause) if cause else None
        found["lastErrorAt"] = iso_utc(wall - (now - at) // 1_000_000) if cause else None
        return found

    def close(self) -> None:
        """The end of the worker: no connection survives."""
        for server in (*self._servers.values(), *self._leaving):
            cast("Pool", server.extra).abort()
            cast("Breaker", server.breaker).close()
