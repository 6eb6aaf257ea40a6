"""Passive ejection: who fails several times in a row, or far more than the others, is left out.

Precedent: Envoy's outlier detection. A breaker stops *all* traffic to an upstream and tries it with
one request; an ejection moves the traffic to the others for a while, and only as long as enough of
them are left.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import sqrt

from nexus.policy.upstreamstate import UpstreamState

__all__ = ["OutlierPolicy", "may_eject", "outliers"]


@dataclass(frozen=True, slots=True)
class OutlierPolicy:
    """When an upstream is ejected, and for how long; a count of 0 switches its rule off."""

    consecutive_5xx: int = 5
    consecutive_gateway: int = 5
    base_ns: int = 30_000_000_000
    longest_ns: int = 300_000_000_000
    max_percent: int = 50
    #: Standard deviations below the mean success rate; 0: off.
    deviations: float = 0.0
    #: Requests in the window, and upstreams with that many, for a comparison to mean anything.
    least_requests: int = 100
    least_upstreams: int = 5

    def reached(self, in_a_row: int, gateway_in_a_row: int) -> str:
        """Why these failures in a row eject; empty: they do not."""
        if self.consecutive_gateway and gateway_in_a_row >= self.consecutive_gateway:
            return "consecutive_gateway"
        if self.consecutive_5xx and in_a_row >= self.consecutive_5xx:
            return "consecutive_5xx"
        return ""


def may_eject(group: Sequence[UpstreamState], now_ns: int, max_percent: int) -> bool:
    """Whether one more of the group may be out: at most ``max_percent`` of them, but one in any
    case, and never the last one.
    """
    out = sum(state.ejected(now_ns) or state.drained for state in group)
    if out + 1 >= len(group):
        return False
    return out == 0 or (out + 1) * 100 <= max_percent * len(group)


def outliers(counts: Mapping[str, tuple[int, int]], policy: OutlierPolicy) -> list[str]:
    """Upstreams whose success rate lies too far below the mean of their group, worst first.

    ``counts``: upstream → (successes, failures) within the window.
    """
    if not policy.deviations:
        return []
    rates = {
        name: good / (good + bad)
        for name, (good, bad) in counts.items()
        if good + bad >= policy.least_requests
    }
    if len(rates) < policy.least_upstreams:
        return []
    mean = sum(rates.values()) / len(rates)
    deviation = sqrt(sum((rate - mean) ** 2 for rate in rates.values()) / len(rates))
    limit = mean - policy.deviations * deviation
    # Equal rates differ by rounding, which is no reason to eject anybody.
    found = [name for name, rate in rates.items() if rate < limit - 1e-9]
    return sorted(found, key=lambda name: rates[name])
