"""What is compared with what: the peers of each scenario, what is behind them, and the loads.

Within a scenario all peers play the same role with the same features; ``reference`` is the one
that the ratios are taken against. Configurations are in ``bench/peers/``.

In commands and configurations ``@PORT@`` is the port to listen on, ``@SPARE@`` another free port,
``@CONFIG@`` the written configuration, ``@DIR@`` a directory of its own; ``@REDIS@``, ``@WEB_A@``,
``@WEB_B@``, ``@OTLP@`` and ``@KAFKA@`` are what is behind the proxies.
"""

from __future__ import annotations

import base64
import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import jwt

from bench.loads import (
    ClosedLoad,
    OpenLoad,
    RedisLoad,
    StreamLoad,
    WrkLoad,
    http_get,
    transactions,
    zipf_mix,
)

__all__ = ["SCENARIOS", "SECRET", "Peer", "Scenario", "jwks"]

#: Signs the tokens of the scenarios with authentication; the peers verify the same ones.
SECRET: Final = "bench-secret-of-forty-bytes-not-for-use-"  # noqa: S105  (loopback only)
_PATH: Final = "/api/products"


Loads = tuple[ClosedLoad | OpenLoad, ...]


@dataclass(frozen=True)
class Peer:
    """A process to measure: the tool it needs, its configuration files, its command line."""

    name: str
    tool: str
    config: str
    command: tuple[str, ...]
    extra: tuple[str, ...] = ()
    #: It must refuse every request of the load; the others, none.
    refuses: bool = False
    #: Text behind that of the configuration file.
    appended: str = ""


@dataclass(frozen=True)
class Scenario:
    """Peers with the same features, and the loads that they are put under in turn."""

    name: str
    title: str
    backend: Peer
    #: Placeholders of the ports that the backend listens on; the first is loaded directly.
    ports: tuple[str, ...]
    peers: tuple[Peer, ...]
    #: Called at the start: token lifetimes begin then.
    loads: Callable[[], Loads]
    reference: str
    needs: tuple[str, ...]
    kafka: bool = False

    @property
    def redis(self) -> bool:
        """Whether the peers speak RESP; else HTTP."""
        return "REDIS" in self.ports


def jwks() -> str:
    """The key set that holds :data:`SECRET` (RFC 7517 §5, RFC 7518 §6.4)."""
    key = base64.urlsafe_b64encode(SECRET.encode()).rstrip(b"=").decode()
    return json.dumps({"keys": [{"kty": "oct", "alg": "HS256", "kid": "bench", "k": key}]})


def _bearer() -> dict[str, str]:
    claims = {"iss": "nexus", "client_id": "bench", "exp": int(time.time()) + 86_400}
    token = jwt.encode(claims, SECRET, "HS256", headers={"kid": "bench"})
    return {"Authorization": f"Bearer {token}"}


_ENVOY = ("-c", "@CONFIG@", "--concurrency", "1", "--disable-hot-restart", "--log-level", "error")
_NGINX = ("-p", "@DIR@", "-c", "@CONFIG@")
_LISTEN = ("--port", "@PORT@", "--admin-port", "@SPARE@", "--log-level", "warning")
_REDIS = Peer(
    "redis, direct",
    "redis-server",
    "",
    ("--port", "@REDIS@", "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"),
)
_UPSTREAM = Peer("nginx upstream, direct", "nginx", "nginx-upstream.conf", _NGINX)
_WEB = ("WEB_A", "WEB_B", "OTLP")


def _cacheproxy(name: str, *flags: str, policy: str = "") -> Peer:
    command = ("-m", "nexus.cacheproxy", "--redis", "redis://127.0.0.1:@REDIS@", *_LISTEN)
    with_policy = ("--policy", "@CONFIG@") if policy else ()
    return Peer(name, sys.executable, policy, (*command, *with_policy, *flags))


def _gateway(name: str, config: str, *flags: str, refuses: bool = False) -> Peer:
    command = ("-m", "nexus.gateway", "--config", "@CONFIG@", "--host", "127.0.0.1", *_LISTEN)
    return Peer(name, sys.executable, config, (*command, *flags), ("services.json",), refuses)


def _redis_loads() -> Loads:
    return (
        *(RedisLoad(command, depth) for depth in (1, 16) for command in ("get", "set")),
        RedisLoad("get", 1, 4096),
        RedisLoad("set", 1, 4096),
        StreamLoad("Zipf 1.1, 95 % GET", zipf_mix(0.05)),
        OpenLoad("open loop, GET, 10 000/s", zipf_mix(0.0), 10_000, http=False),
    )


def _cached_loads() -> Loads:
    return (
        RedisLoad("get", 1),
        RedisLoad("get", 16),
        StreamLoad("Zipf 1.1, 95 % GET", zipf_mix(0.05)),
        OpenLoad("open loop, GET, 10 000/s", zipf_mix(0.0), 10_000, http=False),
    )


def _http_loads() -> Loads:
    return (
        WrkLoad("64 connections", _PATH),
        WrkLoad("1 connection", _PATH, connections=1),
        WrkLoad("512 connections", _PATH, connections=512),
        WrkLoad("POST 4 KiB", _PATH, method="POST", body_bytes=4096),
        WrkLoad("1 MiB download", "/api/big", connections=16),
        OpenLoad("open loop, 2 000/s", http_get(_PATH), 2_000, http=True),
    )


def _full_loads() -> Loads:
    return (
        WrkLoad("64 connections", _PATH, headers=_bearer()),
        OpenLoad("open loop, 1 000/s", http_get(_PATH, _bearer()), 1_000, http=True),
    )


SCENARIOS: Final = {
    scenario.name: scenario
    for scenario in (
        Scenario(
            "redis",
            "Cacheproxy, pass-through",
            _REDIS,
            ("REDIS",),
            (
                Peer(
                    "twemproxy", "nutcracker", "twemproxy.yml", ("-c", "@CONFIG@", "-s", "@SPARE@")
                ),
                Peer("envoy", "envoy", "envoy-redis.yaml", _ENVOY),
                Peer("haproxy-tcp", "haproxy", "haproxy-redis.cfg", ("-f", "@CONFIG@", "-db")),
                _cacheproxy("nexus"),
            ),
            _redis_loads,
            "twemproxy",
            ("redis-server", "redis-benchmark"),
        ),
        Scenario(
            "redis-transactions",
            "Cacheproxy, MULTI … EXEC (twemproxy and Envoy refuse it)",
            _REDIS,
            ("REDIS",),
            (
                Peer("haproxy-tcp", "haproxy", "haproxy-redis.cfg", ("-f", "@CONFIG@", "-db")),
                _cacheproxy("nexus"),
            ),
            lambda: (StreamLoad("MULTI, SET, GET, EXEC", transactions()),),
            "haproxy-tcp",
            ("redis-server",),
        ),
        Scenario(
            "redis-cached",
            "Cacheproxy, near-cache",
            _REDIS,
            ("REDIS",),
            (
                _cacheproxy("nexus, no policy"),
                _cacheproxy("nexus, policy without a hit", policy="policy-no-hit.yaml"),
                _cacheproxy("nexus, near-cache", policy="policy-always.yaml"),
            ),
            _cached_loads,
            "redis, direct",
            ("redis-server", "redis-benchmark"),
        ),
        Scenario(
            "redis-workers",
            "Cacheproxy, near-cache, a second worker; the client has two threads, or a worker is "
            "idle and is woken for every few commands",
            _REDIS,
            ("REDIS",),
            (
                _cacheproxy("nexus, 1 worker", policy="policy-always.yaml"),
                _cacheproxy("nexus, 2 workers", "--workers", "2", policy="policy-always.yaml"),
            ),
            lambda: (RedisLoad("get", 1, threads=2), RedisLoad("get", 16, threads=2)),
            "nexus, 1 worker",
            ("redis-server", "redis-benchmark"),
        ),
        Scenario(
            "http",
            "Gateway, bare",
            _UPSTREAM,
            _WEB,
            (
                Peer("nginx", "nginx", "nginx-proxy.conf", _NGINX),
                Peer("haproxy", "haproxy", "haproxy-http.cfg", ("-f", "@CONFIG@", "-db")),
                Peer("envoy", "envoy", "envoy-http.yaml", _ENVOY),
                _gateway("nexus", "nexus-gateway-bare.yaml"),
            ),
            _http_loads,
            "nginx",
            ("nginx", "wrk"),
        ),
        Scenario(
            "http-full",
            "Gateway, everything on: rate limit, JWT, breaker, retries, JSON access log, "
            "100 % OTLP tracing (nexus besides: envelope, metrics, Kafka events)",
            _UPSTREAM,
            _WEB,
            (
                Peer("envoy", "envoy", "envoy-full.yaml", _ENVOY),
                _gateway("nexus", "nexus-gateway-full.yaml"),
            ),
            _full_loads,
            "envoy",
            ("nginx", "wrk"),
            kafka=True,
        ),
        Scenario(
            "http-features",
            "Gateway, what is on beside the bare path: every policy; metrics, access log and 1 % "
            "of traces; every event to Kafka; a second worker; everything",
            _UPSTREAM,
            _WEB,
            (
                _gateway("nexus, bare", "nexus-gateway-bare.yaml"),
                _gateway("nexus, policies", "nexus-gateway-policies.yaml"),
                _gateway("nexus, observed", "nexus-gateway-observed.yaml"),
                _gateway("nexus, events", "nexus-gateway-events.yaml"),
                _gateway("nexus, 2 workers", "nexus-gateway-bare.yaml", "--workers", "2"),
                _gateway("nexus, everything", "nexus-gateway-full.yaml"),
            ),
            # All get the same bytes, a token among them.
            lambda: (WrkLoad("64 connections", _PATH, headers=_bearer()),),
            "nexus, bare",
            ("nginx", "wrk"),
            kafka=True,
        ),
        Scenario(
            "http-rejected",
            "Gateway, refused requests (nginx: proxied as ever)",
            _UPSTREAM,
            _WEB,
            (
                Peer("nginx", "nginx", "nginx-proxy.conf", _NGINX),
                _gateway("nexus, 401", "nexus-gateway-401.yaml", refuses=True),
                _gateway("nexus, 429", "nexus-gateway-429.yaml", refuses=True),
            ),
            lambda: (WrkLoad("64 connections", _PATH),),
            "nginx",
            ("nginx", "wrk"),
        ),
    )
}
