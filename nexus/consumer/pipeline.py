"""The life of a batch of one partition.

::

    received ─► schema ─► judged by Redis ─► lines, alerts ─► webhook ─► finished ─► committed
                  │       (duplicate? hits,        │                        ▲        (with its
                  │        windows, blocks)        └──── no action ─────────┤         actions, by
                  └─ refused ─────────► dead letter ────────────────────────┘         the loop)

Partitions run side by side, the batches of one partition one after the other: the order of a key is
kept. While Redis is away the batch waits, for as long as it takes. A batch that Redis refuses is
tried event by event, so that one bad event goes to the dead letters and the others do not.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Final, Protocol

from redis.exceptions import ResponseError

from nexus.consumer import script
from nexus.consumer.handlers import Handlers, action_of, traceparent_of
from nexus.consumer.offsets import PartitionProgress, Pending
from nexus.consumer.replay import origin_of
from nexus.consumer.state import MAX_BATCH, Answer, Origin
from nexus.consumer.webhook import Deed
from nexus.errors import EventError, UpstreamError
from nexus.net.kafka import Backoff, summary
from nexus.wire import events

if TYPE_CHECKING:
    from nexus.consumer.deadletters import Record
    from nexus.consumer.settings import FailureSettings
    from nexus.observability.registry import LocalMetrics

__all__ = ["DeadLetterSender", "Judge", "Pipeline"]

log = logging.getLogger("nexus.consumer")

Item = tuple[int, events.Event, Origin | None]


class DeadLetterSender(Protocol):
    """Where refused events go."""

    async def send(self, record: Record, reason: str, error: str, attempts: int) -> None:
        """Returns when the record is safe."""


class Judge(Protocol):
    """The part of :class:`~nexus.consumer.state.State` that is used here."""

    async def judge(
        self, topic: str, partition: int, committed: int, events: Sequence[Item]
    ) -> list[Answer]:
        """What is to be done about each event."""

    def subject(self, ip: str) -> str:
        """What a block of this address covers."""


class Pipeline:
    """Takes batches through their states; holds none between calls."""

    def __init__(
        self,
        state: Judge,
        handlers: Handlers,
        dead_letters: DeadLetterSender,
        failure: FailureSettings,
        metrics: LocalMetrics,
        webhook: Callable[[Deed, PartitionProgress], None] | None = None,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        """``webhook`` takes an action over and finishes its event; ``None``: there is none."""
        self.webhook = webhook
        self._state: Final = state
        self._handlers: Final = handlers
        self._dead_letters: Final = dead_letters
        self._failure: Final = failure
        self._sleep: Final = sleep
        self._results: Final = metrics.counters("nexus_consumer_events_total")
        self._duplicates: Final = metrics.counters("nexus_consumer_duplicates_total")
        self._set_aside: Final = metrics.counters("nexus_consumer_dead_letters_total")
        self._retries: Final = metrics.counters("nexus_consumer_retries_total")
        #: Rises with every attempt; a watchdog sees from it that work goes on.
        self.activity = 0

    async def run(self, records: Sequence[Record], progress: PartitionProgress) -> None:
        """Process ``records`` of one partition, in the order of their offsets.

        Afterwards each is finished, with the webhook, or left because ``progress`` was revoked.
        """
        for start in range(0, len(records), MAX_BATCH):
            await self._batch(records[start : start + MAX_BATCH], progress)

    async def _batch(self, records: Sequence[Record], progress: PartitionProgress) -> None:
        self.activity += 1
        good: list[Record] = []
        items: list[Item] = []
        for record in records:
            try:
                origin = origin_of(record.headers)
                event = events.decode(
                    record.topic,
                    record.value,
                    record.headers,
                    fallback_id=_position(record, origin),
                )
            except EventError as error:
                await self._refuse(record, "schema", str(error), 0)
                progress.finished(record.offset)
            else:
                good.append(record)
                items.append((record.offset, event, origin))
        if not items:
            return
        try:
            answers = await self._judge(good, items, progress)
        except ResponseError:
            for record, item in zip(good, items, strict=True):
                await self._alone(record, item, progress)
            return
        if answers is not None:
            self._carry_out(good, items, answers, progress)

    async def _judge(
        self, records: Sequence[Record], items: Sequence[Item], progress: PartitionProgress
    ) -> list[Answer] | None:
        """The answers, or ``None`` once the partition was taken away."""
        first = records[0]
        backoff: Backoff | None = None
        while not progress.revoked:
            self.activity += 1
            try:
                return await self._state.judge(
                    first.topic, first.partition, progress.committed or 0, items
                )
            except UpstreamError as error:
                # Nobody's fault but the dependency's: any number of attempts, or a short outage
                # would send every event of its time to the dead letters.
                log.warning("events wait for a dependency: %s", error, extra=_where(first))
            if backoff is None:
                backoff = Backoff(self._failure.base_ms / 1000, self._failure.cap_ms / 1000)
            self._retries.labels(first.topic).inc()
            await self._sleep(backoff.next())
        return None

    async def _alone(self, record: Record, item: Item, progress: PartitionProgress) -> None:
        """One event of a batch that Redis refused."""
        backoff = Backoff(self._failure.base_ms / 1000, self._failure.cap_ms / 1000)
        for attempt in range(1, self._failure.max_attempts + 1):
            try:
                answers = await self._judge([record], [item], progress)
            except ResponseError as error:
                if attempt == self._failure.max_attempts:
                    await self._refuse(record, "handler", summary(error), attempt)
                    progress.finished(record.offset)
                    return
                self._retries.labels(record.topic).inc()
                await self._sleep(backoff.next())
            else:
                if answers is not None:
                    self._carry_out([record], [item], answers, progress)
                return

    def _carry_out(
        self,
        records: Sequence[Record],
        items: Sequence[Item],
        answers: Sequence[Answer],
        progress: PartitionProgress,
    ) -> None:
        special = {answer.place: answer for answer in answers}
        duplicates = 0
        line = self._handlers.event if self._handlers.log_events else None
        for index, record in enumerate(records):
            event = items[index][1]
            answer = special.get(index)
            if answer is not None and answer.what == script.DUPLICATE:
                duplicates += 1
                progress.finished(record.offset)
                continue
            if line is not None:
                line(event, traceparent_of(record.headers)[3:35].decode("ascii", "replace"))
            if answer is None or answer.what == script.REPEATED:
                progress.finished(record.offset)
            else:
                self._act(record, event, answer, progress)
        topic = records[0].topic
        if duplicates:
            self._duplicates.labels(topic).inc(duplicates)
            self._results.labels(topic, "duplicate").inc(duplicates)
        self._results.labels(topic, "handled").inc(len(records) - duplicates)

    def _act(
        self, record: Record, event: events.Event, answer: Answer, progress: PartitionProgress
    ) -> None:
        traceparent = traceparent_of(record.headers)
        subject = self._state.subject(event.ip) if isinstance(event, events.RateLimitHit) else ""
        action = action_of(event, answer, subject, traceparent)
        self._handlers.action(action)
        progress.actions.append(Pending(record.offset, action, traceparent))
        if self.webhook is None:
            progress.finished(record.offset)
        else:
            self.webhook(Deed(action, record.topic, record.partition, record.offset), progress)

    async def _refuse(self, record: Record, reason: str, error: str, attempts: int) -> None:
        await self._dead_letters.send(record, reason, error, attempts)
        self._set_aside.labels(record.topic, reason).inc()
        self._results.labels(record.topic, "dead_letter").inc()
        log.warning("event set aside: %s", error, extra={"reason": reason, **_where(record)})


def _position(record: Record, origin: Origin | None) -> str:
    if origin is not None:
        return f"{origin.topic}/{origin.partition}/{origin.offset}"
    return f"{record.topic}/{record.partition}/{record.offset}"


def _where(record: Record) -> dict[str, object]:
    return {"topic": record.topic, "partition": record.partition, "offset": record.offset}
