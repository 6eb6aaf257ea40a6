"""The demo upstream: what it answers, and that its switches do what they say."""

from __future__ import annotations

import asyncio
import signal
import sys
from contextlib import asynccontextmanager

import aiohttp
import pytest

from nexus.demo.upstream import CHUNK, MAX_BYTES, serve


@pytest.fixture
async def upstream():
    async with serve(0, "", access_log=False) as (service, port):
        async with aiohttp.ClientSession(f"http://127.0.0.1:{port}") as client:
            client.name = str(port)
            yield client
        assert service.name == str(port)


async def get(client, path, status=200):
    async with client.get(path) as response:
        assert response.status == status, await response.text()
        return await response.json()


async def switch(client, **switches):
    async with client.put("/_switch", json=switches) as response:
        return response.status, await response.json()


async def test_products_name_the_server_that_answered(upstream):
    listing = await get(upstream, "/products")
    assert listing["server"] == upstream.name
    assert all(set(product) == {"id", "name", "price"} for product in listing["products"])
    first = listing["products"][0]
    assert await get(upstream, f"/products/{first['id']}") == {**first, "server": upstream.name}
    assert "no product '77'" in (await get(upstream, "/products/77", 404))["error"]


@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"])
async def test_echo_keeps_method_field_order_and_body(upstream, method):
    headers = [("X-Twice", "1"), ("X-Other", "o"), ("X-Twice", "2")]
    async with upstream.request(method, "/echo?a=1", headers=headers, data=b"hello") as response:
        seen = await response.json()
    assert (seen["method"], seen["target"], seen["body"]) == (method, "/echo?a=1", "hello")
    assert [pair for pair in seen["headers"] if pair[0] in ("X-Twice", "X-Other")] == [
        ["X-Twice", "1"],
        ["X-Other", "o"],
        ["X-Twice", "2"],
    ]


async def test_echo_gives_bytes_that_are_no_text_in_base64(upstream):
    async with upstream.post("/echo", data=b"\xff\x00") as response:
        seen = await response.json()
    assert seen["body_base64"] == "/wA="
    assert "body" not in seen


async def test_fail_answers_exactly_the_share_asked_for(upstream):
    statuses = []
    for _ in range(10):
        async with upstream.get("/fail?status=502&ratio=0.3") as response:
            statuses.append(response.status)
    assert statuses.count(502) == 3
    assert statuses.count(200) == 7


@pytest.mark.parametrize("query", ["status=200", "status=x", "ratio=1.1", "ratio=nan"])
async def test_a_parameter_out_of_range_is_named(upstream, query):
    name = query.partition("=")[0]
    error = (await get(upstream, f"/fail?{query}", 400))["error"]
    assert error.startswith(f"{name}: expected a number from")


async def test_slow_waits(upstream):
    loop = asyncio.get_running_loop()
    start = loop.time()
    assert (await get(upstream, "/slow?ms=50"))["slept_ms"] == 50
    assert loop.time() - start >= 0.045


async def test_stream_sends_events_one_by_one(upstream):
    async with upstream.get("/stream?n=3&interval_ms=1") as response:
        assert response.headers["Content-Type"] == "text/event-stream"
        assert response.headers["Transfer-Encoding"] == "chunked"
        text = await response.text()
    assert [line for line in text.splitlines() if line.startswith("id")] == [
        "id: 0",
        "id: 1",
        "id: 2",
    ]


@pytest.mark.parametrize("size", [0, 1, len(CHUNK), 2 * len(CHUNK) + 7])
async def test_bytes_has_the_length_that_it_announces(upstream, size):
    async with upstream.get(f"/bytes/{size}") as response:
        body = await response.read()
    assert response.headers["Content-Length"] == str(size)
    assert body == (CHUNK * 3)[:size]
    async with upstream.head(f"/bytes/{size}") as response:
        assert response.headers["Content-Length"] == str(size)


async def test_bytes_is_bounded(upstream):
    assert str(MAX_BYTES) in (await get(upstream, f"/bytes/{MAX_BYTES + 1}", 400))["error"]


async def test_hang_ends_with_the_client(upstream):
    with pytest.raises(TimeoutError):
        await upstream.get("/hang", timeout=aiohttp.ClientTimeout(total=0.1))
    assert (await get(upstream, "/health"))["status"] == "ok"


async def test_switches_apply_to_every_path_but_their_own(upstream):
    status, shown = await switch(upstream, fail_ratio=0.5, fail_status=500)
    assert (status, shown) == (
        200,
        {"slow_ms": 0, "fail_ratio": 0.5, "fail_status": 500, "hang": False},
    )
    statuses = []
    for path in ("/health", "/products", "/echo", "/health"):
        async with upstream.get(path) as response:
            statuses.append(response.status)
    assert statuses == [200, 500, 200, 500]
    assert await get(upstream, "/_switch") == shown
    await switch(upstream, fail_ratio=0.0)
    assert (await get(upstream, "/health"))["status"] == "ok"


async def test_switching_hang_off_lets_the_waiting_requests_through(upstream):
    await switch(upstream, hang=True)
    waiting = asyncio.create_task(get(upstream, "/products"))
    await asyncio.sleep(0.05)
    assert not waiting.done()
    await switch(upstream, hang=False)
    assert (await asyncio.wait_for(waiting, 5))["server"] == upstream.name


@pytest.mark.parametrize(
    ("switches", "message"),
    [
        ({"slow": 1}, "unknown field `slow`"),
        ({"fail_ratio": 2}, "$.fail_ratio"),
        ({"fail_status": 200}, "$.fail_status"),
        ({"hang": "yes"}, "$.hang"),
    ],
)
async def test_a_wrong_switch_is_refused_and_changes_nothing(upstream, switches, message):
    status, answer = await switch(upstream, **switches)
    assert status == 400
    assert message in answer["error"]
    assert "the switches are slow_ms, fail_ratio, fail_status, hang" in answer["error"]
    assert (await get(upstream, "/_switch"))["fail_ratio"] == 0


@asynccontextmanager
async def command(*arguments):
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "nexus.demo.upstream",
        *arguments,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_the_command_logs_requests_and_ends_at_a_signal(number):
    async with command("--port", "0", "--name", "a") as process:
        line = (await asyncio.wait_for(process.stdout.readline(), 20)).decode()
        assert line.startswith("listening on http://127.0.0.1:")
        async with aiohttp.ClientSession() as client, client.get(line.split()[-1] + "/health"):
            pass
        assert b"GET /health 200" in await asyncio.wait_for(process.stdout.readline(), 5)
        process.send_signal(number)
        assert await asyncio.wait_for(process.wait(), 10) == 0


async def test_the_command_names_a_busy_port():
    async with serve(0, "a") as (_, port), command("--port", str(port)) as process:
        _, errors = await asyncio.wait_for(process.communicate(), 20)
    assert process.returncode == 1
    assert f"port {port}" in errors.decode()
    assert "--port" in errors.decode()
