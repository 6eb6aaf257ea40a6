"""Hours in minutes: mixed load with faults, flat memory, no error that no fault explains.

::

    python -m proofs.soak [--minutes 10] [--kafka HOST:PORT]

Gateway, cacheproxy (two workers each), consumer, two upstreams, Redis and Kafka (the in-memory one
without ``--kafka``) run as a user starts them. Faults of :mod:`proofs.soakrig` happen one after the
other, over and over, with quiet in between. It fails if

* a client met an error that no fault at that moment explains, or any wrong reply at all;
* memory or descriptors of a service grew from the second quarter of the time to the last;
* not every event that the broker took was handled in the end.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, Final

import uvloop

from bench.charts import lines
from proofs.report import Result, save
from proofs.soakload import Tally, http_client, redis_client
from proofs.soakrig import SERVICES, Fault, System, Usage

__all__ = ["Window", "growth", "prove", "unexplained"]

#: Writes go through the proxy, so every read must see at least the session's own.
_POLICY: Final = """\
policies:
  - {match: GET, keys: "soak:*", ttl: 10, near_cache: hot}
"""
_CLIENTS: Final = 16
#: Operations per second of one client, on average.
_RATE: Final = 20.0
_SAMPLE_SECONDS: Final = 2.0
#: Between two faults.
_QUIET_SECONDS: Final = 8.0
#: Growth that counts as flat: allocators keep some slack.
_MEMORY_SLACK: Final = 0.10
_MEMORY_FLOOR_MIB: Final = 6.0
_DESCRIPTOR_SLACK: Final = 8


@dataclass(frozen=True)
class Window:
    """When a fault was."""

    fault: Fault
    began: float
    ended: float

    def explains(self, began: float, ended: float, kind: str) -> bool:
        """Whether an error over this time can be its doing."""
        over = self.ended + self.fault.recovery
        return kind in self.fault.hits and began <= over and ended >= self.began


async def _break(system: System, until: float, quiet: float, windows: list[Window]) -> None:
    """Fault after fault; only such as are over before ``until``."""
    while True:
        for fault in system.faults():
            await asyncio.sleep(quiet)
            if time.monotonic() + fault.seconds + fault.recovery > until:
                return
            began = time.monotonic()
            print(f"fault: {fault.name}", flush=True)
            await fault.begin()
            await asyncio.sleep(fault.seconds)
            await fault.end()
            windows.append(Window(fault, began, time.monotonic()))
            await asyncio.sleep(fault.recovery)


async def _sample(system: System, samples: list[tuple[float, dict[str, Usage]]]) -> None:
    while True:
        samples.append((time.monotonic(), await asyncio.to_thread(system.usage)))
        await asyncio.sleep(_SAMPLE_SECONDS)


def growth(samples: list[tuple[float, dict[str, Usage]]]) -> list[str]:
    """What grew from the second quarter to the last."""
    quarter = len(samples) // 4
    if quarter == 0:
        return ["too few samples to judge growth"]
    problems = []
    for service in SERVICES:
        early = [usage[service] for _, usage in samples[quarter : 2 * quarter]]
        late = [usage[service] for _, usage in samples[-quarter:]]
        before, after = (median(usage.mib for usage in part) for part in (early, late))
        if after > before * (1 + _MEMORY_SLACK) + _MEMORY_FLOOR_MIB:
            problems.append(f"{service}: memory grew from {before:.0f} to {after:.0f} MiB")
        before, after = (median(usage.descriptors for usage in part) for part in (early, late))
        if after > before + _DESCRIPTOR_SLACK:
            problems.append(f"{service}: descriptors grew from {before:.0f} to {after:.0f}")
    return problems


async def _soak(
    system: System, seconds: float, quiet: float, seed: int
) -> tuple[list[str], dict[str, Any]]:
    tally, stop = Tally(), asyncio.Event()
    windows: list[Window] = []
    samples: list[tuple[float, dict[str, Usage]]] = []
    rng = random.Random(seed)
    began = time.monotonic()
    sampler = asyncio.create_task(_sample(system, samples))
    clients = []
    for _ in range(_CLIENTS):
        web, redis = rng.getrandbits(32), rng.getrandbits(32)
        clients += [
            asyncio.create_task(http_client(system.gateway_port, _RATE, web, tally, stop)),
            asyncio.create_task(redis_client(system.proxy_port, _RATE, redis, tally, stop)),
        ]
    breaker = asyncio.create_task(_break(system, began + seconds, quiet, windows))
    done, _ = await asyncio.wait(
        [breaker, *clients], timeout=seconds, return_when=asyncio.FIRST_EXCEPTION
    )
    for task in done:
        task.result()
    breaker.cancel()
    await asyncio.sleep(max(0.0, began + seconds - time.monotonic()))
    stop.set()
    await asyncio.gather(*clients)
    sampler.cancel()
    problems = growth(samples) + unexplained(tally, windows, began)
    events, handled = await _events(system)
    if handled < events:
        problems.append(f"{events} events were acknowledged, {handled} handled")
    for service in SERVICES:
        problems += [f"{service}: {line[:200]}" for line in _tracebacks(system.log(service))]
    numbers: dict[str, Any] = {
        "seconds": round(time.monotonic() - began),
        "operations": dict(tally.operations),
        "errors within faults": len(tally.errors) + tally.uncounted,
        "faults": dict(Counter(window.fault.name for window in windows)),
        "events": events,
        "handled": handled,
        "usage": {
            service: {
                "first_mib": round(samples[0][1][service].mib, 1),
                "last_mib": round(samples[-1][1][service].mib, 1),
                "last_descriptors": samples[-1][1][service].descriptors,
            }
            for service in SERVICES
        },
        "problems": problems,
    }
    numbers["chart"] = {
        service: [(round(at - began), round(u[service].mib, 1)) for at, u in samples]
        for service in SERVICES
    }
    return problems, numbers


def unexplained(tally: Tally, windows: list[Window], began: float) -> list[str]:
    """Errors that no fault explains, alike ones together; wrong replies have no explanation."""
    found: Counter[str] = Counter()
    for start, end, kind, what in tally.errors:
        wrong = "another request" in what or "something else" in what
        if wrong or not any(window.explains(start, end, kind) for window in windows):
            last = [w.fault.name for w in windows if w.began <= end]
            after = f"after {last[-1]}" if last else "before any fault"
            found[f"{kind} at {end - began:.0f} s ({after}): {what}"] += 1
    if tally.uncounted:
        found[f"{tally.uncounted} more errors, not looked at"] += 1
    shown = [f"{line} ×{count}" if count > 1 else line for line, count in found.most_common(20)]  # noqa: RUF001
    if len(found) > len(shown):
        shown.append(f"and {len(found) - len(shown)} other kinds")
    return shown


def _tracebacks(log: str) -> list[str]:
    return [line for line in log.splitlines() if "Traceback" in line][:5]


async def _events(system: System) -> tuple[int, int]:
    """Events acknowledged by the broker, and handled; waits until the consumer is done."""
    deadline = time.monotonic() + 60
    while True:
        events = await system.metric(system.gateway_admin, "nexus_events_sent_total")
        handled = await system.metric(system.consumer_admin, "nexus_consumer_events_total")
        if handled >= events or time.monotonic() > deadline:
            return int(events), int(handled)
        await asyncio.sleep(0.5)


def prove(
    minutes: float,
    seed: int,
    kafka: str = "",
    results: Path | None = None,
    quiet: float = _QUIET_SECONDS,
) -> Result:
    """Run it and judge; ``quiet`` seconds between faults, a chart of the memory to ``results``."""

    async def run(directory: Path) -> tuple[list[str], dict[str, Any]]:
        async with System(directory, kafka=kafka, policy=_POLICY) as system:
            return await _soak(system, minutes * 60, quiet, seed)

    with tempfile.TemporaryDirectory(prefix="nexus-soak-") as name:
        problems, numbers = uvloop.run(run(Path(name)))
    series = numbers.pop("chart")
    if results is not None:
        results.mkdir(parents=True, exist_ok=True)
        lines(results / "soak.svg", "Memory under mixed load with faults", "s", "MiB", series)
    operations = sum(numbers["operations"].values())
    faults = sum(numbers["faults"].values())
    summary = f"{operations} operations, {faults} faults in {numbers['seconds']} s; "
    summary += problems[0] if problems else "memory and descriptors flat, every error explained"
    return Result("soak", not problems and faults > 0, summary, seed, numbers)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--seed", type=int, default=None, help="random and printed by default")
    parser.add_argument("--kafka", default="", help="a broker of one's own, HOST:PORT")
    parser.add_argument("--results", type=Path, help="directory of the record")
    arguments = parser.parse_args()
    seed = arguments.seed if arguments.seed is not None else random.SystemRandom().getrandbits(31)
    result = prove(arguments.minutes, seed, arguments.kafka, arguments.results)
    return save(result, arguments.results)


if __name__ == "__main__":
    sys.exit(main())
