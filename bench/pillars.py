"""What observability costs: each pillar per request in µs, and a decorated call beside the SDK's.

::

    python -m bench.pillars              the encoders, a decorated call, a scrape, in this process
    python -m bench.pillars --gateway    a gateway under load, pillars on in turns with none

The first compares like with like in one process, least time of many rounds. The second is CPU time
(user and system) of the gateway per request: all configurations take turns
(:mod:`bench.turns`), and every round starts them afresh; needs nginx and wrk.
"""

from __future__ import annotations

import argparse
import http.client
import json
import shutil
import statistics
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from time import perf_counter_ns
from typing import Any, Final

import yaml

from bench.kernels_services import record
from bench.loads import WrkLoad
from bench.processes import Process, free_ports
from bench.record import RESULTS, about, dumped, rounded
from bench.turns import TURN, Contender, in_turns
from nexus._speedups import BACKEND
from nexus.observability.accessline import AccessLineEncoder
from nexus.observability.exposition import render
from nexus.observability.registry import Registry
from nexus.observability.spans import SpanEncoder
from nexus.observability.telemetry import Telemetry

__all__ = ["GATEWAYS", "in_process", "main"]

_ROUNDS: Final = 60
_CALLS: Final = 2000
_ATTRIBUTES: Final[dict[str, Any]] = {
    "order.id": "o-1234",
    "order.items": 3,
    "order.total": 19.99,
    "customer.gold": True,
    "warehouse": "north",
}

#: Configuration → what is on beside the data plane.
GATEWAYS: Final[dict[str, dict[str, Any]]] = {
    "bare": {},
    "metrics": {"metrics": {"enabled": True}},
    "access log": {"access_log": {"enabled": True, "path": "/dev/null"}},
    "tracing 1 %": {"tracing": {"enabled": True, "sample_ratio": 0.01}},
    "tracing 100 %": {"tracing": {"enabled": True, "sample_ratio": 1.0}},
    "metrics, log, tracing 1 %": {
        "metrics": {"enabled": True},
        "access_log": {"enabled": True, "path": "/dev/null"},
        "tracing": {"enabled": True, "sample_ratio": 0.01},
    },
    "metrics, log, tracing 100 %": {
        "metrics": {"enabled": True},
        "access_log": {"enabled": True, "path": "/dev/null"},
        "tracing": {"enabled": True, "sample_ratio": 1.0},
    },
}


def _least(works: Mapping[str, Callable[[], object]], calls: int) -> dict[str, float]:
    """µs of one call of each, the least of rounds that alternate over all."""
    least = dict.fromkeys(works, float("inf"))
    for _ in range(_ROUNDS):
        for name, work in works.items():
            start = perf_counter_ns()
            for _ in range(calls):
                work()
            least[name] = min(least[name], (perf_counter_ns() - start) / calls / 1000)
    return least


# ------------------------------------------------------------------------------- in this process


def _calls() -> dict[str, float]:
    """A decorated call in its states, over what the plain function costs called alike."""
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
    from opentelemetry.sdk.trace.sampling import ALWAYS_OFF

    from nexus.tracing import traced
    from nexus.tracing.state import STATE

    class Nowhere(SpanExporter):
        def export(self, _spans: Sequence[Any]) -> SpanExportResult:
            return SpanExportResult.SUCCESS

    def plain(a: int, b: int) -> int:
        return a + b

    decorated = traced(attributes=_ATTRIBUTES)(plain)
    provider = TracerProvider()
    provider.add_span_processor(BatchSpanProcessor(Nowhere(), max_queue_size=100_000))
    sdk = provider.get_tracer("bench")
    unsampled = TracerProvider(sampler=ALWAYS_OFF).get_tracer("bench")

    def with_sdk() -> None:
        with sdk.start_as_current_span("plain", attributes=_ATTRIBUTES):
            plain(1, 2)

    def with_sdk_unsampled() -> None:
        with unsampled.start_as_current_span("plain", attributes=_ATTRIBUTES):
            plain(1, 2)

    def call() -> None:
        decorated(1, 2)

    found = _least(
        {
            "plain": lambda: plain(1, 2),
            "off": call,
            "plain, keywords": lambda: plain(1, b=2),
            "off, keywords": lambda: decorated(1, b=2),
        },
        _CALLS,
    )
    STATE.limit, STATE.batch, STATE.on = _CALLS * 2, 1 << 40, True

    def fresh() -> None:
        STATE.queue.clear()
        for _ in range(_CALLS // 10):
            decorated(1, 2)

    STATE.sample(0.01, parent_based=True)
    found |= _least({"unsampled (1 %)": call, "SDK, unsampled": with_sdk_unsampled}, _CALLS // 4)
    STATE.queue.clear()
    STATE.sample(1.0, parent_based=True)
    sampled = _least({"sampled": fresh}, 2)["sampled"] / (_CALLS // 10)
    found["sampled, 5 attributes"] = sampled
    found |= _least({"SDK, sampled, 5 attributes": with_sdk}, _CALLS // 20)
    STATE.on = False
    STATE.queue.clear()
    provider.shutdown()
    plain_us, keywords_us = found.pop("plain"), found.pop("plain, keywords")
    return {
        name: us - (keywords_us if name.endswith("keywords") else plain_us)
        for name, us in found.items()
    }


def _pillars() -> dict[str, float]:
    """One request's share of a batch of 128, in each sink; and what it counts itself."""
    records = [record(sys.modules[SpanEncoder.__module__]) for _ in range(128)]
    lines = AccessLineEncoder("gateway", 0)
    spans = SpanEncoder({"service.name": "bench"})
    telemetry = Telemetry(100)
    metrics = Registry(workers=1).open(0)
    labels = {"method": "GET", "route": "/api/*", "status_code": "200"}
    requests = metrics.counter("nexus_http_requests_total", **labels)
    duration = metrics.histogram("nexus_http_request_duration_ms", **labels)

    def count() -> None:
        for _ in records:
            requests.inc()
            duration.observe(12.3)

    found = _least(
        {
            "metrics: counter and histogram": count,
            "access log: one line": lambda: lines.encode(records),
            "traces: SERVER and CLIENT span": lambda: spans.encode(records),
            "telemetry: one entry": lambda: telemetry.consume(records),
        },
        4,
    )
    return {name: us / len(records) for name, us in found.items()}


def _scrapes() -> dict[str, float]:
    """A scrape of the size that the limit of 50 ms is stated for: 4 workers, 4 000 series."""
    registry = Registry(workers=4)
    for worker in range(4):
        metrics = registry.open(worker)
        for route in range(148):
            labels = {"method": "GET", "route": f"/api/{route}", "status_code": "200"}
            metrics.counter("nexus_http_requests_total", **labels).inc()
            metrics.histogram("nexus_http_request_duration_ms", **labels).observe(12.3)
            labels["upstream"] = labels.pop("route")
            metrics.histogram("nexus_upstream_request_duration_ms", **labels).observe(12.3)
    series = sum(line[:1] != b"#" for line in render(registry).splitlines())
    return _least({f"4 workers, {series} series": lambda: render(registry)}, 1)


def in_process() -> dict[str, dict[str, float]]:
    """µs of each, by table."""
    return {
        "pillar, per request": _pillars(),
        "decorated call, over the plain one": _calls(),
        "scrape": _scrapes(),
    }


# ------------------------------------------------------------------------------------ a gateway


def _gateway(rounds: int, seconds: float) -> list[dict[str, Any]]:
    """Of each configuration: µs CPU per request, that and requests per second ÷ those of bare."""
    load = WrkLoad("all", "/api/products")
    turns = max(1, round(seconds / TURN))
    cpu: dict[str, list[float]] = {name: [] for name in GATEWAYS}
    rate: dict[str, list[float]] = {name: [] for name in GATEWAYS}
    for number in range(rounds):
        with ExitStack() as stack:
            nginx, running = _start(stack)
            for _, port in running.values():
                load.size(port, seconds / 4)  # warms up
            order = list(running) if number % 2 == 0 else list(running)[::-1]
            clients = {name: load.client(running[name][1], seconds, turns) for name in order}
            shares = in_turns(
                {name: Contender(clients[name], running[name][0], nginx) for name in order}
            )
            for name, share in shares.items():
                cpu[name].append(share.proxy_us or 0.0)
                rate[name].append(share.per_second)
    return [
        {
            "on": name,
            "cpu_us": statistics.median(cpu[name]),
            "multiple": sum(cpu[name]) / sum(cpu["bare"]),
            "share": sum(rate[name]) / sum(rate["bare"]),
        }
        for name in cpu
    ]


def _start(stack: ExitStack) -> tuple[Process, dict[str, tuple[Process, int]]]:
    """The upstream, and for each configuration a gateway and its port."""
    peers = Path(__file__).with_name("peers")
    directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
    directory.chmod(0o755)
    web_a, web_b, otlp = free_ports(3)
    text = (peers / "nginx-upstream.conf").read_text()
    for name, value in {"DIR": directory, "WEB_A": web_a, "WEB_B": web_b, "OTLP": otlp}.items():
        text = text.replace(f"@{name}@", str(value))
    (directory / "nginx.conf").write_text(text)
    command = ["nginx", "-e", "stderr", "-c", str(directory / "nginx.conf")]
    nginx = stack.enter_context(Process("nginx", command, directory))
    nginx.wait_for(lambda: _answers(web_a))
    services = [{"url": f"http://127.0.0.1:{port}", "weight": 1} for port in (web_a, web_b)]
    (directory / "services.json").write_text(json.dumps({"services": services}))
    running: dict[str, tuple[Process, int]] = {}
    for name, extra in GATEWAYS.items():
        port, admin = free_ports(2)
        off = {"enabled": False}
        parts = ["rate_limit", "auth", "envelope", "kafka", "block_list", "breaker"]
        parts += ["tracing", "access_log", "metrics"]
        settings: dict[str, Any] = {part: dict(off) for part in parts} | extra
        settings |= {"services_file": "services.json"}
        settings |= {"host": "127.0.0.1", "port": port, "admin_port": admin}
        settings |= {"telemetry_entries": 0}
        tracing = settings["tracing"] | {"otlp_endpoint": f"http://127.0.0.1:{otlp}"}
        settings |= {"tracing": tracing}
        slug = "".join(c if c.isalnum() else "-" for c in name)
        (directory / f"{slug}.yaml").write_text(yaml.safe_dump(settings))
        command = [sys.executable, "-m", "nexus.gateway", "--config", f"{slug}.yaml"]
        process = stack.enter_context(Process(slug, command, directory))
        process.wait_for(lambda port=port: _answers(port))  # type: ignore[misc]
        running[name] = process, port
    return nginx, running


def _answers(port: int) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=1)
    try:
        connection.request("GET", "/api/products")
        return connection.getresponse().status == 200
    except http.client.HTTPException:
        return False
    finally:
        connection.close()


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the tables; 1 where a tool is missing."""
    parser = argparse.ArgumentParser(prog="python -m bench.pillars", description=__doc__)
    parser.add_argument("--gateway", action="store_true", help="a gateway under load")
    parser.add_argument("--rounds", type=int, default=8, metavar="N", help="default: 8")
    parser.add_argument("--seconds", type=float, default=1.0, metavar="S", help="of each, in turns")
    parser.add_argument("--record", action="store_true", help="write bench/results/pillars*.json")
    options = parser.parse_args(arguments)
    if not options.gateway:
        print(f"{BACKEND} kernels, µs\n")
        tables = in_process()
        for title, rows in tables.items():
            print(f"| {title} | µs |\n|---|---|")
            for name, us in rows.items():
                print(f"| {name} | {us:.2f} |")
            print()
        if options.record:
            _record_as("pillars", {"tables": tables})
        return 0
    missing = [tool for tool in ("nginx", "wrk") if shutil.which(tool) is None]
    if missing:
        print(f"bench.pillars: {', '.join(missing)} is not installed", file=sys.stderr)
        return 1
    found = _gateway(options.rounds, options.seconds)
    print("| on | µs CPU per request | of bare | throughput, of bare |\n|---|---|---|---|")
    for row in found:
        print(f"| {row['on']} | {row['cpu_us']:.1f} | {row['multiple']:.2f} | {row['share']:.0%} |")
    if options.record:
        kept = [{key: rounded(value) for key, value in row.items()} for row in found]
        _record_as("pillars-gateway", {"rows": kept})
    return 0


def _record_as(name: str, found: dict[str, Any]) -> None:
    path = RESULTS / f"{name}.json"
    path.write_text(dumped(about() | found))
    print(path)


if __name__ == "__main__":
    sys.exit(main())
