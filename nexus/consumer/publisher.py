"""Actions into Kafka, together with the offsets of their events.

One transactional producer for each partition that is ours, named after it (KIP-98). Whoever gets
the partition next names itself the same: the broker then ends whatever this worker had open, and
refuses it from there on. That happens before the new owner asks how far the group has come, so
neither sees half of the other.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Iterable
from typing import TYPE_CHECKING, Any, Final

from aiokafka import AIOKafkaProducer, TopicPartition
from aiokafka.errors import KafkaError

from nexus.consumer.offsets import Pending
from nexus.net.kafka import CONNECTION_ERRORS, client_options, stop_quietly, summary
from nexus.wire.actions import ACTIONS, action_headers, encode_action

if TYPE_CHECKING:
    from nexus.consumer.settings import ConsumerSettings
    from nexus.observability.registry import LocalMetrics

__all__ = ["Publisher", "TransactionLostError"]

#: The broker itself ends a transaction that is older, milliseconds.
_TRANSACTION_MS: Final = 30_000
_START_SECONDS: Final = 20.0
_COMMIT_SECONDS: Final = 10.0


class TransactionLostError(KafkaError):  # type: ignore[misc]  # aiokafka has no types
    """Whether it was committed is unknown here; the group knows, so join it again and ask."""


class Publisher:
    """Owned by the consumer loop, which tells it which partitions are ours."""

    def __init__(self, settings: ConsumerSettings, client_id: str, metrics: LocalMetrics) -> None:
        self._settings: Final = settings
        self._delivery: Final = settings.actions.delivery
        self._client_id: Final = f"{client_id}-actions"
        self._published: Final = metrics.counters("nexus_consumer_actions_total")
        self._producers: Final[dict[TopicPartition, Any]] = {}
        self._plain: Any = None

    @property
    def transactional(self) -> bool:
        """Whether :meth:`commit` is to be used for partitions with actions."""
        return self._delivery == "exactly-once"

    async def own(self, partitions: Iterable[TopicPartition]) -> None:
        """From now on these partitions, and only these, are ours; earlier owners are shut out."""
        await self.release()
        if self.transactional:
            async with asyncio.timeout(_START_SECONDS):
                await asyncio.gather(*(self._fence(tp) for tp in partitions))
        elif self._delivery == "at-least-once":
            self._plain = await self._started(None)

    async def release(self) -> None:
        """No partition is ours any more."""
        producers = [*self._producers.values(), *([self._plain] if self._plain else [])]
        self._producers.clear()
        self._plain = None
        await asyncio.gather(*(stop_quietly(producer, 2.0) for producer in producers))

    async def commit(self, tp: TopicPartition, due: Collection[Pending], offset: int) -> None:
        """``due`` and the group's ``offset`` of ``tp`` in one transaction.

        Raises :class:`TransactionLostError`; then this producer must not be used again.
        """
        producer = self._producers.pop(tp, None)
        if producer is None:
            raise TransactionLostError(f"{tp.topic}/{tp.partition} is not ours")
        try:
            async with asyncio.timeout(_COMMIT_SECONDS):
                await producer.begin_transaction()
                await self._send(producer, due)
                await producer.send_offsets_to_transaction({tp: offset}, self._settings.group)
                await producer.commit_transaction()
        except CONNECTION_ERRORS as error:
            await stop_quietly(producer, 1.0)
            raise TransactionLostError(f"{tp.topic}/{tp.partition}: {summary(error)}") from error
        except BaseException:
            await stop_quietly(producer, 1.0)
            raise
        self._producers[tp] = producer
        self._count(due)

    async def publish(self, due: Collection[Pending]) -> None:
        """Without a transaction: acknowledged when it returns; twice after a crash."""
        if self._plain is not None:
            await self._send(self._plain, due)
            self._count(due)

    async def _send(self, producer: Any, due: Collection[Pending]) -> None:
        acknowledgements = [
            await producer.send(
                ACTIONS,
                encode_action(pending.action),
                key=pending.action.subject.encode(),
                headers=list(action_headers(pending.action, pending.traceparent)),
            )
            for pending in due
        ]
        await asyncio.gather(*acknowledgements)

    def _count(self, due: Collection[Pending]) -> None:
        for pending in due:
            self._published.labels(pending.action.type).inc()

    async def _fence(self, tp: TopicPartition) -> None:
        name = f"{self._settings.group}/{tp.topic}/{tp.partition}"
        producer = self._producers[tp] = await self._started(name)
        # The id is asked for with the first transaction; asking for it is what shuts others out.
        await producer.begin_transaction()
        await producer.abort_transaction()

    async def _started(self, transactional_id: str | None) -> Any:
        named = (
            {"transactional_id": transactional_id, "transaction_timeout_ms": _TRANSACTION_MS}
            if transactional_id is not None
            else {}
        )
        producer = AIOKafkaProducer(
            **client_options(self._settings.kafka, self._client_id),
            acks="all",
            enable_idempotence=True,
            **named,
        )
        try:
            await producer.start()
        except BaseException:
            await stop_quietly(producer, 1.0)
            raise
        return producer
