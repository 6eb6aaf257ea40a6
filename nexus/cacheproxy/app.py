"""Composition root of the cacheproxy: settings → plane, pools, sessions, listener, ticker."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from typing import TYPE_CHECKING, Final

from nexus._speedups.respscan import CommandTable
from nexus.cacheproxy.commandeffects import effects
from nexus.cacheproxy.commandgroups import groups
from nexus.cacheproxy.commands import Kind, kinds
from nexus.cacheproxy.counts import SharedCounts, Stats
from nexus.cacheproxy.explaincommand import ExplainCommand
from nexus.cacheproxy.flow import Plane
from nexus.cacheproxy.hotcommand import HotCommand
from nexus.cacheproxy.hotkeys import HotKeys
from nexus.cacheproxy.local import LocalCommands
from nexus.cacheproxy.metrics import Publisher
from nexus.cacheproxy.policies import Policies, check_policy
from nexus.cacheproxy.policycommand import PolicyCommand
from nexus.cacheproxy.pools import Pools
from nexus.cacheproxy.session import Session
from nexus.cacheproxy.settings import CacheproxySettings
from nexus.cacheproxy.statscommand import StatsCommand
from nexus.cacheproxy.tagcommands import TagCommands
from nexus.cacheproxy.tagging import Tagger
from nexus.cacheproxy.target import parse_target
from nexus.cacheproxy.traces import Traces, check_tracing
from nexus.clock import monotonic
from nexus.errors import ConfigError
from nexus.net.admin import AdminServer, start_admin
from nexus.net.service import ServiceSpec, WorkerContext
from nexus.net.tls import server_context

if TYPE_CHECKING:
    import ssl

    from nexus.policy.policyfile import RuleBook

__all__ = ["SPEC", "CacheproxyApp"]

log = logging.getLogger("nexus.cacheproxy")

#: Seconds between publications of the counters; also the grain of idle times.
TICK_SECONDS: Final = 0.25
#: Seconds that the start waits for Redis before serving without it (-LOADING).
START_SECONDS: Final = 1.0


class CacheproxyApp:
    """One worker."""

    def __init__(self, context: WorkerContext[CacheproxySettings, SharedCounts]) -> None:
        self._context: Final = context
        loop = asyncio.get_running_loop()
        self._plane: Final = Plane(
            loop, CommandTable(kinds(), int(Kind.PROBE), groups(), effects())
        )
        target = parse_target(context.settings.redis.url)
        self._stats: Final = Stats()
        context.shared.reset(context.index)
        self._pools: Final = Pools(
            self._plane, target, self._stats, context.shared.dedicated, context.index
        )
        self.policies: Final = Policies(context.shared.policy, context.index)
        self._publisher: Final = Publisher(
            context.registry, context.metrics, self._pools, self._stats, self.policies
        )
        self._pools.observe_shared = self._publisher.observe_shared
        self._pools.observe = self._publisher.observe_pinned
        self._local: Final = LocalCommands(self._pools, context.shared, context.index, self._stats)
        statistics = StatsCommand(
            self._pools, context.shared, context.index, self._publisher, self.policies
        )
        self._tags: Final = TagCommands(self._plane, self._stats)
        board = context.shared.hot
        self._hot: Final = HotKeys(self._pools, board, context.index, self._stats)
        self._pools.near.core.hot = self._hot
        families = (
            statistics,
            PolicyCommand(self.policies),
            self._tags,
            HotCommand(board),
            ExplainCommand(),
        )
        for family in families:
            self._local.add(family.subcommands())
        self._idle_timeout = 0.0
        self.policies.listeners.extend((self._pools.near.apply, self._tag_written))
        self._apply(context.settings)
        self._traces: Final = Traces(
            self._pools.near.core, target, context.metrics, context.index, os.environ
        )
        self._server: asyncio.Server | None = None
        self._admin: AdminServer | None = None
        self._ticker: asyncio.Task[None] | None = None

    def _apply(self, settings: CacheproxySettings) -> None:
        limits = settings.limits
        self._plane.output_limit = limits.output_bytes
        self._plane.bulk_limit = limits.bulk_bytes
        self._local.max_clients = limits.max_clients
        self._pools.max_dedicated = limits.max_dedicated
        self._idle_timeout = limits.idle_timeout_seconds
        self._pools.near.configure(settings)
        self._tags.configure(settings)
        self.policies.configure(settings)

    def _tag_written(self, book: RuleBook | None) -> None:
        """Tag written keys as the policy says, or not at all."""
        tagger = None
        if book is not None and book.has_tags:
            tagger = Tagger(book, self._plane, self._stats)
        self._pools.near.core.tagger = tagger
        for session in self._pools.sessions:
            if session.pinned and not session.spliced_through:
                session.set_pinned_mask()

    async def start(self) -> None:
        """Listen; Redis may come later."""
        pools = self._pools
        self._plane.tick = int(monotonic())
        base = pools.shared(pools.base, 2, pools.target.db)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(base.first_attempt.wait(), START_SECONDS)
            if self._plane.near_on:
                await asyncio.wait_for(pools.near.first_attempt.wait(), START_SECONDS)
        self._ticker = asyncio.create_task(self._tick_forever())
        await self._traces.apply(self._context.settings.tracing)
        self._admin = await start_admin(self._context, why_not_ready=pools.outage.reason)
        self._server = await self._listen(server_context(self._context.settings.tls))
        log.info("serving", extra={"upstream": str(pools.target)})

    async def _listen(self, tls: ssl.SSLContext | None) -> asyncio.Server:
        """Accept on the worker's listening socket; closing the server leaves that one open."""
        listener = self._context.listener
        assert listener is not None  # noqa: S101  (SPEC.listens)
        pools, local = self._pools, self._local
        return await asyncio.get_running_loop().create_server(
            lambda: Session(pools, local),  # type: ignore[arg-type,return-value]
            sock=listener.dup(),
            backlog=4096,
            ssl=tls,
        )

    async def reload(self, settings: CacheproxySettings) -> None:
        """Apply new limits, policy, certificates; another Redis needs a restart and is refused."""
        if settings.redis.url != self._context.settings.redis.url:
            raise ConfigError("cannot change while running; restart", path="redis.url")
        tls = server_context(settings.tls)
        if tls is not None or self._context.settings.tls.enabled:
            # Both accept for a moment: nobody is refused in between.
            before, self._server = self._server, await self._listen(tls)
            if before is not None:
                before.close()
        self._apply(settings)
        await self._traces.apply(settings.tracing)

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
        await self._traces.stop()
        self._publisher.publish()
        self._pools.close()
        if self._admin is not None:
            await self._admin.stop()

    async def _tick_forever(self) -> None:
        swept = self._plane.tick
        while True:
            await asyncio.sleep(TICK_SECONDS)
            self._plane.tick = int(monotonic())
            self.policies.look()
            self._pools.near.tick()
            self._publisher.publish()
            if self._plane.tick != swept:
                swept = self._plane.tick
                self._hot.tick(monotonic())
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
    server_context(settings.tls)
    check_policy(settings)
    check_tracing(settings.tracing, os.environ)


SPEC: Final = ServiceSpec(
    name="cacheproxy",
    description="Transparent Redis proxy: multiplexed connections, unchanged clients.",
    settings=CacheproxySettings,
    make_shared=lambda settings: SharedCounts(settings.workers),
    make_app=CacheproxyApp,
    flags={
        "--redis": ("redis.url", "where Redis is: redis://, rediss:// or unix://"),
        "--policy": ("policy_file", "rules of the near-cache, YAML"),
    },
    validate=_validate,
)
