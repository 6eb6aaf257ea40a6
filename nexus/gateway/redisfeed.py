"""A copy of something in Redis, kept up to date by one task: told of changes, and looking itself.

::

    connect ─► subscribe ─► greet (the whole) ─► heard (one change) … resync (the whole) …
       ▲                                                   │
       └──────────── half a second ◄── Redis away ◄────────┘
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any, Final, Protocol

if TYPE_CHECKING:
    from nexus.observability.registry import LocalMetrics

__all__ = ["ANSWER_SECONDS", "Feed", "connect", "failures", "follow"]

log = logging.getLogger("nexus.gateway.redis")

#: Seconds before Redis is asked again, and after which a silent Redis counts as away.
RETRY_SECONDS: Final = 0.5
ANSWER_SECONDS: Final = 2.0


def failures() -> tuple[type[Exception], ...]:
    """What a Redis that is away looks like, for ``except``."""
    from redis.exceptions import RedisError

    return RedisError, OSError, TimeoutError


class Feed(Protocol):
    """What is kept; every method may raise what a Redis that is away raises."""

    async def greet(self, client: Any) -> None:
        """A connection is there, and changes from now on are heard: read the whole."""

    async def heard(self, client: Any, message: str) -> None:
        """Somebody has announced a change."""

    async def resync(self, client: Any) -> float:
        """Look at the whole; seconds until the next look."""

    def away(self) -> None:
        """Redis cannot be reached."""


def connect(url: str) -> Any:
    """A client that does not wait long for a Redis that does not answer."""
    # Late: it is a fifth of a start's time, and not every gateway has a Redis.
    import redis.asyncio as redis_asyncio

    return redis_asyncio.Redis.from_url(
        url,
        decode_responses=True,
        socket_timeout=ANSWER_SECONDS,
        socket_connect_timeout=ANSWER_SECONDS,
    )


async def follow(feed: Feed, url: str, channel: str, name: str, metrics: LocalMetrics) -> None:
    """Keep ``feed`` up to date until cancelled; ``name`` is for logs and ``nexus_<name>_…``."""
    connected = metrics.gauge(f"nexus_{name}_connected")
    words = name.replace("_", " ")
    reported = False
    while True:
        client = connect(url)
        try:
            async with client.pubsub(ignore_subscribe_messages=True) as listening:
                # Subscribed before the whole is read: no change falls between the two.
                await listening.subscribe(channel)
                await feed.greet(client)
                pause = await feed.resync(client)
                if reported:
                    log.info("%s: Redis is back", words)
                reported = False
                connected.set(1)
                await _listen(feed, client, listening, pause)
        except failures() as error:
            if not reported:
                log.warning("%s: Redis is away, the last known holds: %s", words, error)
            reported = True
        finally:
            connected.set(0)
            await client.aclose()
        feed.away()
        await asyncio.sleep(RETRY_SECONDS)


async def _listen(feed: Feed, client: Any, listening: Any, pause: float) -> None:
    loop = asyncio.get_running_loop()
    due = loop.time() + pause
    while True:
        message = await listening.get_message(timeout=max(0.01, due - loop.time()))
        if message is not None:
            await feed.heard(client, str(message["data"]))
        if loop.time() >= due:
            due = loop.time() + await feed.resync(client)
