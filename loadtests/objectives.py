"""What a load test must reach, and the check of it at the end of a run.

Without locust in it, so that the check itself is tested with the rest of the suite.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol

__all__ = ["Measured", "Objective", "misses", "report"]


class Measured(Protocol):
    """What locust keeps for each request name."""

    num_requests: int
    num_failures: int

    def get_response_time_percentile(self, percent: float) -> float:
        """Milliseconds; ``percent`` from 0 to 1."""


@dataclass(frozen=True, slots=True)
class Objective:
    """Bounds for all requests of one name.

    ``p99_ms`` is seen by the client, so it contains what the load generator itself waits for a
    core; ``error_ratio`` is the share of answers that the scenario did not expect;
    ``min_requests`` keeps a run that measured nothing from passing.
    """

    name: str
    p99_ms: float
    error_ratio: float = 0.0
    min_requests: int = 10


def misses(
    objectives: Iterable[Objective], measured: Mapping[str, Measured], *, slack: float = 1.0
) -> list[str]:
    """One sentence for each bound that was missed; latency bounds are multiplied by ``slack``."""
    found: list[str] = []
    for objective in objectives:
        entry = measured.get(objective.name)
        count = entry.num_requests if entry else 0
        if entry is None or count < objective.min_requests:
            found.append(
                f"{objective.name}: {count} requests, at least {objective.min_requests} expected"
            )
            continue
        ratio = entry.num_failures / count
        if ratio > objective.error_ratio:
            found.append(
                f"{objective.name}: {ratio:.2%} errors ({entry.num_failures} of {count}), "
                f"at most {objective.error_ratio:.2%} allowed"
            )
        p99, bound = entry.get_response_time_percentile(0.99), objective.p99_ms * slack
        if p99 > bound:
            found.append(f"{objective.name}: p99 {p99:.0f} ms, at most {bound:.0f} ms allowed")
    return found


def report(
    objectives: Iterable[Objective], measured: Mapping[str, Measured], *, slack: float = 1.0
) -> str:
    """A line for each objective: what was measured, and its bounds."""
    lines = [f"{'objective':<34} {'requests':>8} {'errors':>16} {'p99 ms':>16}"]
    for objective in objectives:
        entry = measured.get(objective.name)
        if entry is None or not entry.num_requests:
            lines.append(f"{objective.name:<34} {0:>8}")
            continue
        ratio = entry.num_failures / entry.num_requests
        errors = f"{ratio:.2%} ≤ {objective.error_ratio:.2%}"
        p99 = entry.get_response_time_percentile(0.99)
        latency = f"{p99:.0f} ≤ {objective.p99_ms * slack:.0f}"
        lines.append(f"{objective.name:<34} {entry.num_requests:>8} {errors:>16} {latency:>16}")
    return "\n".join(lines)
