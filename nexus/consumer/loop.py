"""Membership in the consumer group: fetch, hand to the lanes, commit, give partitions back.

::

    connect ─► join ─► ┌ fetch ─► lanes ─► pressure? pause/resume ─► due? commit ┐ ─► drain
       ▲               └──────────────────────── again ──────────────────────────┘
       └── connection lost for good

Commits are ours alone (no auto-commit): the gapless run of finished events of each partition, every
``commit_interval_ms``, and before a partition is given back. A crash repeats at most what was
finished since the last commit, and loses nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Collection, Iterable
from typing import TYPE_CHECKING, Any, Final

from aiokafka import AIOKafkaConsumer, ConsumerRebalanceListener, TopicPartition
from aiokafka.errors import (
    CommitFailedError,
    IllegalGenerationError,
    IllegalStateError,
    RebalanceInProgressError,
    UnknownMemberIdError,
)

from nexus import clock
from nexus.consumer.lanes import Lanes
from nexus.consumer.offsets import PartitionProgress
from nexus.net.kafka import (
    CONNECTION_ERRORS,
    Backoff,
    client_options,
    connect_forever,
    ensure_topics,
    quiet_client_logs,
    stop_quietly,
    summary,
)

if TYPE_CHECKING:
    from nexus.consumer.settings import ConsumerSettings
    from nexus.observability.registry import LocalMetrics

__all__ = ["ConsumerLoop"]

log = logging.getLogger("nexus.consumer")

#: Longest wait of one fetch, milliseconds: how late a commit or a resume can be when idle.
_FETCH_MS: Final = 100
_FETCH_EVENTS: Final = 500

#: Seconds that a revocation waits for open events; the group stands still meanwhile, and its
#: members are given 30 s (``rebalance_timeout_ms``).
_REVOKE_SECONDS: Final = 5.0
_COMMIT_SECONDS: Final = 10.0
_GAUGE_SECONDS: Final = 1.0

#: The group has moved on without us; whoever owns the partition now reads again what we did.
_OUTDATED: Final = (
    CommitFailedError,
    IllegalGenerationError,
    IllegalStateError,
    RebalanceInProgressError,
    UnknownMemberIdError,
)


class ConsumerLoop(ConsumerRebalanceListener):  # type: ignore[misc]  # aiokafka has no types
    """One member of the group, on one event loop."""

    def __init__(
        self,
        settings: ConsumerSettings,
        topics: Collection[str],
        make_lanes: Callable[[], Lanes],
        metrics: LocalMetrics,
        client_id: str,
        settle: Callable[[], Awaitable[None]],
    ) -> None:
        """``settle`` makes the effects so far lasting; it is awaited before every commit."""
        self._settle: Final = settle
        self._settings: Final = settings
        self._topics: Final = tuple(topics)
        self._make_lanes: Final = make_lanes
        self._client_id: Final = client_id
        self._commits: Final = metrics.counters("nexus_consumer_commits_total")
        self._lag: Final = {t: metrics.gauge("nexus_consumer_lag", topic=t) for t in topics}
        self._in_flight: Final = metrics.gauge("nexus_consumer_in_flight")
        self._paused: Final = metrics.gauge("nexus_consumer_paused_partitions")
        self._member: Final = metrics.gauge("nexus_consumer_members")
        self._partitions: dict[TopicPartition, PartitionProgress] = {}
        self._consumer: Any = None
        self._stopping = False
        self._drained: Final = asyncio.Event()
        self._gauges_due = 0.0
        #: Set once the group has given us our share, even if that is nothing.
        self.joined: Final = asyncio.Event()
        #: Monotonic time of the last turn of the fetch loop, or of the last try to connect.
        self.turned_at = clock.monotonic()

    # -- life ----------------------------------------------------------------------------------

    async def run(self) -> None:
        """Consume until :meth:`drain` or cancellation; connects again for ever."""
        quiet_client_logs()
        backoff = Backoff(base=0.25, cap=10.0)
        while not self._stopping:
            consumer = await connect_forever(
                self._make_consumer, "the consumer", self._settings.kafka.bootstrap_servers
            )
            try:
                await self._session(consumer)
                backoff.reset()
            except CONNECTION_ERRORS as error:
                log.warning("Kafka session lost, joining again: %s", summary(error))
                await asyncio.sleep(backoff.next())
            finally:
                self.joined.clear()
                self._member.set(0)

    async def drain(self, seconds: float) -> None:
        """Fetch no more, finish what is open, commit; within ``seconds``."""
        self._stopping = True
        deadline = clock.monotonic() + seconds
        await self._until_done(self._partitions.values(), deadline)
        consumer = self._consumer
        if consumer is not None:
            with contextlib.suppress(*CONNECTION_ERRORS):
                async with asyncio.timeout(max(0.1, deadline - clock.monotonic())):
                    await self._commit(consumer, self._partitions)
        open_events = self.in_flight
        if open_events:
            log.warning("events were still open and will be read again: %d", open_events)
        self._drained.set()

    @property
    def in_flight(self) -> int:
        """Events received and not finished."""
        return sum(p.in_flight for p in self._partitions.values())

    def status(self) -> dict[str, Any]:
        """For the admin page: what this member holds."""
        return {
            "joined": self.joined.is_set(),
            "inFlight": self.in_flight,
            "partitions": [
                {
                    "topic": tp.topic,
                    "partition": tp.partition,
                    "position": progress.position,
                    "committed": progress.committed,
                    "inFlight": progress.in_flight,
                    "lag": self._lag_of(tp, progress),
                    "paused": progress.paused,
                }
                for tp, progress in sorted(self._partitions.items())
            ],
        }

    # -- one session ---------------------------------------------------------------------------

    def _make_consumer(self) -> AIOKafkaConsumer:
        self.turned_at = clock.monotonic()
        return AIOKafkaConsumer(
            **client_options(self._settings.kafka, self._client_id),
            group_id=self._settings.group,
            enable_auto_commit=False,
            auto_offset_reset=self._settings.start,
            fetch_max_wait_ms=250,
            rebalance_timeout_ms=30_000,
        )

    async def _session(self, consumer: Any) -> None:
        await ensure_topics(self._settings.kafka, self._topics, self._client_id)
        self._consumer = consumer
        lanes = self._make_lanes()
        try:
            consumer.subscribe(topics=list(self._topics), listener=self)
            commit_at = clock.monotonic()
            while not self._stopping:
                await self._turn(consumer, lanes)
                now = clock.monotonic()
                if now >= commit_at:
                    commit_at = now + self._settings.flow.commit_interval_ms / 1000
                    await self._try_commit(consumer)
                if now >= self._gauges_due:
                    self._gauges_due = now + _GAUGE_SECONDS
                    self._set_gauges()
            # Drain finishes and commits; the session is held open for it.
            await self._drained.wait()
        finally:
            self._consumer = None
            await lanes.stop()
            self._forget(list(self._partitions))
            await stop_quietly(consumer)

    async def _turn(self, consumer: Any, lanes: Lanes) -> None:
        self.turned_at = clock.monotonic()
        batches = await consumer.getmany(timeout_ms=_FETCH_MS, max_records=_FETCH_EVENTS)
        if self._stopping:
            return  # drain may have counted what is open already
        for tp, records in batches.items():
            progress = self._partitions.get(tp)
            if progress is None or progress.revoked:
                continue  # being given back: fetched again by whoever gets it
            for record in records:
                progress.received(record.offset)
                lanes.put(record, progress)
        # A full buffer makes getmany return without ever waiting; the lanes need a turn too.
        await asyncio.sleep(0)
        self._press(consumer)

    def _press(self, consumer: Any) -> None:
        """Pause partitions with too much open, resume them at a quarter of that."""
        high = self._settings.flow.partition_events
        for tp, progress in self._partitions.items():
            if progress.revoked:
                continue
            held = progress.held
            if not progress.paused and held >= high:
                progress.paused = True
                consumer.pause(tp)
            elif progress.paused and held <= high // 4:
                progress.paused = False
                consumer.resume(tp)

    # -- rebalance (called by aiokafka) --------------------------------------------------------

    async def on_partitions_revoked(self, revoked: Iterable[TopicPartition]) -> None:
        """Finish what is open on ``revoked``, commit it, forget them."""
        mine = {tp: self._partitions[tp] for tp in revoked if tp in self._partitions}
        if not mine:
            return
        await self._until_done(mine.values(), clock.monotonic() + _REVOKE_SECONDS)
        for progress in mine.values():
            progress.revoked = True
        if self._consumer is not None:
            await self._try_commit(self._consumer, mine)
        self._forget(mine)
        log.info("partitions given back: %d", len(mine))

    async def on_partitions_assigned(self, assigned: Iterable[TopicPartition]) -> None:
        """Begin with ``assigned`` where the group stands."""
        self._partitions = {tp: PartitionProgress() for tp in assigned}
        self._member.set(1)
        self.joined.set()
        log.info(
            "joined the group with %d partitions",
            len(self._partitions),
            extra={"group": self._settings.group},
        )

    def _forget(self, partitions: Iterable[TopicPartition]) -> None:
        for tp in list(partitions):
            progress = self._partitions.pop(tp, None)
            if progress is not None:
                progress.revoked = True

    async def _until_done(self, parts: Collection[PartitionProgress], deadline: float) -> None:
        # Polled: a signal on every event would cost the busy path what only the end needs.
        while any(p.in_flight for p in parts) and clock.monotonic() < deadline:  # noqa: ASYNC110
            await asyncio.sleep(0.01)

    # -- commit --------------------------------------------------------------------------------

    async def _try_commit(
        self, consumer: Any, partitions: dict[TopicPartition, PartitionProgress] | None = None
    ) -> None:
        """Commit; a failure is logged and the next commit covers it."""
        try:
            async with asyncio.timeout(_COMMIT_SECONDS):
                await self._commit(consumer, partitions or self._partitions)
        except _OUTDATED as error:
            self._commits.labels("outdated").inc()
            log.info("commit came too late for this generation: %s", summary(error))
        except CONNECTION_ERRORS as error:
            self._commits.labels("failed").inc()
            log.warning("commit failed, tried again with the next one: %s", summary(error))

    async def _commit(
        self, consumer: Any, partitions: dict[TopicPartition, PartitionProgress]
    ) -> None:
        offsets = {}
        for tp, progress in partitions.items():
            offset = progress.committable
            if offset is not None:
                offsets[tp] = offset
        if not offsets:
            return
        # The offsets were taken first: what finishes meanwhile waits for the next commit.
        await self._settle()
        await consumer.commit(offsets)
        self._commits.labels("done").inc()
        for tp, offset in offsets.items():
            partitions_progress = partitions.get(tp)
            if partitions_progress is not None:
                partitions_progress.committed = offset

    # -- gauges --------------------------------------------------------------------------------

    def _lag_of(self, tp: TopicPartition, progress: PartitionProgress) -> int:
        consumer = self._consumer
        if consumer is None or progress.position is None:
            return 0  # nothing was there to fetch since the assignment
        try:
            end = consumer.highwater(tp)
        except IllegalStateError:
            return 0
        return max(0, (end or 0) - progress.position)

    def _set_gauges(self) -> None:
        lags = dict.fromkeys(self._topics, 0)
        for tp, progress in self._partitions.items():
            lags[tp.topic] += self._lag_of(tp, progress)
        for topic, lag in lags.items():
            self._lag[topic].set(lag)
        self._in_flight.set(self.in_flight)
        self._paused.set(sum(p.paused for p in self._partitions.values()))
