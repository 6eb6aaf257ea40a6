"""Latency spikes: a request against the mean of the last ones of its route."""

from __future__ import annotations

from array import array
from typing import Final, NamedTuple

__all__ = ["LatencySpikes", "Spike"]


class Spike(NamedTuple):
    """A request that took more than ``factor`` times the mean of ``samples`` before it, ms."""

    route: str
    latency_ms: float
    mean_ms: float
    samples: int


class _Window:
    """A ring of the last latencies of one route and their sum."""

    __slots__ = ("at", "full", "sum", "values")

    def __init__(self, size: int) -> None:
        self.values = array("d", bytes(8 * size))
        self.at = 0
        self.full = False
        self.sum = 0.0

    @property
    def count(self) -> int:
        return len(self.values) if self.full else self.at

    def push(self, value: float) -> None:
        self.sum += value - self.values[self.at]
        self.values[self.at] = value
        self.at += 1
        if self.at == len(self.values):
            self.at = 0
            self.full = True
            # Once a turn: rounding errors of the running sum never outlive one window.
            self.sum = sum(self.values)


class LatencySpikes:
    """One window for each route; the routes least recently seen are forgotten first.

    A request is compared before it is inserted, so that a spike does not raise the mean that it is
    measured against. Routes are templates, so there are few; the bound is against a gateway that
    misbehaves.
    """

    MAX_ROUTES: Final = 1024

    def __init__(self, factor: float, window: int, min_samples: int) -> None:
        self._factor: Final = factor
        self._window: Final = window
        self._min_samples: Final = min(min_samples, window)
        self._routes: dict[str, _Window] = {}

    def observe(self, route: str, latency_ms: float) -> Spike | None:
        """Compare, then insert. O(1)."""
        window = self._routes.pop(route, None)
        if window is None:
            window = _Window(self._window)
            if len(self._routes) >= self.MAX_ROUTES:
                del self._routes[next(iter(self._routes))]
        self._routes[route] = window
        count = window.count
        spike = None
        if count >= self._min_samples:
            mean = window.sum / count
            if latency_ms > self._factor * mean:
                spike = Spike(route, latency_ms, mean, count)
        window.push(latency_ms)
        return spike
