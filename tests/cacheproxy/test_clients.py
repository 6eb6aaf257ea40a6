"""Unchanged clients: redis-py asyncio, redis-cli, redis-benchmark; several workers."""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import Callable
from urllib.request import urlopen

import pytest
import redis.asyncio
from support.requirements import tool

from .proxy import Proxy, eventually


@pytest.mark.parametrize("protocol", [2, 3])
async def test_redis_py_asyncio(proxy: Proxy, protocol: int) -> None:
    client = redis.asyncio.Redis(
        host=proxy.host, port=proxy.port, protocol=protocol, decode_responses=True
    )
    async with client:
        await asyncio.gather(*(client.set(f"k{i}", i) for i in range(60)))
        values = await asyncio.gather(*(client.get(f"k{i}") for i in range(60)))
        assert values == [str(i) for i in range(60)]
        async with client.pipeline(transaction=True) as pipe:
            assert await pipe.incr("n").incr("n").execute() == [1, 2]
        async with client.lock("lock", timeout=5):
            assert await client.exists("lock") == 1
        assert await client.exists("lock") == 0
        script = client.register_script("return {KEYS[1], ARGV[1]}")
        assert await script(keys=["a"], args=["b"]) == ["a", "b"]
        async with client.pubsub() as subscriber:
            await subscriber.psubscribe("ch:*")
            assert (await subscriber.get_message(timeout=5))["type"] == "psubscribe"
            await client.publish("ch:1", "hello")
            assert (await subscriber.get_message(timeout=5))["data"] == "hello"
        pops = [asyncio.create_task(client.blpop(f"q{i}", timeout=5)) for i in range(10)]
        await asyncio.sleep(0.1)
        await asyncio.gather(*(client.rpush(f"q{i}", i) for i in range(10)))
        assert [(await pop)[1] for pop in pops] == [str(i) for i in range(10)]


def test_redis_cli(proxy: Proxy) -> None:
    script = "SET a 1\nMULTI\nINCR a\nEXEC\nHELLO 3\nHSET h f v\nHGETALL h\nSELECT 1\nGET a\n"
    done = subprocess.run(
        [tool("redis-cli"), "-p", str(proxy.port)],
        input=script,
        capture_output=True,
        text=True,
        timeout=20,
        check=True,
    )
    lines = done.stdout.split("\n")
    assert lines[:4] == ["OK", "OK", "QUEUED", "2"]
    assert "f v" in lines
    assert not done.stderr


def test_redis_benchmark(proxy: Proxy) -> None:
    command = [tool("redis-benchmark"), "-p", str(proxy.port), "-q", "-n", "400", "-c", "10"]
    done = subprocess.run(
        [*command, "-P", "4"], capture_output=True, text=True, timeout=60, check=True
    )
    assert "MSET (10 keys)" in done.stdout
    assert "Error" not in done.stdout + done.stderr


def test_workers_count_together(proxy_factory: Callable[..., Proxy], redis_server: object) -> None:
    proxy = proxy_factory(
        redis_server.url,  # type: ignore[attr-defined]
        "--workers",
        "2",
        NEXUS_CACHEPROXY_LIMITS__MAX_CLIENTS="30",
    )
    raws = [proxy.raw() for _ in range(30)]
    assert [raw.ask("PING") for raw in raws] == [b"+PONG\r\n"] * 30
    with proxy.raw() as extra:
        assert extra.rest() == b"-ERR max number of clients reached\r\n"
    assert len({raw.ask("NEXUS", "STATS").split(b"pid:")[1].split(b"\r")[0] for raw in raws}) == 2
    for raw in raws:
        raw.close()

    def metrics() -> str:
        with urlopen(f"http://127.0.0.1:{proxy.admin_port}/metrics") as answer:
            return str(answer.read().decode())

    wanted = 'nexus_cache_commands_total{command="connection",outcome="forwarded"} 30.0'
    assert eventually(lambda: wanted in metrics())
    assert 'nexus_cache_clients_closed_total{reason="max_clients"} 1.0' in metrics()
