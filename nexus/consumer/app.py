"""Composition of the consumer: which parts a worker is made of, and in which order they end.

::

    ConsumerLoop ─► Pipeline ─► State (Redis: duplicates, hits, windows, blocks)
         │              ├─────► Handlers (log lines, alerts, audit)
         │              ├─────► Lanes ─► Webhook
         │              └─────► DeadLetters
         └─► Publisher (nexus.actions and offsets, one transaction)
"""

from __future__ import annotations

import asyncio
import logging
from typing import Final

from aiohttp import web

from nexus import clock
from nexus.consumer.deadletters import DeadLetters
from nexus.consumer.handlers import Handlers
from nexus.consumer.lanes import Lanes
from nexus.consumer.loop import ConsumerLoop
from nexus.consumer.pipeline import Pipeline
from nexus.consumer.publisher import Publisher
from nexus.consumer.settings import ConsumerSettings
from nexus.consumer.state import State
from nexus.consumer.webhook import Deed, Webhook
from nexus.errors import ConfigError
from nexus.net.admin import AdminServer, start_admin
from nexus.net.kafka import check_settings, end_tasks
from nexus.net.service import ServiceSpec, WorkerContext
from nexus.observability import logs
from nexus.policy.blocks import Networks
from nexus.wire.events import TOPICS

__all__ = ["SPEC", "ConsumerApp"]

log = logging.getLogger("nexus.consumer")

Context = WorkerContext[ConsumerSettings, None]


class ConsumerApp:
    """One worker: one member of the consumer group."""

    def __init__(self, context: Context, topics: tuple[str, ...] = TOPICS) -> None:
        settings = context.settings
        client_id = f"nexus-consumer-{context.index}"
        self._context: Final = context
        named = settings.flow.instance_id
        self._state: Final = State(settings)
        self._handlers: Final = Handlers(settings, context.metrics)
        self._webhook: Final = Webhook(settings, context.metrics)
        self._lanes: Lanes[Deed] | None = None
        self._dead_letters: Final = DeadLetters(settings.kafka, client_id)
        self._pipeline: Final = Pipeline(
            self._state, self._handlers, self._dead_letters, settings.failure, context.metrics
        )
        self._loop: Final = ConsumerLoop(
            settings,
            topics,
            self._pipeline.run,
            self._state,
            Publisher(settings, client_id, context.metrics),
            context.metrics,
            client_id,
            _log_written,
            f"{named}-{context.index}" if named else None,
        )
        self._admin: AdminServer | None = None
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """Serve the admin listener, then join the group; a Kafka that is away is waited for."""
        self._admin = await start_admin(
            self._context, {"/consumer": self._status}, why_not_ready=self._why_not_ready
        )
        try:
            self._lanes = Lanes(
                self._context.settings.flow.lanes, self._webhook.run, self._context.fail
            )
            self._pipeline.webhook = self._lanes.put if self._webhook.enabled else None
            consuming = asyncio.create_task(self._loop.run(), name="consumer-loop")
            consuming.add_done_callback(self._ended)
            self._tasks.append(consuming)
            await self._loop.joined.wait()
            self._tasks.append(asyncio.create_task(self._watch(), name="consumer-watchdog"))
        except BaseException:
            await self._release()
            raise

    async def reload(self, settings: ConsumerSettings) -> None:
        """Handlers change at once; where Kafka is and how events flow needs a restart."""
        old = self._context.settings
        for name in ("kafka", "redis", "group", "start", "flow", "failure"):
            if getattr(settings, name) != getattr(old, name):
                log.warning("the setting %s changes with the next restart", name)
        self._state.apply(settings)
        self._handlers.apply(settings)
        self._webhook.apply(settings)
        if self._lanes is not None:
            self._pipeline.webhook = self._lanes.put if self._webhook.enabled else None

    async def drain(self, seconds: float) -> None:
        """Fetch no more, finish and commit what is open, leave the group."""
        await self._loop.drain(seconds)
        await self._release()

    async def _release(self) -> None:
        await end_tasks(self._tasks)
        if self._lanes is not None:
            await self._lanes.stop()
        await self._webhook.close()
        await self._dead_letters.close()
        await self._state.close()
        if self._admin is not None:
            await self._admin.stop()

    def _ended(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and task.exception() is not None:
            log.error("the consumer loop broke", exc_info=task.exception())
            self._context.fail("the consumer loop broke")

    async def _watch(self) -> None:
        """Replace a worker whose loop stands, or whose open events nobody attempts any more."""
        limit = self._context.settings.flow.stall_seconds
        activity, since = -1, clock.monotonic()
        while True:
            await asyncio.sleep(min(1.0, limit / 4))
            now = clock.monotonic()
            if self._pipeline.activity != activity or not self._loop.in_flight:
                activity, since = self._pipeline.activity, now
            if now - since > limit:
                self._context.fail(f"no event was attempted for {limit:.0f} s, some are open")
                return
            # Connecting may take for ever and is no stall; only a joined loop has to turn.
            if self._loop.joined.is_set() and now - self._loop.turned_at > limit:
                self._context.fail(f"the fetch loop has not turned for {limit:.0f} s")
                return

    def _why_not_ready(self) -> str:
        if not self._loop.joined.is_set():
            return "not in the consumer group"
        return self._state.trouble

    async def _status(self, _request: web.Request) -> web.Response:
        settings = self._context.settings
        return web.json_response(
            {"group": settings.group, "worker": self._context.index, **self._loop.status()}
        )


async def _log_written() -> None:
    """A log line is an effect, and lines are written by a thread: a commit waits for them."""
    await asyncio.to_thread(logs.flush)


def _validate(settings: ConsumerSettings) -> None:
    if not settings.kafka.enabled:
        raise ConfigError(
            "expected true: without Kafka there is nothing to consume", path="kafka.enabled"
        )
    check_settings(settings.kafka)
    Networks(settings.block.allow, "block.allow")
    Networks(settings.block.trusted_proxies, "block.trusted_proxies")
    if settings.spike.min_samples > settings.spike.window:
        raise ConfigError(
            f"expected at most spike.window ({settings.spike.window}), "
            f"got {settings.spike.min_samples}",
            path="spike.min_samples",
        )
    if settings.failure.base_ms > settings.failure.cap_ms:
        raise ConfigError(
            f"expected at most failure.cap_ms ({settings.failure.cap_ms}), "
            f"got {settings.failure.base_ms}",
            path="failure.base_ms",
        )


def _no_shared(_settings: ConsumerSettings) -> None:
    """Members of the group share nothing but the group."""


SPEC: Final[ServiceSpec[ConsumerSettings, None]] = ServiceSpec(
    name="consumer",
    description="Reads the gateway's events from Kafka and acts on them.",
    settings=ConsumerSettings,
    make_shared=_no_shared,
    make_app=ConsumerApp,
    listens=False,
    flags={
        "--kafka": ("kafka.bootstrap_servers", "host:port of the brokers, comma-separated"),
        "--redis": ("redis.url", "Redis of the block list"),
    },
    validate=_validate,
)
