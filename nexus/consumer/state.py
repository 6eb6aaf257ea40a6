"""What the consumer remembers, in Redis, so that a restart forgets nothing.

::

    nexus:consumer:<group>:<cluster>:mark:<topic>/<partition>    the next offset to apply
                                     out:<topic>/<partition>     verdicts not yet in nexus.actions
                                     ids, ids:older              event ids, two generations
                                     replayed                    dead letters that were replayed
                                     hits:<subject>              times of its last hits, ms
                                     route:<route>               its last latencies, ms

The cluster is in the name because offsets mean something only within one: a development broker
that begins anew begins at offset 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, NamedTuple

import msgspec
import redis.asyncio as redis_asyncio
from redis import exceptions as redis_errors

from nexus.consumer.script import APPLY
from nexus.consumer.settings import ConsumerSettings
from nexus.errors import UpstreamError
from nexus.policy.blocks import CHANNEL, INDEX_KEY, KEY_PREFIX, Networks, subject_of
from nexus.wire.events import CircuitOpened, Event, RateLimitHit, RequestCompleted, parse_instant

__all__ = ["MAX_BATCH", "Answer", "Origin", "State"]

#: Events of one call of the script. Redis does nothing else meanwhile: about 2 ms of it.
MAX_BATCH: Final = 500

_SECONDS: Final = 5.0

#: Redis cannot right now; the same call will do later.
_AWAY: Final = (
    redis_errors.ConnectionError,
    redis_errors.TimeoutError,
    redis_errors.ReadOnlyError,
    redis_errors.OutOfMemoryError,
    redis_errors.BusyLoadingError,
    redis_errors.AuthenticationError,
    OSError,
)

_KINDS: Final[dict[type, str]] = {
    RateLimitHit: "hit",
    RequestCompleted: "completed",
    CircuitOpened: "circuit",
}

_pack: Final = msgspec.msgpack.Encoder().encode
_unpack: Final = msgspec.msgpack.Decoder().decode


class Origin(NamedTuple):
    """Where a replayed record was first. ``dead``: it comes out of the dead letters."""

    topic: str
    partition: int
    offset: int
    dead: bool


class Answer(NamedTuple):
    """The script's word on one event: its place in the batch, what, and the verdict's numbers."""

    place: int
    what: int
    decided_ms: int = 0
    first: float = 0
    second: float = 0


class State:
    """The state of one consumer group; one client per worker."""

    def __init__(self, settings: ConsumerSettings) -> None:
        self._redis: Final[Any] = redis_asyncio.Redis.from_url(
            settings.redis.url, socket_timeout=_SECONDS, socket_connect_timeout=_SECONDS
        )
        self._script: Final = self._redis.register_script(APPLY)
        self._group: Final = settings.group
        self._remembered: Final = settings.flow.remembered_ids
        #: Why no event can be judged right now; empty as far as is known.
        self.trouble = ""
        self._prefix = ""
        self.name_cluster("")
        self.apply(settings)

    def apply(self, settings: ConsumerSettings) -> None:
        """Take over changed settings. Raises ``ConfigError``."""
        block, spike = settings.block, settings.spike
        exempt = Networks(block.allow, "block.allow")
        proxies = Networks(block.trusted_proxies, "block.trusted_proxies")
        self._blocking = block.enabled
        self._exempt = (exempt, proxies)
        self._numbers = {
            "hits": block.hits,
            "window_ms": int(block.window_seconds * 1000),
            "block_ms": int(block.seconds * 1000),
            "samples": spike.window,
            "min_samples": spike.min_samples,
            "factor": spike.factor,
            "floor_ms": spike.floor_ms,
            "block_prefix": KEY_PREFIX,
            "block_index": INDEX_KEY,
            "channel": CHANNEL,
            "remembered": self._remembered,
        }

    def name_cluster(self, cluster: str) -> None:
        """From now on offsets are those of this Kafka cluster."""
        self._prefix = f"nexus:consumer:{self._group}:{cluster}:"

    async def judge(
        self,
        topic: str,
        partition: int,
        committed: int,
        events: Sequence[tuple[int, Event, Origin | None]],
    ) -> list[Answer]:
        """Apply events (offset, event, origin; at most ``MAX_BATCH``, rising) of one partition.

        Raises :class:`UpstreamError` while Redis is away, ``redis.ResponseError`` when it refuses.
        """
        position = f"{topic}/{partition}"
        call = {
            **self._numbers,
            "kind": _KINDS[type(events[0][1])],
            "committed": committed,
            "prefix": self._prefix,
            "events": [
                (offset, event.id, *self._measure(event), *self._origin(origin))
                for offset, event, origin in events
            ],
        }
        keys = [
            self._prefix + "mark:" + position,
            self._prefix + "out:" + position,
            self._prefix + "ids",
            self._prefix + "ids:older",
            self._prefix + "replayed",
        ]
        try:
            _now, answers = _unpack(await self._script(keys, [_pack(call)]))
        except _AWAY as error:
            self.trouble = f"Redis: {error}"
            raise UpstreamError(self.trouble, sent=True) from error
        self.trouble = ""
        return [Answer(*answer) for answer in answers]

    async def reconcile(self, topic: str, partition: int, end: int) -> bool:
        """Forget a mark beyond the ``end`` of its log: the topic was deleted and made again."""
        key = f"{self._prefix}mark:{topic}/{partition}"
        try:
            mark = await self._redis.get(key)
            if mark is None or int(mark) <= end:
                return False
            await self._redis.delete(key, f"{self._prefix}out:{topic}/{partition}")
        except _AWAY as error:
            raise UpstreamError(f"Redis: {error}", sent=True) from error
        return True

    async def close(self) -> None:
        """Disconnect."""
        await self._redis.aclose()

    def _measure(self, event: Event) -> tuple[str, float]:
        if isinstance(event, RequestCompleted):
            return event.route, event.latency_ms
        if isinstance(event, CircuitOpened):
            return event.upstream, 0
        return self.subject(event.ip), int(parse_instant(event.emitted_at) * 1000)

    def subject(self, ip: str) -> str:
        """What a block of ``ip`` would cover; empty for whom is never blocked."""
        if not self._blocking:
            return ""
        try:
            subject = subject_of(ip)
        except ValueError:
            return ""  # a unix socket has no address
        return "" if any(networks.touches(subject) for networks in self._exempt) else subject

    def _origin(self, origin: Origin | None) -> tuple[str, int, bool]:
        if origin is None:
            return "", 0, False
        return f"{self._prefix}mark:{origin.topic}/{origin.partition}", origin.offset, origin.dead
