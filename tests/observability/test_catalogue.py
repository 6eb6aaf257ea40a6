"""The catalogue keeps Prometheus' conventions and the contract's names."""

from __future__ import annotations

import re

import pytest
from prometheus_client.parser import text_string_to_metric_families

from nexus.observability import exposition
from nexus.observability.catalogue import CATALOGUE, LATENCY_MS
from nexus.observability.registry import Registry

CONTRACT = {
    "nexus_http_requests_total": ("counter", ("method", "route", "status_code")),
    "nexus_rate_limit_hits_total": ("counter", ("ip",)),
    "nexus_circuit_breaker_opens_total": ("counter", ("upstream",)),
    "nexus_http_request_duration_ms": ("histogram", ("method", "route", "status_code")),
    "nexus_upstream_request_duration_ms": ("histogram", ("upstream", "method", "status_code")),
    "nexus_circuit_breaker_state": ("gauge", ("upstream",)),
}


@pytest.mark.parametrize("name", CONTRACT)
def test_the_contract(name):
    assert (CATALOGUE[name].kind, CATALOGUE[name].labels) == CONTRACT[name]


def test_the_contracts_buckets():
    assert LATENCY_MS == (1, 5, 10, 25, 50, 100, 250, 500, 1000, 2000)
    for name in ("nexus_http_request_duration_ms", "nexus_upstream_request_duration_ms"):
        assert CATALOGUE[name].buckets == LATENCY_MS


@pytest.mark.parametrize("metric", CATALOGUE.values(), ids=lambda m: m.name)
def test_conventions(metric):
    assert re.fullmatch(r"nexus_[a-z0-9_]+", metric.name)
    assert metric.name.endswith("_total") == (metric.kind == "counter")
    assert bool(metric.buckets) == (metric.kind == "histogram")
    assert list(metric.buckets) == sorted(set(metric.buckets))
    assert metric.help.endswith(".")
    assert len(set(metric.labels)) == len(metric.labels)
    assert not {"le", "quantile", "worker"} & set(metric.labels)


def test_every_metric_can_be_counted_and_scraped():
    registry = Registry(1)
    metrics = registry.open(0)
    for metric in CATALOGUE.values():
        labels = dict.fromkeys(metric.labels, "v")
        handle = getattr(metrics, metric.kind)(metric.name, **labels)
        if metric.kind == "counter":
            handle.inc()
        elif metric.kind == "gauge":
            handle.set(1)
        else:
            handle.observe(1)
    text = exposition.render(registry).decode()
    scraped = {
        family.name + ("_total" if family.type == "counter" else ""): family.type
        for family in text_string_to_metric_families(text)
    }
    assert scraped == {m.name: m.kind for m in CATALOGUE.values()}
    assert exposition.CONTENT_TYPE == "text/plain; version=0.0.4; charset=utf-8"
