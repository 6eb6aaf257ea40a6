"""The producer: never in the way, everything counted, everything delivered that can be."""

import asyncio
import subprocess
import sys
import time
import uuid

import pytest
from aiokafka import AIOKafkaConsumer
from aiokafka.conn import collect_hosts
from aiokafka.errors import (
    KafkaConnectionError,
    MessageSizeTooLargeError,
    OutOfOrderSequenceNumber,
    TopicAuthorizationFailedError,
    UnknownError,
    UnknownTopicOrPartitionError,
)
from support.servers import free_port

from nexus.demo.kafka import MockBroker
from nexus.errors import ConfigError
from nexus.net import kafka
from nexus.net import producer as module
from nexus.net.kafka import brokers
from nexus.net.producer import RECORD_OVERHEAD, EventProducer
from nexus.net.settings import KafkaSettings


def make(metrics, bootstrap="127.0.0.1:1", **settings):
    return EventProducer(
        KafkaSettings(bootstrap_servers=bootstrap, linger_ms=5, **settings),
        metrics,
        "/nexus/test",
        0,
    )


def value_of(metrics, name, **labels):
    return metrics.counter(name, **labels).value


async def read_all(bootstrap, topic, count, seconds=20.0):
    consumer = AIOKafkaConsumer(
        topic, bootstrap_servers=bootstrap, auto_offset_reset="earliest", enable_auto_commit=False
    )
    await consumer.start()
    found = []
    try:
        deadline = time.monotonic() + seconds
        while len(found) < count and time.monotonic() < deadline:
            for records in (await consumer.getmany(timeout_ms=200)).values():
                found += records
    finally:
        await consumer.stop()
    return found


async def deliver(metrics, bootstrap, **settings):
    topic = f"t-{uuid.uuid4().hex[:8]}"
    producer = make(metrics, bootstrap, **settings)
    await producer.start()
    for i in range(3000):  # before and while it connects
        key = b"key-%d" % (i % 7) if i % 2 else None
        producer.emit(topic, b"%0100d" % i, key, [("h", b"%0100d" % i)])
        if i % 500 == 0:
            await asyncio.sleep(0.01)
    await producer.stop(30)
    assert producer.held_bytes == 0
    assert value_of(metrics, "nexus_events_sent_total", topic=topic) == 3000
    records = await read_all(bootstrap, topic, 3000)
    assert sorted(int(r.value) for r in records) == list(range(3000))
    assert all(r.headers == (("h", r.value),) for r in records)
    by_key = {}
    for r in records:
        if r.key is not None:
            by_key.setdefault(r.key, []).append(r)
    for mine in by_key.values():
        assert len({r.partition for r in mine}) == 1
        values = [int(r.value) for r in sorted(mine, key=lambda r: r.offset)]
        assert values == sorted(values)
    assert len({r.partition for r in records if r.key is None}) > 1


@pytest.mark.parametrize("compression", ["zstd", "lz4", "snappy", "none"])
async def test_everything_arrives_once_and_keys_keep_their_order(mock_kafka, metrics, compression):
    await deliver(metrics, mock_kafka, compression=compression)


@pytest.mark.kafka
async def test_everything_arrives_on_a_real_broker(kafka_broker, metrics):
    await deliver(metrics, kafka_broker.bootstrap)


async def test_a_broker_that_went_away_is_asked_at_leisure(metrics, monkeypatch):
    """aiokafka by itself would try thousands of times a second, on the loop of the requests."""
    tries = 0

    def count(record):
        nonlocal tries
        tries += record.msg.startswith("Unable connect")

    monkeypatch.setattr(kafka._reasons, "emit", count)
    with MockBroker() as broker:
        producer = make(metrics, broker.bootstrap)
        await producer.start()
        await asyncio.wait_for(producer._connected.wait(), 20)
        producer.emit("t", b"x", None, [])
        while not value_of(metrics, "nexus_events_sent_total", topic="t"):
            await asyncio.sleep(0.01)
    # As a broker that is shut down leaves it: its last metadata name no leader.
    monkeypatch.setattr(producer._client.client.cluster, "leader_for_partition", lambda _tp: -1)
    for _ in range(20):
        producer.emit("t", b"x", None, [])
        await asyncio.sleep(0.1)
    assert 0 < tries < 60
    await producer.stop(0)


async def test_without_a_broker_emitting_is_immediate_bounded_and_counted(metrics):
    producer = make(metrics, f"127.0.0.1:{free_port()}", buffer_bytes=65_536)
    began = time.monotonic()
    await producer.start()
    assert time.monotonic() - began < 0.5  # it does not wait for Kafka
    room = 65_536 // (100 + RECORD_OVERHEAD)
    for _ in range(room + 50):
        producer.emit("t", b"x" * 100, None, ())
    assert producer.held_bytes <= 65_536
    assert not producer.connected
    assert value_of(metrics, "nexus_events_dropped_total", topic="t", reason="buffer_full") == 50
    queued = metrics.gauge("nexus_events_queued")
    while queued.value != room:  # what waits is seen, also before there ever was a broker
        assert time.monotonic() - began < 5
        await asyncio.sleep(0.05)
    began = time.monotonic()
    await producer.stop(0.2)
    assert time.monotonic() - began < 5
    assert value_of(metrics, "nexus_events_dropped_total", topic="t", reason="shutdown") == room
    assert value_of(metrics, "nexus_events_sent_total", topic="t") == 0
    producer.emit("t", b"late", None, ())
    assert value_of(metrics, "nexus_events_dropped_total", topic="t", reason="stopping") == 1
    assert producer.held_bytes == 0


async def test_switched_off_it_does_nothing_at_all(metrics):
    producer = make(metrics, enabled=False)
    await producer.start()
    producer.emit("t", b"x", None, ())
    assert producer.held_bytes == 0
    await producer.stop(1)
    assert value_of(metrics, "nexus_events_dropped_total", topic="t", reason="stopping") == 0


class Batch:
    def __init__(self):
        self.values = []

    def append(self, *, key, value, timestamp, headers):
        if len(self.values) == 3:
            return None
        self.values.append(value)
        return object()

    def close(self):
        pass


class FakeClient:
    """Plays an aiokafka producer; ``script`` answers batch after batch, then all is well."""

    def __init__(self, script, sent, partitions=(0,)):
        self.script, self.sent, self.partitions = script, sent, set(partitions)

    async def start(self):
        pass

    async def stop(self):
        pass

    async def partitions_for(self, _topic):
        return self.partitions

    def create_batch(self):
        return Batch()

    async def send_batch(self, batch, _topic, *, partition):
        future = asyncio.get_running_loop().create_future()
        answer = self.script.pop(0) if self.script else None
        if answer == "hang":
            return future
        if answer is None:
            self.sent.append((partition, list(batch.values)))
            future.set_result(object())
        else:
            future.set_exception(answer)
        return future


@pytest.fixture
def scripted(metrics, monkeypatch):
    async def nothing(*_):
        pass

    monkeypatch.setattr(module, "ensure_topics", nothing)
    sent = []

    def build(script, **settings):
        producer = make(metrics, **settings)
        producer._make_client = lambda: FakeClient(script, sent)
        return producer, sent

    return build


async def run(producer, count):
    for i in range(count):
        producer.emit("t", b"%d" % i, None, ())
    await producer.start()
    await producer.stop(15)


async def test_a_lost_connection_sends_again_in_order(scripted, metrics):
    producer, sent = scripted([None, KafkaConnectionError(), OutOfOrderSequenceNumber(), None])
    await run(producer, 10)
    assert [v for _, values in sent for v in values] == [b"%d" % i for i in range(10)]
    assert value_of(metrics, "nexus_events_sent_total", topic="t") == 10
    assert producer.held_bytes == 0


async def test_what_the_broker_refuses_is_dropped_and_the_rest_arrives(scripted, metrics):
    producer, sent = scripted([None, MessageSizeTooLargeError()])
    await run(producer, 9)
    assert [v for _, values in sent for v in values] == [b"%d" % i for i in (0, 1, 2, 6, 7, 8)]
    assert value_of(metrics, "nexus_events_dropped_total", topic="t", reason="refused") == 3
    assert producer.held_bytes == 0


async def test_a_batch_that_always_fails_does_not_block_its_topic_for_ever(
    scripted, metrics, monkeypatch
):
    monkeypatch.setattr(module.Backoff, "next", lambda self: 0.0)
    producer, sent = scripted([UnknownError()] * 6)
    await run(producer, 4)
    assert [v for _, values in sent for v in values] == [b"3"]
    assert value_of(metrics, "nexus_events_dropped_total", topic="t", reason="refused") == 3


@pytest.mark.parametrize(
    "error", [TopicAuthorizationFailedError("closed"), UnknownTopicOrPartitionError()]
)
async def test_a_topic_that_is_not_there_for_us_holds_up_no_other(
    scripted, metrics, monkeypatch, caplog, error
):
    monkeypatch.setattr(module.Backoff, "next", lambda self: 0.0)
    asked = FakeClient.partitions_for

    async def partitions_for(self, topic):
        if topic == "closed":
            raise error
        return await asked(self, topic)

    monkeypatch.setattr(FakeClient, "partitions_for", partitions_for)
    monkeypatch.setattr(module, "_REFUSED_SECONDS", 0.01)
    producer, sent = scripted([])
    for _ in range(4):
        producer.emit("closed", b"x", None, ())
    await producer.start()
    dropped = ("nexus_events_dropped_total", {"topic": "closed", "reason": "refused"})
    async with asyncio.timeout(20):
        while value_of(metrics, dropped[0], **dropped[1]) < 4:
            await asyncio.sleep(0.01)
    # From here on its events are dropped without a new connection for the others.
    client = producer._client
    for _ in range(2):
        producer.emit("closed", b"x", None, ())
        producer.emit("t", b"y", None, ())
        async with asyncio.timeout(20):
            while producer.held_bytes:
                await asyncio.sleep(0.01)
    assert producer._client is client is not None
    await producer.stop(5)
    assert [v for _, values in sent for v in values] == [b"y"] * 2
    assert value_of(metrics, dropped[0], **dropped[1]) == 6
    assert "Kafka refuses events" in caplog.text


async def test_silence_is_an_outage_then_a_new_connection(scripted, metrics, monkeypatch):
    monkeypatch.setattr(module, "_STALL_SECONDS", 0.05)
    monkeypatch.setattr(module, "_GIVE_UP_SECONDS", 0.3)
    producer, sent = scripted(["hang"])
    await producer.start()
    producer.emit("t", b"x", None, ())
    seen = set()
    deadline = time.monotonic() + 10
    while not sent and time.monotonic() < deadline:
        seen.add(producer.connected)
        await asyncio.sleep(0.01)
    assert sent == [(0, [b"x"])]
    assert False in seen
    await producer.stop(5)
    assert value_of(metrics, "nexus_events_sent_total", topic="t") == 1


async def test_an_unexpected_error_is_logged_and_does_not_end_it(scripted, metrics, caplog):
    producer, sent = scripted([])
    make_client = producer._make_client
    errors = [ValueError("first"), RuntimeError("second")]

    def failing():
        if errors:
            raise errors.pop(0)
        return make_client()

    producer._make_client = failing
    await run(producer, 3)
    assert sent == [(0, [b"0", b"1", b"2"])]
    reported = [r for r in caplog.records if "unexpected error" in r.message]
    assert [str(r.exc_info[1].exceptions[0]) for r in reported] == ["first", "second"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("127.0.0.1:9092", ["127.0.0.1:9092"]),
        ("a.example:1 , b_c:65535", ["a.example:1", "b_c:65535"]),
        ("kafka", ["kafka"]),
        ("[::1]:9092,[fe80::1]", ["[::1]:9092", "[fe80::1]"]),
    ],
)
def test_bootstrap_servers(text, expected):
    assert brokers(text) == expected
    # The library that gets them agrees.
    assert len(collect_hosts(expected)) == len(expected)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "the host is missing"),
        ("a:9092,", "the host is missing"),
        (":9092", "the host is missing"),
        ("127.0.0.1:abc", "a number from 1 to 65535"),
        ("127.0.0.1:", "a number from 1 to 65535"),
        ("a:0", "a number from 1 to 65535"),
        ("a:65536", "a number from 1 to 65535"),
        ("a:+1", "a number from 1 to 65535"),
        ("a:9_2", "a number from 1 to 65535"),
        ("a:٣", "a number from 1 to 65535"),
        ("::1", "the host is missing"),
        ("fe80::1", "in brackets"),
        ("[::1", "closing bracket"),
        ("[::g]:1", "in brackets"),
        ("[::1]9092", "a number from 1 to 65535"),
        ("kafka://a:9092", "no scheme"),
        ("a b:9092", "not a host name"),
        ("a;b:9092", "not a host name"),
    ],
)
def test_bootstrap_servers_that_can_never_connect(text, why):
    with pytest.raises(ConfigError, match=why) as caught:
        brokers(text)
    assert "kafka.bootstrap_servers" in str(caught.value)


def test_a_password_in_bootstrap_servers_is_not_repeated():
    with pytest.raises(ConfigError) as caught:
        brokers("user:hunter2@kafka:9092")
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("service", ["gateway", "consumer"])
def test_check_refuses_bootstrap_servers_that_can_never_connect(service, tmp_path):
    services = tmp_path / "services.json"
    services.write_text('{"services": [{"url": "http://127.0.0.1:1"}]}')
    config = tmp_path / "service.yaml"
    own = f"services_file: {services}\nauth: {{enabled: false}}\n" if service == "gateway" else ""
    config.write_text(f"{own}kafka: {{bootstrap_servers: '127.0.0.1:abc'}}\n")
    done = subprocess.run(
        [sys.executable, "-m", f"nexus.{service}", "--config", str(config), "--check"],
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
    )
    assert done.returncode == 2
    assert "kafka.bootstrap_servers: expected host:port" in done.stderr
    assert "'127.0.0.1:abc'" in done.stderr
