"""Who is left out and why: ejections for what upstreams answered, active checks, operators' orders.

::

    attempts ─► Outliers.failed ─► enough in a row? ─► eject ─┐
    Prober (one worker) ─► GET path ─► thresholds ────────────┼─► UpstreamState (shared memory)
    admin listener ─► drain, weight ──────────────────────────┘          │ version
                            every worker, each tick ◄────────────────────┘ ─► Server.healthy, …
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable, Mapping, Sequence
from time import monotonic_ns
from typing import TYPE_CHECKING, Any, Final, cast
from urllib.parse import urlsplit

from nexus.errors import ConfigError
from nexus.gateway.pool import why_not_connected
from nexus.net.tls import client_context
from nexus.policy.balance import Server
from nexus.policy.outlier import OutlierPolicy, may_eject, outliers

if TYPE_CHECKING:
    import ssl

    from nexus.gateway.settings import GatewaySettings
    from nexus.gateway.settings_upstreams import HealthCheckSettings, OutlierSettings
    from nexus.net.settings import DialTlsSettings
    from nexus.observability.registry import LocalMetrics
    from nexus.policy.breaker import BreakerTable
    from nexus.policy.upstreamstate import UpstreamState

__all__ = ["Outliers", "Prober", "check_upstreams", "good_statuses", "state_of"]

log = logging.getLogger("nexus.gateway.health")

#: A prober that says nothing for so long is dead, and another worker takes over.
LEASE_NS: Final = 2_000_000_000
_GATEWAY_STATUSES: Final = frozenset((502, 503, 504))
#: Of a probe's response head.
_MAX_HEAD: Final = 16_384

#: group → the servers in it.
Groups = Callable[[], Mapping[str, Sequence[Server]]]


def _policy(settings: OutlierSettings) -> OutlierPolicy:
    return OutlierPolicy(
        consecutive_5xx=settings.consecutive_5xx,
        consecutive_gateway=settings.consecutive_gateway_failures,
        base_ns=int(settings.base_ejection_seconds * 1e9),
        longest_ns=int(settings.max_ejection_seconds * 1e9),
        max_percent=settings.max_ejection_percentage,
        deviations=settings.success_rate_deviations,
        least_requests=settings.success_rate_requests,
        least_upstreams=settings.success_rate_upstreams,
    )


def state_of(server: Server) -> UpstreamState:
    """Its shared state."""
    return cast("UpstreamState", server.state)


class Outliers:
    """What the data plane tells of every answer, while ejection is switched on."""

    def __init__(
        self,
        settings: OutlierSettings,
        table: BreakerTable,
        metrics: LocalMetrics,
        groups: Groups,
    ) -> None:
        self._policy: Final = _policy(settings)
        self._table: Final = table
        self._ejections: Final = metrics.counters("nexus_upstream_ejections_total")
        self._groups: Final = groups

    def answered(self, server: Server, status: int) -> None:
        """A response head came."""
        if status < 500:
            state_of(server).succeeded()
        else:
            self._failed(server, status in _GATEWAY_STATUSES)

    def failed(self, server: Server) -> None:
        """No response came."""
        self._failed(server, gateway=True)

    def _failed(self, server: Server, gateway: bool) -> None:
        state = state_of(server)
        why = self._policy.reached(*state.failed(gateway))
        if why:
            self.eject(server, why)

    def eject(self, server: Server, why: str) -> None:
        """Leave it out, unless too many of its group are out already."""
        policy = self._policy
        group = next((g for g in self._groups().values() if server in g), ())
        now = monotonic_ns()
        with self._table.deciding():
            state = state_of(server)
            states = [state_of(one) for one in group]
            if state.ejected(now) or not may_eject(states, now, policy.max_percent):
                return
            time = state.eject(now, policy.base_ns, policy.longest_ns)
        self._ejections.labels(server.url, why).inc()
        log.warning(
            "upstream ejected",
            extra={"upstream": server.url, "cause": why, "seconds": round(time / 1e9, 3)},
        )

    def compare(self) -> None:
        """Success rates within each group; now and then, by one worker."""
        if not self._policy.deviations:
            return
        now = monotonic_ns()
        for group in self._groups().values():
            by_url = {server.url: server for server in group}
            counts = {
                url: cast("Any", server.breaker).counts(now) for url, server in by_url.items()
            }
            for url in outliers(counts, self._policy):
                self.eject(by_url[url], "success_rate")


def good_statuses(texts: Sequence[str]) -> frozenset[int]:
    """``200``, ``200-299`` → statuses. Raises ``ValueError``."""
    found: set[int] = set()
    for text in texts:
        first, dash, last = text.partition("-")
        if not first.isdigit() or (dash and not last.isdigit()):
            raise ValueError(f"expected a status or a range like 200-299, got {text!r}")
        low, high = int(first), int(last) if dash else int(first)
        if not 100 <= low <= high <= 599:
            raise ValueError(f"expected statuses from 100 to 599, got {text!r}")
        found.update(range(low, high + 1))
    if not found:
        raise ValueError("expected at least one status")
    return frozenset(found)


def check_upstreams(settings: GatewaySettings) -> None:
    """What one field of the settings of upstreams cannot tell; raises ``ConfigError``."""
    try:
        good_statuses(settings.health_check.statuses)
    except ValueError as error:
        raise ConfigError(str(error), path="health_check.statuses") from None
    outliers = settings.outliers
    if outliers.success_rate_deviations and not settings.breaker.enabled:
        raise ConfigError(
            "needs breaker.enabled: success rates come from its counts",
            path="outliers.success_rate_deviations",
        )
    if outliers.max_ejection_seconds < outliers.base_ejection_seconds:
        raise ConfigError(
            f"must be at least outliers.base_ejection_seconds ({outliers.base_ejection_seconds})",
            path="outliers.max_ejection_seconds",
        )


class _Check:
    """The checks of one upstream so far."""

    __slots__ = ("due", "in_a_row", "last", "running")

    def __init__(self) -> None:
        self.due = 0.0
        self.last: bool | None = None
        self.in_a_row = 0
        self.running: asyncio.Task[None] | None = None


class Prober:
    """Runs in every worker, works in one: whichever holds the lease."""

    def __init__(
        self,
        table: BreakerTable,
        worker: int,
        metrics: LocalMetrics,
        rng: random.Random,
        groups: Groups,
        ask: Callable[[str, HealthCheckSettings, DialTlsSettings], Awaitable[str]] | None = None,
    ) -> None:
        self._table: Final = table
        self._worker: Final = worker
        self._rng: Final = rng
        self._groups: Final = groups
        self._results: Final = metrics.counters("nexus_upstream_health_checks_total")
        self._checks: dict[str, _Check] = {}
        self._contexts: dict[Any, ssl.SSLContext] = {}
        self._ask: Final = ask or self._get

    async def run(self, current: Callable[[], GatewaySettings], outliers: Any) -> None:
        """Until cancelled; ``outliers()`` is the worker's :class:`Outliers` or ``None``."""
        loop = asyncio.get_running_loop()
        compared = 0.0
        while True:
            settings = current()
            if not self._table.leads(self._worker, monotonic_ns(), LEASE_NS):
                self._stop()
            else:
                if settings.health_check.enabled:
                    self._start_due(settings, loop.time())
                else:
                    self._forget()
                if loop.time() - compared >= 1.0 and outliers() is not None:
                    compared = loop.time()
                    outliers().compare()
            await asyncio.sleep(min(0.25, settings.health_check.interval_seconds / 4))

    def _stop(self) -> None:
        for check in self._checks.values():
            if check.running is not None:
                check.running.cancel()
        self._checks.clear()

    def _forget(self) -> None:
        self._stop()
        for group in self._groups().values():
            for server in group:
                state_of(server).forget_probes()

    def _start_due(self, settings: GatewaySettings, now: float) -> None:
        servers = {s.url: s for group in self._groups().values() for s in group}
        for url in [url for url in self._checks if url not in servers]:
            del self._checks[url]
        interval = settings.health_check.interval_seconds
        for url, server in servers.items():
            check = self._checks.get(url)
            if check is None:
                check = self._checks[url] = _Check()
                # Not all at once, and the first soon.
                check.due = now + self._rng.random() * min(1.0, interval / 4)
            if check.running is None and now >= check.due:
                check.due = now + interval * (0.8 + 0.4 * self._rng.random())
                check.running = asyncio.get_running_loop().create_task(
                    self._check(server, check, settings)
                )

    async def _check(self, server: Server, check: _Check, settings: GatewaySettings) -> None:
        rules = settings.health_check
        try:
            async with asyncio.timeout(rules.timeout_seconds):
                trouble = await self._ask(server.url, rules, settings.upstream.tls)
        except TimeoutError:
            trouble = "timeout"
        except (OSError, ConfigError, EOFError, ValueError) as error:
            trouble = why_not_connected(error) if isinstance(error, OSError) else str(error)
        finally:
            check.running = None
        good = not trouble
        self._results.labels(server.url, "good" if good else "bad").inc()
        check.in_a_row = check.in_a_row + 1 if good is check.last else 1
        check.last = good
        state = state_of(server)
        # The first check after the start tells as much as several: nothing is known otherwise.
        needed = rules.healthy_threshold if good else rules.unhealthy_threshold
        if state.probed == "unknown" and good:
            needed = 1
        if check.in_a_row >= needed and state.found(good, monotonic_ns()):
            log.log(
                logging.INFO if good else logging.WARNING,
                "upstream is healthy" if good else "upstream is unhealthy",
                extra={"upstream": server.url, "cause": trouble},
            )

    async def _get(self, url: str, rules: HealthCheckSettings, tls: DialTlsSettings) -> str:
        """One check; why it is bad, or the empty text."""
        parts = urlsplit(url)
        if parts.scheme == "unix":
            reader, writer = await asyncio.open_unix_connection(parts.path)
            host, path = "localhost", rules.path
        else:
            context = self._context(tls) if parts.scheme == "https" else None
            port = parts.port or (443 if context else 80)
            reader, writer = await asyncio.open_connection(
                parts.hostname,
                port,
                ssl=context,
                server_hostname=parts.hostname if context else None,
                limit=_MAX_HEAD,
            )
            host, path = parts.netloc, parts.path.rstrip("/") + rules.path
        try:
            writer.write(
                f"GET {path} HTTP/1.1\r\nHost: {host}\r\nUser-Agent: nexus-health-check\r\n"
                "Connection: close\r\n\r\n".encode()
            )
            line = await reader.readline()
        finally:
            writer.close()
        words = line.split(None, 2)
        if len(words) < 2 or not words[0].startswith(b"HTTP/1.") or not words[1].isdigit():
            return "no HTTP response" if line else "closed"
        status = int(words[1])
        return "" if status in good_statuses(rules.statuses) else f"status {status}"

    def _context(self, tls: DialTlsSettings) -> ssl.SSLContext:
        context = self._contexts.get(tls)
        if context is None:
            self._contexts.clear()
            context = self._contexts[tls] = client_context(tls, path="upstream.tls")
        return context
