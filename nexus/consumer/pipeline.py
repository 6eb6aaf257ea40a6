"""The life of one event.

::

    received ─► schema ─► duplicate? ─► effect ─────────► finished ─► (committed by the loop)
                  │           │           │    ▲              ▲
                  │           └───────────┼────┼── yes ───────┤
                  │                       ▼    │ again        │
                  │                    failed ─┘              │
                  │                       │ out of attempts   │
                  └─ refused ─────────────┴─► dead letter ────┘

An event leaves this machine finished, or unfinished because its partition was taken away; then
whoever has the partition now reads it again.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Final, Protocol

from nexus.consumer.duplicates import RecentIds
from nexus.consumer.offsets import PartitionProgress
from nexus.errors import EventError, UpstreamError
from nexus.net.kafka import Backoff, summary
from nexus.wire import events

if TYPE_CHECKING:
    from nexus.consumer.deadletters import Record
    from nexus.consumer.settings import FailureSettings
    from nexus.observability.registry import LocalMetrics

__all__ = ["DeadLetterSender", "Pipeline"]

log = logging.getLogger("nexus.consumer")


class DeadLetterSender(Protocol):
    """Where refused events go."""

    async def send(self, record: Record, reason: str, error: str, attempts: int) -> None:
        """Returns when the record is safe."""


class Pipeline:
    """Takes one record through its states; holds no record between calls."""

    def __init__(
        self,
        handle: Callable[[events.Event], Awaitable[None]],
        dead_letters: DeadLetterSender,
        seen: RecentIds,
        failure: FailureSettings,
        metrics: LocalMetrics,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._handle: Final = handle
        self._dead_letters: Final = dead_letters
        self._seen: Final = seen
        self._failure: Final = failure
        self._sleep: Final = sleep
        self._results: Final = metrics.counters("nexus_consumer_events_total")
        self._duplicates: Final = metrics.counters("nexus_consumer_duplicates_total")
        self._set_aside: Final = metrics.counters("nexus_consumer_dead_letters_total")
        self._retries: Final = metrics.counters("nexus_consumer_retries_total")
        #: Rises with every attempt; a watchdog sees from it that work goes on.
        self.activity = 0

    async def run(self, record: Record, progress: PartitionProgress) -> None:
        """Process ``record``; afterwards its offset is finished in ``progress``, or revoked."""
        self.activity += 1
        try:
            event = events.decode(
                record.topic,
                record.value,
                record.headers,
                fallback_id=f"{record.topic}/{record.partition}/{record.offset}",
            )
        except EventError as error:
            await self._refuse(record, "schema", str(error), 0)
            progress.finished(record.offset)
            return
        if not self._seen.claim(event.id):
            self._duplicates.labels(record.topic).inc()
            self._results.labels(record.topic, "duplicate").inc()
            progress.finished(record.offset)
            return
        try:
            done = await self._effect(record, event, progress)
        except BaseException:
            self._seen.release(event.id)
            raise
        if done:
            progress.finished(record.offset)
        else:
            self._seen.release(event.id)

    async def _effect(
        self, record: Record, event: events.Event, progress: PartitionProgress
    ) -> bool:
        """True when the event needs no more work; False when its partition was taken away."""
        backoff: Backoff | None = None
        attempts = 0
        while True:
            if progress.revoked:
                return False
            self.activity += 1
            try:
                await self._handle(event)
            except EventError as error:
                await self._refuse(record, "handler", str(error), attempts + 1)
                return True
            except UpstreamError as error:
                # Nobody's fault but the dependency's: any number of attempts, or a short outage
                # would send every event of its time to the dead letters.
                self._report(record, "waits for a dependency", error, attempts)
            except Exception as error:
                attempts += 1
                if attempts >= self._failure.max_attempts:
                    log.exception("event cannot be handled", extra=_where(record))
                    await self._refuse(record, "handler", summary(error), attempts)
                    return True
                self._report(record, "will be tried again", error, attempts)
            else:
                self._results.labels(record.topic, "handled").inc()
                return True
            if backoff is None:
                failure = self._failure
                backoff = Backoff(failure.base_ms / 1000, failure.cap_ms / 1000)
            self._retries.labels(record.topic).inc()
            await self._sleep(backoff.next())

    async def _refuse(self, record: Record, reason: str, error: str, attempts: int) -> None:
        await self._dead_letters.send(record, reason, error, attempts)
        self._set_aside.labels(record.topic, reason).inc()
        self._results.labels(record.topic, "dead_letter").inc()
        log.warning("event set aside: %s", error, extra={"reason": reason, **_where(record)})

    def _report(self, record: Record, what: str, error: Exception, attempts: int) -> None:
        log.warning(
            "event %s: %s", what, summary(error), extra={"attempt": attempts, **_where(record)}
        )


def _where(record: Record) -> dict[str, object]:
    return {"topic": record.topic, "partition": record.partition, "offset": record.offset}
