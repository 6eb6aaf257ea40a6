"""Actions as HTTP POSTs: JSON, at least once, the id of the action in ``Idempotency-Key``."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Final

import aiohttp

from nexus.consumer.offsets import PartitionProgress
from nexus.net.kafka import Backoff, summary
from nexus.wire.actions import Action, encode_action

if TYPE_CHECKING:
    from nexus.consumer.settings import ConsumerSettings
    from nexus.observability.registry import LocalMetrics

__all__ = ["Deed", "Webhook"]

log = logging.getLogger("nexus.consumer")


class Deed:
    """An action on its way to the webhook; has what a lane wants to know of a record."""

    __slots__ = ("action", "key", "offset", "partition", "topic")

    def __init__(self, action: Action, topic: str, partition: int, offset: int) -> None:
        self.action: Final = action
        self.key: Final = action.subject.encode()
        self.topic: Final = topic
        self.partition: Final = partition
        self.offset: Final = offset


class Webhook:
    """Delivers; an answer from 200 to 299 is the acknowledgement."""

    def __init__(self, settings: ConsumerSettings, metrics: LocalMetrics) -> None:
        self._results: Final = metrics.counters("nexus_consumer_webhook_total")
        self._session: aiohttp.ClientSession | None = None
        self.apply(settings)

    def apply(self, settings: ConsumerSettings) -> None:
        """Take over settings."""
        self._settings = settings.actions.webhook
        self._failure = settings.failure

    @property
    def enabled(self) -> bool:
        """Whether there is one."""
        return bool(self._settings.url)

    async def run(self, deed: Deed, progress: PartitionProgress) -> None:
        """Deliver, then finish the event of the action; what is given up is logged and counted."""
        backoff = Backoff(self._failure.base_ms / 1000, self._failure.cap_ms / 1000)
        for attempt in range(1, self._settings.max_attempts + 1):
            if progress.revoked:
                return
            failure = await self._post(deed.action)
            if not failure:
                self._results.labels("delivered").inc()
                break
            self._results.labels("failed").inc()
            log.warning(
                "webhook failed: %s",
                failure,
                extra={"action_id": deed.action.id, "attempt": attempt},
            )
            if attempt < self._settings.max_attempts:
                await asyncio.sleep(backoff.next())
        else:
            self._results.labels("given_up").inc()
            log.error("webhook given up", extra={"action_id": deed.action.id})
        progress.finished(deed.offset)

    async def close(self) -> None:
        """Close the connections."""
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    async def _post(self, action: Action) -> str:
        """Empty when it was taken, else why not."""
        if self._session is None:
            self._session = aiohttp.ClientSession()
        timeout = aiohttp.ClientTimeout(total=self._settings.timeout_ms / 1000)
        headers = {"Content-Type": "application/json", "Idempotency-Key": action.id}
        try:
            async with self._session.post(
                self._settings.url,
                data=encode_action(action),
                headers=headers,
                timeout=timeout,
                allow_redirects=False,
            ) as reply:
                return "" if 200 <= reply.status < 300 else f"status {reply.status}"
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            return summary(error)
