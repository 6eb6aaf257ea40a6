"""One worker process: an event loop around a :class:`~nexus.net.service.ServiceApp`."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import gc
import logging
import signal
import socket
from typing import Any, Final

import msgspec
import uvloop

from nexus.errors import NexusError
from nexus.net.service import ServiceApp, ServiceSpec, WorkerContext
from nexus.net.settings import ServiceSettings
from nexus.net.states import DRAINING, FAILING, READY, STARTING
from nexus.observability import logs
from nexus.observability.runtime import RuntimeSampler

__all__ = ["CONTROL_BYTES", "FLUSH_LIMIT_SECONDS", "run_worker"]

log = logging.getLogger("nexus.worker")

#: Largest message on the control socket: the resolved settings as MessagePack.
CONTROL_BYTES: Final = 1 << 18

#: Seconds that an app may take beyond ``drain_seconds``, to flush what it holds for others.
FLUSH_LIMIT_SECONDS: Final = 8.0

#: Objects in cycles that may wait to be found: some megabytes.
_YOUNG_OBJECTS: Final = 10_000

_PR_SET_PDEATHSIG: Final = 1


def run_worker(
    spec: ServiceSpec[Any, Any], context: WorkerContext[Any, Any], control: socket.socket
) -> int:
    """Serve until told to stop; the exit code of the process (0: drained, 1: failed)."""
    _end_with_parent()
    loop = uvloop.new_event_loop()
    asyncio.set_event_loop(loop)
    worker = _Worker(spec, context, control)
    try:
        return loop.run_until_complete(worker.serve())
    finally:
        with contextlib.suppress(Exception):
            loop.run_until_complete(loop.shutdown_asyncgens())
        loop.close()


def _end_with_parent() -> None:
    """A supervisor that is killed outright must not leave workers behind (prctl(2))."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)


def _settle() -> None:
    """Start-up is over: what is there stays, and need not be searched for garbage again.

    Young objects are searched when as many more were made than freed. By default that is 700, fewer
    than the records of one batch of requests, which reference counts free a moment later.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(_YOUNG_OBJECTS, 10, 10)


class _Worker:
    def __init__(
        self,
        spec: ServiceSpec[Any, Any],
        context: WorkerContext[Any, Any],
        control: socket.socket,
    ) -> None:
        self._spec: Final = spec
        self._context: Final = context
        self._control: Final = control
        self._stop: Final = asyncio.Event()
        self._failed = False
        self._reloads: Final[asyncio.Queue[bytes]] = asyncio.Queue()
        context.fail = self._fail

    async def serve(self) -> int:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop.set)
        loop.add_reader(self._control.fileno(), self._on_control)
        context = self._context
        context.set_state(STARTING)
        try:
            app = self._spec.make_app(context)
            starting = asyncio.ensure_future(app.start())
            stopping = asyncio.ensure_future(self._stop.wait())
            await asyncio.wait({starting, stopping}, return_when=asyncio.FIRST_COMPLETED)
            stopping.cancel()
            if not starting.done():
                starting.cancel()
                await asyncio.gather(starting, return_exceptions=True)
                return 0
            starting.result()
        except NexusError as error:
            log.error("%s: cannot start: %s", self._spec.name, error)  # noqa: TRY400
            return 1
        except Exception:
            log.exception("%s: cannot start", self._spec.name)
            return 1
        _settle()
        context.set_state(READY)
        reloader = asyncio.ensure_future(self._reload_forever(app))
        sampler = RuntimeSampler(context.metrics)
        sampler.start()
        await self._stop.wait()
        context.set_state(FAILING if self._failed else DRAINING)
        reloader.cancel()
        try:
            return await self._drain(app)
        finally:
            sampler.stop()

    async def _drain(self, app: ServiceApp[Any]) -> int:
        settings = self._context.settings
        if not self._failed:
            await asyncio.sleep(settings.drain_grace_seconds)
            # The app serves copies; with the supervisor's closed too, its end of accepting is the
            # end of the queue.
            for listener in self._context.listeners:
                listener.close()
        limit = settings.drain_seconds + FLUSH_LIMIT_SECONDS
        try:
            # The app keeps the deadlines itself; this one is for an app that does not.
            await asyncio.wait_for(app.drain(settings.drain_seconds), limit)
        except TimeoutError:
            log.warning("open work was cut off", extra={"drain_seconds": settings.drain_seconds})
        except Exception:
            log.exception("draining failed")
            return 1
        return 1 if self._failed else 0

    async def _reload_forever(self, app: ServiceApp[Any]) -> None:
        while True:
            message = await self._reloads.get()
            # Whatever becomes of the settings: who has rotated the logs sends the same signal.
            logs.reopen()
            try:
                settings = msgspec.msgpack.decode(message, type=self._spec.settings)
                await app.reload(settings)
                self._context.settings = settings
                self._configure_logs(settings)
            except NexusError as error:
                log.error("settings not applied, keeping the last good ones: %s", error)  # noqa: TRY400
            except Exception:
                log.exception("settings not applied, keeping the last good ones")

    def _configure_logs(self, settings: ServiceSettings) -> None:
        context = self._context
        log_settings = settings.log
        logs.configure(
            log_settings.level,
            log_settings.format,
            context.service,
            worker=context.index,
            path=log_settings.path,
        )
        logs.count_drops(context.metrics)

    def _on_control(self) -> None:
        try:
            message = self._control.recv(CONTROL_BYTES)
        except BlockingIOError:
            return
        except OSError:
            message = b""
        if message:
            self._reloads.put_nowait(message)
            return
        # End of file: the supervisor is gone, and with it whoever would restart or stop us.
        asyncio.get_running_loop().remove_reader(self._control.fileno())
        self._stop.set()

    def _fail(self, reason: str) -> None:
        log.error("%s: worker %d fails: %s", self._spec.name, self._context.index, reason)
        self._failed = True
        self._stop.set()
