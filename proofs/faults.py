"""What goes wrong during a proof, one thing after the other, each kind again and again.

Between two faults there is a moment of peace, so that every fault meets real traffic and the way
back is seen each time.
"""

from __future__ import annotations

import asyncio
import random
import signal
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Final

from proofs.operations import World
from proofs.relay import Relay
from proofs.rig import Proxy, Redis, answers

__all__ = ["Faults"]

#: Seconds within which a PING through the proxy must work again after a fault is over.
MOST_RECOVERY: Final = 5.0


class Faults:
    """Breaks things until told to stop; leaves everything whole."""

    def __init__(
        self, world: World, redis: Redis, proxy: Proxy, relay: Relay, rng: random.Random
    ) -> None:
        self._world = world
        self._redis = redis
        self._proxy = proxy
        self._relay = relay
        self._random = rng
        self.done: Counter[str] = Counter()
        #: Seconds from the end of a fault to the first PONG, the slowest of each kind.
        self.recovery: dict[str, float] = {}
        self.kinds: Final[dict[str, Callable[[], Awaitable[None]]]] = {
            "redis killed": self._kill,
            "redis killed, port refuses": self._kill_and_refuse,
            "redis stopped": self._stop,
            "redis stopped, then killed": self._stop_and_kill,
            "connections reset": self._reset,
            "connections closed": self._close,
            "cut in mid-reply": self._cut,
            "half-open": self._half_open,
            "replies swallowed": self._swallow,
            "delays": self._delay,
            "tiny segments": self._tiny,
        }

    @property
    def every_kind_happened(self) -> bool:
        return len(self.done) == len(self.kinds)

    async def run(self, stop: asyncio.Event) -> None:
        """Until ``stop``; ends between two faults."""
        left: list[str] = []
        while not stop.is_set():
            await asyncio.sleep(self._random.uniform(0.1, 0.5))
            if not left:
                left = list(self.kinds)
                self._random.shuffle(left)
            kind = left.pop()
            await self.kinds[kind]()
            await self._recover(kind)
            self.done[kind] += 1

    async def _recover(self, kind: str) -> None:
        began = time.monotonic()
        while not await answers(self._proxy.host, self._proxy.port):
            if time.monotonic() - began > MOST_RECOVERY:
                self._world.violation(f"no service {MOST_RECOVERY:g} s after: {kind}")
                return
            await asyncio.sleep(0.01)
        seconds = time.monotonic() - began
        self.recovery[kind] = max(self.recovery.get(kind, 0.0), round(seconds, 3))

    async def _pause(self, low: float, high: float) -> None:
        await asyncio.sleep(self._random.uniform(low, high))

    # -- Redis itself

    async def _kill(self) -> None:
        self._world.epoch += 1
        self._redis.kill()
        await self._pause(0, 0.3)
        await self._redis.start()

    async def _kill_and_refuse(self) -> None:
        self._world.epoch += 1
        self._relay.refuse()
        self._redis.kill()
        await self._pause(0.1, 0.5)
        await self._redis.start()
        await self._relay.listen()

    async def _stop(self) -> None:
        self._redis.signal(signal.SIGSTOP)
        await self._pause(0.05, 0.8)
        self._redis.signal(signal.SIGCONT)

    async def _stop_and_kill(self) -> None:
        """Much is outstanding when the connections go."""
        self._redis.signal(signal.SIGSTOP)
        await self._pause(0.05, 0.3)
        await self._kill()

    # -- the way there

    async def _reset(self) -> None:
        for pipe in self._relay.some():
            pipe.end(reset=True)

    async def _close(self) -> None:
        for pipe in self._relay.some():
            pipe.end(reset=False)

    async def _cut(self) -> None:
        for pipe in self._relay.some():
            pipe.cut_next = True
        await self._pause(0.05, 0.2)

    async def _half_open(self) -> None:
        """Nothing passes either way and nobody is told, for a while."""
        pipes = self._relay.some()
        for pipe in pipes:
            pipe.mute = pipe.deaf = True
        await self._pause(0.1, 0.8)
        for pipe in pipes:
            pipe.end(reset=True)

    async def _swallow(self) -> None:
        """Redis does what it is told, and nobody hears of it."""
        pipes = self._relay.some()
        for pipe in pipes:
            pipe.deaf = True
        await self._pause(0.1, 0.4)
        for pipe in pipes:
            pipe.end(reset=True)

    async def _delay(self) -> None:
        self._relay.delay = 0.03
        await self._pause(0.3, 0.8)
        self._relay.delay = 0.0

    async def _tiny(self) -> None:
        self._relay.tiny = True
        await self._pause(0.3, 0.8)
        self._relay.tiny = False
