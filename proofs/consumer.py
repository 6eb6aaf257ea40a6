"""The consumer is killed again and again, and nothing is lost or done twice.

::

    python -m proofs.consumer --events 100000 --kills 30 --seed 1 [--results proofs/results]

Needs a real broker (``--kafka``, else ``NEXUS_TEST_KAFKA``) and starts a Redis of its own. Events
go out in as many parts as there are kills; after each part a random worker of the group gets
SIGKILL, at a random moment. In the middle a second service joins, and leaves before the end.

What must hold in the end, each from where it can be seen:

* the log has a line of every event: none was lost, and the lines of a key began in its order;
* Redis has counted every hit and every latency exactly once, and announced every block once;
* ``nexus.actions``, read committed, has every action exactly once;
* every poison message is in the dead letters.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import msgspec
import redis.asyncio as redis_asyncio
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer

from nexus.clock import iso_utc, wall_ms
from nexus.net.kafka import ensure_topics
from nexus.net.settings import KafkaSettings
from nexus.wire.actions import ACTIONS
from nexus.wire.events import (
    CIRCUIT_OPENED,
    RATE_LIMIT_HIT,
    REQUEST_COMPLETED,
    TOPICS,
    dead_letter_topic,
)
from proofs.report import Result, save
from proofs.rig import Redis, RigError

__all__ = ["prove"]

#: Rate-limit hits of one address, in turn: below, at and above the number that blocks (5).
_HITS: Final = (4, 5, 8)
#: Every so many events of the spiky route one takes a hundred times as long.
_SPIKE_EVERY: Final = 40
#: Requests of one counted route: all of them stay in its window, so that they can be counted.
_ROUTE_EVENTS: Final = 2000
_WORKERS: Final = 2

_JOINED: Final = re.compile(r'"message":"joined the group.*?"worker":(\d+)')
_READY: Final = re.compile(r'"message":"[^"]* ready[^"]*, admin on ')


@dataclass
class Plan:
    """What is sent, and what must come of it."""

    records: list[tuple[str, bytes | None, bytes]] = field(default_factory=list)
    ids: set[str] = field(default_factory=set)
    keyed: dict[str, list[str]] = field(default_factory=dict)
    actions: set[str] = field(default_factory=set)
    hits: dict[str, int] = field(default_factory=dict)
    routes: dict[str, list[float]] = field(default_factory=dict)
    poison: set[bytes] = field(default_factory=set)


def make_plan(events: int, marker: str, rng: random.Random) -> Plan:
    """About ``events`` records: 3 of 4 requests, hits, opened circuits, repetitions, poison."""
    plan = Plan()
    spiky, spikes = f"spiky-{marker}", 0
    addresses: list[str] = []
    # The group reads from the beginning, earlier runs included: no address may be theirs.
    chance = random.SystemRandom()
    network = f"{chance.randrange(1, 224)}.{chance.randrange(256)}"
    for number in range(events):
        event_id = f"{marker}-{number}"
        body: dict[str, Any] = {
            "id": event_id,
            "emittedAt": iso_utc(wall_ms()),
            "method": "GET",
            "url": f"/{number}",
        }
        draw = rng.random()
        key = None
        if draw < 0.001:
            value = json.dumps({"poison": event_id}).encode()
            plan.poison.add(value)
            plan.records.append((rng.choice(TOPICS), None, value))
            continue
        if draw < 0.2:
            topic = RATE_LIMIT_HIT
            if not addresses:
                address = f"{network}.{len(plan.hits) >> 8}.{len(plan.hits) & 255}"
                plan.hits[address] = _HITS[len(plan.hits) % len(_HITS)]
                addresses = [address] * plan.hits[address]
            body["ip"] = key = addresses.pop()
            nth = plan.hits[key] - len(addresses)
            if nth == 5:
                plan.actions.add(f"{event_id}:block")
        elif draw < 0.21:
            topic, body["upstream"] = CIRCUIT_OPENED, f"http://{rng.randrange(9)}"
            plan.actions.add(f"{event_id}:circuit")
        else:
            topic = REQUEST_COMPLETED
            body |= {"statusCode": 200, "ip": "192.0.2.1", "clientId": None, "workerId": 0}
            if draw < 0.3:
                key = spiky
                spikes += 1
                slow = spikes > 20 and spikes % _SPIKE_EVERY == 0
                body |= {"route": key, "latencyMs": 1000.0 if slow else 10.0}
                if slow:
                    plan.actions.add(f"{event_id}:spike")
            else:
                route = f"/{marker}/{number // (_ROUTE_EVENTS // 2)}"
                body |= {"route": route, "latencyMs": 10 + number / 1e7}
                plan.routes.setdefault(route, []).append(10 + number / 1e7)
        record = (topic, key.encode() if key else None, json.dumps(body).encode())
        plan.records.append(record)
        plan.ids.add(event_id)
        if key:
            plan.keyed.setdefault(f"{topic} {key}", []).append(event_id)
        if rng.random() < 0.01:  # a producer that lost its acknowledgement
            plan.records.append(record)
    # An address that was begun and not completed counts as far as it came.
    if addresses:
        address = addresses[0]
        plan.hits[address] -= len(addresses)
    return plan


class Member:
    """One ``python -m nexus.consumer``: a supervisor and its workers."""

    def __init__(self, name: str, arguments: list[str], environ: dict[str, str], log: Path) -> None:
        self.log = log
        with log.open("ab") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "nexus.consumer", "--admin-port", "0", *arguments],
                env={**os.environ, **environ, "NEXUS_CONSUMER_FLOW__INSTANCE_ID": name},
                stdout=output,
                stderr=output,
            )

    def kill_a_worker(self, rng: random.Random) -> bool:
        """SIGKILL to one of the workers; False where none runs right now."""
        pid = self.process.pid
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        if not children:
            return False
        os.kill(int(rng.choice(children)), signal.SIGKILL)
        return True

    def joined(self) -> bool:
        """Whether the service is ready, and both workers have been in the group."""
        text = self.log.read_text()
        return bool(_READY.search(text)) and len(set(_JOINED.findall(text))) == _WORKERS

    def end(self) -> int:
        """SIGTERM, at the latest SIGKILL."""
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(30)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        return int(self.process.returncode)


async def prove(
    events: int, kills: int, seed: int, kafka: str, redis_url: str, directory: Path
) -> Result:
    """Run it; raises ``RigError`` where there is no verdict."""
    rng = random.Random(seed)
    marker = f"p{rng.randrange(16**6):06x}{wall_ms():x}"
    await ensure_topics(
        KafkaSettings(bootstrap_servers=kafka),
        [*TOPICS, ACTIONS, *(dead_letter_topic(topic) for topic in TOPICS)],
        "proof",
    )
    plan = make_plan(events, marker, rng)
    environ = {
        "NEXUS_CONSUMER_GROUP": f"proof-{marker}",
        "NEXUS_CONSUMER_BLOCK__WINDOW_SECONDS": "86400",
        "NEXUS_CONSUMER_BLOCK__SECONDS": "86400",
        "NEXUS_CONSUMER_SPIKE__WINDOW": str(_ROUTE_EVENTS),
        "NEXUS_CONSUMER_SPIKE__MIN_SAMPLES": "10",
        "NEXUS_CONSUMER_LOG__FORMAT": "json",
        # The least that a broker allows by default: how long a service that has left is missed.
        "NEXUS_CONSUMER_FLOW__SESSION_TIMEOUT_MS": "6000",
    }
    arguments = ["--kafka", kafka, "--redis", redis_url, "--workers", str(_WORKERS)]
    logs = [directory / "first.log", directory / "second.log"]
    announced: Counter[str] = Counter()
    client: Any = redis_asyncio.Redis.from_url(redis_url)
    listening = asyncio.create_task(_listen(client, announced))
    began = time.monotonic()
    members = [Member("first", arguments, environ, logs[0])]
    done = 0
    try:
        async with _producer(kafka) as producer:
            parts = max(1, kills)
            size = -(-len(plan.records) // parts)
            for part in range(parts):
                await _send(producer, plan.records[part * size : (part + 1) * size])
                if part == parts // 3:
                    members.append(Member("second", arguments, environ, logs[1]))
                if part == 2 * parts // 3 and len(members) > 1:
                    await asyncio.to_thread(members[1].end)
                await asyncio.sleep(rng.uniform(0.2, 2.5))
                if kills:
                    await _kill_one(members, rng)
                    done += 1
        seen = await _drained(plan, logs, kafka, environ["NEXUS_CONSUMER_GROUP"])
        seconds = time.monotonic() - began
        ended = [await asyncio.to_thread(member.end) for member in members]
        faults = _judge_lines(plan, seen)
        faults |= await _judge_redis(plan, client, announced)
        faults |= _judge_actions(plan, await _read(kafka, [ACTIONS], marker))
        letters = await _read(kafka, [dead_letter_topic(topic) for topic in TOPICS], marker)
        faults["poison_lost"] = len(plan.poison - {value for value, _ in letters})
        faults["unclean_exits"] = sum(code != 0 for code in ended)
    finally:
        listening.cancel()
        await asyncio.gather(listening, return_exceptions=True)
        await client.aclose()
        for member in members:
            member.end()
    passed = not any(faults.values()) and done == kills
    bad = {name: count for name, count in faults.items() if count}
    return Result(
        "consumer",
        passed,
        f"{len(plan.records)} records, {done} kills, {len(plan.actions)} actions, "
        f"{seconds:.0f} s" + (f": {bad}" if bad else ""),
        seed,
        {
            "records": len(plan.records),
            "kills": done,
            "actions": len(plan.actions),
            "addresses": len(plan.hits),
            "poison": len(plan.poison),
            "seconds": round(seconds, 1),
            "faults": faults,
        },
    )


async def _kill_one(members: list[Member], rng: random.Random) -> None:
    """SIGKILL to a random worker of a random member that has been in the group.

    Not before: a service whose first workers die before they were ever ready gives up.
    """
    limit = time.monotonic() + 60
    while time.monotonic() < limit:
        running = [
            member for member in members if member.joined() and member.process.poll() is None
        ]
        if running and rng.choice(running).kill_a_worker(rng):
            return
        await asyncio.sleep(0.1)
    raise RigError("no worker runs that could be killed")


def _producer(kafka: str) -> AIOKafkaProducer:
    return AIOKafkaProducer(
        bootstrap_servers=kafka, linger_ms=5, acks="all", enable_idempotence=True
    )


async def _send(producer: AIOKafkaProducer, records: list[tuple[str, bytes | None, bytes]]) -> None:
    futures = [await producer.send(topic, value, key=key) for topic, key, value in records]
    await asyncio.gather(*futures)


async def _listen(client: Any, announced: Counter[str]) -> None:
    async with client.pubsub(ignore_subscribe_messages=True) as heard:
        await heard.subscribe("nexus:blocks")
        async for message in heard.listen():
            announced[message["data"].decode()] += 1


async def _drained(plan: Plan, logs: list[Path], kafka: str, group: str) -> list[list[str]]:
    """Ids by log, in the order of their lines, once the group has come to the end of its topics."""
    reader = AIOKafkaConsumer(*TOPICS, bootstrap_servers=kafka, group_id=None)
    asking = AIOKafkaConsumer(bootstrap_servers=kafka, group_id=group, enable_auto_commit=False)
    await reader.start()
    await asking.start()
    try:
        ends = await reader.end_offsets(reader.assignment())
        limit = time.monotonic() + 90 + len(plan.records) / 1000
        while True:
            if time.monotonic() > limit:
                raise RigError("the group does not come to the end of its topics")
            stands = await asyncio.gather(*(asking.committed(tp) for tp in ends))
            if all((at or 0) >= end for at, end in zip(stands, ends.values(), strict=True)):
                break
            await asyncio.sleep(0.5)
    finally:
        await reader.stop()
        await asking.stop()
    # A killed worker may leave half a line, so the lines are not parsed as JSON.
    lines = re.compile(r'"event_id":"([^"]+)"')
    return [lines.findall(log.read_text()) if log.exists() else [] for log in logs]


def _judge_lines(plan: Plan, seen: list[list[str]]) -> dict[str, int]:
    # An opened circuit has an alert instead of a line; it carries the id of its event too.
    lost = plan.ids - {event_id for ids in seen for event_id in ids}
    disorder = 0
    for ids in seen:
        first = {event_id: at for at, event_id in reversed(list(enumerate(ids)))}
        for order in plan.keyed.values():
            places = [first[event_id] for event_id in order if event_id in first]
            disorder += places != sorted(places)
    return {"events_lost": len(lost), "keys_out_of_order": disorder}


async def _judge_redis(plan: Plan, client: Any, announced: Counter[str]) -> dict[str, int]:
    decode = msgspec.msgpack.decode
    [prefix] = {
        key.decode().rpartition("mark:")[0] for key in await client.keys("nexus:consumer:*:mark:*")
    }
    faults = Counter(hits_miscounted=0, blocks_wrong=0, blocks_announced_again=0, windows_wrong=0)
    for address, count in plan.hits.items():
        raw = await client.get(f"{prefix}hits:{address}")
        counted = len(decode(raw)) if raw else 0
        faults["hits_miscounted"] += counted != (count if count < 5 else 0)
        blocked = await client.exists(f"nexus:block:{address}")
        faults["blocks_wrong"] += blocked != (count >= 5)
        faults["blocks_announced_again"] += announced[address] > 1
    for route, latencies in plan.routes.items():
        raw = await client.get(f"{prefix}route:{route}")
        held = decode(raw)[1:] if raw else []
        faults["windows_wrong"] += sorted(map(float, held)) != sorted(latencies)
    return dict(faults)


def _judge_actions(plan: Plan, found: list[tuple[bytes, str]]) -> dict[str, int]:
    counts = Counter(event_id for _, event_id in found)
    return {
        "actions_lost": len(plan.actions - counts.keys()),
        "actions_twice": sum(count > 1 for count in counts.values()),
        "actions_invented": len(counts.keys() - plan.actions),
    }


async def _read(kafka: str, topics: list[str], marker: str) -> list[tuple[bytes, str]]:
    """(value, id in its headers) of all committed records that name ``marker``."""
    reader = AIOKafkaConsumer(
        *topics,
        bootstrap_servers=kafka,
        auto_offset_reset="earliest",
        isolation_level="read_committed",
    )
    await reader.start()
    found = []
    try:
        idle = 0
        while idle < 4:
            batches = await reader.getmany(timeout_ms=500)
            idle = 0 if batches else idle + 1
            for records in batches.values():
                for record in records:
                    if record.value and marker.encode() in record.value:
                        named = dict(record.headers).get("ce_id", b"").decode()
                        found.append((record.value, named))
    finally:
        await reader.stop()
    return found


async def _with_redis(arguments: argparse.Namespace, directory: Path) -> Result:
    redis = Redis(directory)
    await redis.start()
    try:
        return await prove(
            arguments.events,
            arguments.kills,
            arguments.seed,
            arguments.kafka,
            f"redis://127.0.0.1:{redis.port}",
            directory,
        )
    finally:
        redis.kill()


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m proofs.consumer", description=__doc__)
    parser.add_argument("--events", type=int, default=100_000)
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--kafka", default=os.environ.get("NEXUS_TEST_KAFKA", ""))
    parser.add_argument("--results", type=Path, metavar="DIRECTORY", help="keep the record there")
    arguments = parser.parse_args()
    if not arguments.kafka:
        print("proofs.consumer: name a real broker: --kafka host:port", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory(prefix="nexus-proof-") as name:
        directory = Path(name)
        try:
            return save(asyncio.run(_with_redis(arguments, directory)), arguments.results)
        except RigError as error:
            print(f"proofs.consumer: no verdict: {error}", file=sys.stderr)
            return 2


if __name__ == "__main__":
    sys.exit(main())
