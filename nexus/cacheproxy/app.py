"""Composition root of the cacheproxy: settings → plane, pools, sessions, listener, ticker."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import TYPE_CHECKING, Final

from nexus._speedups.respscan import CommandTable
from nexus.cacheproxy.commands import Kind, kinds
from nexus.cacheproxy.flow import Plane
from nexus.cacheproxy.local import ClientCounts, LocalCommands
from nexus.cacheproxy.metrics import Publisher
from nexus.cacheproxy.pools import Pools
from nexus.cacheproxy.session import Session
from nexus.cacheproxy.settings import CacheproxySettings
from nexus.cacheproxy.target import parse_target
from nexus.clock import monotonic
from nexus.errors import ConfigError
from nexus.net.admin import AdminServer, start_admin
from nexus.net.service import ServiceSpec, WorkerContext

if TYPE_CHECKING:
    from nexus.cacheproxy.local import Stats

__all__ = ["SPEC", "CacheproxyApp"]

log = logging.getLogger("nexus.cacheproxy")

#: Seconds between publications of the counters; also the grain of idle times.
TICK_SECONDS: Final = 0.25
#: Seconds that the start waits for Redis before serving without it (-LOADING).
START_SECONDS: Final = 1.0


class CacheproxyApp:
    """One worker."""

    def __init__(self, context: WorkerContext[CacheproxySettings, ClientCounts]) -> None:
        self._context: Final = context
        loop = asyncio.get_running_loop()
        self._plane: Final = Plane(loop, CommandTable(kinds(), int(Kind.PROBE)))
        target = parse_target(context.settings.redis.url)
        self._pools: Final = Pools(
            self._plane, target, observe=self._observe, count_lost=self._count_lost
        )
        limits = context.settings.limits
        context.shared.set(context.index, 0)  # what a crashed predecessor left there
        self._local: Final = LocalCommands(
            self._pools, context.shared, context.index, limits.max_clients
        )
        self._stats: Final[Stats] = self._local.stats
        self._publisher: Final = Publisher(context.metrics, self._pools, self._local)
        self._idle_timeout = limits.idle_timeout_seconds
        self._apply(context.settings)
        self._server: asyncio.Server | None = None
        self._admin: AdminServer | None = None
        self._ticker: asyncio.Task[None] | None = None

    def _apply(self, settings: CacheproxySettings) -> None:
        limits = settings.limits
        self._plane.output_limit = limits.output_bytes
        self._plane.bulk_limit = limits.bulk_bytes
        self._local.max_clients = limits.max_clients
        self._idle_timeout = limits.idle_timeout_seconds

    def _observe(self, seconds: float) -> None:
        self._publisher.observe(seconds)

    def _count_lost(self, kind: str) -> None:
        if kind == "shared":
            self._stats.lost_shared += 1
        else:
            self._stats.lost_pinned += 1

    async def start(self) -> None:
        """Listen; Redis may come later."""
        pools = self._pools
        self._plane.tick = int(monotonic())
        base = pools.shared(pools.base, 2, pools.target.db)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(base.first_attempt.wait(), START_SECONDS)
        self._ticker = asyncio.create_task(self._tick_forever())
        self._admin = await start_admin(self._context)
        self._server = await asyncio.get_running_loop().create_server(
            lambda: Session(pools, self._local),  # type: ignore[arg-type,return-value]
            sock=self._context.listener,  # type: ignore[arg-type]  # SPEC.listens: there is one
            backlog=4096,
        )
        log.info("serving", extra={"upstream": str(pools.target)})

    async def reload(self, settings: CacheproxySettings) -> None:
        """Apply new limits; another Redis needs a restart and is refused."""
        if settings.redis.url != self._context.settings.redis.url:
            raise ConfigError("cannot change while running; restart", path="redis.url")
        self._apply(settings)

    async def drain(self, seconds: float) -> None:
        """Accept no more, deliver every outstanding reply, close."""
        if self._server is not None:
            self._server.close()
        for session in list(self._pools.sessions):
            session.drain()
        deadline = monotonic() + seconds
        while self._pools.sessions and monotonic() < deadline:  # noqa: ASYNC110  (no event per client)
            await asyncio.sleep(0.01)
        for session in list(self._pools.sessions):
            session.abort()
        if self._ticker is not None:
            self._ticker.cancel()
        self._publisher.publish()
        self._pools.close()
        if self._admin is not None:
            await self._admin.stop()

    async def _tick_forever(self) -> None:
        swept = self._plane.tick
        while True:
            await asyncio.sleep(TICK_SECONDS)
            self._plane.tick = int(monotonic())
            self._publisher.publish()
            if self._plane.tick != swept:
                swept = self._plane.tick
                self._pools.sweep()
                self._close_idle()

    def _close_idle(self) -> None:
        """As Redis: clients that are blocked or subscribed are not idle."""
        if self._idle_timeout <= 0:
            return
        limit = self._plane.tick - self._idle_timeout
        for session in list(self._pools.sessions):
            busy = session.outstanding or session.spliced_through
            if session.last_seen < limit and not busy:
                self._stats.idle_closed += 1
                session.abort()


def _validate(settings: CacheproxySettings) -> None:
    parse_target(settings.redis.url)


SPEC: Final = ServiceSpec(
    name="cacheproxy",
    description="Transparent Redis proxy: multiplexed connections, unchanged clients.",
    settings=CacheproxySettings,
    make_shared=lambda settings: ClientCounts(settings.workers),
    make_app=CacheproxyApp,
    flags={"--redis": ("redis.url", "where Redis is: redis://, rediss:// or unix://")},
    validate=_validate,
)
