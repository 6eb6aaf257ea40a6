"""Child processes that come up together, are watched together and leave nothing behind.

::

    Stack.start(specs) ── spawn each ── poll its readiness ──► running
                              │                                   │
                              └── any exit ──► ChildError ◄───────┘
    Stack.stop() ── newest first: SIGTERM → wait → SIGKILL to the whole process group

Every child leads a process group of its own, so that a terminal's Ctrl-C reaches only us and the
order of stopping is ours; and is told by the kernel (``PR_SET_PDEATHSIG``) when we are killed
outright.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import signal
import subprocess
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from nexus.demo.console import last_words
from nexus.errors import NexusError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence

__all__ = ["Child", "ChildError", "ChildSpec", "NotReady", "Stack"]

#: Seconds between two looks at a child that is not ready yet: below what a person notices.
POLL_SECONDS: Final = 0.1

#: Lines of each child kept for the report of its death, and how many of them are shown.
KEPT_LINES: Final = 200
SHOWN_LINES: Final = 10

#: Bytes of a line without an end that are kept; the rest of it becomes another line.
MAX_LINE: Final = 64 * 1024

#: Reads of 64 KiB in one go: all that a pipe can hold (1 MiB, pipe-max-size), so that the last
#: words of a dead child are complete and a talkative one cannot stop the loop.
_READS_PER_TURN: Final = 16

_PR_SET_PDEATHSIG: Final = 1  # linux/prctl.h

_libc: Final = ctypes.CDLL(None, use_errno=True)


class ChildError(NexusError):
    """A child could not be started, did not become healthy or died."""


class NotReady(Exception):  # noqa: N818  (a state that passes, not a fault)
    """What a readiness check raises as long as the child is not there yet; says why."""


async def _at_once(_child: Child) -> None:
    return


@dataclass(frozen=True, slots=True)
class ChildSpec:
    """How to run one child. ``env`` is added to our own environment.

    ``ready`` returns once the child is healthy and raises :class:`NotReady` until then; it is
    called again and again.
    """

    name: str
    argv: tuple[str, ...]
    env: Mapping[str, str] = field(default_factory=dict)
    ready: Callable[[Child], Awaitable[None]] = _at_once


class Child:
    """One running child; lives on the event loop that is running when it is made."""

    def __init__(self, spec: ChildSpec, on_line: Callable[[str, str], None]) -> None:
        self.name: Final = spec.name
        self.spec: Final = spec
        self.lines: Final[deque[str]] = deque(maxlen=KEPT_LINES)
        #: Set when the process has ended; then :attr:`returncode` is known.
        self.exited: Final = asyncio.Event()
        self._on_line: Final = on_line
        self._loop: Final = asyncio.get_running_loop()
        self._rest = b""
        reader, writer = os.pipe2(os.O_CLOEXEC)
        try:
            self._process: Final = subprocess.Popen(
                spec.argv,
                stdin=subprocess.DEVNULL,
                stdout=writer,
                stderr=writer,
                env={**os.environ, **spec.env},
                process_group=0,
                # Two system calls; takes no lock that another thread might hold at the fork.
                preexec_fn=_tethered_to(os.getpid()),  # noqa: PLW1509
            )
        except BaseException:
            os.close(reader)
            raise
        finally:
            os.close(writer)
        os.set_blocking(reader, False)
        self._output = reader
        self._loop.add_reader(reader, self._read)

    @property
    def pid(self) -> int:
        """Process id, which is also the id of its process group."""
        return self._process.pid

    @property
    def returncode(self) -> int | None:
        """Exit code; ``-N`` after signal N; ``None`` while it runs."""
        return self._process.returncode

    def how_it_ended(self) -> str:
        """``exited with code 2`` or ``was killed by SIGKILL``."""
        code = self.returncode
        if code is not None and code < 0:
            return f"was killed by {signal.Signals(-code).name}"
        return f"exited with code {code}"

    def signal(self, number: int) -> None:
        """Send a signal to the child itself, not to its group."""
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(number)

    def reap(self) -> None:
        """Called after SIGCHLD: notice the end, and end what the child left in its group."""
        if self.exited.is_set() or self._process.poll() is None:
            return
        self.kill_group()
        self._read()
        self._close_output()
        self.exited.set()

    def kill_group(self) -> None:
        """SIGKILL to the child and all that it started."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)

    async def stop(self, seconds: float) -> bool:
        """SIGTERM, and SIGKILL after ``seconds``; false where the latter was needed."""
        if self.exited.is_set():
            return True
        self.signal(signal.SIGTERM)
        try:
            async with asyncio.timeout(seconds):
                await self.exited.wait()
            return True
        except TimeoutError:
            self.kill_group()
            await self.exited.wait()
            return False

    def _read(self) -> None:
        for _ in range(_READS_PER_TURN):
            if self._output < 0:
                return
            try:
                data = os.read(self._output, 65_536)
            except BlockingIOError:
                return
            if not data:
                self._close_output()
                return
            *lines, self._rest = (self._rest + data).split(b"\n")
            for line in lines:
                self._keep(line)
            if len(self._rest) > MAX_LINE:
                self._keep(self._rest)
                self._rest = b""

    def _keep(self, raw: bytes) -> None:
        line = raw.decode("utf-8", "replace").rstrip("\r")
        self.lines.append(line)
        self._on_line(self.name, line)

    def _close_output(self) -> None:
        if self._output < 0:
            return
        self._loop.remove_reader(self._output)
        os.close(self._output)
        self._output = -1
        if self._rest:
            self._keep(self._rest)
            self._rest = b""


class Stack:
    """The children in the order of their start. One per process: it owns SIGCHLD.

    ``on_line(name, line)`` is called for every line that a child writes.
    """

    def __init__(
        self,
        on_line: Callable[[str, str], None],
        *,
        start_seconds: float,
        stop_seconds: float,
    ) -> None:
        self.children: Final[list[Child]] = []
        self._on_line: Final = on_line
        self._start_seconds: Final = start_seconds
        self._stop_seconds: Final = stop_seconds
        self._loop: Final = asyncio.get_running_loop()
        self._loop.add_signal_handler(signal.SIGCHLD, self._reap)

    async def start(self, specs: Sequence[ChildSpec]) -> None:
        """Start ``specs`` at once and wait until all are healthy.

        Raises :class:`ChildError` where one is not, in time, or where any child dies meanwhile.
        """
        started = [self._spawn(spec) for spec in specs]
        await self.guard(self._all_ready(started))

    async def guard(self, work: Awaitable[None]) -> None:
        """Do ``work``; raises :class:`ChildError` as soon as a child dies before it is done."""
        task = asyncio.ensure_future(work)
        watch = asyncio.create_task(self.first_exit())
        try:
            done, _ = await asyncio.wait({task, watch}, return_when=asyncio.FIRST_COMPLETED)
            if watch in done:
                raise death_of(watch.result())
            task.result()
        finally:
            for pending in (task, watch):
                pending.cancel()
            await asyncio.gather(task, watch, return_exceptions=True)

    async def first_exit(self) -> Child:
        """Wait until a child ends, which none should do by itself."""
        waits = {asyncio.create_task(child.exited.wait()): child for child in self.children}
        if not waits:
            return await asyncio.Future()
        try:
            done, _ = await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            return waits[next(iter(done))]
        finally:
            for wait in waits:
                wait.cancel()

    async def stop(self, on_stop: Callable[[Child, bool], None] = lambda _c, _g: None) -> None:
        """End all, newest first. ``on_stop(child, gently)`` is called after each."""
        for child in reversed(self.children):
            gently = await child.stop(self._stop_seconds)
            on_stop(child, gently)
        self.children.clear()
        self._loop.remove_signal_handler(signal.SIGCHLD)

    def kill(self) -> None:
        """End all at once; :meth:`stop` still has to be awaited."""
        for child in self.children:
            child.kill_group()

    def _spawn(self, spec: ChildSpec) -> Child:
        try:
            child = Child(spec, self._on_line)
        except OSError as error:
            reason = error.strerror or str(error)
            raise ChildError(f"{spec.name} cannot be started: {spec.argv[0]}: {reason}") from None
        self.children.append(child)
        return child

    async def _all_ready(self, children: Sequence[Child]) -> None:
        async with asyncio.TaskGroup() as group:
            waits = [group.create_task(self._why_not_ready(child)) for child in children]
        for child, wait in zip(children, waits, strict=True):
            if wait.result():
                raise ChildError(
                    f"{child.name} was not healthy within {self._start_seconds:g} s: "
                    f"{wait.result()}{_last_words(child)}"
                )

    async def _why_not_ready(self, child: Child) -> str:
        """Wait for readiness; the last reason where it does not come in time, else ``""``."""
        reason = "its readiness check did not return"
        try:
            async with asyncio.timeout(self._start_seconds):
                while True:
                    try:
                        await child.spec.ready(child)
                        return ""
                    except NotReady as error:
                        reason = str(error)
                    # A library between us and the loop may have taken the cancellation for a
                    # failure of its own; nobody would cancel a second time.
                    task = asyncio.current_task()
                    if task is not None and task.cancelling():
                        raise asyncio.CancelledError
                    await asyncio.sleep(POLL_SECONDS)
        except TimeoutError:
            return reason

    def _reap(self) -> None:
        for child in self.children:
            child.reap()


def death_of(child: Child) -> ChildError:
    """The error for a child that ended by itself: name, exit code and last lines."""
    return ChildError(f"{child.name} {child.how_it_ended()}{_last_words(child)}")


def _last_words(child: Child) -> str:
    lines = last_words(child.lines, SHOWN_LINES)
    if not lines:
        return "; it wrote nothing"
    return "; its last lines:\n" + "\n".join(f"  {line[:500]}" for line in lines)


def _tethered_to(parent: int) -> Callable[[], None]:
    """Runs in the child before exec: ask for a SIGTERM when the parent dies."""

    def tether() -> None:
        _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
        # The parent may have died before the request was made.
        if os.getppid() != parent:
            os._exit(1)

    return tether
