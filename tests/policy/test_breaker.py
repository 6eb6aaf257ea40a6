"""The circuit breaker: transitions, window, permits, and one trial over all processes."""

from __future__ import annotations

import mmap
import os
import select
import signal
import time
from collections.abc import Callable

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from nexus._speedups import BACKEND
from nexus.policy.breaker import Breaker, BreakerConfig, BreakerTable

SECOND = 1_000_000_000
NOW = 1_000 * SECOND
CONFIG = BreakerConfig()


def table(slots: int = 4, workers: int = 2) -> BreakerTable:
    return BreakerTable(mmap.mmap(-1, BreakerTable.size(slots, workers)), slots, workers)


def one(config: BreakerConfig = CONFIG) -> Breaker:
    return table().breaker("http://a", 0, config)


def opened(config: BreakerConfig = CONFIG) -> Breaker:
    breaker = one(config)
    for _ in range(3):
        breaker.record_failure(NOW)
    assert breaker.state(NOW) == "open"
    return breaker


def test_opens_at_the_threshold_and_says_so_once() -> None:
    breaker = one()
    assert [breaker.record_failure(NOW) for _ in range(4)] == [False, False, True, False]
    assert breaker.allow(NOW) == 0
    assert not breaker.ready(NOW)
    assert breaker.snapshot(NOW)["opens"] == 1


def test_below_the_volume_it_stays_closed() -> None:
    breaker = one(BreakerConfig(volume_threshold=5))
    assert [breaker.record_failure(NOW) for _ in range(5)] == [False] * 4 + [True]


@pytest.mark.parametrize(
    ("successes", "percentage", "opens_at"), [(3, 50, 3), (4, 50, 4), (1, 100, None), (9, 10, 1)]
)
def test_share_of_failures(successes: int, percentage: float, opens_at: int | None) -> None:
    breaker = one(BreakerConfig(error_threshold_percentage=percentage))
    for _ in range(successes):
        breaker.record_success(NOW)
    tripped = [n for n in range(1, 9) if breaker.record_failure(NOW)]
    assert tripped == ([opens_at] if opens_at else [])


def test_the_window_rolls() -> None:
    breaker = one()
    breaker.record_failure(NOW)
    breaker.record_failure(NOW + SECOND)
    later = NOW + 10 * SECOND  # the first has left, the second is in its last second
    assert breaker.snapshot(later)["failures"] == 1
    assert not breaker.record_failure(later)
    assert breaker.record_failure(later)


def test_half_open_lets_exactly_one_through() -> None:
    breaker = opened()
    assert breaker.allow(NOW + 10 * SECOND - 1) == 0
    later = NOW + 10 * SECOND
    assert breaker.state(later) == "half-open"
    assert breaker.ready(later)
    permit = breaker.allow(later)
    assert permit
    assert breaker.allow(later) == 0
    assert not breaker.ready(later)
    breaker.record_success(later, permit)
    assert breaker.state(later) == "closed"
    # What failed before does not count again.
    assert breaker.snapshot(later) == {
        "state": "closed",
        "successes": 0,
        "failures": 0,
        "errorPercentage": 0.0,
        "opens": 1,
        "retryInMs": 0,
        "held": False,
    }


def test_a_failed_trial_opens_again() -> None:
    breaker = opened()
    later = NOW + 10 * SECOND
    permit = breaker.allow(later)
    assert breaker.record_failure(later, permit)
    assert breaker.snapshot(later)["opens"] == 2
    assert breaker.snapshot(later + SECOND)["retryInMs"] == 9000
    assert breaker.allow(later + 10 * SECOND - 1) == 0
    assert breaker.allow(later + 10 * SECOND)


def test_a_released_trial_is_free_at_once() -> None:
    breaker = opened()
    later = NOW + 10 * SECOND
    first = breaker.allow(later)
    breaker.release(later, first)
    assert breaker.state(later) == "half-open"
    second = breaker.allow(later)
    assert second not in (0, first)
    breaker.record_success(later, second)
    assert breaker.state(later) == "closed"


def test_the_lease_of_a_lost_trial_expires_and_its_late_result_is_void() -> None:
    breaker = opened(BreakerConfig(trial_timeout_ms=2000))
    later = NOW + 10 * SECOND
    lost = breaker.allow(later)
    assert breaker.allow(later + 2 * SECOND - 1) == 0
    trial = breaker.allow(later + 2 * SECOND)
    assert trial
    breaker.record_success(later + 3 * SECOND, lost)
    assert breaker.state(later + 3 * SECOND) == "half-open"
    assert not breaker.record_failure(later + 3 * SECOND, lost)
    breaker.release(later + 3 * SECOND, lost)
    assert breaker.allow(later + 3 * SECOND) == 0
    breaker.record_success(later + 3 * SECOND, trial)
    assert breaker.state(later + 3 * SECOND) == "closed"


def test_results_from_before_the_transition_do_not_count() -> None:
    breaker = one()
    old = breaker.allow(NOW)
    for _ in range(3):
        breaker.record_failure(NOW)
    later = NOW + 10 * SECOND
    trial = breaker.allow(later)
    breaker.record_success(later, old)  # not the trial's
    assert breaker.state(later) == "half-open"
    breaker.record_success(later, trial)
    assert not any(breaker.record_failure(later, old) for _ in range(5))
    breaker.record_success(later, old)  # of a time before it was open: it says nothing of now
    counts = breaker.snapshot(later)
    assert (counts["successes"], counts["failures"]) == (0, 0)
    assert breaker.state(later) == "closed"


@pytest.mark.skipif(BACKEND != "pure", reason="a compiled breaker's lock cannot be watched")
def test_a_breaker_that_closes_while_its_lock_is_waited_for_lets_through(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The balancer was told that it is closed: to refuse would be a 503 for nothing."""
    shared = table()
    a, b = (shared.breaker("http://a", worker, CONFIG) for worker in (0, 1))
    for _ in range(3):
        a.record_failure(NOW)
    trial = a.allow(NOW + 10 * SECOND)
    late = NOW + 60 * SECOND  # the trial's lease is over, its answer comes at this moment
    acquire = type(b)._acquire
    waited = []

    def wait(breaker: Breaker) -> None:
        if not waited:
            waited.append(breaker)
            a.record_success(late, trial)
        acquire(breaker)

    monkeypatch.setattr(type(b), "_acquire", wait)
    assert b.allow(late)
    assert waited == [b]
    assert b.state(late) == "closed"


def test_without_permits_the_worker_that_holds_the_trial_decides() -> None:
    shared = table()
    a, b = (shared.breaker("http://a", worker, CONFIG) for worker in (0, 1))
    for _ in range(3):
        a.record_failure(NOW)
    later = NOW + 10 * SECOND
    assert b.allow(later)
    a.record_success(later)
    assert a.state(later) == "half-open"
    b.record_success(later)
    assert a.state(later) == "closed"


def test_workers_add_up() -> None:
    shared = table(workers=3)
    workers = [shared.breaker("http://a", i, CONFIG) for i in range(3)]
    assert [w.record_failure(NOW) for w in workers] == [False, False, True]
    assert {w.state(NOW) for w in workers} == {"open"}
    assert shared.breaker("http://b", 0, CONFIG).state(NOW) == "closed"


def test_disabled() -> None:
    breaker = one(BreakerConfig(enabled=False))
    assert not any(breaker.record_failure(NOW) for _ in range(10))
    assert breaker.allow(NOW)
    breaker = opened()
    breaker.config = BreakerConfig(enabled=False)
    assert breaker.ready(NOW)
    assert breaker.allow(NOW)
    assert breaker.state(NOW) == "closed"


def test_a_new_configuration_takes_effect_and_the_state_stays() -> None:
    breaker = opened()
    breaker.config = BreakerConfig(reset_timeout_ms=1000)
    assert breaker.allow(NOW + 10 * SECOND - 1) == 0
    permit = breaker.allow(NOW + 10 * SECOND)
    breaker.record_failure(NOW + 10 * SECOND, permit)
    assert breaker.allow(NOW + 11 * SECOND)


# ---- the table ----


def test_state_outlives_a_worker() -> None:
    shared = table(workers=1)
    breaker = shared.breaker("http://a", 0, CONFIG)
    for _ in range(3):
        breaker.record_failure(NOW)
    shared.adopt(0)
    assert shared.breaker("http://a", 0, CONFIG).state(NOW) == "open"


def test_a_slot_is_free_when_no_worker_uses_it() -> None:
    shared = table(slots=1)
    first = [shared.breaker("http://a", worker, CONFIG) for worker in (0, 1)]
    first[0].close()
    assert shared.breaker("http://b", 0, CONFIG).allow(NOW)
    assert shared.overflows == 1
    for _ in range(3):
        first[1].record_failure(NOW)
    first[1].close()
    second = shared.breaker("http://c", 0, CONFIG)
    assert shared.overflows == 1
    assert second.state(NOW) == "closed"
    assert second.snapshot(NOW)["failures"] == 0
    # Late reports of the former owner reach nobody.
    for _ in range(5):
        first[0].record_failure(NOW)
    assert second.snapshot(NOW)["failures"] == 0
    assert second.state(NOW) == "closed"


def test_adopt_frees_what_a_dead_worker_held() -> None:
    shared = table(slots=1, workers=2)
    shared.breaker("http://a", 1, CONFIG)
    shared.adopt(1)
    shared.breaker("http://b", 0, CONFIG)
    assert shared.overflows == 0


def test_an_overflowing_breaker_works_alone() -> None:
    shared = table(slots=1)
    shared.breaker("http://a", 0, CONFIG)
    alone = shared.breaker("http://b", 0, CONFIG)
    assert [alone.record_failure(NOW) for _ in range(3)] == [False, False, True]
    assert alone.allow(NOW + 10 * SECOND)
    assert shared.breaker("http://a", 0, CONFIG).state(NOW) == "closed"


def test_refused() -> None:
    with pytest.raises(ValueError, match="slots must be from 1"):
        BreakerTable.size(0, 1)
    with pytest.raises(ValueError, match="workers must be from 1"):
        BreakerTable.size(1, 0)
    with pytest.raises(ValueError, match="the buffer has 64"):
        BreakerTable(bytearray(64), 1, 1)
    size = BreakerTable.size(1, 1)
    with pytest.raises(ValueError, match="must be writable"):
        BreakerTable(memoryview(bytes(size)), 1, 1)
    used = bytearray(size)
    BreakerTable(used, 1, 1)
    with pytest.raises(ValueError, match="once, before the fork"):
        BreakerTable(used, 1, 1)
    with pytest.raises(ValueError, match="worker_index must be from 0 to 1"):
        table().breaker("http://a", 2, CONFIG)
    with pytest.raises(ValueError, match="above 0 and at most 100, got 0"):
        BreakerConfig(error_threshold_percentage=0)
    with pytest.raises(ValueError, match="volume_threshold must be at least 1, got 0"):
        BreakerConfig(volume_threshold=0)


# ---- against a model ----


class Model(RuleBasedStateMachine):
    """Three workers act at random; the model knows every result and every permit."""

    @initialize(
        threshold=st.sampled_from([1.0, 33.3, 50.0, 100.0]),
        volume=st.integers(1, 5),
        reset=st.integers(1, 15_000),
        lease=st.integers(1, 15_000),
    )
    def start(self, threshold: float, volume: int, reset: int, lease: int) -> None:
        self.config = BreakerConfig(threshold, reset, volume, lease)
        shared = table(workers=3)
        self.workers = [shared.breaker("http://a", i, self.config) for i in range(3)]
        self.now = NOW
        self.state = "closed"
        self.until = 0
        self.epoch = 0
        self.results: list[tuple[int, bool]] = []
        #: (real permit, epoch in which it was given, worker)
        self.permits: list[tuple[int, int, int]] = []
        self.opens = 0

    def move(self, state: str) -> None:
        self.state, self.epoch = state, self.epoch + 1
        self.results = []
        self.opens += state == "open"

    @rule(ms=st.one_of(st.integers(0, 500), st.integers(0, 16_000)))
    def wait(self, ms: int) -> None:
        self.now += ms * 1_000_000

    @rule(worker=st.integers(0, 2))
    def ask(self, worker: int) -> None:
        expected = self.state == "closed" or self.now >= self.until
        assert self.workers[worker].ready(self.now) is expected
        permit = self.workers[worker].allow(self.now)
        assert bool(permit) is expected
        if permit and self.state != "closed":
            self.move("half-open")
            self.until = self.now + self.config.trial_timeout_ms * 1_000_000
        if permit:
            self.permits.append((permit, self.epoch, worker))

    def take_permit(self, data: st.DataObject) -> tuple[int, int, int] | None:
        if not self.permits:
            return None
        return self.permits.pop(data.draw(st.integers(0, len(self.permits) - 1)))

    @rule(data=st.data(), failed=st.booleans())
    def report(self, data: st.DataObject, failed: bool) -> None:
        taken = self.take_permit(data)
        if taken is None:
            return
        permit, epoch, worker = taken
        expected = False
        if epoch == self.epoch:
            if self.state == "closed":
                self.results.append((self.now // SECOND, failed))
                window = [bad for at, bad in self.results if at > self.now // SECOND - 10]
                expected = (
                    failed
                    and len(window) >= self.config.volume_threshold
                    and 100 * sum(window) >= self.config.error_threshold_percentage * len(window)
                )
            else:
                expected = failed
                if not failed:
                    self.move("closed")
        breaker = self.workers[worker]
        if failed:
            assert breaker.record_failure(self.now, permit) is expected
        else:
            breaker.record_success(self.now, permit)
        if expected:
            self.move("open")
            self.until = self.now + self.config.reset_timeout_ms * 1_000_000

    @rule(data=st.data())
    def give_up(self, data: st.DataObject) -> None:
        taken = self.take_permit(data)
        if taken is None:
            return
        permit, epoch, worker = taken
        self.workers[worker].release(self.now, permit)
        if epoch == self.epoch and self.state == "half-open":
            self.until = self.now

    @rule(worker=st.integers(0, 2))
    def operator_opens(self, worker: int) -> None:
        self.workers[worker].force_open(self.now)
        self.move("open")
        self.until = 1 << 62

    @rule(worker=st.integers(0, 2))
    def operator_closes(self, worker: int) -> None:
        self.workers[worker].force_close(self.now)
        self.move("closed")

    @invariant()
    def all_workers_see_the_model(self) -> None:
        shown = self.state
        if shown == "open" and self.now >= self.until:
            shown = "half-open"
        window = [bad for at, bad in self.results if at > self.now // SECOND - 10]
        for breaker in self.workers:
            snapshot = breaker.snapshot(self.now)
            assert breaker.state(self.now) == snapshot["state"] == shown
            assert snapshot["opens"] == self.opens
            assert (snapshot["failures"], snapshot["successes"]) == (
                sum(window),
                len(window) - sum(window),
            )


Model.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestModel = Model.TestCase


# ---- several processes ----


def run_workers(count: int, work: Callable[[int], int]) -> list[int]:
    """Fork ``count`` children; each answers with one number over a pipe."""
    children = []
    for index in range(count):
        reader, writer = os.pipe()
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                os.write(writer, str(work(index)).encode())
                status = 0
            finally:
                os._exit(status)
        os.close(writer)
        children.append((pid, reader))
    answers = []
    for pid, reader in children:
        with os.fdopen(reader, "rb") as pipe:
            text = pipe.read()
        assert os.waitpid(pid, 0)[1] == 0
        answers.append(int(text))
    return answers


def test_exactly_one_process_gets_each_trial() -> None:
    workers, rounds = 4, 60
    shared = table(workers=workers)
    first = shared.breaker("http://a", 0, CONFIG)
    for _ in range(3):
        first.record_failure(NOW)

    arrived = memoryview(mmap.mmap(-1, 4096)).cast("q")

    def work(index: int) -> int:
        breaker = shared.breaker("http://a", index, CONFIG)
        granted, deadline = 0, time.monotonic() + 20
        for round_ in range(1, rounds + 1):
            arrived[index] = round_
            while min(arrived[:workers]) < round_ and time.monotonic() < deadline:
                os.sched_yield()
            # In each round the last trial's lease (10 s) or the reset time (10 s) is just over.
            granted += breaker.allow(NOW + round_ * 10 * SECOND) != 0
        return granted

    assert sum(run_workers(workers, work)) == rounds


def test_exactly_one_process_reports_the_opening() -> None:
    workers = 4
    shared = table(workers=workers)

    def work(index: int) -> int:
        breaker = shared.breaker("http://a", index, CONFIG)
        return sum(breaker.record_failure(NOW) for _ in range(50))

    assert sum(run_workers(workers, work)) == 1


@pytest.mark.parametrize("transition", ["trial", "trip", "close", "reopen", "release"])
def test_every_transition_waits_for_the_holder_of_the_lock_until_it_dies(transition: str) -> None:
    shared = table()
    breaker = shared.breaker("http://a", 0, CONFIG)
    later = NOW + 10 * SECOND
    for _ in range(2 if transition == "trip" else 3):
        breaker.record_failure(NOW)
    permit = breaker.allow(NOW if transition == "trip" else later) if transition != "trial" else 0
    act: dict[str, Callable[[], object]] = {
        "trial": lambda: breaker.allow(later),
        "trip": lambda: breaker.record_failure(NOW, permit),
        "close": lambda: breaker.record_success(later, permit),
        "reopen": lambda: breaker.record_failure(later, permit),
        "release": lambda: breaker.release(later, permit),
    }
    ready, told = os.pipe()
    holder = os.fork()
    if holder == 0:
        shared._lock.acquire(0)
        os.write(told, b"x")
        while True:
            time.sleep(60)
    os.read(ready, 1)
    reader, writer = os.pipe()
    actor = os.fork()
    if actor == 0:
        act[transition]()
        os.write(writer, b"x")
        os._exit(0)
    try:
        assert select.select([reader], [], [], 0.15)[0] == []
    finally:
        os.kill(holder, signal.SIGKILL)
        os.waitpid(holder, 0)
        assert os.read(reader, 1) == b"x"
        os.waitpid(actor, 0)


def test_a_killed_process_leaves_the_breaker_usable() -> None:
    config = BreakerConfig(reset_timeout_ms=1, trial_timeout_ms=1)
    shared = table(workers=2)
    breaker = shared.breaker("http://a", 0, config)
    for round_ in range(10):
        pid = os.fork()
        if pid == 0:
            mine = shared.breaker("http://a", 1, config)
            while True:
                now = time.monotonic_ns()
                permit = mine.allow(now)
                mine.record_failure(now, permit)
        time.sleep(0.003 + 0.002 * round_)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        later = time.monotonic_ns() + SECOND
        while breaker.state(later) != "closed":
            permit = breaker.allow(later)
            assert permit
            breaker.record_success(later, permit)
        for _ in range(3):
            breaker.record_failure(later)
        assert breaker.state(later) == "open"
        breaker.record_success(later + SECOND, breaker.allow(later + SECOND))
        assert breaker.state(later) == "closed"
