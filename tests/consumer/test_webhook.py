"""The webhook against a real HTTP server that fails in the ways of real ones."""

import asyncio
import contextlib
import json

import pytest
from aiohttp import web

from nexus.consumer.offsets import PartitionProgress
from nexus.consumer.settings import (
    ActionSettings,
    ConsumerSettings,
    FailureSettings,
    WebhookSettings,
)
from nexus.consumer.webhook import Deed, Webhook
from nexus.wire.actions import Action


def action(number):
    return Action(
        id=f"e-{number}:block",
        type="address.blocked",
        event_id=f"e-{number}",
        emitted_at="2026-11-21T10:00:00.000Z",
        decided_at="2026-11-21T10:00:01.000Z",
        subject="192.0.2.7",
    )


class Server:
    """Answers as ``script`` says, one entry for each call, then 204."""

    def __init__(self):
        self.script = []
        self.calls = []
        self.url = ""

    async def handle(self, request):
        self.calls.append((request.headers["Idempotency-Key"], await request.json()))
        what = self.script.pop(0) if self.script else 204
        if what == "hang":
            await asyncio.sleep(5)
        if what == "reset":
            request.transport.abort()
        if what == "redirect":
            raise web.HTTPFound(f"{self.url}/elsewhere")
        return web.Response(status=what if isinstance(what, int) else 200)


@pytest.fixture
async def server():
    found = Server()
    app = web.Application()
    app.router.add_post("/{path:.*}", found.handle)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    port = site._server.sockets[0].getsockname()[1]
    found.url = f"http://127.0.0.1:{port}/hook"
    yield found
    await runner.cleanup()


@contextlib.asynccontextmanager
async def webhook_to(url, metrics, attempts=4):
    hook = Webhook(
        ConsumerSettings(
            actions=ActionSettings(
                webhook=WebhookSettings(url=url, timeout_ms=150, max_attempts=attempts)
            ),
            failure=FailureSettings(base_ms=1, cap_ms=10),
        ),
        metrics,
    )
    try:
        yield hook
    finally:
        await hook.close()


def in_progress(offset):
    progress = PartitionProgress()
    progress.received(offset)
    return progress


def counts(metrics):
    return {
        result: metrics.counter("nexus_consumer_webhook_total", result=result).value
        for result in ("delivered", "failed", "given_up")
    }


@pytest.mark.parametrize("fault", [500, 503, 429, 404, "hang", "reset", "redirect"])
async def test_every_fault_is_tried_again_with_the_same_id(server, metrics, fault):
    server.script = [fault, fault]
    progress = in_progress(7)
    async with webhook_to(server.url, metrics) as hook:
        await hook.run(Deed(action(1), "t", 0, 7), progress)
    assert [key for key, _ in server.calls] == ["e-1:block"] * 3
    assert all(body == json.loads(json.dumps(server.calls[0][1])) for _, body in server.calls)
    assert server.calls[0][1]["type"] == "address.blocked"
    assert counts(metrics) == {"delivered": 1, "failed": 2, "given_up": 0}
    assert progress.committable == 8


async def test_what_never_succeeds_is_given_up_said_and_holds_nothing_back(server, metrics, caplog):
    server.script = [500] * 99
    progress = in_progress(7)
    async with webhook_to(server.url, metrics, attempts=3) as hook:
        await hook.run(Deed(action(1), "t", 0, 7), progress)
    assert len(server.calls) == 3
    assert counts(metrics) == {"delivered": 0, "failed": 3, "given_up": 1}
    assert progress.committable == 8
    [line] = [r for r in caplog.records if r.levelname == "ERROR"]
    assert (line.getMessage(), line.action_id) == ("webhook given up", "e-1:block")


async def test_nobody_listening_is_a_fault_like_any_other(metrics):
    progress = in_progress(0)
    async with webhook_to("http://127.0.0.1:1/", metrics, attempts=2) as hook:
        await hook.run(Deed(action(1), "t", 0, 0), progress)
    assert counts(metrics) == {"delivered": 0, "failed": 2, "given_up": 1}


async def test_a_partition_that_was_taken_away_is_left_to_its_new_owner(server, metrics):
    server.script = [500] * 99
    progress = in_progress(3)

    async def revoke():
        while not server.calls:
            await asyncio.sleep(0.001)
        progress.revoked = True

    async with webhook_to(server.url, metrics, attempts=1000) as hook:
        await asyncio.gather(hook.run(Deed(action(1), "t", 0, 3), progress), revoke())
    assert len(server.calls) < 1000
    assert progress.committable is None
