"""An event loop in a thread of its own, for servers that a test talks to with blocking calls."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable

Listen = Callable[[], Awaitable[asyncio.AbstractServer]]


class LoopThread:
    """Runs until :meth:`stop`; nothing that was started on it outlives that."""

    def __init__(self, listen: Listen) -> None:
        """``listen()`` runs on the loop before this returns, and gives the server to close."""
        self._loop = asyncio.new_event_loop()
        ready = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(listen, ready), daemon=True)
        self._thread.start()
        assert ready.wait(5)

    def _run(
        self, listen: Callable[[], Awaitable[asyncio.AbstractServer]], ready: threading.Event
    ) -> None:
        asyncio.set_event_loop(self._loop)

        async def listening() -> asyncio.AbstractServer:
            return await listen()

        self._server = self._loop.run_until_complete(listening())
        ready.set()
        self._loop.run_forever()

    def stop(self) -> None:
        """Nobody new is let in, and whoever is still connected sees the end of it."""
        asyncio.run_coroutine_threadsafe(self._end(), self._loop).result(5)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(5)
        self._loop.close()

    async def _end(self) -> None:
        self._server.close()
        while tasks := asyncio.all_tasks() - {asyncio.current_task()}:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            # A connection that was accepted before the close gets its task in the next turn.
            await asyncio.sleep(0)
