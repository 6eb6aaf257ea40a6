"""Several services under load in turns of 50 ms, so that all meet the same machine.

A virtual machine's speed may double from one second to the next, and what one run of a load
generator finds depends on which processes happen to share a processor in it. So every service has a
client of its own that lives through all turns and works only in its own, stopped in between
(SIGSTOP for load generators that are processes). What counts is all CPU time of a service over all
operations of its client.

A service that is not in turn is not asked, but it may be busy all the same: what it does then for
its requests (exports of spans) belongs to it, what it does for nobody (timers) would count several
times over. So that is measured before the first turn, and taken off for the time between turns.

Latencies cannot come from turns: a stopped client counts the pause as waiting.
"""

from __future__ import annotations

import os
import select
import subprocess
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from signal import SIGCONT, SIGINT, SIGSTOP
from types import TracebackType
from typing import IO, Final, Protocol, Self, TypeVar

from bench.engine import Crowd
from bench.processes import Process

__all__ = [
    "TURN",
    "Client",
    "Contender",
    "CrowdClient",
    "Share",
    "StoppedClient",
    "TurnsError",
    "at_rest",
    "in_turns",
]

_Name = TypeVar("_Name", bound=Hashable)

#: Seconds of one turn. In longer ones the machine has changed before all had theirs; in those of a
#: fiftieth caches are cold for a good part, and all costs rise.
TURN: Final = 0.05
#: Looks of a millisecond at a backend until it rests: it goes on for what a client had asked.
_SETTLE: Final = 30
#: CPU seconds in such a look that count as rest.
_REST: Final = 1e-4
#: Seconds in which it is measured what services do when nobody asks.
_IDLE: Final = 0.4
#: Seconds that a load generator gets to end.
_PATIENCE: Final = 30.0
#: Turns after which something must be wrong.
_ENDLESS: Final = 6000


class TurnsError(Exception):
    """A client did nothing, or did not end."""


class Client(Protocol):
    """A client of one service. As a context manager it ends whatever it started."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...

    def turn(self) -> bool:
        """Work for :data:`TURN` seconds; whether there is more to do."""

    def result(self) -> tuple[int, int]:
        """Operations of all turns, and how many of them were refused; after the last turn."""


class StoppedClient:
    """A load generator in a process of its own, which runs only in its turns.

    It ends by itself, or is interrupted (SIGINT) after ``seconds`` of turns. ``read`` makes
    operations and refusals of what it printed; it may raise. ``holds`` is closed afterwards.
    """

    def __init__(
        self,
        command: Sequence[str],
        read: Callable[[str], tuple[int, int]],
        seconds: float | None = None,
        holds: IO[str] | None = None,
    ) -> None:
        self._holds = holds
        self._command = command
        self._read = read
        self._left = seconds
        self._process: subprocess.Popen[str] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            if self._process.stdout is not None:
                self._process.stdout.close()
        if self._holds is not None:
            self._holds.close()

    def turn(self) -> bool:
        """See :class:`Client`."""
        if self._process is None:
            self._process = subprocess.Popen(
                self._command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
            )
        else:
            self._process.send_signal(SIGCONT)
        if _ended(self._process, TURN):
            return False
        if self._left is not None:
            self._left -= TURN
            if self._left <= TURN / 2:
                # To one that runs: of a stopped process any thread may take it, not only the one
                # that sleeps for it. What it does until it ends is of this turn, too.
                self._process.send_signal(SIGINT)
                if not _ended(self._process, _PATIENCE):
                    raise TurnsError(f"{self._command[0]} did not end")
                return False
        self._process.send_signal(SIGSTOP)
        return True

    def result(self) -> tuple[int, int]:
        """See :class:`Client`. What is wrong with the output, the reader says."""
        assert self._process is not None, "it had no turn"
        output, _ = self._process.communicate()
        if self._process.returncode:
            raise TurnsError(f"{self._command[0]} failed: {output.strip()[-300:]}")
        return self._read(output)


def _ended(process: subprocess.Popen[str], seconds: float) -> bool:
    """Whether it ends within that time; at once, where ``Popen.wait`` looks every 50 ms."""
    if process.poll() is not None:
        return True  # between two turns, before it was stopped
    descriptor = os.pidfd_open(process.pid)
    try:
        return bool(select.select([descriptor], [], [], seconds)[0])
    finally:
        os.close(descriptor)


class CrowdClient:
    """A crowd of this process: ``operations`` in all, ``each`` in a turn."""

    def __init__(self, gather: Callable[[], Crowd], operations: int, each: int) -> None:
        self._gather = gather
        self._left = operations
        self._each = each
        self._done = 0

    def __enter__(self) -> Self:
        self._crowd = self._gather()
        return self

    def __exit__(self, *_: object) -> None:
        self._crowd.close()

    def turn(self) -> bool:
        """See :class:`Client`."""
        count = min(self._each, self._left)
        self._crowd.run(count, None)
        self._left -= count
        self._done += count
        return self._left > 0

    def result(self) -> tuple[int, int]:
        """See :class:`Client`. A refusal would have been an error."""
        return self._done, 0


@dataclass(frozen=True)
class Contender:
    """A service, what is behind it, and its client. No ``proxy``: the backend loaded directly."""

    client: Client
    proxy: Process | None
    backend: Process


@dataclass(frozen=True)
class Share:
    """What one contender did: CPU in µs per operation, operations per second of its turns."""

    operations: int
    refused: int
    proxy_us: float | None
    backend_us: float
    per_second: float


def in_turns(contenders: Mapping[_Name, Contender]) -> dict[_Name, Share]:
    """Let all have turns until the last is done, there and back.

    A proxy's cost is all CPU time from the first turn to the last but what it takes unasked; the
    backend's is that of the client's own turns, until it rests. Raises :class:`TurnsError`.
    """
    names = list(contenders)
    proxies = {name: (c.proxy, c.proxy.pids()) for name, c in contenders.items() if c.proxy}
    behind = {name: c.backend.pids() for name, c in contenders.items()}
    seconds = dict.fromkeys(names, 0.0)
    backend = dict.fromkeys(names, 0.0)

    def proxy_cpu() -> dict[_Name, float]:
        return {name: proxy.cpu_seconds(pids) for name, (proxy, pids) in proxies.items()}

    with ExitStack() as stack:
        for contender in contenders.values():
            stack.enter_context(contender.client)
        before = proxy_cpu()
        time.sleep(_IDLE)
        started = time.perf_counter()
        start = proxy_cpu()
        working = names
        for _ in range(_ENDLESS):
            still = []
            for name in working:
                contender = contenders[name]
                used = contender.backend.cpu_seconds(behind[name])
                begun = time.perf_counter()
                if contender.client.turn():
                    still.append(name)
                seconds[name] += time.perf_counter() - begun
                backend[name] += at_rest(contender.backend, behind[name]) - used
            if not (working := still[::-1]):
                break
        else:
            raise TurnsError(f"not done after {_ENDLESS} turns: {', '.join(map(str, working))}")
        elapsed = time.perf_counter() - started
        end = proxy_cpu()
        results = {name: contenders[name].client.result() for name in names}
    used_by = {
        name: end[name]
        - start[name]
        - (start[name] - before[name]) / _IDLE * max(0.0, elapsed - seconds[name])
        for name in proxies
    }
    for name, (operations, _) in results.items():
        if not operations:
            raise TurnsError(f"{name}: no reply in all its turns; make them longer: --seconds")
    return {
        name: Share(
            operations,
            refused,
            used_by[name] * 1e6 / operations if name in used_by else None,
            backend[name] * 1e6 / operations,
            operations / seconds[name],
        )
        for name, (operations, refused) in results.items()
    }


def at_rest(process: Process, pids: Sequence[int]) -> float:
    """CPU seconds of a backend that has done what it was asked for."""
    used = process.cpu_seconds(pids)
    for _ in range(_SETTLE):
        time.sleep(0.001)
        now = process.cpu_seconds(pids)
        if now - used < _REST:
            return now
        used = now
    return used
