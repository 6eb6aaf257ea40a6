"""Work of the kernels outside ``_speedups``; :mod:`bench.kernels` has their cases."""

from __future__ import annotations

import importlib
import random
from collections.abc import Callable
from typing import Any

__all__ = [
    "balance",
    "breaker",
    "budget",
    "lines",
    "record",
    "rules",
    "sdk_spans",
    "spans",
    "suffix",
]

Work = Callable[[], object]

_BATCH = 32


def record(encoders: Any) -> Any:
    """A proxied request, as the gateway leaves it behind; ``encoders``: a module of its backend."""
    backend = encoders.__name__.rpartition("_")[2]
    made = importlib.import_module(f"nexus.observability._record_{backend}").RequestRecord()
    for name, value in {
        "started_ns": 1_700_000_000_123_000_000,
        "duration_ns": 12_345_678,
        "method": b"GET",
        "target": b"/api/products?page=2",
        "host": b"shop.example",
        "route": "/api/*",
        "status": 200,
        "ip": "192.0.2.7",
        "client_id": "shop",
        "user_agent": b"bench/1.0",
        "request_id": "nexus-1700000000123-abc",
        "proxied": True,
        "upstream": "http://127.0.0.1:3001",
        "upstream_target": b"/products?page=2",
        "upstream_status": 200,
        "upstream_start_ns": 1_700_000_000_124_000_000,
        "upstream_ns": 9_000_000,
        "attempts": 1,
        "trace_id": "4bf92f3577b34da6a3ce929d0e0e4736",
        "span_id": "00f067aa0ba902b7",
        "upstream_span_id": "b7ad6b7169203331",
        "sampled": True,
    }.items():
        setattr(made, name, value)
    return made


def lines(module: Any) -> Work:
    """Access lines of a batch."""
    encode = module.AccessLineEncoder("gateway", 0).encode
    records = [record(module) for _ in range(_BATCH)]
    return lambda: encode(records)


def spans(module: Any) -> Work:
    """SERVER and CLIENT span of each request of a batch."""
    encode = module.SpanEncoder({"service.name": "bench"}).encode
    records = [record(module) for _ in range(_BATCH)]
    return lambda: encode(records)


def sdk_spans() -> Work:
    """The same two spans by the OpenTelemetry SDK, which are not even encoded."""
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.trace import SpanKind

    tracer = TracerProvider().get_tracer("bench")
    server = {"http.method": "GET", "http.url": "http://shop.example/api/products?page=2"}
    server |= {"http.route": "/api/*", "net.peer.ip": "192.0.2.7", "http.status_code": "200"}
    client = {"peer.service": "127.0.0.1", "http.method": "GET", "http.status_code": "200"}

    def work() -> None:
        for _ in range(_BATCH):
            with tracer.start_as_current_span("GET /api/*", kind=SpanKind.SERVER) as root:
                root.set_attributes(server)
                with tracer.start_as_current_span("upstream.proxy", kind=SpanKind.CLIENT) as child:
                    child.set_attributes(client)

    return work


def balance(algorithm: str) -> Callable[[Any], Work]:
    """A hundred picks among four servers."""

    def make(module: Any) -> Work:
        balancer = module.make_balancer(algorithm, random.Random(1))
        balancer.update([module.Server(f"http://127.0.0.1:{n}", n % 3 + 1) for n in range(4)])
        pick = balancer.pick

        def work() -> None:
            for _ in range(100):
                pick()

        return work

    return make


def breaker(module: Any) -> Work:
    """A hundred calls that are allowed and succeed."""
    from nexus.policy.breaker import BreakerConfig

    made = module.Breaker("u", BreakerConfig(), module.private_words(), 0, 1, None, 0)
    clock = iter(range(10**12, 1 << 62, 10**6))

    def work() -> None:
        now = next(clock)
        for _ in range(100):
            made.record_success(now, made.allow(now))

    return work


def budget(module: Any) -> Work:
    """A hundred requests that begin and end."""
    made = module.RetryBudget()

    def work() -> None:
        for _ in range(100):
            made.begin()
            made.end()

    return work


def rules(module: Any) -> Work:
    """A hundred keys against three rules by prefix."""
    patterns = (b"session:", b"cart:", b"product:")
    made = module.Matcher(
        tuple(
            module.Rule(n, f"{text.decode()}*", module.PREFIX, text, None)
            for n, text in enumerate(patterns, 1)
        )
    )
    find = made.find
    keys = [b"product:%06d" % n for n in range(100)]

    def work() -> None:
        for key in keys:
            find(key)

    return work


def suffix(module: Any) -> Work:
    """A hundred ends of envelopes."""
    made = module.suffix
    request_id, stamp = b"nexus-1700000000123-0123456789ab", b"2026-11-21T10:00:00.123Z"

    def work() -> None:
        for _ in range(100):
            made(request_id, stamp)

    return work
