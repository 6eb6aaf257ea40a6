"""Order within a key, concurrency across keys.

Events of one key (in one topic) always take the same lane, and a lane handles one event at a time.
Events without a key promise no order and go to the lanes in turn.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Final, Generic, Protocol, TypeVar

from nexus.consumer.offsets import PartitionProgress

__all__ = ["Lanes"]

log = logging.getLogger("nexus.consumer")


class Keyed(Protocol):
    """What a lane wants to know."""

    @property
    def topic(self) -> str:
        """Topic of the record."""

    @property
    def partition(self) -> int:
        """Its partition."""

    @property
    def offset(self) -> int:
        """Its offset."""

    @property
    def key(self) -> bytes | None:
        """What keeps its order."""


R = TypeVar("R", bound=Keyed)

#: Events that one lane handles before it lets the event loop turn: heartbeats must go out, and
#: handlers that never wait would otherwise hold the loop until the queue is empty.
_BURST: Final = 64


class Lanes(Generic[R]):
    """``count`` workers over queues; ``failed`` is called when one ends, which is a bug."""

    def __init__(
        self,
        count: int,
        process: Callable[[R, PartitionProgress], Awaitable[None]],
        failed: Callable[[str], None],
    ) -> None:
        self._process: Final = process
        self._failed: Final = failed
        self._queues: Final = [deque[tuple[R, PartitionProgress]]() for _ in range(count)]
        self._wakes: Final = [asyncio.Event() for _ in range(count)]
        self._tasks: Final = [
            asyncio.create_task(self._work(queue, wake), name=f"lane-{index}")
            for index, (queue, wake) in enumerate(zip(self._queues, self._wakes, strict=True))
        ]
        self._turn = 0

    def put(self, record: R, progress: PartitionProgress) -> None:
        """Queue a record whose offset ``progress`` has received."""
        if record.key is None:
            self._turn = index = (self._turn + 1) % len(self._queues)
        else:
            index = hash((record.topic, record.key)) % len(self._queues)
        self._queues[index].append((record, progress))
        self._wakes[index].set()

    async def stop(self) -> None:
        """End the lanes at once; what they had is unfinished and will be read again."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _work(self, queue: deque[tuple[R, PartitionProgress]], wake: asyncio.Event) -> None:
        burst = 0
        while True:
            if not queue:
                wake.clear()
                await wake.wait()
                burst = 0
            record, progress = queue.popleft()
            if progress.revoked:
                continue
            try:
                await self._process(record, progress)
            except Exception:
                log.exception("an event broke its lane")
                self._failed(f"a lane ended at {record.topic}/{record.partition}/{record.offset}")
                return
            burst += 1
            if burst >= _BURST:
                burst = 0
                await asyncio.sleep(0)
