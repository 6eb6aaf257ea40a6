"""A real Prometheus scrapes the whole running system: panels, rules and totals."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import signal
import threading
import time
import urllib.request

import pytest
from support.collector import Collector
from support.prom import Prometheus
from support.running import Up

from nexus.reference.dashboards import BOARDS

# Most of a minute of real time, and nothing in it that only one backend does.
pytestmark = pytest.mark.once

TIMEOUT = 15


def get_json(url: str):
    with urllib.request.urlopen(url, timeout=TIMEOUT) as answer:  # noqa: S310
        return json.loads(answer.read())


class System:
    """``nexus up`` with two gateway workers, a collector, and Prometheus beside it."""

    def __init__(self, executable, directory):
        self.collector = Collector()
        self.prometheus = None
        self.up = Up(
            ["-m", "nexus", "up"],
            ["--otlp-endpoint", self.collector.url],
            directory,
            {
                "NEXUS_UP_GATEWAY_WORKERS": "2",
                "NEXUS_GATEWAY_TRUSTED_PROXIES": '["127.0.0.1/32"]',
                "NEXUS_GATEWAY_BREAKER__RESET_TIMEOUT_MS": "60000",
                "NEXUS_CONSUMER_BLOCK__HITS": "3",
            },
        )
        try:
            self._start(executable, directory)
        except BaseException:
            self.close()
            raise

    def _start(self, executable, directory):
        self.up.wait_for("Try it")
        self.port = self.up.port("gateway")
        admin = {}
        for name in ("gateway", "cacheproxy", "consumer"):
            line = rf"^  {name}\s.*metrics http://127\.0\.0\.1:(\d+)/"
            admin[name] = int(re.search(line, self.up.output, re.MULTILINE)[1])
        self.admin = admin
        self.token = re.search(r"Bearer (\S+?)'", self.up.output)[1]
        self.prometheus = Prometheus(
            executable,
            directory,
            {f"nexus-{name}": f"127.0.0.1:{port}" for name, port in admin.items()},
        )

    def load(self, requests, *, clients=4, path="/api/products", abuser=False):
        """So many requests, each client on one connection; returns answers by status."""
        answers: dict[int, int] = {}
        lock = threading.Lock()

        def client(number):
            connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=TIMEOUT)
            for index in range(requests // clients):
                ip = "198.51.100.9" if abuser else f"10.{number}.{index // 250}.{index % 250}"
                fields = {"Authorization": f"Bearer {self.token}", "X-Forwarded-For": ip}
                try:
                    connection.request("GET", path, headers=fields)
                    answer = connection.getresponse()
                    answer.read()
                    status = answer.status
                except (OSError, http.client.HTTPException):
                    connection.close()
                    status = 0
                with lock:
                    answers[status] = answers.get(status, 0) + 1
            connection.close()

        threads = [threading.Thread(target=client, args=(n,)) for n in range(clients)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        return answers

    def workers(self):
        health = get_json(f"http://127.0.0.1:{self.admin['gateway']}/health")
        return [worker["pid"] for worker in health["workers"] if worker["state"] == "ready"]

    def close(self):
        if self.prometheus is not None:
            self.prometheus.stop()
        left = self.up.children()
        self.up.process.send_signal(signal.SIGTERM)
        try:
            self.up.ends(30)
        except Exception:
            self.up.process.kill()
            for pid in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            self.up.process.wait(10)
        self.collector.close()


@pytest.fixture(scope="module")
def system(prometheus, tmp_path_factory):
    made = System(prometheus, tmp_path_factory.mktemp("prometheus"))
    yield made
    made.close()


COUNT = 'sum(nexus_http_requests_total{{route="/api/*", status_code="{}"}})'


def test_totals_are_what_was_sent_also_after_a_worker_was_killed(system):
    prometheus = system.prometheus
    prometheus.until('count(up{job=~"nexus-.*"} == 1)', 3)
    time.sleep(1.5)  # the requests with which `nexus up` tried itself are scraped, too
    before = prometheus.value(COUNT.format(200)) or 0
    sent = 0
    for _ in range(2):
        answers = system.load(400)
        assert answers == {200: 400}
        sent += 400
        prometheus.until(COUNT.format(200), before + sent)
        victim = system.workers()[0]
        os.kill(victim, signal.SIGKILL)
        end = time.monotonic() + 10
        while victim in (now := system.workers()) or len(now) < 2:
            assert time.monotonic() < end
            time.sleep(0.05)
    answers = system.load(100)
    assert answers == {200: 100}
    prometheus.until(COUNT.format(200), before + sent + 100)
    prometheus.until("sum(nexus_worker_restarts_total{job='nexus-gateway'})", 2)
    # Histograms and counters tell the same.
    total = prometheus.value("sum(nexus_http_requests_total)")
    assert prometheus.value("sum(nexus_http_request_duration_ms_count)") == total
    assert prometheus.value('sum(nexus_http_request_duration_ms_bucket{le="+Inf"})') == total


def test_nothing_is_lost_or_invented_when_a_worker_dies_under_load(system):
    prometheus = system.prometheus
    time.sleep(1.2)
    before = prometheus.value("sum(nexus_http_requests_total{route='/api/*'})") or 0
    found = {}
    load = threading.Thread(target=lambda: found.update(system.load(800)))
    load.start()
    time.sleep(0.2)
    os.kill(system.workers()[0], signal.SIGKILL)
    load.join(60)
    answered = sum(count for status, count in found.items() if status)
    assert sum(found.values()) == 800
    time.sleep(2.5)
    counted = prometheus.value("sum(nexus_http_requests_total{route='/api/*'})") - before
    # Each connection of the worker may have had one request that was answered and not yet counted.
    assert answered - 4 <= counted <= 800


def test_spans_received_and_dropped_are_those_made(system):
    """Over the whole run, killed workers included: what was lost is counted by nobody, so only the
    workers that lived are compared, in one piece of load."""
    prometheus = system.prometheus
    time.sleep(1.5)
    names = ("nexus_trace_spans_total", "nexus_trace_spans_exported_total")
    before = [prometheus.value(f"sum({name})") for name in names]
    got = len(system.collector.spans)
    began = time.time()
    assert system.load(200) == {200: 200}
    prometheus.until("sum(nexus_trace_spans_exported_total)", before[1] + 400)
    assert prometheus.value("sum(nexus_trace_spans_total)") - before[0] == 400
    assert len(system.collector.spans) - got == 400
    now = time.time()
    found = prometheus.get(
        "/api/v1/query_exemplars",
        query="nexus_http_request_duration_ms_bucket",
        start=str(now - 60),
        end=str(now + 1),
    )
    # Older ones may be of requests whose spans died with their worker.
    shown = {
        one["labels"]["trace_id"]
        for series in found
        for one in series["exemplars"]
        if float(one["timestamp"]) > began
    }
    assert shown
    assert shown <= {span.trace_id.hex() for span in system.collector.spans}
    spans = system.collector.spans[got:]
    servers = {span.span_id: span for span in spans if span.kind == 2}
    for client in (span for span in spans if span.kind == 3):
        assert servers[client.parent_span_id].trace_id == client.trace_id


def test_every_panel_has_data(system):
    prometheus = system.prometheus
    answers = system.load(60, clients=1, abuser=True)
    assert answers[429] >= 10  # the bucket fills again meanwhile, the slower the machine, the more
    redis_port = system.up.port("cacheproxy")
    import redis

    client = redis.Redis(port=redis_port)
    for number in range(200):
        client.set(f"nexus:panel:{number % 10}", "x", ex=60)
        client.get(f"nexus:panel:{number % 10}")
    client.transaction(lambda pipe: pipe.get("nexus:panel:1"), "nexus:panel:1")
    time.sleep(0.5)
    client.get("nexus:panel:1")
    end = time.monotonic() + 30
    missing: list[str] = ["?"]
    while missing and time.monotonic() < end:
        missing = []
        time.sleep(1.0)
        system.load(8, clients=1)
        for board in BOARDS:
            for panel in board.panels:
                found = [
                    prometheus.query(query.replace("$__rate_interval", "15s"))
                    for query, _ in panel.queries
                ]
                # A panel that shows faults may be empty; one query of any other has data.
                if not any(found) and not panel.may_be_empty:
                    missing.append(f"{board.title}: {panel.title}")
    assert not missing
    # What may be empty is not, here, where its cause was given.
    for expression in (
        "sum by (ip) (increase(nexus_rate_limit_hits_total[5m]))",
        "sum(rate(nexus_rejections_total{reason='rate_limited'}[1m]))",
        "sum(rate(nexus_events_sent_total[1m]))",
        "sum by (topic, result) (rate(nexus_consumer_events_total[1m]))",
        "sum by (topic) (nexus_consumer_lag)",
        "nexus_block_list_connected",
    ):
        deadline = time.monotonic() + 10  # a rate needs two scrapes
        while not (found := prometheus.query(expression)) and time.monotonic() < deadline:
            time.sleep(0.5)
        assert found, expression


def test_every_rule_is_evaluated_and_faults_fire_their_alerts(system):
    prometheus = system.prometheus
    failed = system.load(400, path="/api/fail?status=503")
    assert failed == {503: 400}
    health = get_json(f"http://127.0.0.1:{system.admin['cacheproxy']}/health")
    standing = [worker["pid"] for worker in health["workers"]]
    expected = {
        "NexusWorkerRestarts",  # killed above
        "NexusBreakerOpen",  # 503s above
        "NexusErrorBudgetBurnsFast",
        "NexusErrorBudgetBurns",
        "NexusErrorBudgetLeaks",
        "NexusAddressesBlocked",  # by the abuser above
        "NexusCacheproxyDown",
    }
    for pid in standing:
        os.kill(pid, signal.SIGSTOP)
    try:
        end = time.monotonic() + 20
        firing: set[str] = set()
        while not firing >= expected and time.monotonic() < end:
            time.sleep(0.5)
            alerts = prometheus.query('ALERTS{alertstate="firing"}')
            firing = {labels["alertname"] for labels, _ in alerts}
    finally:
        for pid in standing:
            os.kill(pid, signal.SIGCONT)
    assert firing >= expected
    for group in prometheus.get("/api/v1/rules")["groups"]:
        for rule in group["rules"]:
            assert rule["health"] == "ok", rule
            if rule["type"] == "recording":
                assert prometheus.query(rule["name"]), rule["name"]
    alert = next(
        one
        for one in prometheus.get("/api/v1/alerts")["alerts"]
        if one["labels"]["alertname"] == "NexusBreakerOpen"
    )
    assert alert["annotations"]["runbook_url"] == "docs/runbooks/breaker-open.md"
    assert "http://127.0.0.1:" in alert["annotations"]["summary"]
