"""Several services under load in turns of a tenth of a second, so that all meet the same machine.

A virtual machine's speed may double from one second to the next, and what one run of a load
generator finds depends on which processes happen to share a processor in it. So every service has a
client of its own that lives through all turns and works only in its own, stopped in between
(SIGSTOP for load generators that are processes). What counts is all CPU time of a service over all
operations of its client. Ten seconds of turns over five services give ratios with a standard error
of 3 %; forty seconds of runs one after the other gave 4 %.

Latencies cannot come from turns: a stopped client counts the pause as waiting.
"""

from __future__ import annotations

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

__all__ = ["TURN", "Client", "Contender", "CrowdClient", "Share", "StoppedClient", "in_turns"]

_Name = TypeVar("_Name", bound=Hashable)

#: Seconds of one turn. With a fifth of it caches are cold for a good part, and all costs rise.
TURN: Final = 0.1
#: Seconds in which a service answers what a client had sent before it was stopped.
_SETTLE: Final = 0.002
#: Turns after which something must be wrong.
_ENDLESS: Final = 3000


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
            self._process.communicate()
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
        try:
            self._process.wait(TURN)
        except subprocess.TimeoutExpired:
            pass
        else:
            return False
        if self._left is not None:
            self._left -= TURN
            if self._left <= TURN / 2:
                # To one that runs: of a stopped process any thread may take it, not only the one
                # that sleeps for it.
                self._process.send_signal(SIGINT)
                return False
        self._process.send_signal(SIGSTOP)
        return True

    def result(self) -> tuple[int, int]:
        """See :class:`Client`. What is wrong with the output, the reader says."""
        assert self._process is not None, "it had no turn"
        output, _ = self._process.communicate(timeout=30)
        return self._read(output)


class CrowdClient:
    """A crowd of this process: ``operations`` in all, ``each`` in a turn."""

    def __init__(self, crowd: Crowd, operations: int, each: int, rate: float | None) -> None:
        self._crowd = crowd
        self._left = operations
        self._each = each
        self._rate = rate
        self._done = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._crowd.close()

    def turn(self) -> bool:
        """See :class:`Client`."""
        count = min(self._each, self._left)
        self._crowd.run(count, self._rate)
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

    A proxy's cost is all CPU time from the first turn to the last: what it does after its turns
    belongs to them as well. The backend's is that of the client's own turns.
    """
    names = list(contenders)
    pids = {name: c.proxy.pids() for name, c in contenders.items() if c.proxy}
    behind = {name: c.backend.pids() for name, c in contenders.items()}
    seconds = dict.fromkeys(names, 0.0)
    backend = dict.fromkeys(names, 0.0)
    with ExitStack() as stack:
        for contender in contenders.values():
            stack.enter_context(contender.client)
        before = {name: _cpu(contenders[name].proxy, pids[name]) for name in pids}
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
                time.sleep(_SETTLE)
                backend[name] += contender.backend.cpu_seconds(behind[name]) - used
            if not (working := still[::-1]):
                break
        else:
            raise RuntimeError(f"not done after {_ENDLESS} turns: {', '.join(map(str, working))}")
        results = {name: contenders[name].client.result() for name in names}
        used_by = {name: _cpu(contenders[name].proxy, pids[name]) - before[name] for name in pids}
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


def _cpu(process: Process | None, pids: Sequence[int]) -> float:
    return process.cpu_seconds(pids) if process else 0.0
