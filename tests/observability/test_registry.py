"""Counters over several real processes: totals, deaths, bounds, and readers that never see half."""

from __future__ import annotations

import os
import signal

import pytest
from prometheus_client.parser import text_string_to_metric_families

from nexus.observability import exposition
from nexus.observability import registry as module
from nexus.observability.catalogue import CATALOGUE
from nexus.observability.registry import OTHER, LocalMetrics, Registry


def samples(registry: Registry, name: str) -> dict[tuple[str, ...], float]:
    """Label values (sorted by label name) → value, of one sample name, as Prometheus parses it."""
    text = exposition.render(registry).decode()
    return {
        tuple(value for _, value in sorted(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == name
    }


def count_requests(metrics: LocalMetrics, route: str, n: int) -> None:
    counter = metrics.counter(
        "nexus_http_requests_total", method="GET", route=route, status_code="200"
    )
    for _ in range(n):
        counter.inc()


def test_totals_over_forked_workers(registry, forked):
    assert forked(lambda: count_requests(registry.open(0), "/a", 1000)) == 0
    assert forked(lambda: count_requests(registry.open(1), "/a", 500)) == 0
    assert forked(lambda: count_requests(registry.open(1), "/b", 7)) == 0
    assert samples(registry, "nexus_http_requests_total") == {
        ("GET", "/a", "200"): 1500,
        ("GET", "/b", "200"): 7,
    }


def test_workers_count_at_the_same_time(registry):
    pids = []
    for index in range(2):
        pid = os.fork()
        if pid == 0:
            count_requests(registry.open(index), "/", 20_000)
            os._exit(0)
        pids.append(pid)
    for pid in pids:
        assert os.waitpid(pid, 0)[1] == 0
    assert samples(registry, "nexus_http_requests_total") == {("GET", "/", "200"): 40_000}


def test_totals_survive_a_killed_worker(registry, forked):
    ready_read, ready_write = os.pipe()
    pid = os.fork()
    if pid == 0:
        metrics = registry.open(0)
        count_requests(metrics, "/", 300)
        metrics.gauge("nexus_http_connections").set(12)
        os.write(ready_write, b".")
        while True:
            signal.pause()
    assert os.read(ready_read, 1) == b"."
    assert samples(registry, "nexus_http_connections") == {(): 12}
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    os.close(ready_read)
    os.close(ready_write)
    assert samples(registry, "nexus_http_requests_total") == {("GET", "/", "200"): 300}

    def replacement():
        metrics = registry.open(0)
        count_requests(metrics, "/", 5)
        count_requests(metrics, "/new", 1)

    assert forked(replacement) == 0
    assert samples(registry, "nexus_http_requests_total") == {
        ("GET", "/", "200"): 305,
        ("GET", "/new", "200"): 1,
    }
    # What the dead process held open is gone with it.
    assert samples(registry, "nexus_http_connections") == {(): 0}


def test_a_histogram_adds_up(registry):
    for index, values in enumerate([(0.5, 7), (7, 3000)]):
        histogram = registry.open(index).histogram(
            "nexus_http_request_duration_ms", method="GET", route="/", status_code="200"
        )
        for value in values:
            histogram.observe(value)
    text = exposition.render(registry).decode()
    lines = [line for line in text.splitlines() if line.startswith("nexus_http_request_duration")]
    rest = 'method="GET",route="/",status_code="200"'
    name = "nexus_http_request_duration_ms"
    bounds = ["1.0", "5.0", "10.0", "25.0", "50.0", "100.0", "250.0", "500.0", "1000.0", "2000.0"]
    counts = [1, 1] + [3] * 8
    assert lines == [
        *(
            f'{name}_bucket{{le="{bound}",{rest}}} {float(count)}'
            for bound, count in zip(bounds, counts, strict=True)
        ),
        f'{name}_bucket{{le="+Inf",{rest}}} 4.0',
        f"{name}_count{{{rest}}} 4.0",
        f"{name}_sum{{{rest}}} 3014.5",
    ]


@pytest.mark.parametrize(
    ("name", "labels", "expected"),
    [
        ("nexus_http_connections", {}, {(): 5.0}),  # sum
        ("nexus_upstream_healthy", {"upstream": "u"}, {("u",): 4.0}),  # max
        ("nexus_circuit_breaker_state", {"upstream": "u"}, {("u",): 1.0}),  # last
        ("nexus_process_open_fds", {}, {("0",): 4.0, ("1",): 1.0}),  # worker
    ],
)
def test_gauges_add_up_by_their_rule(registry, name, labels, expected):
    registry.open(0).gauge(name, **labels).set(4)
    registry.open(1).gauge(name, **labels).set(1)
    assert samples(registry, name) == expected


def test_the_supervisor_has_a_block_of_its_own(registry):
    registry.open_supervisor().counter("nexus_worker_restarts_total").inc()
    registry.open_supervisor().counter("nexus_process_cpu_seconds_total").inc(2)
    assert samples(registry, "nexus_worker_restarts_total") == {(): 1}
    assert samples(registry, "nexus_process_cpu_seconds_total") == {("supervisor",): 2}


def test_label_values_of_any_text_survive(registry, metrics):
    nasty = 'a"b\\c\nd é 🎈'
    metrics.counter("nexus_retries_total", upstream=nasty).inc()
    metrics.counter("nexus_retries_total", upstream="x" * 5000).inc()
    assert samples(registry, "nexus_retries_total") == {(nasty,): 1, ("x" * 200,): 1}


def test_too_many_label_sets_go_to_other_and_are_counted():
    registry = Registry(2, max_series={"nexus_rate_limit_hits_total": 3})
    first, second = registry.open(0), registry.open(1)
    for address in ("a", "b", "c", "d", "e", "a"):
        first.counter("nexus_rate_limit_hits_total", ip=address).inc()
    # The bound is over all workers: what one knows, another may use; what is new, it may not.
    for address in ("c", "f"):
        second.counter("nexus_rate_limit_hits_total", ip=address).inc()
    assert samples(registry, "nexus_rate_limit_hits_total") == {
        ("a",): 2,
        ("b",): 1,
        ("c",): 2,
        (OTHER,): 3,
    }
    assert samples(registry, "nexus_metrics_overflow_total") == {
        ("nexus_rate_limit_hits_total",): 3
    }


def test_a_replacement_knows_the_bound_too():
    registry = Registry(1, max_series={"nexus_retries_total": 1})
    registry.open(0).counter("nexus_retries_total", upstream="a").inc()
    again = registry.open(0)
    again.counter("nexus_retries_total", upstream="b").inc()
    again.counter("nexus_retries_total", upstream="a").inc()
    assert samples(registry, "nexus_retries_total") == {("a",): 2, (OTHER,): 1}


def test_a_full_block_still_has_room_for_every_metric():
    registry = Registry(1, bytes_per_worker=65_536)
    metrics = registry.open(0)
    family = metrics.histograms("nexus_upstream_request_duration_ms")
    for number in range(900):
        family.labels(f"http://upstream-{number}.example:8080", "GET", "200").observe(1)
    overflowed = samples(registry, "nexus_metrics_overflow_total")
    assert overflowed[("nexus_upstream_request_duration_ms",)] > 100
    for metric in CATALOGUE.values():
        labels = dict.fromkeys(metric.labels, "some new value")
        getattr(metrics, metric.kind)(metric.name, **labels)
    counts = samples(registry, "nexus_upstream_request_duration_ms_count")
    assert sum(counts.values()) == 900
    assert counts[(OTHER, OTHER, OTHER)] > 100


def test_overflow_is_not_remembered_by_value():
    registry = Registry(1, max_series={"nexus_retries_total": 2})
    family = registry.open(0).counters("nexus_retries_total")
    handles = {id(family.labels(f"u{n}")) for n in range(1000)}
    assert len(handles) == 3
    assert len(family._handles) == 2
    assert family.labels("u1") is family.labels("u1")


def test_a_reader_never_sees_a_row_that_is_not_committed(registry, metrics):
    block = registry._blocks[0]
    before = block.header[0]
    metrics.counter("nexus_retries_total", upstream="a").inc()
    # The writer dies after the row's bytes and before the commit.
    block.header[0] = before
    fresh = Registry.__new__(Registry)
    fresh.__dict__.update(registry.__dict__)
    fresh._blocks = [module._Block(b.bytes) for b in registry._blocks]
    assert samples(fresh, "nexus_retries_total") == {}
    # Its replacement overwrites what was left.
    fresh.open(0).counter("nexus_retries_total", upstream="b").inc(2)
    assert samples(fresh, "nexus_retries_total") == {("b",): 2}


def test_a_row_with_bytes_missing_is_read_later(registry, metrics):
    metrics.counter("nexus_retries_total", upstream="a").inc()
    block = module._Block(registry._blocks[0].bytes)
    at = 64 + module._ROW.size + 3
    saved = block.bytes[at]
    block.bytes[at] = saved ^ 0xFF
    assert block.refresh() == []
    block.bytes[at] = saved
    assert [s.values for s in block.refresh()] == [("a",)]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: m.counter("nexus_nope_total"), "not in nexus/observability/catalogue.py"),
        (lambda m: m.gauge("nexus_retries_total", upstream="u"), "is a counter, not a gauge"),
        (lambda m: m.counter("nexus_retries_total"), "has the labels"),
        (lambda m: m.counter("nexus_retries_total", host="u"), "has the labels"),
        (lambda m: m.counter("nexus_retries_total", upstream="u", x="y"), "has the labels"),
        (lambda m: m.counters("nexus_retries_total").labels("a", "b"), "has the labels"),
    ],
)
def test_only_what_is_catalogued_is_counted(metrics, call, message):
    with pytest.raises(LookupError, match=message):
        call(metrics)


def test_impossible_registries_are_refused():
    with pytest.raises(ValueError, match="workers: expected at least 1, got 0"):
        Registry(0)
    with pytest.raises(ValueError, match="bytes_per_worker: expected at least 65536"):
        Registry(1, 100)
    with pytest.raises(LookupError, match="not in nexus/observability"):
        Registry(1, max_series={"nexus_nope": 1})
    with pytest.raises(IndexError, match="expected 0 to 0, got 1"):
        Registry(1).open(1)


def test_reading_while_series_are_added(registry):
    """A scraper in this process against a writer in another that adds 800 series."""
    pid = os.fork()
    if pid == 0:
        family = registry.open(0).counters("nexus_http_requests_total")
        for number in range(800):
            family.labels("GET", f"/{number}", "200").inc(3)
        os._exit(0)
    seen = 0
    done = False
    while True:
        counts = samples(registry, "nexus_http_requests_total")
        assert set(counts.values()) <= {0.0, 3.0}
        assert len(counts) >= seen
        seen = len(counts)
        if done:
            break
        done = os.waitpid(pid, os.WNOHANG)[0] == pid
    assert seen == 800
    assert set(counts.values()) == {3.0}


def test_a_retired_gauge_is_not_scraped_until_it_is_looked_up_again(registry):
    metrics = registry.open(0)
    names = ("nexus_upstream_healthy", "nexus_upstream_queue", "nexus_circuit_breaker_state")
    for name in names:
        for url in ("http://a", "http://b"):
            metrics.gauge(name, upstream=url).set(3)
        metrics.retire(name, "http://a")
        assert samples(registry, name) == {("http://b",): 3}
        assert metrics.gauge(name, upstream="http://a").value == 0
        metrics.gauge(name, upstream="http://a").inc(2)
        assert samples(registry, name) == {("http://a",): 2, ("http://b",): 3}


def test_retiring_takes_only_this_workers_part(registry):
    for index in range(2):
        metrics = registry.open(index)
        for name in ("nexus_upstream_queue", "nexus_circuit_breaker_state"):
            metrics.gauge(name, upstream="http://a").set(index + 1)
    metrics.retire("nexus_upstream_queue", "http://a")
    metrics.retire("nexus_circuit_breaker_state", "http://a")  # the later one of the two
    assert samples(registry, "nexus_upstream_queue") == {("http://a",): 1}
    assert samples(registry, "nexus_circuit_breaker_state") == {("http://a",): 1}


def test_a_replacement_does_not_bring_back_what_its_predecessor_measured(registry, forked):
    def worker():
        metrics = registry.open(0)
        metrics.gauge("nexus_upstream_healthy", upstream="http://a").set(1)
        metrics.gauge("nexus_upstream_healthy", upstream="http://b").set(1)
        metrics.gauge("nexus_http_connections").set(7)

    def replacement():
        # "a" has left between the death of the one and the start of the other.
        registry.open(0).gauge("nexus_upstream_healthy", upstream="http://b").inc()

    assert forked(worker) == 0
    assert forked(replacement) == 0
    assert samples(registry, "nexus_upstream_healthy") == {("http://b",): 1}
    assert samples(registry, "nexus_http_connections") == {(): 0}


def test_retiring_what_is_not_there_changes_nothing(registry):
    metrics = registry.open(0)
    metrics.retire("nexus_upstream_healthy", "http://never")
    assert samples(registry, "nexus_upstream_healthy") == {}
    with pytest.raises(LookupError):
        metrics.retire("nexus_http_requests_total", "GET", "/", "200")
