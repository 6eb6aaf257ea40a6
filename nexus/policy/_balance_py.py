# cython: annotation_typing=False
"""Which server takes a request: the algorithms of the gateway.

::

    pick ─► choose by algorithm among the servers that are in rotation (not draining, healthy),
            usable (the caller's predicate: breaker, pool) and not yet tried by this request
         ─► else one that was tried already: a second try there is better than none
         ─► else None: no healthy server exists

========== ======================================================== ==================
algorithm  choice                                                   cost of a pick
========== ======================================================== ==================
round-robin the next in turn                                        O(1); O(n) past the unusable
least-conn fewest active requests, equals in turn                   O(n)
weighted   the next turn of a GCD-reduced sequence (2:1 → a, a, b)  O(1); O(turns) likewise
-smooth    the same shares, interleaved (5:1:1 → a, a, b, a, c, a, a) as weighted
p2c        the less busy of two drawn at random                     O(1); O(n) if both are unusable
========== ======================================================== ==================

A balancer belongs to one worker: turns and active counts are that worker's own. Power of two
choices: Mitzenmacher, *The Power of Two Choices in Randomized Load Balancing*, 2001; it needs no
agreement between workers to avoid herding.

One source, compiled as ``_balance_c``: a pick is part of every request.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Collection, Sequence
from typing import Final

from nexus._speedups.wrr import build_sequence, build_smooth_sequence

__all__ = ["ALGORITHMS", "Balancer", "Server", "make_balancer"]

Usable = Callable[["Server"], bool]

#: The names of the contract, and the interleaved variant.
ALGORITHMS: Final = ("round-robin", "least-conn", "weighted", "weighted-smooth", "p2c")


class Server:
    """One upstream as one worker sees it."""

    __slots__ = (
        "active",
        "breaker",
        "credit",
        "draining",
        "extra",
        "handled",
        "healthy",
        "ramp",
        "series",
        "state",
        "url",
        "weight",
    )

    def __init__(self, url: str, weight: int = 1) -> None:
        self.url = url
        self.weight = weight
        #: Requests under way.
        self.active = 0
        #: Requests ever sent there.
        self.handled = 0
        self.healthy = True
        #: Share of its turns that it takes while it warms up (slow start): 0 < ramp <= 1.
        self.ramp = 1.0
        #: Turns that it has saved up while warming.
        self.credit = 0.0
        #: Removed from the list; gets no new request and leaves when ``active`` is 0.
        self.draining = False
        #: Both belong to the data plane: its :class:`~nexus.policy.breaker.Breaker` and its pool.
        self.breaker: object = None
        self.extra: object = None
        #: Its metrics' handles for what it answered last; the data plane's too.
        self.series: object = None
        #: Its :class:`~nexus.policy.upstreamstate.UpstreamState`; the data plane's.
        self.state: object = None

    def __repr__(self) -> str:
        state = "draining" if self.draining else "healthy" if self.healthy else "unhealthy"
        return f"<Server {self.url} weight={self.weight} active={self.active} {state}>"


class Balancer:
    """One algorithm over one list; made by :func:`make_balancer`."""

    __slots__ = ("_panic", "_servers", "panicking")

    def __init__(self, panic: int) -> None:
        self._panic = panic
        #: Whether too few are healthy to send everything to them.
        self.panicking = False
        self._servers: list[Server] = []

    @property
    def algorithm(self) -> str:
        """Its name in the contract."""
        raise NotImplementedError

    @property
    def servers(self) -> Sequence[Server]:
        """The list that it was given last."""
        return self._servers

    def update(self, servers: Sequence[Server]) -> None:
        """Take this list from now on; known servers keep their place in the turn."""
        self._servers = list(servers)
        self.assess()

    def assess(self) -> None:
        """Look at the health of the list again: below the threshold all are used as if healthy."""
        serving = healthy = 0
        for server in self._servers:
            if not server.draining:
                serving += 1
                healthy += server.healthy
        self.panicking = healthy * 100 < self._panic * serving

    def pick(self, usable: Usable | None = None, exclude: Collection[Server] = ()) -> Server | None:
        """The server for one request, or ``None`` when no server can take it.

        ``usable`` may be asked about servers that are not chosen, so it must change nothing: ask
        :meth:`Breaker.ready <nexus.policy.breaker.Breaker.ready>` there and ``allow`` only for
        the server that is returned. ``exclude`` holds the servers already tried.
        """
        if not self._servers:
            return None
        healthy = not self.panicking
        found = self._choose(usable, exclude, healthy)
        if found is None:
            return self._choose(usable, (), healthy) if exclude else None
        if found.ramp < 1.0:
            return self._warm(found, usable, exclude, healthy)
        return found

    def _warm(
        self, server: Server, usable: Usable | None, exclude: Collection[Server], healthy: bool
    ) -> Server:
        """Slow start: whoever warms up gives most of its turns to another."""
        server.credit += server.ramp
        if server.credit >= 1.0:
            server.credit -= 1.0
            return server
        other = self._choose(usable, [*exclude, server], healthy)
        return server if other is None else other

    def _choose(
        self, usable: Usable | None, exclude: Collection[Server], healthy: bool
    ) -> Server | None:
        raise NotImplementedError


def make_balancer(
    algorithm: str, rng: random.Random | None = None, *, panic_percent: int = 0
) -> Balancer:
    """The balancer called ``algorithm``. Raises ``ValueError`` for a name that is not known.

    ``rng`` is drawn from by p2c. While less than ``panic_percent`` of the servers are healthy, all
    are used as if they were, because spreading over sick servers beats failing everything, or
    burying the few that are left; ``usable`` is obeyed even then, so an open breaker stays open.
    Call :meth:`Balancer.assess` when the health of a server has changed.
    """
    if algorithm == "p2c":
        return _PowerOfTwo(rng or random.Random(), panic_percent)
    try:
        made = {
            "round-robin": _RoundRobin,
            "least-conn": _LeastConnections,
            "weighted": _Weighted,
            "weighted-smooth": _Smooth,
        }[algorithm]
    except KeyError:
        known = ", ".join(ALGORITHMS)
        raise ValueError(f"unknown balancing algorithm {algorithm!r}; known: {known}") from None
    return made(panic_percent)


def _can_take(server: Server, usable: Usable | None, healthy: bool) -> bool:
    if server.draining or (healthy and not server.healthy):
        return False
    return usable is None or usable(server)


class _InTurn(Balancer):
    """Walks a circle of turns."""

    __slots__ = ("_circle", "_next")

    def __init__(self, panic: int) -> None:
        super().__init__(panic)
        self._circle: list[Server] = []
        self._next = 0

    def _choose(
        self, usable: Usable | None, exclude: Collection[Server], healthy: bool
    ) -> Server | None:
        circle = self._circle
        size = len(circle)
        at = self._next
        # A server's verdict cannot change within one pick, and in a weighted circle it has many
        # turns: ask once.
        refused: Server | None = None
        for _ in range(size):
            server = circle[at]
            at += 1
            if at == size:
                at = 0
            if server is refused:
                continue
            if server not in exclude and _can_take(server, usable, healthy):
                self._next = at
                return server
            refused = server
        return None


class _RoundRobin(_InTurn):
    __slots__ = ()

    @property
    def algorithm(self) -> str:
        return "round-robin"

    def update(self, servers: Sequence[Server]) -> None:
        # The turn stays with whoever has it: a list that changes often must not favour its head.
        waiting = self._circle[self._next :] + self._circle[: self._next]
        super().update(servers)
        self._circle = self._servers
        known = {server: i for i, server in enumerate(self._servers)}
        self._next = next((known[server] for server in waiting if server in known), 0)


class _Weighted(_InTurn):
    __slots__ = ("_shape",)

    @property
    def algorithm(self) -> str:
        return "weighted"

    def __init__(self, panic: int) -> None:
        super().__init__(panic)
        self._shape: list[tuple[Server, int]] = []

    def update(self, servers: Sequence[Server]) -> None:
        super().update(servers)
        # Draining servers have no turns left, so their share goes to the others by weight and not
        # to whoever stands behind them.
        live = [server for server in self._servers if not server.draining]
        shape = [(server, server.weight) for server in live]
        if shape == self._shape:
            return
        self._shape = shape
        self._circle = [live[i] for i in self._turns([server.weight for server in live])]
        self._next = 0

    def _turns(self, weights: list[int]) -> list[int]:
        return build_sequence(weights)


class _Smooth(_Weighted):
    __slots__ = ()

    @property
    def algorithm(self) -> str:
        return "weighted-smooth"

    def _turns(self, weights: list[int]) -> list[int]:
        return build_smooth_sequence(weights)


class _LeastConnections(Balancer):
    __slots__ = ("_start",)

    @property
    def algorithm(self) -> str:
        return "least-conn"

    def __init__(self, panic: int) -> None:
        super().__init__(panic)
        self._start = 0

    def _choose(
        self, usable: Usable | None, exclude: Collection[Server], healthy: bool
    ) -> Server | None:
        servers = self._servers
        size = len(servers)
        # Equals in turn: when all are idle the first of the list would otherwise take everything.
        at = self._start % size
        best: Server | None = None
        behind = 0
        for _ in range(size):
            server = servers[at]
            at += 1
            if at == size:
                at = 0
            if (
                (best is None or server.active < best.active)
                and server not in exclude
                and _can_take(server, usable, healthy)
            ):
                best = server
                behind = at
        if best is not None:
            self._start = behind
        return best


class _PowerOfTwo(Balancer):
    __slots__ = ("_random",)

    @property
    def algorithm(self) -> str:
        return "p2c"

    def __init__(self, rng: random.Random, panic: int) -> None:
        super().__init__(panic)
        self._random = rng.random

    def _choose(
        self, usable: Usable | None, exclude: Collection[Server], healthy: bool
    ) -> Server | None:
        best = self._draw(self._servers, usable, exclude, healthy)
        if best is not None or len(self._servers) <= 2:
            return best
        # Two unusable ones were drawn: draw again among those that can take it.
        left = [s for s in self._servers if s not in exclude and _can_take(s, usable, healthy)]
        return self._draw(left, None, (), False) if left else None

    def _draw(
        self,
        servers: list[Server],
        usable: Usable | None,
        exclude: Collection[Server],
        healthy: bool,
    ) -> Server | None:
        size = len(servers)
        at = int(self._random() * size)
        first = second = servers[at]
        if size > 1:
            # One of the other n - 1 places: distinct, and uniform.
            other = int(self._random() * (size - 1))
            second = servers[other + (other >= at)]
        best: Server | None = None
        for server in (first, second):
            if (
                (best is None or server.active < best.active)
                and server not in exclude
                and _can_take(server, usable, healthy)
            ):
                best = server
        return best
