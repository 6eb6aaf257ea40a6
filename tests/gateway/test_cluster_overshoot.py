"""How much a leased limit admits at worst: the bound of docs/ratelimits.md, over any history.

Workers with their real code ask the real script of a real Redis; only the clocks are the test's:
the script's ``TIME`` becomes an argument, and the workers' monotonic clock goes with it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import redis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.servers import RedisServer

from nexus.gateway import clusterlimits
from nexus.gateway.clusterlimits import SCRIPT, ClusterLimits
from nexus.gateway.limits import PENDING, Limit
from nexus.gateway.settings_limits import ClusterLimitSettings, LimitRuleSettings
from nexus.net.settings import RedisSettings
from nexus.observability.registry import Registry

US = 1000  # nanoseconds
MS = 1_000_000
#: Where the test's time begins, by the clock of Redis.
EPOCH_US = 1_800_000_000 * 1_000_000
TIMED = SCRIPT.replace("redis.call('TIME')", "{ARGV[4], ARGV[5]}")
assert TIMED != SCRIPT


@pytest.fixture(scope="module")
def store(redis_factory_of_module: Callable[[], RedisServer]) -> Iterator[Any]:
    with redis.Redis.from_url(redis_factory_of_module().url) as client:
        yield client.register_script(TIMED)


@pytest.fixture(scope="module")
def redis_factory_of_module() -> Iterator[Callable[[], RedisServer]]:
    started: list[RedisServer] = []

    def start() -> RedisServer:
        started.append(RedisServer())
        return started[-1]

    yield start
    for server in started:
        server.stop()


class Worker:
    """One worker's limits; a question is sent and answered when the history says so."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.limits = ClusterLimits(
            RedisSettings(), ClusterLimitSettings(), Registry(workers=1).open(0), lambda *_: -1
        )
        self.sent: tuple[list[Any], list[tuple[int, int]], int] | None = None

    def answer(self, taken: int) -> None:
        """As a request that waited."""
        if taken >= 0:
            self.cluster.admitted.append(self.cluster.now)

    def request(self) -> None:
        taken = self.limits.take(self.cluster.limit, b"key", b"d" * 16, self)
        if taken != PENDING:
            self.answer(taken)

    def ask(self) -> None:
        """One round trip at a time, as :meth:`ClusterLimits.run` does."""
        if self.sent is None and (asks := self.limits._next()):
            answers = [self.cluster.evaluate(ask) for ask in asks]
            self.sent = (asks, answers, self.cluster.now)

    def deliver(self) -> None:
        if self.sent is not None:
            asks, answers, since = self.sent
            self.sent = None
            self.cluster.trip = max(self.cluster.trip, self.cluster.now - since)
            self.limits._answered(asks, answers)


class Cluster:
    def __init__(self, script: Any, workers: int, **rule: Any) -> None:
        self.rule = LimitRuleSettings(name="x", key=("route",), scope="cluster", **rule)
        self.limit = Limit(self.rule)
        self.now = 1
        self.admitted: list[int] = []
        #: The longest round trip, nanoseconds.
        self.trip = 0
        self._script = script
        script.registered_client.flushdb()
        self.workers = [Worker(self) for _ in range(workers)]

    def evaluate(self, ask: Any) -> tuple[int, int]:
        settings, at = self.rule, EPOCH_US + self.now // US
        wanted = max(settings.lease, len(ask.waiters))
        arguments = [repr(self.limit.rule.interval_ns / 1000), settings.capacity, wanted]
        given, rest = self._script(
            keys=["bucket"], args=[*arguments, at // 1_000_000, at % 1_000_000]
        )
        return int(given), int(rest)

    def most_above(self, carried: int) -> float:
        """By how much the fullest stretch exceeds ``capacity + rate·(t + trip) + carried``."""
        rate = self.rule.refill_per_second / 1e9
        worst = float("-inf")
        for i, begin in enumerate(self.admitted):
            for j in range(i, len(self.admitted)):
                seconds = self.admitted[j] - begin + self.trip
                # A microsecond, in which the script counts, may have begun on either side.
                allowed = self.rule.capacity + rate * (seconds + 2 * US) + carried
                worst = max(worst, j - i + 1 - allowed)
        return worst


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["request", "request", "ask", "deliver", "trip", "pass"]),
        st.integers(0, 2),
        st.sampled_from([0, 1, 40, 250, 1000, 5000]),  # milliseconds
    ),
    max_size=70,
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    workers=st.integers(1, 3),
    capacity=st.integers(1, 8),
    rate=st.sampled_from([0.5, 3.0, 20.0]),
    lease=st.integers(1, 8),
    lease_ms=st.sampled_from([50, 1000, 60_000]),
    steps=STEPS,
)
def test_never_more_than_the_documented_bound(
    store: Any,
    monkeypatch: pytest.MonkeyPatch,
    workers: int,
    capacity: int,
    rate: float,
    lease: int,
    lease_ms: int,
    steps: list[tuple[str, int, int]],
) -> None:
    lease = min(lease, capacity)
    rule = {"capacity": capacity, "refill_per_second": rate, "lease": lease, "lease_ms": lease_ms}
    cluster = Cluster(store, workers, **rule)
    monkeypatch.setattr(clusterlimits, "monotonic_ns", lambda: cluster.now)
    for step, which, milliseconds in steps:
        worker = cluster.workers[which % workers]
        if step == "pass":
            cluster.now += milliseconds * MS
        elif step == "trip":
            worker.ask()
            worker.deliver()
        else:
            getattr(worker, step)()
    assert cluster.most_above(workers * (lease - 1)) <= 1e-6


def test_the_bound_is_reached(store: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each worker leases when the bucket is full, and spends it when it is full again."""
    workers, lease, capacity = 3, 4, 12
    rule = {"capacity": capacity, "refill_per_second": 10.0, "lease": lease, "lease_ms": 60_000}
    cluster = Cluster(store, workers, **rule)
    monkeypatch.setattr(clusterlimits, "monotonic_ns", lambda: cluster.now)

    def trip(worker: Worker) -> None:
        worker.request()
        worker.ask()
        worker.deliver()

    for worker in cluster.workers:
        trip(worker)
    assert len(cluster.admitted) == workers
    cluster.now += 10_000 * MS
    cluster.admitted.clear()
    for _ in range(lease - 1):
        for worker in cluster.workers:
            worker.request()
    while len(cluster.admitted) < workers * (lease - 1) + capacity:
        before = len(cluster.admitted)
        for worker in cluster.workers:
            trip(worker)
        assert len(cluster.admitted) > before
    for worker in cluster.workers:
        trip(worker)
    assert len(cluster.admitted) == workers * (lease - 1) + capacity, "in no time at all"
    assert -0.01 < cluster.most_above(workers * (lease - 1)) <= 0
    assert cluster.most_above(workers * (lease - 1) - 1) > 0, "one less would be wrong"
