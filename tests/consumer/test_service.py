"""The consumer as it runs: against the in-memory broker in one process, and as a real service."""

import asyncio
import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
import uuid
from pathlib import Path

import aiohttp
import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from aiokafka.consumer import fetcher
from support.servers import free_port

from nexus.consumer.app import SPEC, ConsumerApp
from nexus.consumer.settings import (
    ActionSettings,
    ConsumerSettings,
    FlowSettings,
    SpikeSettings,
)
from nexus.consumer.state import State
from nexus.errors import ConfigError
from nexus.net.service import WorkerContext
from nexus.net.settings import KafkaSettings, RedisSettings
from nexus.net.states import WorkerStates

ROOT = Path(__file__).resolve().parents[2]
#: librdkafka's in-memory broker does not end aiokafka's transactions.
PLAIN = ActionSettings(delivery="at-least-once")
STAMP = "2026-11-21T10:00:00.000Z"


def hit(marker, number):
    return {
        "id": f"{marker}-{number}",
        "emittedAt": STAMP,
        "ip": "192.0.2.7",
        "method": "GET",
        "url": f"/{marker}/{number}",
    }


def completed(marker, number, latency):
    return {
        "id": f"{marker}-{number}",
        "emittedAt": STAMP,
        "method": "GET",
        "url": f"/{marker}/{number}",
        "route": f"/{marker}/*",
        "statusCode": 200,
        "latencyMs": latency,
        "ip": "192.0.2.7",
        "clientId": None,
        "workerId": 0,
    }


@contextlib.asynccontextmanager
async def producer(bootstrap):
    client = AIOKafkaProducer(bootstrap_servers=bootstrap, linger_ms=2)
    await client.start()
    try:
        yield client
    finally:
        await client.stop()


async def send(bootstrap, topic, values, key=None):
    async with producer(bootstrap) as client:
        futures = [
            await client.send(topic, v if isinstance(v, bytes) else json.dumps(v).encode(), key=key)
            for v in values
        ]
        await asyncio.gather(*futures)


async def until(condition, seconds=60.0):
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.02)


def handled(registry, result):
    return sum(
        values[0]
        for _, series, values in registry.read()
        if series.metric.name == "nexus_consumer_events_total" and result in series.values
    )


@pytest.fixture
async def app_of(registry, redis_server):
    """Starts the app of one worker in this process; stopped at the end."""
    running, sockets = [], []

    async def start(bootstrap, group=None, **settings):
        listener = socket.create_server(("127.0.0.1", 0))
        sockets.append(listener)
        context = WorkerContext(
            index=0,
            settings=ConsumerSettings(
                kafka=KafkaSettings(bootstrap_servers=bootstrap),
                group=group or f"g-{uuid.uuid4().hex[:8]}",
                **{
                    "actions": PLAIN,
                    "redis": RedisSettings(url=redis_server.url),
                    **settings,
                },
            ),
            registry=registry,
            metrics=registry.open(0),
            shared=None,
            listeners=(),
            admin_listener=listener,
            service="consumer",
            states=WorkerStates(1),
            set_state=lambda _state: None,
        )
        app = ConsumerApp(context)
        running.append(app)
        await asyncio.wait_for(app.start(), 60)
        return app

    yield start
    for app in running:
        await app.drain(5)
    for listener in sockets:
        listener.close()


async def test_events_of_all_topics_reach_their_handlers(mock_kafka, app_of, registry, caplog):
    marker = uuid.uuid4().hex[:8]
    caplog.set_level("INFO", "nexus.consumer")
    await send(mock_kafka, "gateway.rate_limit.hit", [hit(marker, 1), hit(marker, 1)], b"192.0.2.7")
    await send(
        mock_kafka,
        "gateway.circuit.opened",
        [{"emittedAt": STAMP, "upstream": f"http://{marker}:1", "method": "GET", "url": "/x"}],
    )
    await send(
        mock_kafka,
        "gateway.request.completed",
        [completed(marker, i, 10.0) for i in range(2, 22)] + [completed(marker, 22, 100.0)],
        b"one-partition",
    )
    await app_of(mock_kafka, spike=SpikeSettings(window=20))
    await until(lambda: f"/{marker}/22 took 100.0 ms" in caplog.text)
    await until(lambda: f"circuit breaker of http://{marker}:1 opened" in caplog.text)
    await until(lambda: f"rate limit hit by 192.0.2.7: GET /{marker}/1" in caplog.text)
    await until(lambda: handled(registry, "duplicate") >= 1)
    assert caplog.text.count(f"rate limit hit by 192.0.2.7: GET /{marker}/1") == 1
    alerts = [r for r in caplog.records if r.name == "nexus.consumer.alerts"]
    spikes = [r for r in alerts if r.alert == "latency_spike" and marker in r.getMessage()]
    assert [(r.samples, r.mean_ms, r.latency_ms) for r in spikes] == [(20, 10.0, 100.0)]


@pytest.mark.kafka
async def test_a_second_run_begins_where_the_first_committed(kafka_broker, app_of, caplog):
    bootstrap = kafka_broker.bootstrap
    marker, group = uuid.uuid4().hex[:8], f"g-{uuid.uuid4().hex[:8]}"
    caplog.set_level("INFO", "nexus.consumer.events")

    def seen():
        lines = [r.getMessage() for r in caplog.records if r.name == "nexus.consumer.events"]
        return [line.rsplit("/", 1)[1] for line in lines if marker in line]

    flow = FlowSettings(partition_events=16, commit_interval_ms=50)
    await send(bootstrap, "gateway.rate_limit.hit", [hit(marker, i) for i in range(500)])
    app = await app_of(bootstrap, group, flow=flow)
    await until(lambda: len(seen()) == 500)
    await app.drain(10)
    caplog.clear()
    await send(bootstrap, "gateway.rate_limit.hit", [hit(marker, i) for i in range(500, 700)])
    await app_of(bootstrap, group, flow=flow)
    await until(lambda: len(seen()) >= 200)
    await asyncio.sleep(0.3)
    assert sorted(map(int, seen())) == list(range(500, 700))


async def positions_settled(app):
    """A group that begins at the latest event has found where that is."""
    async with asyncio.timeout(60):
        for partition in app._loop._partitions:
            await app._loop._consumer.position(partition)


@pytest.mark.kafka
async def test_what_was_fetched_of_a_paused_partition_is_not_fetched_again(
    kafka_broker, app_of, caplog, monkeypatch
):
    """One partition, far more events than may be open at once: each comes over the wire once."""
    topic, marker = "gateway.rate_limit.hit", uuid.uuid4().hex[:8]
    fetched = []
    records = fetcher.MemoryRecords

    def counted(data):
        fetched.append(data)
        return records(data)

    flow = FlowSettings(partition_events=16)
    app = await app_of(kafka_broker.bootstrap, flow=flow, start="latest")
    await positions_settled(app)
    caplog.set_level("INFO", "nexus.consumer.events")
    judge, go_on = State.judge, asyncio.Event()

    async def when_all_is_there(self, *arguments):
        await go_on.wait()
        return await judge(self, *arguments)

    monkeypatch.setattr(State, "judge", when_all_is_there)
    monkeypatch.setattr(fetcher, "MemoryRecords", counted)
    await send(kafka_broker.bootstrap, topic, [hit(marker, i) for i in range(2000)], b"one-key")
    go_on.set()
    lines = [f"/{marker}/{i}" for i in range(2000)]

    def seen():
        return [
            r.getMessage().rpartition(" ")[2] for r in caplog.records if marker in r.getMessage()
        ]

    await until(lambda: len(seen()) >= 2000, 60)
    assert seen() == lines
    came = sum(data.count(marker.encode() + b"-") for data in fetched)
    assert 2000 <= came < 3000


@pytest.mark.kafka
async def test_the_lag_of_a_paused_partition_grows_and_redis_away_is_not_ready(
    kafka_broker, app_of, registry, redis_factory
):
    """Nothing is fetched of it, and its lag is still told: an outage of Redis is seen by it."""
    topic, marker = "gateway.rate_limit.hit", uuid.uuid4().hex[:8]
    redis = redis_factory()
    app = await app_of(
        kafka_broker.bootstrap,
        flow=FlowSettings(partition_events=16),
        redis=RedisSettings(url=redis.url),
        start="latest",
    )

    def lag():
        app._loop._gauges_due = 0.0  # at the next turn
        return sum(
            values[0]
            for _, series, values in registry.read()
            if series.metric.name == "nexus_consumer_lag" and topic in series.values
        )

    async def ready():
        port = app._context.admin_listener.getsockname()[1]
        async with aiohttp.request("GET", f"http://127.0.0.1:{port}/ready") as answer:
            return (await answer.json()).get("reason", "")

    assert await ready() == ""
    await positions_settled(app)
    redis.kill()
    await send(kafka_broker.bootstrap, topic, [hit(marker, i) for i in range(100)], b"one-key")
    await until(lambda: app._loop.status()["inFlight"] >= 16)
    await until(lambda: any(p["paused"] for p in app._loop.status()["partitions"]))
    assert (await ready()).startswith("Redis: ")
    for sent in (400, 700):
        await send(
            kafka_broker.bootstrap, topic, [hit(marker, sent + i) for i in range(300)], b"one-key"
        )
        await until(lambda sent=sent: lag() >= sent)
    redis.start()
    await until(lambda: lag() == 0, 60)
    assert await ready() == ""


async def dead_letters_are_set_aside(bootstrap, app_of, registry):
    marker = uuid.uuid4().hex[:8]
    poison = b'{"poison": "%s"}' % marker.encode()
    app = await app_of(bootstrap)
    before = handled(registry, "dead_letter")
    await send(bootstrap, "gateway.rate_limit.hit", [hit(marker, 1), poison, hit(marker, 2)], b"k")
    await until(lambda: handled(registry, "dead_letter") > before)
    await until(lambda: app._loop.in_flight == 0)
    reader = AIOKafkaConsumer(
        "gateway.rate_limit.hit.dlq", bootstrap_servers=bootstrap, auto_offset_reset="earliest"
    )
    await reader.start()
    found = []
    try:
        async with asyncio.timeout(20):
            while not found:
                for records in (await reader.getmany(timeout_ms=200)).values():
                    found += [r for r in records if r.value == poison]
    finally:
        await reader.stop()
    named = dict(found[0].headers)
    assert found[0].key == b"k"
    assert named["nexus_dlq_topic"] == b"gateway.rate_limit.hit"
    assert named["nexus_dlq_reason"] == b"schema"
    assert b"emittedAt" in named["nexus_dlq_error"]


async def test_poison_is_set_aside(mock_kafka, app_of, registry):
    await dead_letters_are_set_aside(mock_kafka, app_of, registry)


@pytest.mark.kafka
async def test_poison_is_set_aside_on_a_real_broker(kafka_broker, app_of, registry):
    await dead_letters_are_set_aside(kafka_broker.bootstrap, app_of, registry)


async def test_a_worker_whose_events_stand_still_is_replaced(mock_kafka, app_of, monkeypatch):
    async def hang(_self, *_):
        await asyncio.Event().wait()

    monkeypatch.setattr(State, "judge", hang)
    flow = FlowSettings(stall_seconds=0.3)  # far below what a configuration may say
    app = await app_of(mock_kafka, flow=flow)
    reasons = []
    app._context.fail = reasons.append
    await send(mock_kafka, "gateway.rate_limit.hit", [hit("stall", 1)])
    await until(lambda: reasons)
    assert "no event was attempted" in reasons[0]
    app._context.settings = ConsumerSettings()
    await app.drain(0.1)


class Service:
    """``python -m nexus.consumer`` as a process."""

    def __init__(self, bootstrap, group, log, *arguments, **environ):
        self.admin = free_port()
        self.log = log
        with log.open("ab") as output:
            self.process = subprocess.Popen(
                [
                    *(sys.executable, "-m", "nexus.consumer", "--kafka", bootstrap),
                    *("--admin-port", str(self.admin), *arguments),
                ],
                cwd=ROOT,
                env={**os.environ, "NEXUS_CONSUMER_GROUP": group, **environ},
                stdout=output,
                stderr=output,
            )

    def get(self, path):
        with urllib.request.urlopen(f"http://127.0.0.1:{self.admin}{path}", timeout=5) as reply:
            return reply.read().decode()

    def events(self, marker):
        # Not parsed as JSON: a killed worker may leave half a line.
        return re.findall(rf'"event_id":"({marker}-\d+)"', self.log.read_text())

    def ready(self):
        try:
            return '"joined": true' in self.get("/consumer")
        except OSError:
            return False

    def end(self):
        """Whatever state it is in."""
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(15)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(20)


@pytest.mark.kafka
async def test_the_service_loses_nothing_when_it_is_killed(kafka_broker, redis_server, tmp_path):
    """SIGKILL between effect and commit repeats events, and never skips one."""
    marker, group, log = uuid.uuid4().hex[:8], f"g-{uuid.uuid4().hex[:8]}", tmp_path / "log"
    bootstrap = kafka_broker.bootstrap
    total = 3000
    service = Service(
        bootstrap,
        group,
        log,
        *("--redis", redis_server.url),
        NEXUS_CONSUMER_FLOW__INSTANCE_ID=marker,  # its successor need not wait for its session
    )
    try:
        sending = asyncio.create_task(
            send(bootstrap, "gateway.rate_limit.hit", [hit(marker, i) for i in range(total)])
        )
        await until(lambda: len(service.events(marker)) > 50)
        children = Path(f"/proc/{service.process.pid}/task/{service.process.pid}/children")
        os.kill(int(children.read_text().split()[0]), signal.SIGKILL)
        await sending
        wanted = {f"{marker}-{i}" for i in range(total)}
        await until(lambda: wanted <= set(service.events(marker)), 60)
        metrics = service.get("/metrics")
        handled = [x for x in metrics.splitlines() if x.startswith("nexus_consumer_events_total{")]
        assert any('topic="gateway.rate_limit.hit"' in x and "handled" in x for x in handled)
        status = json.loads(service.get("/consumer"))
        assert status["group"] == group
        assert status["joined"] is True
        assert service.stop() == 0
    finally:
        if service.process.poll() is None:
            service.process.kill()
            service.process.wait()


async def test_without_kafka_it_waits_says_so_and_stops_when_asked(tmp_path):
    port = free_port()
    service = Service(f"127.0.0.1:{port}", "g", tmp_path / "log")
    try:
        await until(lambda: f"Kafka at 127.0.0.1:{port} does not answer" in service.log.read_text())
        assert service.process.poll() is None
        health = json.loads(service.get("/health"))
        assert health
        began = time.monotonic()
        assert service.stop() == 0
        assert time.monotonic() - began < 10
    finally:
        if service.process.poll() is None:
            service.process.kill()
            service.process.wait()


def test_settings_that_contradict_each_other_are_refused():
    SPEC.validate(ConsumerSettings())
    for settings, path in [
        (ConsumerSettings(kafka=KafkaSettings(enabled=False)), "kafka.enabled"),
        (ConsumerSettings(spike=SpikeSettings(window=5, min_samples=6)), "spike.min_samples"),
    ]:
        with pytest.raises(ConfigError) as raised:
            SPEC.validate(settings)
        assert raised.value.path == path
