"""The block list: what a gateway worker knows when Redis changes, dies and comes back; by hand."""

import asyncio
import contextlib
import json
import re
import time
import uuid

import pytest
import redis as redis_client
from gateway.gateway_process import GatewayProcess
from support.servers import free_port
from test_service import Service, until

from nexus.cli import main as nexus
from nexus.errors import ConfigError
from nexus.gateway.blocklist import BlockList
from nexus.net.settings import RedisSettings
from nexus.policy.blocks import Networks, subject_of


@contextlib.asynccontextmanager
async def following(url, metrics, trusted=lambda _ip: False):
    blocks = BlockList(RedisSettings(url=url), metrics, trusted)
    task = asyncio.create_task(blocks.run())
    try:
        await until(lambda: metrics.gauge("nexus_block_list_connected").value == 1)
        yield blocks
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def block(url, *words):
    return nexus(["block", "--redis", url, *words])


@pytest.fixture
def redis_url(redis_server):
    client = redis_client.Redis.from_url(redis_server.url)
    client.flushall()
    client.close()
    return redis_server.url


async def test_a_block_by_hand_is_enforced_and_lifted_at_once(redis_url, metrics, capsys):
    async with following(redis_url, metrics) as blocks:
        assert not blocks.blocked("192.0.2.7")
        assert block(redis_url, "add", "192.0.2.7", "--seconds", "60", "--reason", "scraper") == 0
        began = time.monotonic()
        await until(lambda: blocks.blocked("192.0.2.7"), 5)
        assert time.monotonic() - began < 0.5
        assert not blocks.blocked("192.0.2.8")
        block(redis_url, "list", "--json")
        line = json.loads(capsys.readouterr().out.splitlines()[-1])
        assert (line["subject"], line["by"], line["reason"]) == (
            "192.0.2.7",
            "operator",
            "scraper",
        )
        assert 55 <= line["secondsLeft"] <= 60
        assert block(redis_url, "remove", "192.0.2.7") == 0
        await until(lambda: not blocks.blocked("192.0.2.7"), 5)
        assert block(redis_url, "remove", "192.0.2.7") == 1


async def test_ipv6_is_blocked_by_64_and_proxies_never(redis_url, metrics):
    block(redis_url, "add", "2001:db8::1")
    block(redis_url, "add", "10.0.0.1")
    async with following(redis_url, metrics, lambda ip: ip == "10.0.0.1") as blocks:
        await until(lambda: len(blocks) == 2, 5)  # both were there before it started
        assert blocks.blocked("2001:db8::ffff:1")
        assert not blocks.blocked("2001:db8:0:1::1")
        assert not blocks.blocked("10.0.0.1")


async def test_a_block_ends_by_itself(redis_url, metrics):
    async with following(redis_url, metrics) as blocks:
        block(redis_url, "add", "192.0.2.7", "--seconds", "1")
        await until(lambda: blocks.blocked("192.0.2.7"), 5)
        await until(lambda: not blocks.blocked("192.0.2.7"), 5)
        await until(lambda: len(blocks) == 0, 5)


async def test_a_lost_notification_is_made_up_for_within_a_second(redis_url, metrics):
    async with following(redis_url, metrics) as blocks:
        client = redis_client.Redis.from_url(redis_url)
        client.set("nexus:block:192.0.2.9", "{}", ex=60)
        client.zadd("nexus:block-index", {"192.0.2.9": 0})
        client.close()
        began = time.monotonic()
        await until(lambda: blocks.blocked("192.0.2.9"), 5)
        assert time.monotonic() - began < 2  # one second, on a busy machine


async def test_redis_away_keeps_the_list_and_a_redis_without_memory_is_given_it_back(
    redis_factory, metrics
):
    server = redis_factory()
    async with following(server.url, metrics) as blocks:
        block(server.url, "add", "192.0.2.7", "--seconds", "60")
        block(server.url, "add", "192.0.2.8", "--seconds", "2")
        await until(lambda: len(blocks) == 2, 5)
        server.kill()
        await until(lambda: metrics.gauge("nexus_block_list_connected").value == 0, 5)
        assert blocks.blocked("192.0.2.7")
        await until(lambda: not blocks.blocked("192.0.2.8"), 5)
        server.start()
        await until(lambda: metrics.gauge("nexus_block_list_connected").value == 1, 10)
        assert blocks.blocked("192.0.2.7")
        client = redis_client.Redis.from_url(server.url)
        assert 50_000 < client.pttl("nexus:block:192.0.2.7") <= 60_000
        assert client.exists("nexus:block:192.0.2.8") == 0
        client.close()
        # A second worker that saw none of it learns it from there.
        async with following(server.url, metrics) as other:
            await until(lambda: other.blocked("192.0.2.7"), 5)


def test_the_list_is_bounded(metrics, monkeypatch, redis_url):
    monkeypatch.setattr("nexus.gateway.blocklist.MAX_SUBJECTS", 3)

    async def run():
        for i in range(6):
            block(redis_url, "add", f"192.0.2.{i}")
        async with following(redis_url, metrics) as blocks:
            block(redis_url, "add", "192.0.2.77")
            await asyncio.sleep(0.3)
            assert len(blocks) == 3

    asyncio.run(run())


def test_wrong_words_are_refused(capsys):
    for words in (["add", "nobody"], ["add", "10.0.0.0/8"], ["add", "1.2.3.4", "--seconds", "0"]):
        with pytest.raises(SystemExit) as ended:
            nexus(["block", *words])
        assert ended.value.code == 2
    assert nexus(["block", "--redis", "redis://127.0.0.1:1/0", "list"]) == 1
    assert "nexus block: Redis:" in capsys.readouterr().err
    assert nexus(["block", "--redis", "localhost", "list"]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("nexus block: --redis: expected redis://")
    assert line.endswith("got 'localhost'")


def test_subjects_and_networks():
    assert subject_of("192.0.2.7") == "192.0.2.7"
    assert subject_of("::ffff:192.0.2.7") == "192.0.2.7"
    assert subject_of("2001:db8::1:2:3:4") == "2001:db8::/64"
    assert subject_of(subject_of("2001:db8::1")) == "2001:db8::/64"
    networks = Networks(["10.0.0.0/8", "2001:db8::5/128"], "x")
    assert networks.touches("10.255.0.1")
    assert networks.touches("2001:db8::/64")
    assert not networks.touches("11.0.0.1")
    with pytest.raises(ConfigError, match=r"x\[0\]: expected a network"):
        Networks(["nonsense"], "x")


@pytest.mark.kafka
@pytest.mark.once  # its gateways are compiled ones, whatever this process runs
async def test_the_fifth_hit_at_one_gateway_closes_all_of_them(
    kafka_broker, redis_factory, tmp_path
):
    """Hits at A, by way of Kafka and the consumer, and B refuses within a second: each time, also
    for a gateway that has just started, and behind a Redis that has lost its memory."""
    last = uuid.uuid4().int % 250 + 1
    addresses = [f"198.51.100.{last + i}" for i in range(5)]
    server = redis_factory()
    redis_url = server.url
    shared = {
        "redis": {"url": redis_url},
        "trusted_proxies": ["127.0.0.1"],
        "kafka": {"enabled": True, "bootstrap_servers": kafka_broker.bootstrap},
    }
    nowhere = [f"http://127.0.0.1:{free_port()}"]
    with contextlib.ExitStack() as ends:

        def gateway(name, **overrides):
            directory = tmp_path / name
            directory.mkdir()
            environ = {"PYTHONHASHSEED": "2"} if name == "b" else {}
            process = GatewayProcess(directory, "c", nowhere, {**shared, **overrides}, environ)
            process.start()
            ends.callback(process.stop)
            return process

        limit = {"enabled": True, "capacity": 1, "refill_per_second": 0.01}
        a, b = gateway("a", rate_limit=limit), gateway("b")
        consumer = Service(
            kafka_broker.bootstrap,
            f"g-{uuid.uuid4().hex[:8]}",
            tmp_path / "log",
            *("--redis", redis_url),
            NEXUS_CONSUMER_START="latest",
        )
        ends.callback(consumer.end)
        await until(consumer.ready)
        # Everything is connected and warm: one hit of another address has come through.
        warm = f"X-Forwarded-For: 203.0.113.{uuid.uuid4().int % 254 + 1}"
        while "rate limit hit by 203.0.113." not in consumer.log.read_text():
            a.request("/x", "GET", None, warm)
            await asyncio.sleep(0.3)
        took = []

        def close(address, gateway):
            """Five hits at A; how long until ``gateway`` refuses."""
            forwarded = f"X-Forwarded-For: {address}"
            assert a.request("/x", "GET", None, forwarded).status != 429
            for _ in range(5):
                assert a.request("/x", "GET", None, forwarded).status == 429
            began = time.monotonic()
            while (answer := gateway.request("/x", "GET", None, forwarded)).status != 403:
                assert time.monotonic() - began < 10
                time.sleep(0.01)
            took.append(time.monotonic() - began)
            assert answer.json["reason"] == "blocked"
            # A may hear of it a moment after the other.
            while a.request("/x", "GET", None, forwarded).status != 403:
                assert time.monotonic() - began < 10
                time.sleep(0.01)
            other = "X-Forwarded-For: 203.0.113.77"
            assert gateway.request("/x", "GET", None, other).status != 403

        for address in addresses[:3]:
            close(address, b)
        # A gateway that starts now knows them too, as soon as it is ready or a moment later.
        c = gateway("c")
        known = f"X-Forwarded-For: {addresses[0]}"
        await until(lambda: c.request("/x", "GET", None, known).status == 403, 3)
        close(addresses[3], c)
        # Redis comes back without its memory: known blocks hold throughout, new ones work.
        server.kill()
        assert b.request("/x", "GET", None, known).status == 403
        server.start()
        connected = re.compile(r"^nexus_block_list_connected(?:{.*})? 1", re.MULTILINE)
        await until(lambda: all(connected.search(g.metrics()) for g in (a, b, c)), 15)
        count = consumer.log.read_text().count
        while count("rate limit hit by 203.0.114.") == 0:  # the consumer is back, too
            a.request("/x", "GET", None, warm.replace(".113.", ".114."))
            await asyncio.sleep(0.3)
            count = consumer.log.read_text().count
        close(addresses[4], b)
        assert b.request("/x", "GET", None, known).status == 403
        assert max(took) < 1.0, took
    for address in addresses:
        assert f"address {address} blocked for" in (tmp_path / "log").read_text()
