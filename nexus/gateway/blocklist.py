"""The block list as one worker enforces it: a copy of Redis, at most a second old.

::

    start, reconnect, every second ─► index ─► PTTL of each ─► the whole list
    notification                   ───────────► PTTL of one ─► one entry

Redis away: what is known holds until its time is over. A Redis that lost its memory (another run
id) is given back what is known here, so that its restart frees nobody.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from time import monotonic_ns
from typing import TYPE_CHECKING, Any, Final

from nexus.gateway import redisfeed
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

#: PTTL commands of one round trip.
_CHUNK: Final = 1000
#: PTTL of a key that is not there, and of one without an end (somebody set it by hand).
_ABSENT: Final = -2
_FOR_EVER: Final = -1


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
        self._metrics: Final = metrics
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
        await redisfeed.follow(self, self._url, CHANNEL, "block_list", self._metrics)

    async def greet(self, client: Any) -> None:
        """A new connection: is it the Redis that we know?"""
        run_id = str((await client.info("server")).get("run_id", ""))
        if self._run_id and run_id != self._run_id:
            await self._give_back(client)
        self._run_id = run_id

    async def resync(self, client: Any) -> float:
        """Look at the whole list; seconds until the next look."""
        await self._read_all(client)
        return LONG_RESYNC_SECONDS if len(self._ends) > LONG_LIST else RESYNC_SECONDS

    def away(self) -> None:
        """What is known holds until its time is over."""
        self._expire()

    async def heard(self, client: Any, message: str) -> None:
        """One subject was blocked or freed."""
        subject = message
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
