"""Throughput of one consumer worker, effects included, on a real broker and a real Redis.

::

    python -m bench.consumer [--events N] [--rounds N] [--record] [--kafka HOST:PORT]

The events lie in the topics before the consumer starts: 19 of 20 are requests (judged against the
window of their route), one in 20 a rate-limit hit. Counted is from the first handled event to the
last, as the consumer's own metrics tell. The broker and Redis share the machine.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Final

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer

from bench.processes import free_ports
from bench.record import RESULTS, about, dumped
from nexus.clock import iso_utc, wall_ms
from nexus.net.kafka import ensure_topics
from nexus.net.settings import KafkaSettings
from nexus.wire.events import RATE_LIMIT_HIT, REQUEST_COMPLETED, TOPICS
from proofs.rig import Redis, memory_kib

__all__ = ["measure"]

#: Routes of a gateway of middling size.
_ROUTES: Final = 20


def _records(count: int, marker: str) -> list[tuple[str, bytes | None, bytes]]:
    records: list[tuple[str, bytes | None, bytes]] = []
    stamp = iso_utc(wall_ms())
    for number in range(count):
        body = {
            "id": f"{marker}-{number:x}",
            "emittedAt": stamp,
            "method": "GET",
            "url": f"/api/products/{number}",
            "ip": f"10.{number >> 16 & 255}.{number >> 8 & 255}.{number & 255}",
        }
        if number % 20 == 0:
            records.append((RATE_LIMIT_HIT, str(body["ip"]).encode(), json.dumps(body).encode()))
            continue
        body["route"] = f"/{marker}/{number % _ROUTES}"
        more = {"statusCode": 200, "latencyMs": 12.5, "clientId": "c", "workerId": 0}
        records.append((REQUEST_COMPLETED, None, json.dumps(body | more).encode()))
    return records


async def _fill(kafka: str, count: int, group: str) -> None:
    """Put the events into the topics, and the group where they begin."""
    await ensure_topics(KafkaSettings(bootstrap_servers=kafka), TOPICS, "bench")
    standing = AIOKafkaConsumer(*TOPICS, bootstrap_servers=kafka, group_id=None)
    await standing.start()
    ends = await standing.end_offsets(standing.assignment())
    await standing.stop()
    placing = AIOKafkaConsumer(bootstrap_servers=kafka, group_id=group, enable_auto_commit=False)
    await placing.start()
    placing.assign(list(ends))
    await placing.commit(ends)
    await placing.stop()
    async with AIOKafkaProducer(
        bootstrap_servers=kafka, linger_ms=10, max_batch_size=65_536, compression_type="zstd"
    ) as producer:
        for topic, key, value in _records(count, group):
            last = await producer.send(topic, value, key=key)
        await producer.flush()
        await last


def _handled(port: int) -> float:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as reply:
            text = reply.read().decode()
    except OSError:
        return 0.0
    return sum(map(float, re.findall(r"nexus_consumer_events_total\{[^}]*\} (\S+)", text)))


def _cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def measure(
    kafka: str,
    count: int,
    directory: Path,
    seen: Callable[[float, float], None] = lambda _handled, _mib: None,
) -> dict[str, float]:
    """One worker over ``count`` events. ``seen(events handled, MiB in RAM)`` is told on the way."""
    redis = Redis(directory)
    await redis.start()
    group = f"bench-{wall_ms():x}"
    await _fill(kafka, count, group)
    port = free_ports(1)[0]
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "nexus.consumer", "--kafka", kafka),
            *("--redis", f"redis://127.0.0.1:{redis.port}", "--admin-port", str(port)),
        ],
        env={
            **os.environ,
            "NEXUS_CONSUMER_GROUP": group,
            "NEXUS_CONSUMER_LOG_EVENTS": "false",
        },
    )
    try:
        limit = time.monotonic() + 60 + count / 2000
        while not (begun := _handled(port)):
            await asyncio.sleep(0.02)
            if time.monotonic() > limit or process.poll() is not None:
                raise SystemExit("the consumer handles nothing")
        started = time.perf_counter()
        worker = int(
            Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()[0]
        )
        cpu, memory = _cpu_seconds(worker), memory_kib(worker)
        while (done := _handled(port)) < count:
            seen(done, memory_kib(worker) / 1024)
            await asyncio.sleep(0.05)
            if time.monotonic() > limit:
                raise SystemExit(f"only {done:.0f} of {count} events were handled")
        seconds = time.perf_counter() - started
        handled = count - begun
        return {
            "events": count,
            "events_per_second": round(handled / seconds),
            "cpu_us_per_event": round((_cpu_seconds(worker) - cpu) / handled * 1e6, 1),
            "rss_mib_at_start": round(memory / 1024, 1),
            "rss_mib_at_end": round(memory_kib(worker) / 1024, 1),
        }
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(20)
        redis.kill()


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.consumer", description=__doc__)
    parser.add_argument("--events", type=int, default=200_000)
    parser.add_argument("--rounds", type=int, default=3, help="the median is told")
    parser.add_argument("--kafka", default=os.environ.get("NEXUS_TEST_KAFKA", "127.0.0.1:9092"))
    parser.add_argument("--record", action="store_true", help="write bench/results/consumer.json")
    arguments = parser.parse_args()
    rounds = []
    for number in range(arguments.rounds):
        with tempfile.TemporaryDirectory(prefix="nexus-bench-") as name:
            one = asyncio.run(measure(arguments.kafka, arguments.events, Path(name)))
        rounds.append(one)
        print(f"{number + 1}/{arguments.rounds} {json.dumps(one)}", file=sys.stderr)
    middle = sorted(rounds, key=lambda one: one["events_per_second"])[len(rounds) // 2]
    print(json.dumps(middle))
    if arguments.record:
        path = RESULTS / "consumer.json"
        path.write_text(dumped({**about(), "median": middle, "rounds": rounds}))
        print(path, file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
