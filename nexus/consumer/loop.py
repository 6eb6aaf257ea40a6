"""Membership in the consumer group: fetch, hand to the pipeline, commit, give partitions back.

::

    connect ─► join ─► ┌ fetch ─► pipeline ─► pressure? pause/resume ─► due? commit ┐ ─► drain
       ▲               └────────────────────────── again ───────────────────────────┘
       └── connection or transaction lost

Commits are ours alone (no auto-commit): the gapless run of finished events of each partition, every
``commit_interval_ms``, and before a partition is given back; where there are actions, in one
transaction with them. A crash repeats at most what was finished since the last commit, and loses
nothing. Where the outcome of a commit is unknown the group is joined again and asked.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Collection, Iterable, Sequence
from typing import TYPE_CHECKING, Any, Final, Protocol

from aiokafka import AIOKafkaConsumer, ConsumerRebalanceListener, TopicPartition
from aiokafka.errors import (
    CommitFailedError,
    IllegalGenerationError,
    IllegalStateError,
    RebalanceInProgressError,
    UnknownMemberIdError,
)

from nexus import clock
from nexus.consumer.offsets import PartitionProgress, Pending
from nexus.consumer.publisher import Publisher, TransactionLostError
from nexus.errors import UpstreamError
from nexus.net.kafka import (
    CONNECTION_ERRORS,
    Backoff,
    client_options,
    cluster_id,
    connect_forever,
    end_tasks,
    ensure_topics,
    quiet_client_logs,
    stop_quietly,
    summary,
)
from nexus.wire.actions import ACTIONS

if TYPE_CHECKING:
    from nexus.consumer.deadletters import Record
    from nexus.consumer.settings import ConsumerSettings
    from nexus.observability.registry import LocalMetrics

__all__ = ["ConsumerLoop"]

log = logging.getLogger("nexus.consumer")

#: Longest wait of one fetch, milliseconds: how late a commit or a resume can be when idle.
_FETCH_MS: Final = 100
_FETCH_EVENTS: Final = 500
#: The same while partitions are paused: how soon one that has room again is read on.
_PAUSED_MS: Final = 5

#: Bytes of a partition that are fetched ahead, compressed. aiokafka asks for 1 MiB each and 50 MiB
#: together; a response is copied twice before it is events, and that is what memory then stands at.
_AHEAD_BYTES: Final = 262_144
_RESPONSE_BYTES: Final = 2_097_152

#: Asked for where no partition may give anything: the call still waits and tells errors.
_NONE: Final = TopicPartition("", 0)

#: Seconds that a revocation waits for open events; the group stands still meanwhile, and its
#: members are given 30 s (``rebalance_timeout_ms``).
_REVOKE_SECONDS: Final = 5.0
_COMMIT_SECONDS: Final = 10.0
_GAUGE_SECONDS: Final = 1.0
_LOOK_AHEAD_SECONDS: Final = 2.0

#: The group has moved on without us; whoever owns the partition now reads again what we did.
_OUTDATED: Final = (
    CommitFailedError,
    IllegalGenerationError,
    IllegalStateError,
    RebalanceInProgressError,
    UnknownMemberIdError,
)


class Positions(Protocol):
    """The part of :class:`~nexus.consumer.state.State` that is used here."""

    def name_cluster(self, cluster: str) -> None:
        """Offsets are those of this cluster."""

    async def reconcile(self, topic: str, partition: int, end: int) -> bool:
        """True where what is remembered of a partition was void and is forgotten."""


class ConsumerLoop(ConsumerRebalanceListener):  # type: ignore[misc]  # aiokafka has no types
    """One member of the group, on one event loop."""

    def __init__(
        self,
        settings: ConsumerSettings,
        topics: Collection[str],
        run: Callable[[Sequence[Record], PartitionProgress], Awaitable[None]],
        state: Positions,
        publisher: Publisher,
        metrics: LocalMetrics,
        client_id: str,
        settle: Callable[[], Awaitable[None]],
        instance_id: str | None = None,
    ) -> None:
        """``run`` takes the next records of one partition to their end.

        ``state`` hears of the cluster and of the partitions that we get; ``settle`` makes the
        effects so far lasting and is awaited before every commit.
        """
        self._run: Final = run
        self._state: Final = state
        self._publisher: Final = publisher
        self._instance_id: Final = instance_id
        self._queues: Final[dict[TopicPartition, asyncio.Queue[Sequence[Record]]]] = {}
        self._workers: Final[dict[TopicPartition, asyncio.Task[None]]] = {}
        #: Loop and rebalance both commit; a transaction knows one at a time.
        self._committing: Final = asyncio.Lock()
        #: Why this session cannot go on; aiokafka keeps what its callbacks raise to itself.
        self._broken: BaseException | None = None
        self._settle: Final = settle
        self._settings: Final = settings
        self._topics: Final = tuple(topics)
        self._client_id: Final = client_id
        self._commits: Final = metrics.counters("nexus_consumer_commits_total")
        self._lag: Final = {t: metrics.gauge("nexus_consumer_lag", topic=t) for t in topics}
        self._in_flight: Final = metrics.gauge("nexus_consumer_in_flight")
        self._paused: Final = metrics.gauge("nexus_consumer_paused_partitions")
        self._member: Final = metrics.gauge("nexus_consumer_members")
        self._partitions: dict[TopicPartition, PartitionProgress] = {}
        #: Ends of paused partitions, as they were asked for last.
        self._ends: Final[dict[TopicPartition, int]] = {}
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
            except (*CONNECTION_ERRORS, UpstreamError) as error:
                log.warning("session lost, joining again: %s", summary(error))
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
            max_partition_fetch_bytes=_AHEAD_BYTES,
            fetch_max_bytes=_RESPONSE_BYTES,
            rebalance_timeout_ms=30_000,
            session_timeout_ms=self._settings.flow.session_timeout_ms,
            heartbeat_interval_ms=max(100, self._settings.flow.session_timeout_ms // 4),
            group_instance_id=self._instance_id,
        )

    async def _session(self, consumer: Any) -> None:
        await ensure_topics(self._settings.kafka, (*self._topics, ACTIONS), self._client_id)
        self._state.name_cluster(await cluster_id(self._settings.kafka, self._client_id))
        self._consumer = consumer
        self._broken = None
        try:
            consumer.subscribe(topics=list(self._topics), listener=self)
            commit_at = clock.monotonic()
            while not self._stopping:
                await self._turn(consumer)
                now = clock.monotonic()
                if now >= commit_at:
                    commit_at = now + self._settings.flow.commit_interval_ms / 1000
                    await self._try_commit(consumer)
                if now >= self._gauges_due:
                    self._gauges_due = now + _GAUGE_SECONDS
                    await self._look_ahead(consumer)
                    self._set_gauges()
            # Drain finishes and commits; the session is held open for it.
            await self._drained.wait()
        finally:
            self._consumer = None
            self._forget(list(self._partitions))
            # First out of the group: what is left of this session must not outlive its successor.
            await end_tasks(self._workers.values())
            self._workers.clear()
            await stop_quietly(consumer)
            await self._publisher.release()

    async def _turn(self, consumer: Any) -> None:
        self.turned_at = clock.monotonic()
        if self._broken is not None:
            raise self._broken
        asked = self._press()
        batches = await consumer.getmany(
            *asked, timeout_ms=_PAUSED_MS if asked else _FETCH_MS, max_records=_FETCH_EVENTS
        )
        if self._stopping:
            return  # drain may have counted what is open already
        for tp, records in batches.items():
            progress = self._partitions.get(tp)
            if progress is None or progress.revoked:
                # Being given back, or not yet fenced: fetched again, by whoever has it then.
                with contextlib.suppress(IllegalStateError):
                    consumer.seek(tp, records[0].offset)
                continue
            for record in records:
                progress.received(record.offset)
            self._queues[tp].put_nowait(records)
        # A full buffer makes getmany return without ever waiting; the workers need a turn too.
        await asyncio.sleep(0)

    def _press(self) -> list[TopicPartition]:
        """Pause partitions with too much open, resume them at a quarter of that.

        Returns what may be read: nothing stands for all of them. What was fetched of a paused
        partition waits. (aiokafka's own ``pause`` throws it away; up to seventeen times what was
        used came over the wire.)
        """
        high = self._settings.flow.partition_events
        free = []
        for tp, progress in self._partitions.items():
            held = progress.held
            progress.paused = held > high // 4 if progress.paused else held >= high
            if not progress.paused and not progress.revoked:
                free.append(tp)
        return [] if len(free) == len(self._partitions) else [_NONE, *free]

    async def _work(
        self, tp: TopicPartition, queue: asyncio.Queue[Sequence[Record]], own: PartitionProgress
    ) -> None:
        """The batches of one partition, one after the other, until it is taken away."""
        while not own.revoked:
            records = await queue.get()
            try:
                await self._run(records, own)
            except Exception as error:
                log.exception("a batch broke", extra={"topic": tp.topic, "partition": tp.partition})
                self._broken = UpstreamError(f"a batch broke: {summary(error)}", sent=True)
                return

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
        """Shut earlier owners out of ``assigned``, then begin where the group stands."""
        mine = list(assigned)
        try:
            await self._publisher.own(mine)
            await self._seek(mine)
        except (*CONNECTION_ERRORS, UpstreamError) as error:
            self._broken = error
            return
        self._partitions = {tp: PartitionProgress() for tp in mine}
        for tp, progress in self._partitions.items():
            queue = self._queues[tp] = asyncio.Queue()
            self._workers[tp] = asyncio.create_task(
                self._work(tp, queue, progress), name=f"{tp.topic}/{tp.partition}"
            )
        self._member.set(1)
        self.joined.set()
        log.info(
            "joined the group with %d partitions",
            len(self._partitions),
            extra={"group": self._settings.group},
        )

    async def _seek(self, partitions: Sequence[TopicPartition]) -> None:
        """Fetch on from what is committed now; what was fetched before we were alone is void."""
        consumer = self._consumer
        if consumer is None or not partitions:
            return
        ends = await consumer.end_offsets(partitions)
        for tp in partitions:
            if await self._state.reconcile(tp.topic, tp.partition, ends.get(tp, 0)):
                log.warning(
                    "the log ends before what was done of it: made anew, and so is its state",
                    extra={"topic": tp.topic, "partition": tp.partition},
                )
        for tp, offset in zip(
            partitions,
            await asyncio.gather(*(consumer.committed(tp) for tp in partitions)),
            strict=True,
        ):
            if offset is not None:
                consumer.seek(tp, offset)

    def _forget(self, partitions: Iterable[TopicPartition]) -> None:
        for tp in list(partitions):
            progress = self._partitions.pop(tp, None)
            if progress is not None:
                progress.revoked = True
                self._queues.pop(tp, None)
                worker = self._workers.get(tp)
                if worker is not None:
                    worker.cancel()

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
        except TransactionLostError as error:
            self._commits.labels("failed").inc()
            self._broken = error
            log.warning("the outcome of a commit is unknown: %s", summary(error))
        except _OUTDATED as error:
            self._commits.labels("outdated").inc()
            log.info("commit came too late for this generation: %s", summary(error))
        except CONNECTION_ERRORS as error:
            self._commits.labels("failed").inc()
            log.warning("commit failed, tried again with the next one: %s", summary(error))

    async def _commit(
        self, consumer: Any, partitions: dict[TopicPartition, PartitionProgress]
    ) -> None:
        async with self._committing:
            ready = {
                tp: (progress, offset)
                for tp, progress in partitions.items()
                if (offset := progress.committable) is not None
            }
            if not ready:
                return
            # The offsets were taken first: what finishes meanwhile waits for the next commit.
            await self._settle()
            plain: dict[TopicPartition, int] = {}
            bound = []
            for tp, (progress, offset) in ready.items():
                due = progress.due(offset)
                if due and self._publisher.transactional:
                    bound.append(self._bind(tp, progress, due, offset))
                else:
                    if due:
                        await self._publisher.publish(due)
                    plain[tp] = offset
            outcomes = await asyncio.gather(*bound, return_exceptions=True)
            if plain:
                await consumer.commit(plain)
                for tp, offset in plain.items():
                    ready[tp][0].was_committed(offset)
            for outcome in outcomes:
                if outcome is not None:
                    raise outcome
            self._commits.labels("done").inc()

    async def _bind(
        self, tp: TopicPartition, progress: PartitionProgress, due: list[Pending], offset: int
    ) -> None:
        await self._publisher.commit(tp, due, offset)
        progress.was_committed(offset)

    # -- gauges --------------------------------------------------------------------------------

    async def _look_ahead(self, consumer: Any) -> None:
        """Ask where paused partitions end: nothing is fetched of them that would tell.

        Their lag is what an outage of Redis is seen by.
        """
        paused = [tp for tp, progress in self._partitions.items() if progress.paused]
        self._ends.clear()
        if paused:
            with contextlib.suppress(*CONNECTION_ERRORS, IllegalStateError):
                async with asyncio.timeout(_LOOK_AHEAD_SECONDS):
                    self._ends.update(await consumer.end_offsets(paused))

    def _lag_of(self, tp: TopicPartition, progress: PartitionProgress) -> int:
        consumer = self._consumer
        if consumer is None or progress.position is None:
            return 0  # nothing was there to fetch since the assignment
        try:
            end = consumer.highwater(tp)
        except IllegalStateError:
            return 0
        return max(0, max(end or 0, self._ends.get(tp, 0)) - progress.position)

    def _set_gauges(self) -> None:
        lags = dict.fromkeys(self._topics, 0)
        for tp, progress in self._partitions.items():
            lags[tp.topic] += self._lag_of(tp, progress)
        for topic, lag in lags.items():
            self._lag[topic].set(lag)
        self._in_flight.set(self.in_flight)
        self._paused.set(sum(p.paused for p in self._partitions.values()))
