"""The consumer's memory does not depend on how many events it has seen.

::

    python -m proofs.eventsmemory --events 1000000 [--results proofs/results]

A million events lie in the topics, each with an id, an address and an offset of its own: whatever
the consumer kept of each would be seen. Its worker's memory is read twenty times a second; held
against each other are the middles of the fourth and of the last tenth of the way. What is before
that warms up: fetch buffers, queues and the allocator's arenas fill until some 250 000 events are
through, and stand still from there on.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Final

from bench.consumer import measure
from proofs.report import RESULTS, Result, save

__all__ = ["judge", "prove"]

#: Growth from the fourth to the last tenth that is no leak: what an allocator does by itself.
#: Eleven bytes kept of each of a million events would be seen.
MOST_MIB: Final = 6.0


def judge(samples: list[tuple[float, float]], events: int) -> tuple[float, float]:
    """MiB in the fourth and in the last tenth, from (events handled, MiB)."""

    def middle(first: float, last: float) -> float:
        found = [mib for done, mib in samples if first * events <= done <= last * events]
        if not found:  # a fast consumer, few events: the nearest
            found = [min(samples, key=lambda one: abs(one[0] - (first + last) / 2 * events))[1]]
        return round(statistics.median(found), 1)

    return middle(0.3, 0.4), middle(0.9, 1.0)


def prove(events: int, kafka: str, most: float = MOST_MIB) -> Result:
    """Run it and judge; ``most`` MiB may come (few events are through before it is warm)."""
    samples: list[tuple[float, float]] = []
    with tempfile.TemporaryDirectory(prefix="nexus-memory-") as name:
        told = asyncio.run(
            measure(kafka, events, Path(name), lambda done, mib: samples.append((done, mib)))
        )
    early, late = judge(samples, events)
    return Result(
        "events-memory",
        late - early <= most,
        f"{events} events: {early} MiB in the fourth tenth, {late} MiB in the last",
        None,
        {
            "events": events,
            "mib_fourth_tenth": early,
            "mib_last_tenth": late,
            "mib_most": round(max(mib for _, mib in samples), 1),
            "samples": len(samples),
            **told,
        },
    )


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m proofs.eventsmemory", description=__doc__)
    parser.add_argument("--events", type=int, default=1_000_000)
    parser.add_argument("--kafka", default=os.environ.get("NEXUS_TEST_KAFKA", ""))
    parser.add_argument("--results", type=Path, default=RESULTS, metavar="DIRECTORY")
    arguments = parser.parse_args()
    if not arguments.kafka:
        print("proofs.eventsmemory: name a real broker: --kafka host:port", file=sys.stderr)
        return 2
    return save(prove(arguments.events, arguments.kafka), arguments.results)


if __name__ == "__main__":
    sys.exit(main())
