"""The exporter of a process: a thread that encodes spans and sends them over OTLP/HTTP.

::

    span.end() ──► queue (2048) ──► thread: every 500 ms or 512 spans: encode, POST, retry

Up to four batches are on their way at once, or a collector that is far away would get no more than
one batch in the time of an exchange. Encoding gives way to the process's other threads after every
few spans, not only when the interpreter makes it.

Every span that is recorded is accounted for: made = exported + dropped (by reason) + queued
(or on their way).
After a fork the child begins with an empty queue and a thread of its own; what the parent held is
the parent's to send.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import logging
import os
import threading
import weakref
from collections.abc import Callable
from typing import Final

from nexus.observability.otlp import EXPORTS, ExportOptions, ExportResult, OtlpClient
from nexus.tracing.encode import Encoder
from nexus.tracing.kernel import Span, State

__all__ = ["Exporter"]

log = logging.getLogger("nexus.tracing")

#: Seconds that ``close`` gives the last batches.
CLOSE_SECONDS: Final = 5.0

#: Spans that are encoded in one go, some tenths of a millisecond.
_ENCODE_SPANS: Final = 32

Report = Callable[[str, str, int], None]


class Exporter:
    """Takes spans from ``state``'s queue. Counts are read with :meth:`counts`."""

    def __init__(self, state: State, options: ExportOptions, report: Report | None = None) -> None:
        """``report(what, label, spans)`` is told of every change, from the exporter's thread:
        ``("made" | "exported" | "dropped" | "batch", reason or result, how many)``."""
        self._state: Final = state
        self._options: Final = options
        self._encoder: Final = Encoder(options.resource)
        self._report: Final = report
        self._reachable = True
        self._begin()
        itself = weakref.ref(self)
        os.register_at_fork(after_in_child=lambda: _restart(itself))

    def _begin(self) -> None:
        self._counts: dict[str, int] = {}
        self._dropped_seen = self._state.dropped = 0
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._ready = threading.Event()
        self._closed = False
        self._sending = 0
        self._waking = False

    def start(self) -> None:
        """Take spans from now on."""
        self._state.queue.clear()
        self._state.limit = self._options.queue_spans
        self._state.batch = self._options.batch_spans
        self._state.wake = self._wake_up
        self._thread = threading.Thread(
            target=lambda: asyncio.run(self._run()), name="nexus-span-export", daemon=True
        )
        self._thread.start()
        self._ready.wait(5.0)
        atexit.register(self.close)

    def counts(self) -> dict[str, int]:
        """``{"made", "exported", "queued", "<reason> dropped" …}``, spans so far."""
        with self._lock:
            self._count_full()
            found = dict(self._counts)
        found["queued"] = len(self._state.queue) + self._sending
        found["made"] = found.get("made", 0) + len(self._state.queue)
        return found

    def flush(self, seconds: float = CLOSE_SECONDS) -> bool:
        """Send what has ended so far, within ``seconds``; whether all of it was given away."""
        loop = self._loop
        if loop is None or not loop.is_running():
            return not self._state.queue
        done = threading.Event()

        def ask() -> None:
            self._flushes.append(done)
            self._wake.set()

        with contextlib.suppress(RuntimeError):
            loop.call_soon_threadsafe(ask)
            return done.wait(seconds)
        return False

    def close(self, seconds: float = CLOSE_SECONDS) -> None:
        """Send what is left within ``seconds``; what is not sent is dropped and counted."""
        if self._closed:
            return
        self._closed = True
        atexit.unregister(self.close)
        loop, thread = self._loop, self._thread
        if loop is not None and thread is not None and thread.is_alive():
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(self._stop)
            thread.join(seconds)
            if thread.is_alive():
                with contextlib.suppress(RuntimeError):
                    loop.call_soon_threadsafe(self._main.cancel)
                thread.join(1.0)
        self._state.limit = 0
        self._state.wake = None
        left = len(self._state.queue)
        self._state.queue.clear()
        with self._lock:
            self._count("made", "", left)
            self._count("dropped", "shutdown", left)
            self._count_full()

    # ------------------------------------------------------------------ in the exporter's thread

    def _stop(self) -> None:
        self._stopping.set()
        self._wake.set()

    def _wake_up(self) -> None:
        """A batch is full; from any thread."""
        loop = self._loop
        if loop is not None and not self._waking:
            self._waking = True  # once is enough, and costs as much as the rest of a call
            with contextlib.suppress(RuntimeError):  # it is just ending
                loop.call_soon_threadsafe(self._wake.set)

    async def _run(self) -> None:
        self._wake = asyncio.Event()
        self._stopping = asyncio.Event()
        self._flushes: list[threading.Event] = []
        self._main = asyncio.ensure_future(self._export_forever())
        self._loop = asyncio.get_running_loop()
        self._ready.set()
        with contextlib.suppress(asyncio.CancelledError):
            await self._main

    async def _export_forever(self) -> None:
        client = OtlpClient(self._options)
        queue = self._state.queue
        sending: set[asyncio.Task[None]] = set()
        try:
            while True:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(self._options.delay_seconds):
                        await self._wake.wait()
                self._waking = False  # before the queue is looked at
                self._wake.clear()
                flushes, self._flushes = self._flushes, []
                while queue:
                    if len(sending) >= EXPORTS:
                        await asyncio.wait(sending, return_when=asyncio.FIRST_COMPLETED)
                        continue
                    count = min(len(queue), self._options.batch_spans)
                    batch = [queue.popleft() for _ in range(count)]
                    with self._lock:
                        self._sending += count
                        self._count("made", "", count)
                    task = asyncio.create_task(self._send(client, batch))
                    sending.add(task)
                    task.add_done_callback(sending.discard)
                if sending and (flushes or self._stopping.is_set()):
                    await asyncio.wait(sending)
                with self._lock:
                    self._count_full()
                for done in flushes:
                    done.set()
                if self._stopping.is_set():
                    if not queue:
                        return
                    self._wake.set()  # more came while the last batches were on their way
        finally:
            for task in sending:
                task.cancel()
            if sending:
                await asyncio.wait(sending)
            await client.close()

    async def _send(self, client: OtlpClient, spans: list[Span]) -> None:
        count = len(spans)
        result = ExportResult(False, reason="shutdown")
        try:
            try:
                body = await self._encode(spans)
            except Exception:
                log.exception("spans could not be encoded")
                result = ExportResult(False, reason="encoding")
                return
            result = await client.send(body, self._stopping)
            self._tell(result)
        finally:
            with self._lock:
                self._sending -= count
                self._count("batch", "ok" if result.accepted else result.reason, 1)
                rejected = min(result.rejected, count) if result.accepted else 0
                if result.accepted:
                    self._count("exported", "", count - rejected)
                    self._count("dropped", "rejected", rejected)
                else:
                    self._count("dropped", result.reason, count)

    async def _encode(self, spans: list[Span]) -> bytes:
        parts = []
        for first in range(0, len(spans), _ENCODE_SPANS):
            parts.append(self._encoder.encode(spans[first : first + _ENCODE_SPANS]))
            await asyncio.sleep(0)
        return b"".join(parts)

    def _tell(self, result: ExportResult) -> None:
        """One line when the collector goes away, and one when it is back."""
        if result.accepted != self._reachable:
            if result.accepted:
                log.info("trace collector takes spans again", extra={"endpoint": self._options.url})
            else:
                log.warning(
                    "trace collector takes no spans; they are dropped and counted until it does",
                    extra={"endpoint": self._options.url, "cause": result.error},
                )
        self._reachable = result.accepted

    # ------------------------------------------------------------------------------- the counts

    def _count_full(self) -> None:
        """Take over what a full queue has dropped since."""
        dropped = self._state.dropped
        more, self._dropped_seen = dropped - self._dropped_seen, dropped
        self._count("made", "", more)
        self._count("dropped", "queue_full", more)

    def _count(self, what: str, label: str, spans: int) -> None:
        if spans:
            key = f"{label} {what}" if label else what
            self._counts[key] = self._counts.get(key, 0) + spans
            if self._report is not None:
                self._report(what, label, spans)


def _restart(exporter: weakref.ref[Exporter]) -> None:
    alive = exporter()
    if alive is not None and not alive._closed and alive._thread is not None:  # noqa: SLF001
        alive._begin()  # noqa: SLF001
        alive.start()
