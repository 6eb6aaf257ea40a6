"""Limits, authentication, endpoints, records: the gateway with everything on, as users meet it."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time

import pytest
from gateway_process import GatewayProcess
from gateway_upstream import JSON, Upstream
from support.waiting import eventually

SECRET = "0123456789abcdef0123456789abcdef"
AUTH = {
    "enabled": True,
    "jwt_secret": SECRET,
    "clients": [{"client_id": "shop", "client_secret": "correct-horse"}],
}


def token(gateway: GatewayProcess) -> str:
    body = json.dumps({"client_id": "shop", "client_secret": "correct-horse"}).encode()
    response = gateway.request("/auth/token", "POST", body)
    assert response.status == 200, response.body
    assert response.json["token_type"] == "Bearer"
    assert response.json["expires_in"] == 3600
    assert response.value("cache-control") == "no-store"
    return str(response.json["access_token"])


def test_authentication(start_gateway, upstream_a: Upstream) -> None:  # type: ignore[no-untyped-def]
    gateway = start_gateway([upstream_a.url], auth=AUTH)
    seen = len(upstream_a.seen)
    for path in ("/api/json", "/lb-stats", "/cb-stats", "/telemetry", "/nowhere"):
        response = gateway.request(path)
        assert response.status == 401, path
        assert response.json["error"] == "Unauthorized"
        assert response.json["reason"] == "missing_token"
        assert response.value("www-authenticate") == 'Bearer realm="nexus"'
    for path in ("/health", "/ready", "/metrics"):
        assert gateway.request(path).status == 200, path
    assert gateway.request("/api/json", "GET", None, "Authorization: Bearer a.b.c").status == 401
    assert len(upstream_a.seen) == seen, "a rejected request touches nothing later"
    bearer = f"Authorization: Bearer {token(gateway)}"
    assert gateway.request("/api/json", "GET", None, bearer).json["data"] == json.loads(JSON)
    assert upstream_a.seen[-1].values("authorization") == [bearer.split(": ")[1]]
    assert gateway.request("/auth/token", "POST", b"{}").status == 400
    wrong = b'{"client_id": "shop", "client_secret": "wrong-horse"}'
    assert gateway.request("/auth/token", "POST", wrong).status == 401
    assert gateway.request("/auth/token", "POST", bytes(9000)).status == 413
    assert gateway.request("/auth/token").status == 405
    assert gateway.request("/auth/token").value("allow") == "POST"

    def told() -> bool:  # records are handed over in batches, and written every 250 ms
        recent = gateway.request("/telemetry", "GET", None, bearer).json
        return any(r["clientId"] == "shop" and r["url"] == "/api/json" for r in recent)

    assert eventually(told)
    assert SECRET not in gateway.output()
    assert "horse" not in gateway.output()


def test_rate_limit(start_gateway, upstream_a: Upstream) -> None:  # type: ignore[no-untyped-def]
    gateway = start_gateway([upstream_a.url], rate_limit={"enabled": True})
    client = gateway.client()
    statuses = []
    for _ in range(13):
        client.send(b"GET /api/json HTTP/1.1\r\nHost: a\r\n\r\n")
        response = client.read()
        statuses.append(response.status)
    assert statuses[:10] == [200] * 10
    assert statuses[-1] == 429
    assert response.json["error"] == "Too Many Requests"
    assert int(response.value("retry-after") or 0) >= 1
    assert re.fullmatch(r'"default";r=0;t=\d+', response.value("ratelimit") or "")
    assert (response.value("ratelimit-policy") or "").startswith('"default";q=10;w=')
    for path in ("/health", "/metrics", "/ready"):
        assert gateway.request(path).status == 200
    assert 'nexus_rate_limit_hits_total{ip="127.0.0.1"}' in gateway.metrics()


def test_trusted_proxies(start_gateway, upstream_a: Upstream) -> None:  # type: ignore[no-untyped-def]
    gateway = start_gateway(
        [upstream_a.url],
        trusted_proxies=["127.0.0.0/8", "10.0.0.0/8"],
        rate_limit={"enabled": True, "capacity": 2, "refill_per_second": 0.01},
    )

    def ask(chain: str) -> int:
        return gateway.request("/api/echo", "GET", None, f"X-Forwarded-For: {chain}").status

    assert [ask("6.6.6.6, 203.0.113.7, 10.1.1.1") for _ in range(3)] == [200, 200, 429]
    assert ask("203.0.113.8") == 200
    assert upstream_a.seen[-1].values("x-forwarded-for") == ["203.0.113.8, 127.0.0.1"]
    assert [ask(f"2001:db8::{i}") for i in range(3)] == [200, 200, 429], "IPv6 counts by /64"
    assert ask("2001:db8:0:1::1") == 200


def test_endpoints_and_metrics(start_gateway, upstream_a: Upstream) -> None:  # type: ignore[no-untyped-def]
    gateway = start_gateway([upstream_a.url], breaker={"enabled": True, "timeout_ms": 700})
    assert gateway.request("/api/json?secret=1").status == 200
    assert gateway.request("/api/status/404").status == 404
    assert gateway.request("/nowhere").status == 404
    assert gateway.request("/api/json", "BREW").status == 405
    health = gateway.request("/health")
    assert set(health.json) == {"status", "timestamp"}
    assert health.json["status"] == "gateway-ok"
    assert health.value("x-request-id")
    stats = gateway.request("/lb-stats").json
    assert stats["algorithm"] == "round-robin"
    [server] = stats["servers"]
    assert server == {
        "url": upstream_a.url,
        "weight": 1,
        "activeConnections": 0,
        "requestsHandled": 2,
        "healthy": True,
    }
    assert gateway.request("/cb-stats").json[upstream_a.url]["state"] == "closed"
    metrics = gateway.metrics()
    for line in (
        'nexus_http_requests_total{method="GET",route="/api/*",status_code="200"} 1.0',
        'nexus_http_requests_total{method="GET",route="/api/*",status_code="404"} 1.0',
        'nexus_http_requests_total{method="other",route="/api/*",status_code="405"} 1.0',
        'nexus_rejections_total{reason="no_route"} 1.0',
        'nexus_http_request_duration_ms_count{method="GET",route="/api/*",status_code="200"} 1.0',
        f'nexus_upstream_request_duration_ms_count{{method="GET",status_code="200",upstream="{upstream_a.url}"}} 1.0',  # noqa: E501
    ):
        assert line in metrics, line
    assert "secret" not in metrics


def test_access_log_and_trace_ids(start_gateway, upstream_a: Upstream) -> None:  # type: ignore[no-untyped-def]
    gateway = start_gateway(
        [upstream_a.url],
        access_log={"enabled": True},
        tracing={"enabled": True, "otlp_endpoint": "http://127.0.0.1:9"},
    )
    parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    response = gateway.request(
        "/api/json",
        "GET",
        None,
        f"traceparent: {parent}",
        "X-Request-Id: theirs",
        "X-Correlation-Id: c1",
    )
    sent = upstream_a.seen[-1].values("traceparent")
    assert sent[0].split("-")[1] == "0af7651916cd43dd8448eb211c80319c"
    assert sent[0].split("-")[2] != "b7ad6b7169203331"
    assert gateway.request("/nowhere").status == 404
    gateway.stop()
    lines = [json.loads(x) for x in gateway.output().splitlines() if x.startswith("{")]
    line = next(x for x in lines if x.get("request_id") == response.value("x-request-id"))
    assert line["trace_id"] == "0af7651916cd43dd8448eb211c80319c"
    assert line["status"] == 200
    assert line["inbound_request_id"] == "theirs"
    refused = next(x for x in lines if x.get("reason") == "no_route")
    assert refused["status"] == 404


def test_reload_keeps_connections_and_applies_settings(start_gateway, upstream_a: Upstream) -> None:  # type: ignore[no-untyped-def]
    gateway = start_gateway([upstream_a.url])
    client = gateway.client()
    client.send(b"GET /api/json HTTP/1.1\r\nHost: a\r\n\r\n")
    assert "_meta" in client.read().json
    connections = upstream_a.connections
    gateway.write_config(gateway.config | {"envelope": {"enabled": False}})
    gateway.process.send_signal(signal.SIGHUP)
    end = time.monotonic() + 5
    while True:
        client.send(b"GET /api/json HTTP/1.1\r\nHost: a\r\n\r\n")
        if client.read().body == JSON:
            break
        assert time.monotonic() < end
        time.sleep(0.05)
    assert upstream_a.connections == connections, "the pool survived the reload"


def test_drain_finishes_what_is_open(start_gateway, upstream_a: Upstream) -> None:  # type: ignore[no-untyped-def]
    gateway = start_gateway([upstream_a.url])
    client = gateway.client()
    client.send(b"GET /api/sse HTTP/1.1\r\nHost: a\r\n\r\n")
    client.read_head()
    gateway.process.send_signal(signal.SIGTERM)
    while b"0\r\n\r\n" not in client.buffer:
        assert client.more(), "cut off in the middle of a response"
    assert gateway.process.wait(10) == 0


def test_two_workers_share_the_limit(start_gateway, upstream_a: Upstream) -> None:  # type: ignore[no-untyped-def]
    gateway = start_gateway(
        [upstream_a.url],
        workers=2,
        rate_limit={"enabled": True, "capacity": 20, "refill_per_second": 0.01},
    )
    statuses = [gateway.request("/api/text").status for _ in range(30)]
    assert statuses.count(200) == 20
    assert (
        'nexus_http_requests_total{method="GET",route="/api/*",status_code="200"} 20.0'
        in gateway.metrics()
    )


@pytest.mark.parametrize("secret", ["", "short"])
def test_without_a_secret_it_says_how_to_make_one(tmp_path, secret: str) -> None:  # type: ignore[no-untyped-def]
    services = tmp_path / "services.json"
    services.write_text('{"services": [{"url": "http://127.0.0.1:1", "weight": 1}]}')
    config = tmp_path / "gateway.yaml"
    config.write_text(f"services_file: {services}\nauth: {{jwt_secret: '{secret}'}}\n")
    for flags in ([], ["--check"]):
        done = subprocess.run(
            [sys.executable, "-m", "nexus.gateway", "--config", str(config), *flags],
            capture_output=True,
            text=True,
            check=False,
            timeout=20,
        )
        assert done.returncode == 2
        assert "openssl rand -hex 32" in done.stderr
        assert "auth.jwt_secret" in done.stderr
