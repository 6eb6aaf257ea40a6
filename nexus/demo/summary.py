"""The table that ``nexus up`` prints: what runs, where, and how to try it."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from typing import TYPE_CHECKING

from nexus import __version__
from nexus._speedups import BACKEND, MISSING
from nexus.redact import mask_password

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

__all__ = ["Facts", "summary"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What the table says."""

    gateway: str
    proxy: str
    ports: Mapping[str, int]
    redis: str
    #: Path of the server that was started, ``""`` where the user named one.
    redis_server: str
    kafka: str
    own_kafka: bool
    otlp: str
    made_jwt_secret: bool
    client_id: str
    #: Of this run; ``""`` where the user set one, which is then theirs to know.
    client_secret: str
    token: str
    answered_by: str
    run: Path


def summary(facts: Facts) -> list[str]:
    """The lines of the table."""
    return ["", *_what_runs(facts), "", "Try it (the token is good for an hour):", *_try(facts), ""]


def _what_runs(facts: Facts) -> Iterator[str]:
    ports = facts.ports
    why = ", not compiled" if MISSING else ""
    yield f"Nexus {__version__} is up, every path answered ({BACKEND} kernels{why}):"
    yield ""

    def metrics(name: str) -> str:
        return f"metrics http://127.0.0.1:{ports[name + '_admin_port']}/metrics"

    upstreams = f"127.0.0.1:{ports['upstream_a_port']}, 127.0.0.1:{ports['upstream_b_port']}"
    redis = f"{facts.redis_server}, nothing is persisted" if facts.redis_server else "yours"
    kafka = "in-memory development broker, nothing is persisted" if facts.own_kafka else "yours"
    rows = [
        ("gateway", facts.gateway, metrics("gateway")),
        ("cacheproxy", facts.proxy, metrics("cacheproxy")),
        ("consumer", "group nexus-consumer-group", metrics("consumer")),
        ("upstreams", upstreams, f"first answer came from {facts.answered_by}"),
        ("Redis", mask_password(facts.redis), redis),
        ("Kafka", facts.kafka, kafka),
    ]
    if facts.otlp:
        rows.append(("traces", facts.otlp, "OTLP over HTTP"))
    else:
        rows.append(("traces", "off", "nexus up --otlp-endpoint http://127.0.0.1:4318"))
    origin = "made for this run" if facts.made_jwt_secret else "from NEXUS_JWT_SECRET"
    rows.append(("JWT secret", origin, "set NEXUS_JWT_SECRET to keep one over restarts"))
    rows.append(("files", str(facts.run), "configuration of this run"))
    width = max(len(where) for _, where, _ in rows)
    for what, where, note in rows:
        yield f"  {what:<11} {where:<{width}}  {note}"


def _try(facts: Facts) -> Iterator[str]:
    bearer = f"-H 'Authorization: Bearer {facts.token}'"
    api = f"{facts.gateway}/api/products"
    # The user's own secret comes out of the shell's environment, not out of what we print.
    secret = facts.client_secret or "'\"$NEXUS_CLIENT_SECRET\"'"
    body = f'{{"client_id": "{facts.client_id}", "client_secret": "{secret}"}}'
    port = facts.ports["cacheproxy_port"]
    upstream = f"http://127.0.0.1:{facts.ports['upstream_a_port']}"
    yield from _step("a request through the gateway", f"curl -s {bearer} {api}")
    yield from _step(
        "twelve at once: the bucket holds ten, the rest are answered 429",
        f"curl -s -o /dev/null -w '%{{http_code}}\\n' {bearer} '{api}?n=[1-12]'",
    )
    yield from _step("another token", f"curl -s -d '{body}' {facts.gateway}/auth/token")
    if shutil.which("redis-cli"):
        yield from _step("Redis through the cacheproxy", f"redis-cli -p {port} SET foo bar")
        yield f"    redis-cli -p {port} GET foo"
    else:
        yield from _step(
            "Redis through the cacheproxy (no redis-cli here; any client will do)",
            f"printf 'SET foo bar\\r\\nGET foo\\r\\n' | nc -q 1 127.0.0.1 {port}",
        )
    yield from _step(
        "make an upstream fail, see the gateway retry and its breaker open",
        f"curl -s -X PUT -d '{{\"fail_ratio\": 1}}' {upstream}/_switch",
    )
    yield (
        f"    for i in 1 2 3 4 5 6 7 8; do curl -s -o /dev/null -w '%{{http_code}}\\n' {bearer} "
        f"{facts.gateway}/api/products; sleep 0.6; done"
    )
    yield f"    curl -s {bearer} {facts.gateway}/cb-stats"
    yield f"    curl -s -X PUT -d '{{\"fail_ratio\": 0}}' {upstream}/_switch"
    yield from _step("what happened", f"curl -s {facts.gateway}/metrics | grep ^nexus_http")
    yield f"    curl -s {bearer} {facts.gateway}/telemetry"


def _step(what: str, command: str) -> Iterator[str]:
    yield f"  {what}"
    yield f"    {command}"
