"""A load generator of our own, for what redis-benchmark and wrk cannot do.

* **Open loop**: requests are due at Poisson times whatever the replies do, and a latency counts
  from the moment a request was *due*, waiting for a free connection included. A generator that
  waits for each reply before it sends the next one stops asking exactly while the system is slow,
  and so leaves the slow moments out ("coordinated omission", G. Tene, "How NOT to Measure
  Latency", 2013).
* **Closed loop** over prepared requests: Zipf keys, transactions.

One thread over ``select``, whose timeout has microseconds where epoll's has milliseconds. It costs
about 20 µs per operation, so it loads a proxy lightly; rates of the record come from
redis-benchmark and wrk.
"""

from __future__ import annotations

import random
import re
import select
import socket
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Final, Protocol

import hiredis

__all__ = [
    "Crowd",
    "EngineError",
    "Outcome",
    "Replies",
    "drive",
    "http_replies",
    "resp_replies",
]

_READ: Final = 1 << 18
#: A reply that takes longer than this is a failure of the run.
_PATIENCE: Final = 30.0
_LENGTH: Final = re.compile(rb"\r\ncontent-length: *(\d+)\r\n", re.IGNORECASE)


class EngineError(Exception):
    """A connection broke, or a reply was an error."""


class Replies(Protocol):
    """Counts complete replies on one connection; raises :class:`EngineError` for a bad one."""

    def feed(self, data: bytes) -> int:
        """Take what came; how many replies it completed."""


@dataclass(frozen=True)
class Outcome:
    """Seconds that the run took, and each operation's latency in seconds, sorted."""

    seconds: float
    latencies: Sequence[float]

    def percentile(self, percent: float) -> float:
        """Seconds; nearest rank."""
        rank = min(len(self.latencies) - 1, int(len(self.latencies) * percent / 100))
        return self.latencies[rank]


class _Resp:
    def __init__(self) -> None:
        self._reader = hiredis.Reader()

    def feed(self, data: bytes) -> int:
        self._reader.feed(data)
        count = 0
        while (reply := self._reader.gets()) is not False:
            if isinstance(reply, hiredis.ReplyError):
                raise EngineError(f"an error reply: {reply}")
            count += 1
        return count


class _Http:
    """Replies with a Content-Length, as the upstreams of the comparison send them."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> int:
        rest = self._rest + data
        count = 0
        while (end := rest.find(b"\r\n\r\n")) >= 0:
            if not rest.startswith(b"HTTP/1.1 200"):
                raise EngineError(f"not a 200: {rest[:80]!r}")
            length = _LENGTH.search(rest, 0, end + 2)
            if length is None:
                raise EngineError("a reply without Content-Length")
            stop = end + 4 + int(length.group(1))
            if len(rest) < stop:
                break
            rest = rest[stop:]
            count += 1
        self._rest = rest
        return count


def resp_replies() -> Replies:
    """For connections that speak RESP."""
    return _Resp()


def http_replies() -> Replies:
    """For connections that speak HTTP/1.1."""
    return _Http()


class _Connection:
    __slots__ = ("due", "missing", "replies", "socket")

    def __init__(self, port: int, replies: Replies) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=_PATIENCE)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.replies = replies
        #: Replies that the operation in flight still waits for, and when it was due.
        self.missing = 0
        self.due = 0.0

    def fileno(self) -> int:
        return self.socket.fileno()

    def begin(self, request: bytes, replies: int, due: float) -> None:
        self.missing = replies
        self.due = due
        self.socket.sendall(request)

    def take(self) -> bool:
        """Whether the operation in flight is answered."""
        data = self.socket.recv(_READ)
        if not data:
            raise EngineError("a connection was closed")
        self.missing -= self.replies.feed(data)
        if self.missing < 0:
            raise EngineError("more replies than requests")
        return self.missing == 0


def drive(
    port: int,
    requests: Sequence[tuple[bytes, int]],
    replies: Callable[[], Replies],
    *,
    connections: int,
    operations: int,
    rate: float | None = None,
    seed: int = 1,
) -> Outcome:
    """Do ``operations``: each is one of ``requests`` in turn, (bytes, replies to them).

    ``rate`` is the open loop's operations per second; ``None`` keeps every connection busy.
    Raises :class:`EngineError`, ``OSError``.
    """
    with closing(Crowd(port, requests, replies, connections=connections, seed=seed)) as crowd:
        return crowd.run(operations, rate)


class Crowd:
    """Connections to one service, for as many runs as are wanted; see :func:`drive`."""

    def __init__(
        self,
        port: int,
        requests: Sequence[tuple[bytes, int]],
        replies: Callable[[], Replies],
        *,
        connections: int,
        seed: int = 1,
    ) -> None:
        self._requests = requests
        self._random = random.Random(seed)
        self._sent = 0
        self._pool: list[_Connection] = []
        try:
            for _ in range(connections):
                self._pool.append(_Connection(port, replies()))  # closed also if one fails
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Close the connections."""
        for connection in self._pool:
            connection.socket.close()

    def run(self, operations: int, rate: float | None) -> Outcome:
        """That many more operations; no reply is missing at the end."""
        clock = time.perf_counter
        requests, draw = self._requests, self._random.expovariate
        idle = deque(self._pool)
        busy: dict[int, _Connection] = {}
        waiting: deque[float] = deque()
        latencies: list[float] = []
        begun = due = clock()
        drawn = 0
        while len(latencies) < operations:
            now = clock()
            if rate is None:
                ready = min(len(idle), operations - drawn)
                waiting.extend([now] * ready)
                drawn += ready
            else:
                while drawn < operations and due <= now:
                    waiting.append(due)
                    due += draw(rate)
                    drawn += 1
            while waiting and idle:
                connection = idle.popleft()
                request, count = requests[self._sent % len(requests)]
                self._sent += 1
                connection.begin(request, count, waiting.popleft())
                busy[connection.fileno()] = connection
            patience = _PATIENCE
            if rate is not None and drawn < operations:
                patience = max(0.0, due - clock())
            readable, _, _ = select.select(list(busy), [], [], patience)
            if not readable and patience == _PATIENCE:
                raise EngineError(f"no reply for {_PATIENCE:g} s")
            for descriptor in readable:
                connection = busy[descriptor]
                if connection.take():
                    latencies.append(clock() - connection.due)
                    del busy[descriptor]
                    idle.append(connection)
        took = clock() - begun
        latencies.sort()
        return Outcome(took, latencies)
