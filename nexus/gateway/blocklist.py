"""The block list as one worker enforces it: a copy of Redis, at most a second old.

::

    start, reconnect, every second ─► index ─► PTTL of each ─► the whole list
    notification                   ───────────► PTTL of one ─► one entry

Redis away: what is known holds until its time is over. A Redis that lost its memory (another run
id) is given back what is known here, so that its restart frees nobody.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from time import monotonic_ns
from typing import TYPE_CHECKING, Any, Final

import redis.asyncio as redis_asyncio
from redis.exceptions import RedisError

from nexus.policy.blocks import CHANNEL, INDEX_KEY, KEY_PREFIX, subject_of

if TYPE_CHECKING:
    from nexus.net.settings import RedisSettings
    from nexus.observability.registry import LocalMetrics

__all__ = ["BlockList"]

log = logging.getLogger("nexus.gateway.blocks")

#: Subjects that one worker holds, about 20 MiB; the ones that Redis names first. An attack from
#: more addresses than that is for the network in front of us.
MAX_SUBJECTS: Final = 100_000

#: Seconds between two looks at the whole list; a long list is looked at less often.
RESYNC_SECONDS: Final = 1.0
LONG_LIST: Final = 1000
LONG_RESYNC_SECONDS: Final = 10.0

#: Seconds before Redis is asked again, and after which a silent Redis counts as away.
RETRY_SECONDS: Final = 0.5
ANSWER_SECONDS: Final = 2.0

#: PTTL commands of one round trip.
_CHUNK: Final = 1000
#: PTTL of a key that is not there, and of one without an end (somebody set it by hand).
_ABSENT: Final = -2
_FOR_EVER: Final = -1

_FAILURES: Final = (RedisError, OSError, TimeoutError)


class BlockList:
    """``blocked(ip)`` on the request path; everything else behind it, in one task."""

    def __init__(
        self, settings: RedisSettings, metrics: LocalMetrics, trusted: Callable[[str], bool]
    ) -> None:
        """``trusted`` tells the proxies, which are never blocked: all clients are behind them."""
        self._url: Final = settings.url
        self._trusted: Final = trusted
        #: Subject → end, monotonic nanoseconds.
        self._ends: dict[str, int] = {}
        self._run_id = ""
        self._entries: Final = metrics.gauge("nexus_block_list_entries")
        self._connected: Final = metrics.gauge("nexus_block_list_connected")
        self._full = False

    def blocked(self, ip: str) -> bool:
        """Whether this client is to be refused. O(1)."""
        if not self._ends:
            return False
        end = self._ends.get(ip)
        if end is None:
            if ":" not in ip:
                return False
            end = self._ends.get(subject_of(ip), 0)
        return end > monotonic_ns() and not self._trusted(ip)

    def __len__(self) -> int:
        return len(self._ends)

    async def run(self) -> None:
        """Follow Redis until cancelled."""
        reported = False
        while True:
            client: Any = redis_asyncio.Redis.from_url(
                self._url,
                decode_responses=True,
                socket_timeout=ANSWER_SECONDS,
                socket_connect_timeout=ANSWER_SECONDS,
            )
            try:
                async with client.pubsub(ignore_subscribe_messages=True) as heard:
                    # Subscribed before the list is read: no change falls between the two.
                    await heard.subscribe(CHANNEL)
                    await self._greet(client)
                    if reported:
                        log.info("block list: Redis is back")
                    reported = False
                    self._connected.set(1)
                    await self._follow(client, heard)
            except _FAILURES as error:
                if not reported:
                    log.warning("block list: Redis is away, the last known holds: %s", error)
                reported = True
            finally:
                self._connected.set(0)
                await client.aclose()
            self._expire()
            await asyncio.sleep(RETRY_SECONDS)

    async def _greet(self, client: Any) -> None:
        run_id = str((await client.info("server")).get("run_id", ""))
        if self._run_id and run_id != self._run_id:
            await self._give_back(client)
        await self._read_all(client)
        self._run_id = run_id

    async def _follow(self, client: Any, heard: Any) -> None:
        loop = asyncio.get_running_loop()
        due = loop.time() + RESYNC_SECONDS
        while True:
            message = await heard.get_message(timeout=max(0.01, due - loop.time()))
            if message is not None:
                await self._read_one(client, str(message["data"]))
            if loop.time() >= due:
                await self._read_all(client)
                long = len(self._ends) > LONG_LIST
                due = loop.time() + (LONG_RESYNC_SECONDS if long else RESYNC_SECONDS)

    async def _read_one(self, client: Any, subject: str) -> None:
        left = int(await client.pttl(KEY_PREFIX + subject))
        if left == _ABSENT:
            self._ends.pop(subject, None)
        elif subject in self._ends or self._room(len(self._ends)):
            self._ends[subject] = _end_of(left)
        self._entries.set(len(self._ends))

    async def _read_all(self, client: Any) -> None:
        subjects = await client.zrange(INDEX_KEY, 0, MAX_SUBJECTS)
        ends: dict[str, int] = {}
        for start in range(0, len(subjects), _CHUNK):
            chunk = subjects[start : start + _CHUNK]
            pipe = client.pipeline(transaction=False)
            for subject in chunk:
                pipe.pttl(KEY_PREFIX + subject)
            for subject, left in zip(chunk, await pipe.execute(), strict=True):
                if left != _ABSENT and self._room(len(ends)):
                    ends[subject] = _end_of(left)
        self._ends = ends
        self._entries.set(len(ends))

    async def _give_back(self, client: Any) -> None:
        """Redis began anew: what is known here is all that is left of the list."""
        self._expire()
        now = monotonic_ns()
        pipe = client.pipeline(transaction=False)
        for subject, end in self._ends.items():
            left = max(1, (end - now) // 1_000_000)
            pipe.set(KEY_PREFIX + subject, '{"by":"restored"}', px=left, nx=True)
            pipe.zadd(INDEX_KEY, {subject: 0}, nx=True)
            pipe.publish(CHANNEL, subject)
        if len(pipe):
            await pipe.execute()
            log.warning("block list: given back to a Redis that had lost it")

    def _expire(self) -> None:
        now = monotonic_ns()
        self._ends = {subject: end for subject, end in self._ends.items() if end > now}
        self._entries.set(len(self._ends))

    def _room(self, held: int) -> bool:
        if held < MAX_SUBJECTS:
            self._full = False
            return True
        if not self._full:
            self._full = True
            log.error("block list: full", extra={"subjects": MAX_SUBJECTS})
        return False


def _end_of(left_ms: int) -> int:
    # A day for what has no end: the next look at the list renews it.
    return monotonic_ns() + (86_400_000 if left_ms == _FOR_EVER else left_ms) * 1_000_000
