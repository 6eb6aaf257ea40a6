"""The admin listener's actions: over all workers, by whoever may."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import psutil
import pytest
from gateway_process import BACKENDS, GatewayProcess, check_backend
from gateway_upstream import Upstream
from support.waiting import eventually

#: Of the gateway that has one.
TOKEN = "let-me-in"


def call(
    gateway: GatewayProcess, path: str, body: Any = None, **fields: str
) -> tuple[int, dict[str, Any]]:
    headers = {"Content-Type": "application/json"} | {
        name.replace("_", "-"): value for name, value in fields.items()
    }
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(f"http://127.0.0.1:{gateway.admin_port}{path}", data, headers)
    try:
        with urllib.request.urlopen(request, timeout=5) as reply:  # noqa: S310
            return reply.status, json.load(reply)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


@pytest.fixture(scope="module", params=BACKENDS)
def gateway(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    upstream_a: Upstream,
    upstream_b: Upstream,
) -> Iterator[GatewayProcess]:
    check_backend(request.param)
    process = GatewayProcess(
        tmp_path_factory.mktemp(f"admin-{request.param}"),
        request.param,
        [upstream_a.url, upstream_b.url],
        {
            "workers": 2,
            "breaker": {"enabled": True, "timeout_ms": 700},
            "balancer": {"algorithm": "weighted"},
            "rate_limits": [{"name": "all", "capacity": 100000, "refill_per_second": 100000}],
        },
    ).start()
    yield process
    assert process.stop() == 0, process.output()
    assert "Traceback" not in process.output(), process.output()


def served(gateway: GatewayProcess, count: int = 12) -> Counter[str]:
    """Who answers; each request on a connection of its own reaches any worker."""
    return Counter(
        gateway.request("/api/json").value("x-upstream") or "nobody" for _ in range(count)
    )


def settle() -> None:
    time.sleep(0.15)  # three ticks


def test_draining_holds_for_all_workers_and_outlives_them(
    gateway: GatewayProcess, upstream_a: Upstream
) -> None:
    status, shown = call(gateway, "/admin/upstreams/drain", {"url": upstream_a.url})
    assert (status, shown["drained"], shown["inRotation"]) == (200, True, False)
    settle()
    assert served(gateway).keys() == {"b"}
    workers = psutil.Process(gateway.process.pid).children()
    os.kill(workers[0].pid, signal.SIGKILL)
    end = time.monotonic() + 5
    while True:
        now = {p.pid for p in psutil.Process(gateway.process.pid).children()}
        if len(now) == 2 and workers[0].pid not in now and gateway.request("/ready").status == 200:
            break
        assert time.monotonic() < end
        time.sleep(0.05)
    settle()
    assert served(gateway).keys() == {"b"}, "the new worker obeys too"
    assert call(gateway, "/admin/upstreams/enable", {"url": upstream_a.url})[0] == 200
    settle()
    assert served(gateway).keys() == {"a", "b"}
    drained = '"action":"upstreams/drain"'
    assert eventually(lambda: drained in gateway.output().replace(": ", ":"))


def test_weights(gateway: GatewayProcess, upstream_a: Upstream) -> None:
    assert call(gateway, "/admin/upstreams/weight", {"url": upstream_a.url, "weight": 5})[0] == 200
    settle()
    seen = served(gateway, 60)
    # Each worker walks its own circle of six turns.
    assert 40 <= seen["a"] <= 56, seen
    assert call(gateway, "/admin/upstreams/weight", {"url": upstream_a.url, "weight": 0})[0] == 200
    settle()
    assert 20 <= served(gateway, 60)["a"] <= 40


def test_breakers_by_hand(gateway: GatewayProcess, upstream_a: Upstream) -> None:
    url = upstream_a.url
    assert call(gateway, "/admin/breakers/open", {"url": url})[0] == 200
    assert served(gateway).keys() == {"b"}
    shown = call(gateway, "/admin/state")[1]["breakers"][url]
    assert (shown["state"], shown["held"], shown["retryInMs"]) == ("open", True, 0)
    assert call(gateway, "/admin/breakers/close", {"url": url})[0] == 200
    assert served(gateway).keys() == {"a", "b"}


def test_state(gateway: GatewayProcess, upstream_a: Upstream) -> None:
    status, state = call(gateway, "/admin/state")
    assert status == 200
    assert [worker["state"] for worker in state["workers"]] == ["ready", "ready"]
    assert next(one["url"] for one in state["upstreams"]) == upstream_a.url
    assert state["limits"]["all"][0]["name"] == "all"
    assert state["groups"]["default"]["panic"] is False


@pytest.mark.parametrize(
    ("path", "body", "status", "words"),
    [
        ("/admin/upstreams/drain", {"url": "http://x"}, 404, "known: http://127.0.0.1"),
        ("/admin/upstreams/drain", {}, 400, "expected"),
        ("/admin/upstreams/drain", [], 400, "expected"),
        ("/admin/upstreams/weight", {"weight": -1}, 400, "from 0 to 65535"),
        ("/admin/upstreams/weight", {"weight": True}, 400, "from 0 to 65535"),
    ],
)
def test_mistakes(
    gateway: GatewayProcess,
    upstream_a: Upstream,
    path: str,
    body: Any,
    status: int,
    words: str,
) -> None:
    if "weight" in path:
        body = {"url": upstream_a.url, **body}
    got, shown = call(gateway, path, body)
    assert (got, words in shown["error"]) == (status, True), shown


def test_web_pages_are_refused(gateway: GatewayProcess) -> None:
    assert call(gateway, "/admin/state", Origin="https://evil.example")[0] == 403
    assert call(gateway, "/admin/state", Host="evil.example:3900")[0] == 403
    body = {"url": "http://x"}
    assert call(gateway, "/admin/upstreams/drain", body, Content_Type="text/plain")[0] == 415


def test_a_token_and_the_command(
    start_gateway: Callable[..., GatewayProcess], upstream_a: Upstream
) -> None:
    gateway = start_gateway([upstream_a.url], admin={"token": TOKEN})
    assert call(gateway, "/admin/state")[0] == 401
    assert call(gateway, "/admin/state", Authorization="Bearer wrong")[0] == 401
    assert call(gateway, "/admin/state", Authorization="Bearer let-me-in")[0] == 200
    assert call(gateway, "/health")[0] == 200

    def command(*words: str, token: str = TOKEN) -> subprocess.CompletedProcess[str]:
        url = f"http://127.0.0.1:{gateway.admin_port}"
        return subprocess.run(
            [sys.executable, "-m", "nexus", "admin", "--url", url, *words],
            capture_output=True,
            text=True,
            check=False,
            env=os.environ | {"NEXUS_ADMIN_TOKEN": token},
        )

    done = command("drain", upstream_a.url)
    assert (done.returncode, json.loads(done.stdout)["drained"]) == (0, True)
    settle()
    assert gateway.request("/api/json").json["reason"] == "no_healthy_upstream"
    assert command("enable", upstream_a.url).returncode == 0
    refused = command("state", token="x")
    assert (refused.returncode, "401" in refused.stderr) == (1, True)
    assert "let-me-in" not in gateway.output()


def test_elsewhere_only_with_a_token(
    start_gateway: Callable[..., GatewayProcess], upstream_a: Upstream
) -> None:
    gateway = start_gateway([upstream_a.url], admin_host="0.0.0.0")
    status, shown = call(gateway, "/admin/state")
    assert (status, "set admin.token" in shown["error"]) == (403, True)
