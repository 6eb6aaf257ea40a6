"""Limits beside the address limit: by client, header, route; over workers; over gateways."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from gateway_process import BACKENDS, GatewayProcess, Response, check_backend
from gateway_upstream import Upstream
from support.waiting import eventually

SECRET = "s" * 40


def limit(name: str, capacity: int, *key: str, **more: Any) -> dict[str, Any]:
    # Slow enough that no token grows within a test.
    rule = {"name": name, "capacity": capacity, "refill_per_second": 0.001}
    return rule | ({"key": list(key)} if key else {}) | more


def route(path: str, *limits: dict[str, Any], auth: bool = False) -> dict[str, Any]:
    return {"path": path, "auth": {"enabled": auth}, "rate_limits": list(limits)}


@pytest.fixture(scope="module", params=BACKENDS)
def limited(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    upstream_a: Upstream,
) -> Iterator[GatewayProcess]:
    check_backend(request.param)
    process = GatewayProcess(
        tmp_path_factory.mktemp(f"limits-{request.param}"),
        request.param,
        [upstream_a.url],
        {
            "workers": 2,
            "auth": {
                "jwt_secret": SECRET,
                "clients": [
                    {"client_id": name, "client_secret": "secret-" + name}
                    for name in ("one", "two")
                ],
            },
            "trusted_proxies": ["127.0.0.0/8"],
            "networks": {
                "deny": ["192.0.2.0/24", "2001:db8::/32"],
                "allow": ["192.0.2.7/32", "0.0.0.0/0", "::/0"],
            },
            "routes": [
                route("/client/*", limit("client", 2, "client"), auth=True),
                route("/header/*", limit("header", 2, "header:X-Api-Key")),
                route("/pair/*", limit("pair", 1, "header:x-a", "header:x-b")),
                route("/address/*", limit("address", 2, "address")),
                route("/route/*", limit("route", 3, "route")),
                route("/two/*", limit("wide", 5, "route"), limit("narrow", 2, "header:x-who")),
                route("/shadow/*", limit("shadow", 1, "route", shadow=True)),
                route("/exact/*", limit("exact", 50, "route")),
            ],
        },
    ).start()
    yield process
    assert process.stop() == 0, process.output()
    assert "Traceback" not in process.output(), process.output()


def statuses(gateway: GatewayProcess, path: str, count: int, *fields: str) -> list[int]:
    return [gateway.request(path, "GET", None, *fields).status for _ in range(count)]


def token(gateway: GatewayProcess, client: str) -> str:
    body = f'{{"client_id": "{client}", "client_secret": "secret-{client}"}}'.encode()
    return str(gateway.request("/auth/token", "POST", body).json["access_token"])


def test_each_client_has_a_bucket_of_its_own(limited: GatewayProcess) -> None:
    one, two = (f"Authorization: Bearer {token(limited, name)}" for name in ("one", "two"))
    assert statuses(limited, "/client/text", 1) == [401], "who is not known takes no token"
    assert statuses(limited, "/client/text", 3, one) == [200, 200, 429]
    assert statuses(limited, "/client/text", 1, two) == [200]


def test_by_header_and_by_address_where_it_is_missing(limited: GatewayProcess) -> None:
    assert statuses(limited, "/header/text", 3, "X-Api-Key: k1") == [200, 200, 429]
    assert statuses(limited, "/header/text", 1, "x-api-key: k2") == [200]
    # Without the header nobody escapes.
    assert statuses(limited, "/header/text", 3) == [200, 200, 429]
    assert statuses(limited, "/header/text", 1, "X-Forwarded-For: 198.51.100.1") == [200]


def test_combinations_cannot_be_confused(limited: GatewayProcess) -> None:
    for a, b in (("x", "yz"), ("xy", "z"), ("", "xyz")):
        fields = (f"x-a: {a}", f"x-b: {b}")
        assert statuses(limited, "/pair/text", 2, *fields) == [200, 429], fields


def test_ipv6_counts_by_64(limited: GatewayProcess) -> None:
    path = "/address/text"
    assert statuses(limited, path, 1, "X-Forwarded-For: 2001:4860:1:2::1") == [200]
    assert statuses(limited, path, 2, "X-Forwarded-For: 2001:4860:1:2:ffff::9") == [200, 429]
    assert statuses(limited, path, 1, "X-Forwarded-For: 2001:4860:1:3::1") == [200]


def test_what_a_refusal_says(limited: GatewayProcess) -> None:
    replies = [limited.request("/two/text", "GET", None, "x-who: a") for _ in range(3)]
    assert [reply.status for reply in replies] == [200, 200, 429]
    refused = replies[2]
    assert refused.json["error"] == "Too Many Requests"
    assert refused.json["reason"] == "limit_exceeded"
    assert "narrow" in refused.json["message"]
    assert refused.value("ratelimit") == f'"narrow";r=0;t={refused.value("retry-after")}'
    assert int(refused.value("retry-after") or 0) > 900
    assert refused.value("ratelimit-policy") == '"wide";q=5;w=5000, "narrow";q=2;w=2000'
    # Three of the wide limit's tokens are gone.
    others = [limited.request("/two/text", "GET", None, f"x-who: b{i}").status for i in range(3)]
    assert others == [200, 200, 429]


def test_shadow_counts_and_admits(limited: GatewayProcess) -> None:
    replies = [limited.request("/shadow/text") for _ in range(3)]
    assert [reply.status for reply in replies] == [200] * 3
    assert [reply.value("x-ratelimit-shadow") for reply in replies] == [None, "shadow", "shadow"]
    assert 'nexus_rate_limit_shadow_total{limit="shadow"} 2' in limited.metrics()


def in_parallel(call: Callable[[], Response], count: int, threads: int = 8) -> Counter[int]:
    seen: Counter[int] = Counter()
    lock = threading.Lock()

    def work() -> None:
        for _ in range(count // threads):
            status = call().status
            with lock:
                seen[status] += 1

    running = [threading.Thread(target=work) for _ in range(threads)]
    for thread in running:
        thread.start()
    for thread in running:
        thread.join()
    return seen


def test_two_workers_admit_no_more_than_one(limited: GatewayProcess) -> None:
    seen = in_parallel(lambda: limited.request("/exact/text"), 120)
    assert seen == {200: 50, 429: 70}
    assert 'nexus_rate_limit_refusals_total{limit="exact"} 70' in limited.metrics()


def test_networks_come_first(limited: GatewayProcess) -> None:
    for ip, status in (
        ("192.0.2.8", 403),
        ("192.0.2.7", 200),
        ("198.51.100.9", 200),
        ("2001:db8::1", 403),
        ("::ffff:192.0.2.8", 403),
    ):
        reply = limited.request("/route/text", "GET", None, f"X-Forwarded-For: {ip}")
        assert reply.status == status, ip
        if status == 403:
            assert reply.json["reason"] == "denied_network"
    # The refused ones took no token: two were served, one is left.
    assert statuses(limited, "/route/text", 2) == [200, 429]


# ------------------------------------------------------------------------- over several gateways


def cluster(name: str, capacity: int, **more: Any) -> dict[str, Any]:
    return limit(name, capacity, "route", scope="cluster", **more)


def test_limits_of_a_cluster(
    start_gateway: Callable[..., GatewayProcess],
    redis_factory: Callable[..., Any],
    upstream_a: Upstream,
) -> None:
    server = redis_factory()
    setup = {
        "redis": {"url": server.url},
        "block_list": {"enabled": False},
        "cluster_limits": {"timeout_ms": 1000, "retry_ms": 50},
        "routes": [
            route("/exact/*", cluster("exact", 40)),
            route("/leased/*", cluster("leased", 60, lease=5, lease_ms=60_000)),
            route("/body/*", cluster("body", 5)),
            route("/open/*", cluster("open", 1, on_redis_failure="open")),
            route("/closed/*", cluster("closed", 10, on_redis_failure="closed")),
            route("/local/*", cluster("local", 2, on_redis_failure="local")),
        ],
    }
    gateways = [start_gateway([upstream_a.url], workers=n, **setup) for n in (2, 1)]

    def both(path: str, count: int) -> Counter[int]:
        found: list[Counter[int]] = []
        running = [
            threading.Thread(
                target=lambda g=gateway: found.append(in_parallel(lambda: g.request(path), count))
            )
            for gateway in gateways
        ]
        for thread in running:
            thread.start()
        for thread in running:
            thread.join()
        return sum(found, Counter())

    assert both("/exact/text", 48) == {200: 40, 429: 56}
    # Leases move admissions in time, they make none: the bucket gave out 60 in all. What is left
    # of a lease in one worker when another asks in vain can stay unused.
    seen = both("/leased/text", 80)
    assert 60 - 3 * 4 <= seen[200] <= 60, seen
    assert seen[200] + seen[429] == 160
    keys = server_keys(server)
    assert any(key.startswith(b"nexus:limit:exact:") for key in keys)

    # A request with a body, and one behind it on the same connection, while Redis is asked.
    client = gateways[0].client()
    post = b"POST /body/echo HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello"
    client.send(post + b"GET /body/text HTTP/1.1\r\nHost: a\r\n\r\n")
    assert (client.read().body[-6:], client.read().status) == (b"|hello", 200)
    client.send(b"POST /body/echo HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhe")
    time.sleep(0.05)
    client.send(b"llo")
    assert client.read().body.endswith(b"|hello")
    client.close()

    server.kill()
    gateway = gateways[0]
    assert statuses(gateway, "/open/text", 4) == [200] * 4
    refused = gateway.request("/closed/text")
    assert (refused.status, refused.json["reason"]) == (503, "limit_unavailable")
    assert refused.value("retry-after") == "1"
    assert statuses(gateway, "/local/text", 3) == [200, 200, 429]
    assert 'nexus_rate_limit_cluster_total{result="failed"}' in gateway.metrics()

    server.start()
    end = time.monotonic() + 5
    while gateway.request("/closed/text").status != 200:
        assert time.monotonic() < end
        time.sleep(0.05)
    assert eventually(lambda: "Redis is back" in gateway.output())


def server_keys(server: Any) -> list[bytes]:
    import redis

    with redis.Redis.from_url(server.url) as client:
        return list(client.keys("*"))


def test_a_silent_redis_holds_nobody_for_long(
    start_gateway: Callable[..., GatewayProcess],
    redis_factory: Callable[..., Any],
    upstream_a: Upstream,
) -> None:
    import signal

    server = redis_factory()
    gateway = start_gateway(
        [upstream_a.url],
        redis={"url": server.url},
        block_list={"enabled": False},
        cluster_limits={"timeout_ms": 200, "retry_ms": 60_000},
        routes=[route("/open/*", cluster("open", 100, on_redis_failure="open"))],
    )
    assert gateway.request("/open/text").status == 200
    server.signal(signal.SIGSTOP)
    try:
        start = time.monotonic()
        # The client that leaves while its request is held harms nobody.
        leaver = gateway.client()
        leaver.send(b"GET /open/text HTTP/1.1\r\nHost: a\r\n\r\n")
        leaver.close()
        assert statuses(gateway, "/open/text", 5) == [200] * 5
        assert time.monotonic() - start < 3
    finally:
        server.signal(signal.SIGCONT)


@pytest.mark.parametrize(
    ("overrides", "where"),
    [
        ({"rate_limits": [limit("a", 1), limit("a", 1)]}, "rate_limits[1].name"),
        ({"rate_limits": [limit("a", 1, "header:")]}, "rate_limits[0]"),
        ({"rate_limits": [limit("a", 1, "cookie")]}, "rate_limits[0]"),
        ({"rate_limits": [limit("a", 1, scope="cluster", lease=2)]}, "rate_limits[0]"),
        ({"networks": {"deny": ["10.0.0.1/8"]}}, "networks.deny[0]"),
        ({"networks": {"deny": ["::/0"], "allow": ["::/0"]}}, "networks.deny[0]"),
    ],
)
def test_mistakes_are_named(tmp_path: Path, overrides: dict[str, Any], where: str) -> None:
    import subprocess
    import sys

    import yaml

    (tmp_path / "services.json").write_text('{"services": [{"url": "http://127.0.0.1:1"}]}')
    config = {
        "services_file": str(tmp_path / "services.json"),
        "auth": {"enabled": False},
        **overrides,
    }
    (tmp_path / "g.yaml").write_text(yaml.safe_dump(config))
    done = subprocess.run(
        [sys.executable, "-m", "nexus.gateway", "--config", str(tmp_path / "g.yaml"), "--check"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2, done.stderr
    assert where in done.stderr
