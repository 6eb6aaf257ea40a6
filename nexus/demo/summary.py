"""The table that ``nexus up`` prints: what runs, where, and how to try it."""

from __future__ import annotations

import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from nexus import __version__
from nexus._speedups import BACKEND, MISSING
from nexus.redact import mask_password

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from nexus.demo.resolved import GatewayFacts

__all__ = ["Facts", "summary"]

#: Requests of one printed command: a bucket that holds more is not emptied by it.
MOST_AT_ONCE = 100


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
    #: What the gateway's settings make of a request.
    expected: GatewayFacts
    #: Whether other machines reach the gateway.
    everywhere: bool
    otlp: str
    made_jwt_secret: bool
    client_id: str
    #: Of this run; ``""`` where the user set one, which is then theirs to know.
    client_secret: str
    #: ``""`` where none is asked for.
    token: str
    answered_by: str
    run: Path


def summary(facts: Facts) -> list[str]:
    """The lines of the table."""
    good = f" (the token is good for {_span(facts.expected.token_seconds)})" if facts.token else ""
    return ["", *_what_runs(facts), "", f"Try it{good}:", *_try(facts), ""]


def _span(seconds: int) -> str:
    """``an hour``, ``90 minutes``, ``45 seconds``"""
    if seconds == 3600:
        return "an hour"
    return f"{seconds // 60} minutes" if seconds >= 120 else f"{seconds} seconds"


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
    if not facts.expected.events:
        kafka += "; the gateway sends no events (kafka.enabled is false)"
    rows = [
        ("gateway", facts.gateway, metrics("gateway")),
        ("cacheproxy", facts.proxy, metrics("cacheproxy")),
        ("consumer", "group nexus-consumer-group", metrics("consumer")),
        ("upstreams", upstreams, f"first answer came from {facts.answered_by}"),
        ("Redis", mask_password(facts.redis), redis),
        ("Kafka", facts.kafka, kafka),
    ]
    if facts.everywhere:
        here = "reachable from other machines; nexus up --gateway-host 127.0.0.1: only from here"
        rows.insert(1, ("", "on every address", here))
    if facts.otlp:
        rows.append(("traces", facts.otlp, "OTLP over HTTP"))
    else:
        rows.append(("traces", "off", "nexus up --otlp-endpoint http://127.0.0.1:4318"))
    if facts.expected.auth:
        origin = "made for this run" if facts.made_jwt_secret else "from NEXUS_JWT_SECRET"
        rows.append(("JWT secret", origin, "set NEXUS_JWT_SECRET to keep one over restarts"))
    else:
        rows.append(("tokens", "not asked for", "auth.enabled of the gateway is false"))
    rows.append(("files", str(facts.run), "configuration of this run"))
    width = max(len(where) for _, where, _ in rows)
    for what, where, note in rows:
        yield f"  {what:<11} {where:<{width}}  {note}"


def _try(facts: Facts) -> Iterator[str]:
    curl = f"curl -s -H 'Authorization: Bearer {facts.token}'" if facts.token else "curl -s"
    api = f"{facts.gateway}/api/products"
    port = facts.ports["cacheproxy_port"]
    upstream = f"http://127.0.0.1:{facts.ports['upstream_a_port']}"
    yield from _step("a request through the gateway", f"{curl} {api}")
    capacity = facts.expected.capacity
    if 0 < capacity <= MOST_AT_ONCE:
        yield from _step(
            f"{_word(capacity + 2)} at once: the bucket holds {_word(capacity)}, the rest are "
            "answered 429",
            f"{curl} -o /dev/null -w '%{{http_code}}\\n' '{api}?n=[1-{capacity + 2}]'",
        )
        if facts.expected.events:
            yield from _step(
                "five such refusals in a minute and the consumer blocks the address (403); undo it",
                _unblock_command(facts),
            )
    if facts.token:
        yield from _step("another token", _token_command(facts))
    if shutil.which("redis-cli"):
        yield from _step("Redis through the cacheproxy", f"redis-cli -p {port} SET foo bar")
        yield f"    redis-cli -p {port} GET foo"
        yield f"    redis-cli -p {port} -r 100 GET foo > /dev/null; redis-cli -p {port} NEXUS STATS"
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
        f"    for i in 1 2 3 4 5 6 7 8; do {curl} -o /dev/null -w '%{{http_code}}\\n' "
        f"{facts.gateway}/api/products; sleep 0.6; done"
    )
    yield f"    {curl} {facts.gateway}/cb-stats"
    yield f"    curl -s -X PUT -d '{{\"fail_ratio\": 0}}' {upstream}/_switch"
    yield from _step("what happened", f"curl -s {facts.gateway}/metrics | grep ^nexus_http")
    yield f"    {curl} {facts.gateway}/telemetry"


def _token_command(facts: Facts) -> str:
    # The user's own secret comes out of the shell's environment, not out of what we print.
    secret = facts.client_secret or "'\"$NEXUS_CLIENT_SECRET\"'"
    body = f'{{"client_id": "{facts.client_id}", "client_secret": "{secret}"}}'
    return f"curl -s -d '{body}' {facts.gateway}/auth/token"


def _unblock_command(facts: Facts) -> str:
    python = Path(sys.executable)
    if python.is_relative_to(Path.cwd()):
        python = python.relative_to(Path.cwd())
    redis = mask_password(facts.redis)
    where = facts.redis if redis == facts.redis else "URL"  # a password is not printed
    return f"{python} -m nexus block --redis {where} remove 127.0.0.1"


def _word(number: int) -> str:
    return {10: "ten", 12: "twelve"}.get(number, str(number))


def _step(what: str, command: str) -> Iterator[str]:
    yield f"  {what}"
    yield f"    {command}"
