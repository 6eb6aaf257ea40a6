"""`nexus events` as it is used: on a real broker, with a consumer that takes the replays."""

import asyncio
import json
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


def test_wrong_words_are_refused(capsys):
    for words in (["replay", "x"], ["replay", HITS, "--partition", "a"], []):
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
