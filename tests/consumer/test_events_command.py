"""`nexus events` as it is used: on a real broker, with a consumer that takes the replays."""

import asyncio
import json
import signal
import subprocess
import sys
import time
import uuid

import msgspec
import pytest
import redis as redis_client
from aiokafka import AIOKafkaProducer
from test_service import Service, hit, until

from nexus.cli import main as nexus
from nexus.policy.blocks import subject_of

HITS = "gateway.rate_limit.hit"
pytestmark = pytest.mark.kafka


def events(capsys, bootstrap, *words):
    assert nexus(["events", "--kafka", bootstrap, *words]) == 0
    return capsys.readouterr()


def send(bootstrap, records):
    async def run():
        async with AIOKafkaProducer(bootstrap_servers=bootstrap) as client:
            return [await client.send_and_wait(HITS, v, key=k, headers=h) for k, v, h in records]

    return asyncio.run(run())


def test_tail_finds_by_trace_and_by_correlation(kafka_broker, capsys):
    bootstrap, key = kafka_broker.bootstrap, uuid.uuid4().hex
    trace = uuid.uuid4().hex
    context = [("traceparent", f"00-{trace}-{'ab' * 8}-01".encode())]
    body = json.dumps(hit(key, 1)).encode()
    send(bootstrap, [(key.encode(), body, context), (key.encode(), b"not json \xff", [])])
    out = events(capsys, bootstrap, "tail", HITS, "--begin", "--end", "--trace", trace).out
    [line] = map(json.loads, out.splitlines())
    assert line["value"] == hit(key, 1)
    assert line["headers"]["traceparent"] == context[0][1].decode()
    out = events(capsys, bootstrap, "tail", HITS, "--begin", "--end", "--correlation", key).out
    assert [json.loads(line)["value"] for line in out.splitlines()] == [
        hit(key, 1),
        "not json \\xff",
    ]


def test_replays_change_nothing_twice(kafka_broker, redis_factory, tmp_path, capsys):
    """A range that was done is a duplicate; a dead letter whose fault is mended is done once."""
    bootstrap, marker = kafka_broker.bootstrap, uuid.uuid4().hex[:8]
    redis = redis_factory()
    group, address = f"g-{marker}", f"2001:db8:{marker[:4]}:{marker[4:]}::1"
    body = {**hit(marker, 1), "ip": address}
    key = marker.encode()
    # What an older consumer could not read, and this one can.
    old = json.dumps({**hit(marker, 2), "ip": address}).encode()
    service = Service(
        bootstrap,
        group,
        tmp_path / "log",
        *("--redis", redis.url),
        NEXUS_CONSUMER_START="latest",  # the topic may hold much of other tests
    )

    async def bury():
        async with AIOKafkaProducer(bootstrap_servers=bootstrap) as client:
            headers = [
                ("nexus_dlq_topic", HITS.encode()),
                ("nexus_dlq_partition", b"%d" % first.partition),
                ("nexus_dlq_offset", b"%d" % first.offset),
                ("nexus_dlq_reason", b"schema"),
            ]
            await client.send_and_wait(HITS + ".dlq", old, key=key, headers=headers)

    def hits():
        with redis_client.Redis.from_url(redis.url) as client:
            [name] = client.scan_iter(f"nexus:consumer:*:hits:{subject_of(address)}")
            return len(msgspec.msgpack.decode(client.get(name)))

    def duplicates():
        lines = service.get("/metrics").splitlines()
        found = [x for x in lines if x.startswith("nexus_consumer_duplicates_total{")]
        return sum(float(x.rsplit(" ", 1)[1]) for x in found if HITS in x)

    async def waiting(condition):
        await until(condition, 40)

    try:
        asyncio.run(waiting(service.ready))
        number = 100
        while not service.events(marker):  # until the position of this partition is settled
            number += 1
            send(bootstrap, [(key, json.dumps(hit(marker, number)).encode(), [])])
            time.sleep(0.2)
        [first] = send(bootstrap, [(key, json.dumps(body).encode(), [])])
        asyncio.run(bury())
        asyncio.run(waiting(lambda: f"{marker}-1" in service.events(marker)))
        before = duplicates()
        words = ["replay", HITS, "--partition", str(first.partition)]
        words += ["--first", str(first.offset), "--last", str(first.offset)]
        dry = events(capsys, bootstrap, *words)
        assert dry.err == "dry run: 1 events would be sent again; --go does it\n"
        assert json.loads(dry.out)["value"] == body
        assert events(capsys, bootstrap, *words, "--go").out == "1 events sent again\n"
        asyncio.run(waiting(lambda: duplicates() > before))
        dead = ["dlq", HITS, "--correlation", marker]
        assert json.loads(events(capsys, bootstrap, *dead).out)["value"]["id"] == f"{marker}-2"
        for _ in range(2):
            events(capsys, bootstrap, *dead, "--replay", "--go")
        asyncio.run(waiting(lambda: duplicates() > before + 1))
        assert service.events(marker).count(f"{marker}-2") == 1
        assert hits() == 2
    finally:
        service.end()


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["tail", "no.such.topic", "--end"], "no such topic there: no.such.topic"),
        (["replay", HITS, "--partition", "99", "--first", "0", "--last", "1"], "has partitions 0"),
        (
            ["replay", HITS, "--partition", "0", "--first", "99999999", "--last", "99999999"],
            f"{HITS}/0 ends before offset",
        ),
    ],
)
def test_what_is_not_there_is_one_line(kafka_broker, capsys, words, why):
    send(kafka_broker.bootstrap, [(b"k", b"{}", [])])  # the topic is there
    assert nexus(["events", "--kafka", kafka_broker.bootstrap, *words]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("nexus events: ")
    assert why in line


def test_a_reader_that_has_seen_enough_is_no_error(kafka_broker):
    """As in `nexus events tail … | head -1`."""
    body = json.dumps(hit(uuid.uuid4().hex, 1)).encode()
    send(kafka_broker.bootstrap, [(b"k", body, [])] * 200)
    words = ["-m", "nexus", "events", "--kafka", kafka_broker.bootstrap]
    with subprocess.Popen(
        [sys.executable, *words, "tail", HITS, "--begin", "--end"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as command:
        assert command.stdout.readline().startswith(b"{")
        command.stdout.close()
        assert command.stderr.read() == b""
        assert command.wait(60) == 0


def test_an_interrupt_ends_a_tail_without_a_word(kafka_broker):
    key = uuid.uuid4().hex
    words = ["-m", "nexus", "events", "--kafka", kafka_broker.bootstrap]
    with subprocess.Popen(
        [sys.executable, *words, "tail", HITS, "--begin", "--correlation", key],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),  # noqa: PLW1509
    ) as command:
        send(kafka_broker.bootstrap, [(key.encode(), b"{}", [])])
        assert command.stdout.readline().startswith(b"{")
        command.send_signal(signal.SIGINT)
        assert command.stderr.read() == b""
        assert command.wait(60) == 130


@pytest.mark.parametrize("there", ["nothing", "no Kafka"])
def test_what_is_no_kafka_is_one_line(there, redis_server, capsys, monkeypatch):
    monkeypatch.setattr("nexus.consumer.eventscommand._START_SECONDS", 1.0)
    address = "127.0.0.1:1" if there == "nothing" else f"127.0.0.1:{redis_server.port}"
    assert nexus(["events", "--kafka", address, "tail", "--end"]) == 1
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith(f"nexus events: Kafka at {address} does not answer: ")
    assert "AddressFamily" not in line


def test_wrong_words_are_refused(capsys):
    for words in (
        ["replay", "x"],
        ["replay", HITS, "--partition", "a"],
        ["tail", "--trace", "xyz"],
        [],
    ):
        with pytest.raises(SystemExit) as ended:
            nexus(["events", *words])
        assert ended.value.code == 2
    assert nexus(["events", "dlq", "nonsense"]) == 2
    words = ["--partition", "0", "--first", "5", "--last", "4"]
    assert nexus(["events", "replay", HITS, *words]) == 2


@pytest.mark.parametrize("address", ["host:", "[::1", "host:99999", ":9092"])
def test_a_wrong_broker_address_is_one_line(address, capsys):
    assert nexus(["events", "--kafka", address, "tail"]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("nexus events: kafka.bootstrap_servers: expected host:port")
