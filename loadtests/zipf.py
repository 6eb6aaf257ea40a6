"""Keys drawn as caches see them: few very often, most hardly ever."""

from __future__ import annotations

import bisect
import itertools
import random

__all__ = ["Zipf"]


class Zipf:
    """Ranks 0 … n-1 with probability proportional to 1 / (rank + 1) ** exponent.

    The shape of requests to web caches: Breslau et al., "Web Caching and Zipf-like Distributions:
    Evidence and Implications", INFOCOM 1999.
    """

    def __init__(self, n: int, exponent: float, rng: random.Random) -> None:
        if n < 1:
            raise ValueError(f"expected at least one rank, got {n}")
        weights = (1 / rank**exponent for rank in range(1, n + 1))
        self._cumulative = list(itertools.accumulate(weights))
        self._rng = rng

    def draw(self) -> int:
        """One rank; O(log n)."""
        return bisect.bisect_left(self._cumulative, self._rng.random() * self._cumulative[-1])
