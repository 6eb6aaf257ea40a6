"""Tokens and sessions that were revoked: in Redis for all gateways, here for every request.

One sorted set, ``nexus:auth:denied``: member ``tok:<digest>`` or ``sid:<session>``, score the Unix
second in which it would have ended anyway. A member ``all:…`` ends all tokens of a client or of a
subject that were issued up to an instant: its score less :data:`CUTOFF_SECONDS`.

 An announcement on the channel of the same name brings a
new one to every worker at once, a look at the whole set within a second if that was lost. What is
known here is never forgotten before its time, whatever becomes of Redis, and is given back to a
Redis that has lost it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, Final, Literal
from urllib.parse import quote

from nexus.gateway import redisfeed

if TYPE_CHECKING:
    from nexus.observability.registry import LocalMetrics

__all__ = ["CHANNEL", "CUTOFF_SECONDS", "DENIED_KEY", "Denylist", "everything_of"]

log = logging.getLogger("nexus.gateway.auth")

DENIED_KEY: Final = "nexus:auth:denied"
CHANNEL: Final = DENIED_KEY

#: For how long "all up to now" is remembered: no token of our own lives longer (`token_ttl_seconds`
#: is at most 30 days, the leeway five minutes).
CUTOFF_SECONDS: Final = 2_592_000 + 600

#: Entries that one worker holds, about 20 MiB.
MAX_ENTRIES: Final = 100_000
#: Seconds between two looks at the whole set; a long one is looked at less often, and new entries
#: come by announcement.
_RESYNC_SECONDS: Final = 0.9
_LONG: Final = 2000
_LONG_RESYNC_SECONDS: Final = 10.0


def everything_of(kind: Literal["client", "subject"], name: str, issuer: str = "") -> str:
    """The entry that ends all tokens of a client or subject; ``issuer`` is empty for our own."""
    return f"all:{kind}:{quote(issuer, safe='')}:{quote(name, safe='')}"


class Denylist:
    """``entry in denylist`` on the request path; everything else behind it, in one task."""

    def __init__(
        self, url: str, metrics: LocalMetrics, forget: Callable[[Iterable[str]], None]
    ) -> None:
        """``forget`` is told of every new entry."""
        self._url: Final = url
        self._metrics: Final = metrics
        self._forget: Final = forget
        #: Entry → Unix second of its end.
        self._ends: dict[str, float] = {}
        self._entries: Final = metrics.gauge("nexus_auth_denylist_entries")
        self._client: Any = None
        self._full = False
        #: Set once the whole set has been read, or could not be.
        self._looked: Final = asyncio.Event()

    def __contains__(self, entry: object) -> bool:
        return entry in self._ends

    def __len__(self) -> int:
        return len(self._ends)

    def cutoff(self, entry: str) -> float:
        """Unix time up to which tokens of :func:`everything_of` somebody count no more; or -1."""
        end = self._ends.get(entry)
        return -1.0 if end is None else end - CUTOFF_SECONDS

    async def run(self) -> None:
        """Follow Redis until cancelled."""
        await redisfeed.follow(self, self._url, CHANNEL, "auth_denylist", self._metrics)

    async def ready(self, seconds: float) -> None:
        """Until the set was read or Redis turned out to be away, at most ``seconds``."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._looked.wait(), seconds)

    async def deny(self, entries: Iterable[str], end: float) -> None:
        """Revoke, for all gateways; raises what a Redis that is away raises.

        It holds in this worker in any case, and goes to Redis when that is back.
        """
        named = dict.fromkeys(entries, end)
        self._learn(named)
        if self._client is None:
            self._client = redisfeed.connect(self._url)
        pipe = self._client.pipeline(transaction=True)
        # GT: of two ends the later one; and whoever writes also sweeps.
        pipe.zadd(DENIED_KEY, named, gt=True)
        pipe.zremrangebyscore(DENIED_KEY, "-inf", time.time() - 1)
        for entry in named:
            pipe.publish(CHANNEL, entry)
        await pipe.execute()

    async def close(self) -> None:
        """Let go of the connection for :meth:`deny`."""
        if self._client is not None:
            await self._client.aclose()

    # -------------------------------------------------------------------------- as a ``Feed``

    async def greet(self, client: Any) -> None:
        """Nothing besides the look at the whole that follows."""

    async def heard(self, client: Any, message: str) -> None:
        """One new entry."""
        end = await client.zscore(DENIED_KEY, message)
        if end is not None:
            self._learn({message: float(end)})

    async def resync(self, client: Any) -> float:
        """Read the whole set, give back what Redis has lost, drop what has ended."""
        now = time.time()
        pairs = await client.zrevrangebyscore(
            # The latest ends first: where there is no room for all, what ends soon matters least.
            *(DENIED_KEY, "+inf", now),
            start=0,
            num=MAX_ENTRIES,
            withscores=True,
        )
        there = {str(entry): float(end) for entry, end in pairs}
        self._learn(there)
        self._looked.set()
        self._ends = {entry: end for entry, end in self._ends.items() if end > now}
        self._entries.set(len(self._ends))
        missing = {
            e: end
            for e, end in self._ends.items()
            if there.get(e, 0) < end - 0.001 and end > now + 1
        }
        if missing:
            pipe = client.pipeline(transaction=False)
            pipe.zadd(DENIED_KEY, missing, gt=True)
            for entry in missing:
                pipe.publish(CHANNEL, entry)
            await pipe.execute()
            log.warning("denylist: given back to Redis", extra={"entries": len(missing)})
        return _LONG_RESYNC_SECONDS if len(self._ends) > _LONG else _RESYNC_SECONDS

    def away(self) -> None:
        """What is known holds."""
        self._looked.set()

    def _learn(self, found: dict[str, float]) -> None:
        ends = self._ends
        # Everything of somebody may be ended once more, which is a later end of the same entry.
        later = [entry for entry in found if entry in ends and found[entry] > ends[entry]]
        new = [entry for entry in found if entry not in ends]
        if len(ends) + len(new) > MAX_ENTRIES:
            if not self._full:
                log.error("denylist: full", extra={"entries": MAX_ENTRIES})
            self._full = True
            new = new[: max(0, MAX_ENTRIES - len(ends))]
        new += later
        if new:
            ends.update({entry: found[entry] for entry in new})
            self._entries.set(len(ends))
            self._forget(new)
