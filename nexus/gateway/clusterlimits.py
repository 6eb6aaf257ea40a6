"""Limits that several gateways share: one bucket per key in Redis, asked in one round trip.

::

    take ─► leased tokens? admitted ─► refused a moment ago? refused until the token is there
         ─► else the request waits ─► all that wait, in one pipeline of scripts ─► answered

The script is GCRA by the clock of the Redis server, so gateways need no common clock. A worker may
lease several tokens of a key at once (``lease``). Redis never gives out more than
``burst + rate * t`` in any ``t`` seconds; tokens leased before those seconds and spent within them
come on top, at most ``lease - 1`` for each worker (one is spent at once): that is the worst-case
overshoot, and with ``lease: 1`` there is none. Redis away: ``on_redis_failure`` decides at once,
and Redis is asked again every ``retry_ms``.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from time import monotonic_ns
from typing import TYPE_CHECKING, Any, Final, Protocol

from nexus.gateway.limits import PENDING, UNAVAILABLE
from nexus.gateway.redisfeed import failures

if TYPE_CHECKING:
    from nexus.gateway.limits import Limit
    from nexus.gateway.settings_limits import ClusterLimitSettings
    from nexus.net.settings import RedisSettings
    from nexus.observability.registry import LocalMetrics

__all__ = ["KEY_PREFIX", "SCRIPT", "ClusterLimits"]

log = logging.getLogger("nexus.gateway.limits")

#: Redis keys of buckets: this, the limit's name, and 128 bits of a hash of the key.
KEY_PREFIX: Final = "nexus:limit:"

#: KEYS[1] bucket; ARGV: microseconds per token, burst, tokens wanted. Returns tokens given, and
#: then those left, or 0 and the microseconds until there is one. Times count from 2026, where a
#: double still resolves nanoseconds. A clock that is set back costs no more than an empty bucket.
SCRIPT: Final = """
local clock = redis.call('TIME')
local now = (clock[1] - 1767225600) * 1000000 + clock[2]
local interval, burst, wanted = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
local tat = tonumber(redis.call('GET', KEYS[1]) or now)
if tat < now then tat = now end
if tat > now + interval * burst then tat = now + interval * burst end
local room = math.floor((now - tat) / interval + burst + 0.000001)
if room < 1 then
  return {0, math.ceil(tat + interval - now - interval * burst)}
end
local given = math.min(room, wanted)
tat = tat + given * interval
redis.call('SET', KEYS[1], string.format('%.3f', tat), 'PX', math.ceil((tat - now) / 1000))
return {given, room - given}
"""

#: Keys of which something is known here; more are asked for each time.
MAX_KEYS: Final = 65_536
#: Requests that may wait for Redis; for more it counts as away.
MAX_WAITING: Final = 10_000
#: Scripts of one round trip.
_BATCH: Final = 500


class Waiter(Protocol):
    """A request that waits."""

    def answer(self, taken: int) -> None:
        """As ``BucketTable.take`` answers, or ``UNAVAILABLE``."""


class _Lease:
    """What is known of one key: tokens in hand, or that there are none before ``until``."""

    __slots__ = ("left", "tokens", "until")

    def __init__(self, tokens: int, left: int, until: int) -> None:
        self.tokens = tokens
        #: Tokens that Redis still had.
        self.left = left
        self.until = until


class _Ask:
    __slots__ = ("digest", "key", "limit", "waiters")

    def __init__(self, limit: Limit, key: bytes, digest: bytes) -> None:
        self.limit = limit
        self.key = key
        self.digest = digest
        self.waiters: list[Waiter] = []


class ClusterLimits:
    """One worker's part; ``take`` is on the request path, the rest is one task."""

    def __init__(
        self,
        redis: RedisSettings,
        settings: ClusterLimitSettings,
        metrics: LocalMetrics,
        local: Callable[[Limit, bytes, int], int],
    ) -> None:
        """``local(limit, key, now)`` takes a token from the table of this gateway."""
        self._url: Final = redis.url
        self.settings = settings
        self._local: Final = local
        self._results: Final = metrics.counters("nexus_rate_limit_cluster_total")
        self._known: dict[bytes, _Lease] = {}
        self._asks: dict[bytes, _Ask] = {}
        self._waiting = 0
        self._wake: Final = asyncio.Event()
        self._away_until = 0
        self._reported = False
        self._sha = ""

    def take(self, limit: Limit, key: bytes, digest: bytes, waiter: Waiter) -> int:
        """One token, as ``BucketTable.take``; ``PENDING``: the waiter is told; ``UNAVAILABLE``."""
        now = monotonic_ns()
        known = self._known.get(digest)
        if known is not None:
            if now < known.until:
                if known.tokens > 0:
                    known.tokens -= 1
                    return known.left + known.tokens
                if known.tokens < 0:
                    return now - known.until
            elif known.tokens < 0:
                del self._known[digest]
        if now < self._away_until or self._waiting >= MAX_WAITING:
            return self._without(limit, key, now)
        ask = self._asks.get(digest)
        if ask is None:
            ask = self._asks[digest] = _Ask(limit, key, digest)
        ask.waiters.append(waiter)
        self._waiting += 1
        self._wake.set()
        return PENDING

    async def run(self) -> None:
        """Ask Redis for whoever waits, until cancelled."""
        client: Any = None
        try:
            while True:
                await self._wake.wait()
                asks = self._next()
                if not asks:
                    continue
                if client is None:
                    client = self._connect()
                try:
                    answers = await self._evaluate(client, asks)
                except failures() as error:
                    self._failed(asks, error)
                    await client.aclose()
                    client = None
                else:
                    self._answered(asks, answers)
        finally:
            if client is not None:
                await client.aclose()

    def _next(self) -> list[_Ask]:
        asks = list(self._asks.values())[:_BATCH]
        for ask in asks:
            del self._asks[ask.digest]
        if not self._asks:
            self._wake.clear()
        now = monotonic_ns()
        return [ask for ask in asks if not self._serve(ask, now)]

    def _serve(self, ask: _Ask, now: int) -> bool:
        """Whether tokens in hand are enough: who came while others were waiting takes those first.

        Asked for all the same, they would be overwritten by the next lease and lost.
        """
        known = self._known.get(ask.digest)
        if known is not None and known.tokens > 0 and now < known.until:
            served = ask.waiters[: known.tokens]
            ask.waiters = ask.waiters[len(served) :]
            self._waiting -= len(served)
            for waiter in served:
                known.tokens -= 1
                waiter.answer(known.left + known.tokens)
        return not ask.waiters

    def _connect(self) -> Any:
        import redis.asyncio as redis_asyncio
        from redis.asyncio.retry import Retry
        from redis.backoff import NoBackoff

        seconds = self.settings.timeout_ms / 1000
        return redis_asyncio.Redis.from_url(
            self._url,
            socket_timeout=seconds,
            socket_connect_timeout=seconds,
            retry=Retry(NoBackoff(), 0),
            single_connection_client=True,
        )

    async def _evaluate(self, client: Any, asks: list[_Ask]) -> list[tuple[int, int]]:
        from redis.exceptions import NoScriptError

        if not self._sha:
            self._sha = await client.script_load(SCRIPT)
        answers = await self._pipeline(client, asks)
        if any(isinstance(answer, NoScriptError) for answer in answers):
            # Redis was restarted or its scripts flushed: none of those that failed has run.
            self._sha = await client.script_load(SCRIPT)
            failed = [i for i, one in enumerate(answers) if isinstance(one, NoScriptError)]
            again = await self._pipeline(client, [asks[i] for i in failed])
            for i, answer in zip(failed, again, strict=True):
                answers[i] = answer
        for answer in answers:
            if isinstance(answer, Exception):
                raise answer
        return [(int(given), int(rest)) for given, rest in answers]

    async def _pipeline(self, client: Any, asks: list[_Ask]) -> list[Any]:
        pipe = client.pipeline(transaction=False)
        for ask in asks:
            settings = ask.limit.settings
            pipe.evalsha(
                self._sha,
                1,
                f"{KEY_PREFIX}{settings.name}:{ask.digest.hex()}",
                repr(ask.limit.rule.interval_ns / 1000),
                settings.capacity,
                max(settings.lease, len(ask.waiters)),
            )
        answers: list[Any] = await pipe.execute(raise_on_error=False)
        return answers

    def _answered(self, asks: list[_Ask], answers: list[tuple[int, int]]) -> None:
        if self._reported:
            self._reported = False
            log.info("cluster limits: Redis is back")
        now = monotonic_ns()
        for ask, (given, rest) in zip(asks, answers, strict=True):
            self._waiting -= len(ask.waiters)
            self._results.labels("granted").inc(given)
            served = min(given, len(ask.waiters))
            wait = 0
            if given > served:
                self._keep(
                    ask.digest,
                    _Lease(given - served, rest, now + ask.limit.settings.lease_ms * 1_000_000),
                )
            elif given == 0:
                wait = rest * 1000
                self._keep(ask.digest, _Lease(-1, 0, now + wait))
            for i, waiter in enumerate(ask.waiters):
                if i < served:
                    waiter.answer(rest + given - 1 - i)
                else:
                    self._results.labels("refused").inc()
                    waiter.answer(-max(1, wait or ask.limit.interval))

    def _keep(self, digest: bytes, lease: _Lease) -> None:
        if len(self._known) >= MAX_KEYS and digest not in self._known:
            now = monotonic_ns()
            self._known = {key: one for key, one in self._known.items() if one.until > now}
            if len(self._known) >= MAX_KEYS:
                return
        self._known[digest] = lease

    def _failed(self, asks: list[_Ask], error: Exception) -> None:
        self._sha = ""
        now = monotonic_ns()
        self._away_until = now + self.settings.retry_ms * 1_000_000
        if not self._reported:
            self._reported = True
            log.warning("cluster limits: Redis is away, on_redis_failure decides: %s", error)
        # Those that came in the meantime would only wait for the same failure.
        asks = [*asks, *self._asks.values()]
        self._asks = {}
        self._wake.clear()
        for ask in asks:
            self._waiting -= len(ask.waiters)
            for waiter in ask.waiters:
                waiter.answer(self._without(ask.limit, ask.key, now))

    def _without(self, limit: Limit, key: bytes, now: int) -> int:
        self._results.labels("failed").inc()
        mode = limit.settings.on_redis_failure
        if mode == "open":
            return limit.burst
        if mode == "closed":
            return UNAVAILABLE
        return self._local(limit, key, now)
