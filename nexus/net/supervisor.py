"""The parent of a service's workers: sockets, shared memory, signals, restarts.

::

    SIGTERM, SIGINT   → every worker drains, then exit 0; a second one ends them at once
    SIGHUP            → configuration read and checked here, then handed to every worker
    SIGCHLD           → a worker that died is replaced on its slot (same socket, same counters)

A worker that dies before it was ever ready ends the service: that is a fault of the set-up, which
a restart would only repeat.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, Generic, TypeVar

import msgspec

from nexus import __version__
from nexus._speedups import BACKEND
from nexus.errors import ConfigError
from nexus.net.descriptors import raise_descriptor_limit
from nexus.net.listeners import (
    Endpoint,
    UnixFiles,
    bind_endpoint,
    bind_group,
    format_address,
)
from nexus.net.service import ServiceSpec, WorkerContext
from nexus.net.settings import ServiceSettings
from nexus.net.states import READY, STARTING, WorkerStates
from nexus.net.worker import CONTROL_BYTES, FLUSH_LIMIT_SECONDS, run_worker
from nexus.observability import logs
from nexus.observability.registry import Registry
from nexus.settings import keep_restart_only

__all__ = ["Supervisor"]

log = logging.getLogger("nexus.supervisor")

S = TypeVar("S", bound=ServiceSettings)

#: Restart delays double up to the cap and start again after a worker has lived this long.
_RESTART_BASE: Final = 0.25
_RESTART_CAP: Final = 10.0
_RESTART_FORGET: Final = 60.0

#: Seconds in which readiness is looked for often.
_QUICK_START: Final = 3.0

_SIGNALS: Final = {signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD}


@dataclass(slots=True)
class _Slot:
    index: int
    listeners: tuple[socket.socket, ...]
    pid: int = 0
    control: socket.socket | None = None
    started: float = 0.0
    was_ready: bool = False
    crashes: int = 0
    restart_at: float = 0.0


class Supervisor(Generic[S]):
    """Runs ``settings.workers`` processes of one service until it is told to stop."""

    def __init__(
        self, spec: ServiceSpec[S, Any], settings: S, load_settings: Callable[[], S]
    ) -> None:
        self._spec: Final = spec
        self._settings = settings
        self._load_settings: Final = load_settings
        self._states: Final = WorkerStates(settings.workers)
        self._slots: list[_Slot] = []
        self._stopping_since = 0.0
        self._announced = False
        self._exit_code = 0

    def run(self) -> int:
        """Bind, fork, watch; the exit code of the service. Raises ``ListenError``."""
        spec, settings = self._spec, self._settings
        raise_descriptor_limit()
        variable = f"NEXUS_{spec.name.upper()}"
        groups = [
            bind_endpoint(endpoint, settings.workers) for endpoint in self._endpoints(variable)
        ]
        [admin] = bind_group(
            settings.admin_host,
            settings.admin_port,
            1,
            setting=f"--admin-port or {variable}_ADMIN_PORT",
        )
        self._admin = admin
        self._registry = Registry(workers=settings.workers, max_series=spec.max_series(settings))
        self._restarts = self._registry.open_supervisor().counter("nexus_worker_restarts_total")
        self._shared = spec.make_shared(settings)
        self._slots = [
            _Slot(i, tuple(group[i] for group in groups)) for i in range(settings.workers)
        ]
        files = UnixFiles(group[0] for group in groups)
        signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
        self._started = time.monotonic()
        try:
            for slot in self._slots:
                self._fork(slot)
            self._watch()
        finally:
            self._kill_rest()
            files.remove()
        return self._exit_code

    def _endpoints(self, variable: str) -> list[Endpoint]:
        spec, settings = self._spec, self._settings
        if not spec.listens:
            return []
        first = Endpoint(f"--port or {variable}_PORT", settings.host, settings.port)
        return [first, *spec.more_endpoints(settings)]

    # -- the loop ------------------------------------------------------------------------------

    def _watch(self) -> None:
        while any(slot.pid for slot in self._slots) or not self._stopping_since:
            waited = signal.sigtimedwait(_SIGNALS, self._patience())
            if waited is not None:
                self._on_signal(waited.si_signo)
            self._reap()
            self._announce()
            now = time.monotonic()
            if self._stopping_since:
                settings = self._settings
                limit = (
                    settings.drain_grace_seconds + settings.drain_seconds + FLUSH_LIMIT_SECONDS + 2
                )
                if now - self._stopping_since > limit:
                    log.warning("workers did not drain in time and are ended")
                    return
                continue
            for slot in self._slots:
                if not slot.pid and now >= slot.restart_at:
                    self._refork(slot)

    def _patience(self) -> float:
        """Seconds until something is due without a signal."""
        if not self._announced:
            # Ready within a second, usually; a worker that waits for Kafka may take for ever.
            return 0.02 if time.monotonic() - self._started < _QUICK_START else 0.5
        return 0.2 if self._stopping_since or any(not s.pid for s in self._slots) else 5.0

    def _on_signal(self, number: int) -> None:
        if number in (signal.SIGTERM, signal.SIGINT):
            if self._stopping_since:
                self._kill_rest()
            else:
                self._stop()
        elif number == signal.SIGHUP and not self._stopping_since:
            self._reload()

    def _stop(self) -> None:
        log.info("stopping", extra={"service": self._spec.name})
        self._stopping_since = time.monotonic()
        # Only the workers hold the sockets from here on: when they stop accepting, the kernel
        # refuses new connections instead of queueing them for nobody.
        for slot in self._slots:
            for listener in slot.listeners:
                listener.close()
        self._send(signal.SIGTERM)

    def _send(self, number: signal.Signals) -> None:
        for slot in self._slots:
            if slot.pid:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(slot.pid, number)

    def _kill_rest(self) -> None:
        self._send(signal.SIGKILL)
        for slot in self._slots:
            if slot.pid:
                with contextlib.suppress(ChildProcessError):
                    os.waitpid(slot.pid, 0)
                slot.pid = 0

    def _announce(self) -> None:
        if self._announced or self._stopping_since:
            return
        if all(state == READY for _, state, _ in self._states.all()):
            self._announced = True
            addresses = ", ".join(format_address(sock) for sock in self._slots[0].listeners)
            log.info(
                "%s %s ready%s, admin on %s, %d worker%s, %s kernels",
                self._spec.name,
                __version__,
                f" on {addresses}" if addresses else "",
                format_address(self._admin),
                len(self._slots),
                "" if len(self._slots) == 1 else "s",
                BACKEND,
            )

    # -- workers -------------------------------------------------------------------------------

    def _fork(self, slot: _Slot) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        for end in (ours, theirs):
            end.setblocking(False)
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2 * CONTROL_BYTES)
        sys.stdout.flush()
        sys.stderr.flush()
        self._states.set(slot.index, STARTING, 0)
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                ours.close()
                code = self._in_worker(slot, theirs)
            except BaseException:
                log.exception("worker failed")
            finally:
                logs.flush()
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(code)
        theirs.close()
        if slot.control is not None:
            slot.control.close()
        slot.pid, slot.control = pid, ours
        slot.started, slot.was_ready = time.monotonic(), False

    def _refork(self, slot: _Slot) -> None:
        """Replace a dead worker; what keeps us from it now may have passed in a moment."""
        try:
            self._fork(slot)
        except OSError as error:
            slot.restart_at = time.monotonic() + _RESTART_CAP
            log.error(  # noqa: TRY400
                "worker %d cannot be replaced (%s), trying again in %.0f s",
                slot.index,
                error.strerror,
                _RESTART_CAP,
            )

    def _in_worker(self, slot: _Slot, control: socket.socket) -> int:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        for other in self._slots:
            if other.control is not None:
                other.control.close()
            # A listener held open here would keep a draining neighbour's queue alive.
            if other is not slot:
                for listener in other.listeners:
                    listener.close()
        settings = self._settings
        try:
            self._configure_logs(slot.index)
        except ConfigError as error:  # what was open is gone; standard error is there
            logs.configure(
                settings.log.level, settings.log.format, self._spec.name, worker=slot.index
            )
            log.error("no log file: %s", error)  # noqa: TRY400
        metrics = self._registry.open(slot.index)
        logs.count_drops(metrics)
        states, index, pid = self._states, slot.index, os.getpid()
        context = WorkerContext(
            index=index,
            settings=settings,
            registry=self._registry,
            metrics=metrics,
            shared=self._shared,
            listeners=slot.listeners,
            admin_listener=self._admin,
            set_state=lambda state: states.set(index, state, pid),
            states=states,
            service=self._spec.name,
        )
        return run_worker(self._spec, context, control)

    def _reap(self) -> None:
        for slot in self._slots:
            if not slot.pid:
                continue
            if self._states.all()[slot.index][1] == READY:
                slot.was_ready = True
            pid, status = os.waitpid(slot.pid, os.WNOHANG)
            if pid:
                self._buried(slot, status)

    def _buried(self, slot: _Slot, status: int) -> None:
        pid, slot.pid = slot.pid, 0
        self._states.set(slot.index, "dead", 0)
        if self._stopping_since:
            return
        code = os.waitstatus_to_exitcode(status)
        how = f"exit code {code}" if code >= 0 else f"signal {signal.Signals(-code).name}"
        fields = {"worker": slot.index, "worker_pid": pid}
        if not slot.was_ready and not self._announced:
            log.error("worker %d ended before it was ready (%s)", slot.index, how, extra=fields)
            self._exit_code = code if code > 0 else 1
            self._stop()
            return
        now = time.monotonic()
        slot.crashes = 0 if now - slot.started > _RESTART_FORGET else slot.crashes + 1
        delay = min(_RESTART_CAP, _RESTART_BASE * 2 ** min(slot.crashes, 10)) if slot.crashes else 0
        slot.restart_at = now + delay
        self._restarts.inc()
        log.error("worker %d died (%s), restarting in %.1f s", slot.index, how, delay, extra=fields)

    # -- reload --------------------------------------------------------------------------------

    def _reload(self) -> None:
        # First of all, and in the workers also where the settings are no good: who has rotated the
        # logs sends the same signal.
        logs.reopen()
        if self._read_anew():
            log.info("configuration reloaded")
        self._hand_out()

    def _read_anew(self) -> bool:
        """Whether there are new settings, or the same ones, and they are good."""
        before = self._settings
        try:
            fresh = self._load_settings()
            self._settings, changed = keep_restart_only(before, fresh)
            self._configure_logs(None)
        except ConfigError as error:
            log.error("configuration not reloaded, keeping the last good one: %s", error)  # noqa: TRY400
        except Exception:
            # A reload must never end the service, whatever it stumbles over.
            log.exception("configuration not reloaded, keeping the last good one")
        else:
            if changed:
                log.warning("a reload cannot change %s: restart for that", ", ".join(changed))
            return True
        self._settings = before
        return False

    def _configure_logs(self, worker: int | None) -> None:
        given = self._settings.log
        logs.configure(given.level, given.format, self._spec.name, worker=worker, path=given.path)

    def _hand_out(self) -> None:
        """The settings to every worker."""
        message = msgspec.msgpack.encode(self._settings)
        for slot in self._slots:
            if slot.pid and slot.control is not None:
                try:
                    slot.control.send(message)
                except BlockingIOError:
                    log.warning("worker %d is behind on reloads; this one is skipped", slot.index)
                except OSError as error:
                    log.warning("worker %d cannot be told to reload: %s", slot.index, error)
