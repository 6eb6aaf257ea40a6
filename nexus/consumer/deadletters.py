"""The dead-letter topics: records that cannot be handled, whole, with where and why in headers.

::

    <topic>.dlq    key, value, headers of the record, and
                   nexus_dlq_topic, _partition, _offset   where it was
                   nexus_dlq_reason                       schema | handler
                   nexus_dlq_error                        one line
                   nexus_dlq_attempts                     how often its handler ran
                   nexus_dlq_failed_at                    ISO 8601
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any, Final, Protocol

from aiokafka import AIOKafkaProducer
from aiokafka.errors import MessageSizeTooLargeError

from nexus import clock
from nexus.net.kafka import (
    CONNECTION_ERRORS,
    Backoff,
    client_options,
    connect_forever,
    ensure_topics,
    stop_quietly,
    summary,
)
from nexus.wire.events import TOPICS, dead_letter_topic

if TYPE_CHECKING:
    from nexus.net.settings import KafkaSettings

__all__ = ["DeadLetters", "Record", "dead_letter_headers"]

log = logging.getLogger("nexus.consumer")

#: Characters of an error text that are kept; a header counts towards the size of the record.
MAX_ERROR_CHARACTERS: Final = 500


class Record(Protocol):
    """What we read of aiokafka's ``ConsumerRecord``."""

    topic: str
    partition: int
    offset: int
    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes], ...]


def dead_letter_headers(
    record: Record, reason: str, error: str, attempts: int, failed_at: str
) -> list[tuple[str, bytes]]:
    """The record's own headers and ours."""
    ours = {
        "topic": record.topic,
        "partition": record.partition,
        "offset": record.offset,
        "reason": reason,
        "error": error[:MAX_ERROR_CHARACTERS],
        "attempts": attempts,
        "failed_at": failed_at,
    }
    return [
        *record.headers,
        *((f"nexus_dlq_{name}", str(value).encode()) for name, value in ours.items()),
    ]


class DeadLetters:
    """Sends to the dead-letter topics; connects when it is first needed."""

    def __init__(self, settings: KafkaSettings, client_id: str) -> None:
        self._settings: Final = settings
        self._client_id: Final = f"{client_id}-dlq"
        self._client: Any = None
        self._connecting: Final = asyncio.Lock()

    async def send(self, record: Record, reason: str, error: str, attempts: int) -> None:
        """Returns when all in-sync replicas have the record; tries until then, or is cancelled."""
        headers = dead_letter_headers(
            record, reason, error, attempts, clock.iso_utc(clock.wall_ms())
        )
        topic, value = dead_letter_topic(record.topic), record.value
        backoff = Backoff(base=0.25, cap=10.0)
        while True:
            try:
                client = await self._connected()
                await client.send_and_wait(topic, value, key=record.key, headers=headers)
                return
            except MessageSizeTooLargeError:
                if value is None:
                    raise
                # Our headers made it too large: leave the value where it is, and say where.
                value = None
                headers.append(("nexus_dlq_value_omitted", b"true"))
            except CONNECTION_ERRORS as failure:
                log.error(  # noqa: TRY400
                    "dead letter cannot be sent, its partition waits: %s",
                    summary(failure),
                    extra={"topic": topic, "partition": record.partition, "offset": record.offset},
                )
                await self.close()
                await asyncio.sleep(backoff.next())

    async def close(self) -> None:
        """Disconnect; a later :meth:`send` connects again."""
        client, self._client = self._client, None
        if client is not None:
            await stop_quietly(client)

    async def _connected(self) -> Any:
        async with self._connecting:
            if self._client is None:
                await ensure_topics(
                    self._settings, [dead_letter_topic(t) for t in TOPICS], self._client_id
                )
                self._client = await connect_forever(
                    lambda: AIOKafkaProducer(
                        **client_options(self._settings, self._client_id),
                        acks="all",
                        enable_idempotence=True,
                    ),
                    "the dead-letter producer",
                    self._settings.bootstrap_servers,
                )
            return self._client
