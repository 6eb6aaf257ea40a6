"""The way of an event to Kafka: a synchronous append, and everything else behind it.

::

    emit() ──► topic.pending ──linger──► topic.queues[partition] ──► one batch in flight ──► ack
       │            ▲                                                         │
       └─► dropped  └───────────────── reset: taken back, in order ◄──────────┘

``emit`` neither throws nor waits. Between ``emit`` and the broker's acknowledgement an event counts
against one budget of bytes; beyond it new events are dropped and counted, so that a dead broker
costs memory up to that budget and no time. An event is durable once it is acknowledged by all
in-sync replicas (``acks=all``, idempotent producer). Where an outcome is unknown (the connection
was given up with a batch in flight) the batch is sent again, so a reader may see an event twice,
with the same id.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import deque
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from aiokafka import AIOKafkaProducer
from aiokafka import errors as kafka_errors
from aiokafka.partitioner import murmur2

from nexus import clock
from nexus.net.kafka import (
    CONNECTION_ERRORS,
    Backoff,
    client_options,
    connect_forever,
    end_tasks,
    ensure_topics,
    quiet_client_logs,
    stop_quietly,
    summary,
    unhurried,
)
from nexus.wire.events import TOPICS, Headers

if TYPE_CHECKING:
    from nexus.net.settings import KafkaSettings
    from nexus.observability.registry import LocalMetrics

__all__ = ["BATCH_BYTES", "RECORD_OVERHEAD", "EventProducer"]

log = logging.getLogger("nexus.events")

#: Bytes of one batch before compression. Kafka's own default is 16 KiB; 64 KiB holds some 150
#: events, which is where larger batches stop to save CPU here.
BATCH_BYTES: Final = 65_536

#: What a held event costs beside its own bytes: tuple, byte objects, header list.
RECORD_OVERHEAD: Final = 512

#: An acknowledgement that takes longer is an outage for the log and the gauge …
_STALL_SECONDS: Final = 5.0
#: … and after this long the connection is given up and the address resolved anew.
_GIVE_UP_SECONDS: Final = 60.0

#: A batch that fails this often, each time on a new connection, is what the broker refuses.
_MAX_FAILURES: Final = 5

#: Seconds before a topic is asked for again that is not there for us.
_REFUSED_SECONDS: Final = 1.0

#: Seconds between two readings of how many events are held.
_GAUGE_SECONDS: Final = 0.5

#: Seconds between two attempts at least: an error that comes at once must not take the loop.
_LEAST_PAUSE: Final = 0.05

#: Answers that will not change when the same bytes are sent again.
_REFUSED: Final = (
    kafka_errors.MessageSizeTooLargeError,
    kafka_errors.RecordListTooLargeError,
    kafka_errors.RecordTooLargeError,
    kafka_errors.InvalidTopicError,
    kafka_errors.InvalidTimestampError,
    kafka_errors.TopicAuthorizationFailedError,
    kafka_errors.PolicyViolationError,
    kafka_errors.UnsupportedForMessageFormatError,
)


class _Item(NamedTuple):
    value: bytes
    key: bytes | None
    headers: Headers
    timestamp_ms: int
    cost: int


class _Reset(Exception):  # noqa: N818  (not an error of anybody: a decision)
    """This connection cannot go on; begin again with a new producer id."""


class _Topic:
    """Events of one topic on their way."""

    def __init__(self, name: str) -> None:
        self.name: Final = name
        self.pending: deque[_Item] = deque()
        self.queues: dict[int, deque[_Item]] = {}
        self.flying: dict[int, list[_Item]] = {}
        self.wake: Final = asyncio.Event()
        self.failures = 0
        self.refusals = 0
        self.turn = 0

    def take_back(self) -> None:
        """Everything that is not acknowledged waits again, oldest first within a partition."""
        again: deque[_Item] = deque()
        for partition in sorted(self.flying.keys() | self.queues.keys()):
            again.extend(self.flying.get(partition, ()))
            again.extend(self.queues.get(partition, ()))
        again.extend(self.pending)
        self.pending = again
        self.queues.clear()
        self.flying.clear()
        if again:
            self.wake.set()


class EventProducer:
    """One long-lived producer of a worker. ``source`` is the CloudEvents source of its service."""

    def __init__(
        self, settings: KafkaSettings, metrics: LocalMetrics, source: str, worker_id: int
    ) -> None:
        self.source: Final = source
        self._settings: Final = settings
        self._client_id: Final = f"nexus{source.replace('/', '-')}-{worker_id}"
        self._topics: Final[dict[str, _Topic]] = {}
        self._sent: Final = metrics.counters("nexus_events_sent_total")
        self._dropped: Final = metrics.counters("nexus_events_dropped_total")
        self._queued: Final = metrics.gauge("nexus_events_queued")
        self._up: Final = metrics.gauge("nexus_events_connected")
        self._events = 0
        self._delivered = 0
        self._bytes = 0
        self._accepting = settings.enabled
        self._task: asyncio.Task[None] | None = None
        self._gauge: asyncio.Task[None] | None = None
        self._group: asyncio.TaskGroup | None = None
        self._client: Any = None
        self._empty: Final = asyncio.Event()
        self._empty.set()
        self._connected: Final = asyncio.Event()
        self._stalled = False
        self._dropping = False

    # -- the request path ----------------------------------------------------------------------

    def emit(self, topic: str, value: bytes, key: bytes | None, headers: Headers) -> None:
        """Hand over one event; returns at once, never raises. What is dropped is counted."""
        if not self._accepting:
            if self._settings.enabled:
                self._drop(topic, "stopping", 1)
            return
        cost = len(value) + RECORD_OVERHEAD
        if self._bytes + cost > self._settings.buffer_bytes:
            self._drop(topic, "buffer_full", 1)
            if not self._dropping:
                self._dropping = True
                log.warning("event buffer is full, events are dropped", extra={"topic": topic})
            return
        lane = self._topics.get(topic)
        if lane is None:
            lane = self._open(topic)
        if self._bytes == 0:
            self._empty.clear()
        self._bytes += cost
        self._events += 1
        lane.pending.append(_Item(value, key, headers, clock.wall_ms(), cost))
        lane.wake.set()

    # -- life ----------------------------------------------------------------------------------

    async def start(self) -> None:
        """Begin to connect, in the background and for ever; returns at once."""
        if not self._settings.enabled or self._task is not None:
            return
        quiet_client_logs()
        for topic in TOPICS:
            if topic not in self._topics:
                self._open(topic)
        self._task = asyncio.create_task(self._run(), name="event-producer")
        self._gauge = asyncio.create_task(self._report(), name="event-producer-gauge")

    async def stop(self, deadline_seconds: float) -> None:
        """Flush what is held within the deadline, then disconnect; the rest counts as dropped."""
        self._accepting = False
        task, self._task = self._task, None
        if self._gauge is not None:
            await end_tasks([self._gauge])
            self._gauge = None
        if task is not None:
            if self._bytes:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(deadline_seconds):
                        await self._empty.wait()
            await end_tasks([task])
        for lane in self._topics.values():
            lane.take_back()
            if lane.pending:
                self._drop(lane.name, "shutdown", len(lane.pending))
                log.warning(
                    "events were not delivered before the deadline",
                    extra={"topic": lane.name, "events": len(lane.pending)},
                )
                self._release(lane.pending)
                lane.pending.clear()
        self._up.set(0)

    @property
    def connected(self) -> bool:
        """Whether a broker accepts events right now, as far as is known."""
        return self._connected.is_set() and not self._stalled

    @property
    def held_bytes(self) -> int:
        """Bytes between :meth:`emit` and acknowledgement."""
        return self._bytes

    # -- behind the request path ---------------------------------------------------------------

    def _open(self, topic: str) -> _Topic:
        lane = self._topics[topic] = _Topic(topic)
        if self._group is not None:
            self._group.create_task(self._pump(self._group, self._client, lane))
        return lane

    async def _report(self) -> None:
        """The gauge, also while there is no broker; it costs the request path nothing."""
        while True:
            await asyncio.sleep(_GAUGE_SECONDS)
            self._queued.set(self._events)

    async def _run(self) -> None:
        """One connection after the other; no error ends this, or events would be lost unseen."""
        backoff = Backoff()
        failures = 0
        while True:
            delivered = self._delivered
            try:
                await self._serve_one_connection()
            except* _Reset as reasons:
                log.warning("Kafka connection begins anew: %s", reasons.exceptions[0])
            except* Exception:
                failures += 1
                if failures & (failures - 1) == 0:  # 1, 2, 4, 8, …
                    log.exception(
                        "event producer begins anew after an unexpected error",
                        extra={"attempt": failures},
                    )
            if self._delivered != delivered:
                backoff.reset()
                failures = 0
            await asyncio.sleep(max(_LEAST_PAUSE, backoff.next()))

    async def _serve_one_connection(self) -> None:
        bootstrap = self._settings.bootstrap_servers
        client = await connect_forever(self._make_client, "the event producer", bootstrap)
        try:
            await ensure_topics(self._settings, list(self._topics), self._client_id)
            log.info("Kafka connected", extra={"bootstrap": bootstrap})
            self._client = client
            self._connected.set()
            self._set_up(True)
            async with asyncio.TaskGroup() as group:
                self._group = group
                for lane in self._topics.values():
                    group.create_task(self._pump(group, client, lane))
        finally:
            self._group = self._client = None
            self._connected.clear()
            self._set_up(False)
            for lane in self._topics.values():
                lane.take_back()
            await stop_quietly(client, 2.0)

    def _make_client(self) -> AIOKafkaProducer:
        compression = self._settings.compression
        return unhurried(
            AIOKafkaProducer(
                **client_options(self._settings, self._client_id),
                acks="all",
                enable_idempotence=True,
                max_batch_size=BATCH_BYTES,
                compression_type=None if compression == "none" else compression,
            )
        )

    async def _pump(self, group: asyncio.TaskGroup, client: Any, lane: _Topic) -> None:
        """Every linger interval: give what is pending to its partitions."""
        linger = self._settings.linger_ms / 1000
        while True:
            await lane.wake.wait()
            if self._accepting:
                await asyncio.sleep(linger)
            if not lane.pending:
                lane.wake.clear()
                continue
            try:
                partitions = sorted(await client.partitions_for(lane.name))
            except CONNECTION_ERRORS as error:
                if self._is_refused(lane, error):
                    # No other topic may wait for one that is not there for us.
                    lane.wake.clear()
                    self._refuse(lane, lane.pending, error)
                    lane.pending.clear()
                    await asyncio.sleep(_REFUSED_SECONDS)
                    continue
                raise _Reset(f"no metadata of topic {lane.name}: {summary(error)}") from None
            # Cleared only now: what came meanwhile is taken along.
            lane.wake.clear()
            for partition in self._assign(lane, partitions):
                group.create_task(self._send(client, lane, partition))

    def _assign(self, lane: _Topic, partitions: list[int]) -> list[int]:
        """Move pending events to partitions; those that have no sender yet are returned.

        A key keeps its partition (murmur2, as every Kafka client does it). Events without one go to
        one partition until a batch is full, then to the next: full batches, and yet a spread.
        """
        idle = []
        room = 0
        for item in lane.pending:
            if item.key is not None:
                partition = partitions[(murmur2(item.key) & 0x7FFFFFFF) % len(partitions)]
            else:
                if room <= 0:
                    lane.turn += 1
                    room = BATCH_BYTES
                room -= len(item.value)
                partition = partitions[lane.turn % len(partitions)]
            queue = lane.queues.get(partition)
            if queue is None:
                queue = lane.queues[partition] = deque()
                idle.append(partition)
            queue.append(item)
        lane.pending.clear()
        return idle

    async def _send(self, client: Any, lane: _Topic, partition: int) -> None:
        """Send a partition's queue, one batch after the other, until it is empty."""
        queue = lane.queues[partition]
        while queue:
            batch = client.create_batch()
            items: list[_Item] = []
            lane.flying[partition] = items
            while queue and batch.append(
                key=queue[0].key,
                value=queue[0].value,
                timestamp=queue[0].timestamp_ms,
                headers=queue[0].headers,
            ):
                items.append(queue.popleft())
            batch.close()
            try:
                acknowledged = await client.send_batch(batch, lane.name, partition=partition)
                await self._acknowledged(acknowledged)
            except CONNECTION_ERRORS as error:
                self._failed(lane, partition, error)
                raise _Reset(f"{lane.name}/{partition}: {summary(error)}") from None
            lane.failures = lane.refusals = 0
            del lane.flying[partition]
            self._sent.labels(lane.name).inc(len(items))
            self._delivered += len(items)
            self._release(items)
        del lane.queues[partition]

    async def _acknowledged(self, future: asyncio.Future[Any]) -> None:
        done, _ = await asyncio.wait({future}, timeout=_STALL_SECONDS)
        if not done:
            self._set_stalled(True)
            done, _ = await asyncio.wait({future}, timeout=_GIVE_UP_SECONDS - _STALL_SECONDS)
            if not done:
                raise TimeoutError(f"no acknowledgement for {_GIVE_UP_SECONDS:.0f} s")
        await future
        self._set_stalled(False)

    def _failed(self, lane: _Topic, partition: int, error: BaseException) -> None:
        if self._is_refused(lane, error):
            self._refuse(lane, lane.flying.pop(partition), error)
            lane.failures = 0

    def _is_refused(self, lane: _Topic, error: BaseException) -> bool:
        """Whether ``error`` is a judgement, and no outage."""
        if isinstance(error, TimeoutError | OSError | kafka_errors.KafkaConnectionError):
            lane.failures = 0  # nobody has judged anything
            return False
        lane.failures += 1
        return isinstance(error, _REFUSED) or lane.failures > _MAX_FAILURES

    def _refuse(
        self, lane: _Topic, items: list[_Item] | deque[_Item], error: BaseException
    ) -> None:
        self._drop(lane.name, "refused", len(items))
        self._release(items)
        lane.refusals += 1
        if lane.refusals & (lane.refusals - 1) == 0:  # 1, 2, 4, 8, …
            log.error(
                "Kafka refuses events: %s",
                summary(error),
                extra={"topic": lane.name, "events": len(items), "refusals": lane.refusals},
            )

    def _release(self, items: list[_Item] | deque[_Item]) -> None:
        self._bytes -= sum(item.cost for item in items)
        self._events -= len(items)
        self._queued.set(self._events)
        self._dropping = self._dropping and self._bytes > self._settings.buffer_bytes // 2
        if self._bytes == 0:
            self._empty.set()

    def _set_stalled(self, stalled: bool) -> None:
        if stalled == self._stalled:
            return
        self._stalled = stalled
        self._set_up(not stalled)
        if stalled:
            log.warning("Kafka does not acknowledge, events are held", extra={"bytes": self._bytes})
        else:
            log.info("Kafka acknowledges again")

    def _set_up(self, up: bool) -> None:
        self._up.set(1 if up else 0)
        if not up and not self._connected.is_set():
            self._stalled = False

    def _drop(self, topic: str, reason: str, count: int) -> None:
        self._dropped.labels(topic, reason).inc(count)
