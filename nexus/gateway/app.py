"""The gateway put together: one :class:`Gateway` per worker, and what the supervisor needs of it.

::

    make_shared (supervisor, once): tables in shared memory (buckets, breakers, telemetry, …)
    Gateway.start: upstreams ─ phases ─ recorder(sinks) ─ listener ─ admin listener
    Gateway.reload: new settings into the same objects; unchanged upstreams keep what they have
    Gateway.drain: stop accepting ─ finish ─ flush sinks ─ close
"""

from __future__ import annotations

import asyncio
import importlib
import logging
import mmap
import os
import random
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from time import monotonic_ns, time_ns
from typing import TYPE_CHECKING, Any, Final

from aiohttp import web

from nexus._speedups.buckets import BucketTable
from nexus.errors import ConfigError
from nexus.gateway.adminapi import AdminApi
from nexus.gateway.auth import Authenticator, check_settings
from nexus.gateway.authservice import AuthService
from nexus.gateway.blocklist import BlockList
from nexus.gateway.bulkheads import BulkheadMemory, Bulkheads
from nexus.gateway.clients import Clients
from nexus.gateway.clusterlimits import ClusterLimits
from nexus.gateway.core import Core
from nexus.gateway.discovery import MAX_SERVICES, ServiceEntry, ServicesFile
from nexus.gateway.dnsdiscovery import DnsSource, check_discovery
from nexus.gateway.endpoints import Endpoints, own_routes
from nexus.gateway.events import SOURCE, EventSink
from nexus.gateway.health import Prober, check_upstreams
from nexus.gateway.limits import build_limits
from nexus.gateway.listening import Listening, check_listeners, more_endpoints
from nexus.gateway.loadtable import LoadTable
from nexus.gateway.phases import Phases
from nexus.gateway.routes import Router
from nexus.gateway.routetable import build_router, groups_of
from nexus.gateway.session import Session
from nexus.gateway.settings import GatewaySettings
from nexus.gateway.traces import Tracer
from nexus.gateway.upstreams import Upstreams
from nexus.gateway.wheel import TICK_NS, Wheel
from nexus.net.admin import AdminServer, start_admin
from nexus.net.descriptors import warn_if_short
from nexus.net.filememory import FileMemory
from nexus.net.service import ServiceSpec, WorkerContext
from nexus.net.tls import client_context
from nexus.observability.accesslog import AccessLog
from nexus.observability.exemplars import ExemplarSink
from nexus.observability.recorder import Recorder, Sink
from nexus.observability.sampling import Sampling, effective_sampling
from nexus.observability.telemetry import Telemetry, TelemetryMemory
from nexus.policy.breaker import BreakerTable
from nexus.policy.networks import NetworkRules
from nexus.policy.ratelimit import RateLimit
from nexus.policy.retry import RetryBudget

if TYPE_CHECKING:
    from nexus.net.functions import FunctionTraces
    from nexus.net.producer import EventProducer

__all__ = ["SPEC", "Gateway", "Shared", "configure", "make_shared", "validate"]

log = logging.getLogger("nexus.gateway")

#: Upstream URLs whose breakers are shared over the workers; more get private ones.
BREAKER_SLOTS: Final = 256
#: Buckets of one set of the shared table.
BUCKETS_PER_SET: Final = 8
#: Seconds that the sinks get to write what they hold when a worker ends.
FLUSH_SECONDS: Final = 3.0
#: Seconds between two looks at the services file's time stamp.
_TOUCH_SECONDS: Final = 1.0
#: Seconds between the end of serving and the end of accepting.
_LAST_ACCEPTS_SECONDS: Final = 0.01


@dataclass(frozen=True, slots=True)
class Shared:
    """What all workers have in common; made before the first fork."""

    buckets: BucketTable
    #: Keys the hash of the client's address, so that nobody can choose whose bucket to share.
    seed: int
    breakers: BreakerTable
    loads: LoadTable
    bulkheads: BulkheadMemory
    telemetry: TelemetryMemory | None
    #: The upstream list in force, for a worker that starts while the file is broken.
    services: FileMemory
    #: Keys of token providers, for a worker that starts while one of them is away.
    keys: FileMemory


def _limits_cluster(settings: GatewaySettings) -> bool:
    """Whether a limit counts over all gateways, in Redis."""
    rules = [*settings.rate_limits, *(r for one in settings.routes for r in one.rate_limits)]
    return any(rule.scope == "cluster" for rule in rules)


def _preload(settings: GatewaySettings) -> None:
    """Import before the fork what the workers will: once, and in memory that they share.

    What the settings have no use for is not imported at all, which is half of a start's time.
    """
    wanted = {
        "jwt": settings.auth.enabled,
        "redis.asyncio": settings.auth.enabled
        or settings.block_list.enabled
        or _limits_cluster(settings),
        "dns.asyncresolver": bool(settings.discovery.dns),
        "nexus.net.producer": settings.kafka.enabled,
        "nexus.observability.tracing": _sampling(settings) is not None,
    }
    for module, is_wanted in wanted.items():
        if is_wanted:
            importlib.import_module(module)


def make_shared(settings: GatewaySettings) -> Shared:
    """Map the shared tables. Raises ``ConfigError`` for a services file that is broken."""
    _preload(settings)
    sets = 1
    while sets * BUCKETS_PER_SET < settings.rate_limit.max_addresses:
        sets *= 2
    entries = settings.telemetry_entries
    services = FileMemory(settings.workers)
    file = ServicesFile(settings.services_file)
    file.read()
    services.write(file.good, monotonic_ns())
    return Shared(
        buckets=BucketTable(mmap.mmap(-1, BucketTable.size(sets)), sets),
        seed=secrets.randbits(63),
        breakers=BreakerTable(
            mmap.mmap(-1, BreakerTable.size(BREAKER_SLOTS, settings.workers)),
            BREAKER_SLOTS,
            settings.workers,
        ),
        loads=LoadTable(settings.workers),
        bulkheads=BulkheadMemory(settings.workers),
        telemetry=TelemetryMemory(entries, settings.workers) if entries else None,
        services=services,
        keys=FileMemory(settings.workers),
    )


def validate(settings: GatewaySettings) -> None:
    """What one field cannot tell; raises ``ConfigError``."""
    check_settings(settings.auth)
    Clients(settings.trusted_proxies)
    check_listeners(settings)
    client_context(settings.upstream.tls, path="upstream.tls")
    services = ServicesFile(settings.services_file).read()
    build_router(settings, own_routes())
    known = {service.group for service in services}
    known |= {name.group for name in settings.discovery.dns}
    for group, path in groups_of(settings).items():
        if group not in known:
            raise ConfigError(
                f"no service in {settings.services_file} has the group {group!r}; "
                f"known: {', '.join(sorted(known))}",
                path=path,
            )
    if settings.kafka.enabled:
        from nexus.net.kafka import check_settings as check_kafka

        check_kafka(settings.kafka)
    if settings.tracing.functions:
        from nexus.net.functions import check_functions

        check_functions(settings.tracing.functions)
    if _sampling(settings) is not None:
        from nexus.observability.otlp import resolve

        resolve(settings.tracing, os.environ)
    check_upstreams(settings)
    check_discovery(settings.discovery)
    NetworkRules(settings.networks.allow, settings.networks.deny)
    limit = settings.rate_limit
    try:
        RateLimit(limit.capacity, limit.refill_per_second)
    except ValueError as error:
        raise ConfigError(str(error), path="rate_limit") from None


def configure(
    settings: GatewaySettings,
    core: Core,
    phases: Phases,
    router: Router,
    authenticator: Authenticator | None,
) -> None:
    """Put settings that were found good into the objects of the request path."""
    clients = Clients(settings.trusted_proxies)
    limit = settings.rate_limit
    core.apply(settings)
    core.usable = Upstreams.usable if settings.breaker.enabled else None
    if core.budget is None:
        core.budget = RetryBudget(settings.retry.budget_ratio, settings.retry.budget_floor)
    else:  # requests under way hold it
        core.budget.ratio = settings.retry.budget_ratio
        core.budget.floor = settings.retry.budget_floor
    core.tracer = Tracer(_sampling(settings))
    phases.clients = clients
    phases.authenticator = authenticator
    phases.set_limit(RateLimit(limit.capacity, limit.refill_per_second) if limit.enabled else None)
    phases.limits = build_limits([("rate_limits", settings.rate_limits)])
    phases.limiter.announce = settings.rate_limit.headers == "always"
    networks = NetworkRules(settings.networks.allow, settings.networks.deny)
    phases.denied = networks.denied if networks else None
    phases.router = router


class Gateway:
    """One worker."""

    def __init__(self, context: WorkerContext[GatewaySettings, Shared]) -> None:
        self._context: Final = context
        settings = context.settings
        shared = context.shared
        rng = random.Random(secrets.randbits(128))
        self._wheel: Final = Wheel(monotonic_ns())
        self._core: Final = Core(self._wheel, context.metrics, rng)
        self._phases: Final = Phases(self._core, shared.buckets, shared.seed)
        self._upstreams: Final = Upstreams(
            settings,
            shared.breakers,
            context.index,
            self._wheel,
            context.metrics,
            rng,
            shared.loads,
        )
        self._core.balancers = self._upstreams.balancers
        self._auth: Final = AuthService(context.metrics, rng, shared.keys, context.index)
        self._core.outliers = self._upstreams.outliers
        self._prober: Final = Prober(
            shared.breakers, context.index, context.metrics, rng, self._upstreams.groups
        )
        self._sessions: Final[set[Session]] = set()
        self._telemetry: Final = (
            Telemetry(settings.telemetry_entries, memory=shared.telemetry, worker=context.index)
            if shared.telemetry is not None
            else None
        )
        self._endpoints: Final = Endpoints(
            context, self._upstreams, self._telemetry, self._auth.endpoints
        )
        self._services = ServicesFile(settings.services_file)
        self._listening: Final = Listening(
            context.listeners,
            lambda scheme, peer: Session(self._core, self._phases, self._sessions, scheme, peer),
            context.metrics,
        )
        self._admin: AdminServer | None = None
        self._bulkheads: Final = Bulkheads(settings, shared.bulkheads, context.index)
        self._listed: tuple[ServiceEntry, ...] = ()
        self._dns: Final = DnsSource(context.metrics, self._use_all)
        self._last_success: Final = context.metrics.gauges(
            "nexus_discovery_last_success_timestamp_seconds"
        )
        self._cluster_limits: ClusterLimits | None = None
        self._producer: EventProducer | None = None
        self._access_log: AccessLog | None = None
        self._functions: FunctionTraces | None = None
        self._tasks: Final[list[asyncio.Task[None]]] = []
        self._ticker: asyncio.TimerHandle | None = None
        self._reloads: Final = context.metrics.counters("nexus_discovery_reloads_total")
        self._connections: Final = context.metrics.gauge("nexus_http_connections")
        self._active: Final = context.metrics.gauge("nexus_http_requests_active")

    # ------------------------------------------------------------------------------ life cycle

    async def start(self) -> None:
        """Open everything; the worker is ready when this returns."""
        context = self._context
        settings = context.settings
        loop = asyncio.get_running_loop()
        self._apply(settings)
        self._use_bulkheads(settings)
        self._bulkheads.start(loop)
        self._use(self._services.recover(context.shared.services))
        self._reloads.labels("broken").inc(self._services.failures)
        await self._start_recorder(settings)
        # Whoever is ready knows its upstreams; a name server that is away does not keep us from it.
        await self._dns.refresh(settings.discovery)
        await self._auth.ready()
        self._tick(loop)
        wanted = settings.limits.connections + settings.upstream.max_connections
        warn_if_short(wanted, "limits.connections")
        await self._listening.open(settings)
        self._tasks.append(loop.create_task(self._listening.watch(lambda: self._context.settings)))
        self._share_limits(settings)
        if settings.block_list.enabled:
            blocks = BlockList(settings.redis, context.metrics, self._is_trusted)
            self._phases.blocked = blocks.blocked
            self._tasks.append(loop.create_task(blocks.run()))
        api = AdminApi(context, self._upstreams, lambda: self._auth.denylist)
        self._admin = await start_admin(
            context,
            {"/lb-stats": self._get_lb_stats, "/cb-stats": self._get_cb_stats, **api.pages},
            actions=api.actions,
        )
        self._tasks.append(
            loop.create_task(
                self._prober.run(lambda: self._context.settings, lambda: self._upstreams.outliers)
            )
        )
        self._tasks.append(loop.create_task(self._poll_services()))
        self._tasks.append(
            loop.create_task(self._dns.run(lambda: self._context.settings.discovery))
        )
        self._tasks.append(loop.create_task(self._report()))

    async def reload(self, settings: GatewaySettings) -> None:
        """Apply new settings without dropping a connection; raises before anything changed."""
        if self._access_log is not None:
            self._access_log.reopen()  # it may have been rotated, whatever the settings are
        validate(settings)
        services = ServicesFile(settings.services_file)
        entries = services.read()
        await self._listening.reopen(self._context.settings, settings)
        await self._reload_recorder(settings)
        self._share_limits(settings)
        self._apply(settings)
        self._use_bulkheads(settings)
        self._upstreams.configure(settings)
        self._core.outliers = self._upstreams.outliers
        self._services = services
        self._use(entries)

    async def drain(self, seconds: float) -> None:
        """Stop accepting, finish what is open within ``seconds``, release everything."""
        loop = asyncio.get_running_loop()
        self._core.draining = True
        # Turns of the loop in which the server accepts all that the queue holds: whoever got this
        # far gets an answer.
        await asyncio.sleep(_LAST_ACCEPTS_SECONDS)
        self._listening.close()
        for session in tuple(self._sessions):
            session.close_when_idle()
        end = loop.time() + seconds
        # Sessions close themselves; polling costs the request path nothing, an event would.
        while self._sessions and loop.time() < end:  # noqa: ASYNC110
            await asyncio.sleep(0.02)
        for session in tuple(self._sessions):
            session.abort()
        await asyncio.sleep(0)
        await self._release()

    async def _release(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._admin is not None:
            await self._admin.stop()
        if self._core.recorder is not None:
            await self._core.recorder.stop(FLUSH_SECONDS)
        await self._trace_functions(None)
        if self._producer is not None:
            await self._producer.stop(FLUSH_SECONDS)
        await self._auth.close()
        self._upstreams.close()
        self._bulkheads.stop(asyncio.get_running_loop())
        if self._ticker is not None:
            self._ticker.cancel()

    # -------------------------------------------------------------------------------- settings

    def _apply(self, settings: GatewaySettings) -> None:
        """Resolve settings into the objects of the request path."""
        core, phases = self._core, self._phases
        router = build_router(settings, self._endpoints.routes())
        authenticator = self._auth.apply(settings)
        configure(settings, core, phases, router, authenticator)
        if self._cluster_limits is not None:
            self._cluster_limits.settings = settings.cluster_limits

    def _use_bulkheads(self, settings: GatewaySettings) -> None:
        self._bulkheads.configure(settings)
        self._core.bulkheads = self._bulkheads if self._bulkheads.needed else None

    def _share_limits(self, settings: GatewaySettings) -> None:
        """Redis is used from the first configuration on that has a limit of scope cluster."""
        if self._cluster_limits is not None or not _limits_cluster(settings):
            return
        limiter = self._phases.limiter
        limits = ClusterLimits(
            settings.redis, settings.cluster_limits, self._context.metrics, limiter.take
        )
        limiter.shared = self._cluster_limits = limits
        self._tasks.append(asyncio.get_running_loop().create_task(limits.run()))

    async def _start_recorder(self, settings: GatewaySettings) -> None:
        metrics, index = self._context.metrics, self._context.index
        sinks: list[Sink] = []
        if self._telemetry is not None:
            sinks.append(self._telemetry)
        access_log: AccessLog | None = None
        if settings.access_log.enabled:
            access_log = AccessLog(settings.access_log.path, metrics, worker=index)
            sinks.append(access_log)
        if _sampling(settings) is not None:
            from nexus.observability.tracing import SpanSink

            sinks.append(SpanSink(settings.tracing, metrics, worker=index))
            sinks.append(ExemplarSink(self._context.registry.exemplars, index))
        producer: EventProducer | None = None
        events: EventSink | None = None
        if settings.kafka.enabled:
            from nexus.net.producer import EventProducer

            producer = EventProducer(settings.kafka, metrics, SOURCE, index)
            await producer.start()
            events = EventSink(producer, index)
            sinks.append(events)
        recorder: Recorder | None = None
        if sinks:
            recorder = Recorder(sinks, metrics=metrics)
            await recorder.start()
        await self._trace_functions(settings)
        # No await from here on: a record goes to the old ones or to the new ones.
        self._access_log, self._producer = access_log, producer
        self._core.events, self._core.recorder = events, recorder

    async def _trace_functions(self, settings: GatewaySettings | None) -> None:
        """Those of ``settings`` from now on, in place of what there was."""
        if self._functions is not None:
            await self._functions.stop()
            self._functions = None
        sampling = _sampling(settings) if settings is not None else None
        if settings is None or sampling is None or not settings.tracing.functions:
            return
        from nexus.net.functions import FunctionTraces

        context, tracing = self._context, settings.tracing
        self._functions = FunctionTraces(
            tracing.functions, tracing, sampling, context.metrics, context.index
        )

    async def _reload_recorder(self, settings: GatewaySettings) -> None:
        """New sinks where their settings changed; the old ones write what they hold and end."""
        old = self._context.settings
        if (old.access_log, old.tracing, old.kafka) == (
            settings.access_log,
            settings.tracing,
            settings.kafka,
        ):
            return
        recorder, producer = self._core.recorder, self._producer
        await self._start_recorder(settings)
        if recorder is not None:
            await recorder.stop(FLUSH_SECONDS)
        if producer is not None:
            await producer.stop(FLUSH_SECONDS)

    # ------------------------------------------------------------------------------ background

    def _tick(self, loop: asyncio.AbstractEventLoop) -> None:
        now = monotonic_ns()
        self._core.wall_offset = time_ns() - now
        if self._wheel.late(now):
            # Timers come before sockets in a turn of the loop: the next turn has read them. (Where
            # the worker stood in its wait for sockets, it has read them already.)
            self._ticker = loop.call_later(0.001, self._tick, loop)
            return
        self._ticker = loop.call_later(TICK_NS / 1e9, self._tick, loop)
        self._wheel.advance(now)
        self._upstreams.refresh(now)
        self._bulkheads.tick(now)

    def _is_trusted(self, ip: str) -> bool:
        return bool(self._phases.clients.is_trusted(ip))

    def _use(self, entries: Sequence[ServiceEntry]) -> None:
        """This is the upstream list now, here and for workers to come."""
        context = self._context
        self._listed = tuple(entries)
        self._use_all()
        context.shared.services.write(self._services.good, monotonic_ns(), context.index)

    def _use_all(self) -> None:
        """The file's upstreams, then those of the DNS; who is in both is as the file has it."""
        entries = {entry.url: entry for entry in (*self._dns.entries, *self._listed)}
        ordered = dict.fromkeys(one.url for one in (*self._listed, *self._dns.entries))
        if len(ordered) > MAX_SERVICES:
            log.error(
                "too many upstreams, the last ones are left out", extra={"most": MAX_SERVICES}
            )
        self._upstreams.apply([entries[url] for url in list(ordered)[:MAX_SERVICES]])

    async def _poll_services(self) -> None:
        due = 0.0
        while True:
            period = self._context.settings.services_poll_seconds
            await asyncio.sleep(min(period, _TOUCH_SECONDS))
            services = self._services  # a reload replaces it
            now = asyncio.get_running_loop().time()
            # A changed file is seen by its time stamp within a second. Whether one that looks the
            # same is the same is asked too, as time stamps are coarse.
            if not services.touched() and now < due:
                continue
            due = now + period
            failures = services.failures
            entries = services.poll()
            if entries is not None:
                self._use(entries)
                self._reloads.labels("applied").inc()
            self._reloads.labels("broken").inc(services.failures - failures)
            if services.is_good:
                self._last_success.labels("file").set(time_ns() / 1e9)

    async def _report(self) -> None:
        """Gauges, once a second, off the request path."""
        evictions = self._context.metrics.counter("nexus_rate_limit_evictions_total")
        seen = 0
        while True:
            self._upstreams.sweep()
            self._upstreams.report()
            self._bulkheads.report(self._context.metrics)
            self._connections.set(len(self._sessions))
            budget = self._core.budget
            self._active.set(budget.active if budget is not None else 0)
            evicted = self._context.shared.buckets.evictions
            evictions.inc(evicted - seen)
            seen = evicted
            await asyncio.sleep(1.0)

    async def _get_lb_stats(self, _request: web.Request) -> web.Response:
        return web.json_response(self._upstreams.balance_stats())

    async def _get_cb_stats(self, _request: web.Request) -> web.Response:
        return web.json_response(self._upstreams.breaker_stats())


def _sampling(settings: GatewaySettings) -> Sampling | None:
    tracing = settings.tracing
    return effective_sampling(tracing.enabled, tracing.sample_ratio, os.environ)


def _make(context: WorkerContext[Any, Any]) -> Gateway:
    return Gateway(context)


SPEC: Final[ServiceSpec[GatewaySettings, Shared]] = ServiceSpec(
    name="gateway",
    description="HTTP API gateway: limits, authentication, balancing, retries, JSON envelope.",
    settings=GatewaySettings,
    make_shared=make_shared,
    make_app=_make,
    flags={"--services": ("services_file", "list of upstreams, JSON")},
    max_series=lambda settings: {
        "nexus_rate_limit_hits_total": settings.metrics.max_address_labels
    },
    validate=validate,
    more_endpoints=more_endpoints,
)
