"""Bulkheads: never more inside than there are places, first come first served, nobody forgotten."""

from __future__ import annotations

import os
import select
import signal
from collections import Counter
from collections.abc import Callable

from hypothesis import given
from hypothesis import strategies as st

from nexus.policy.bulkhead import ENTERED, FULL, WAITS, Bulkhead
from nexus.policy.outlier import OutlierPolicy, outliers
from nexus.policy.places import PlaceTable

#: Long enough that nobody's wait is over by the test's own clock, which counts steps.
WAIT = 1_000_000


class Rig:
    """Workers that share a bulkhead, all in this process; bells are answered when told."""

    def __init__(self, workers: int, limit: int, size: int, wait: int = WAIT) -> None:
        self.table = PlaceTable(workers, bool, 2)
        self.limit, self.size, self.wait = limit, size, wait
        self.rung: list[int] = []
        self.log: list[Entrant] = []
        self.workers = [self.begin(worker) for worker in range(workers)]

    def begin(self, worker: int) -> Bulkhead:
        """A process begins as this worker."""
        self.table.adopt(worker, 1 + worker)
        places = self.table.places("group", worker)
        assert places is not None
        return Bulkhead(places, self.limit, self.size, self.wait, self.rung.append)

    def answer(self, now: int) -> None:
        while self.rung:
            self.workers[self.rung.pop(0)].admit(now)


class Entrant:
    def __init__(self, rig: Rig, worker: int, now: int, *, brief: bool = False) -> None:
        self.rig, self.worker, self.came, self.brief = rig, worker, now, brief

    def on_admitted(self) -> None:
        self.rig.log.append(self)
        if self.brief:  # over at once, within the call
            self.rig.workers[self.worker].leave(self.came)


@given(
    st.integers(1, 3),
    st.integers(1, 4),
    st.integers(0, 5),
    st.lists(
        st.tuples(st.sampled_from(["enter", "brief", "leave", "cancel"]), st.integers(0, 2)),
        max_size=80,
    ),
)
def test_against_a_model(workers: int, limit: int, size: int, steps: list[tuple[str, int]]) -> None:
    """Of all workers together: one queue, first come first served, never more than the limit."""
    rig = Rig(workers, limit, size)
    inside: list[int] = []
    queue: list[Entrant] = []
    for now, (step, which) in enumerate(steps, 1):
        worker = which % workers
        bulkhead = rig.workers[worker]
        if step in ("enter", "brief"):
            entrant = Entrant(rig, worker, now, brief=step == "brief")
            free = len(inside) < limit
            expected = ENTERED if free else WAITS if len(queue) < size else FULL
            assert bulkhead.enter(entrant, now) == expected
            if expected == ENTERED:
                inside.append(worker)
            elif expected == WAITS:
                queue.append(entrant)
        elif step == "leave" and worker in inside:
            rig.log.clear()
            bulkhead.leave(now)
            rig.answer(now)
            inside.remove(worker)
            admitted = []
            while queue and len(inside) < limit:
                admitted.append(queue.pop(0))
                if not admitted[-1].brief:
                    inside.append(admitted[-1].worker)
            assert rig.log == admitted
        elif step == "cancel" and queue:
            entrant = queue.pop()
            rig.workers[entrant.worker].cancel(entrant, now)
            rig.answer(now)
        here = [one.active for one in rig.workers]
        assert here == [Counter(inside)[worker] for worker in range(workers)]
        assert sum(one.waiting for one in rig.workers) == len(queue)
        assert len(inside) <= limit


def test_a_long_queue_of_brief_ones_is_no_recursion() -> None:
    rig = Rig(1, 1, 5000)
    [bulkhead] = rig.workers
    for now in range(1, 5002):
        bulkhead.enter(Entrant(rig, 0, now, brief=True), now)
    bulkhead.leave(5002)
    assert (len(rig.log), bulkhead.active) == (5000, 0)


def test_a_worker_that_died_blocks_nobody() -> None:
    rig = Rig(2, 1, 5)
    pid = os.fork()
    if not pid:  # the first worker: one inside, one that waits, and dies
        here = rig.begin(0)
        ok = here.enter(Entrant(rig, 0, 1), 1) == ENTERED
        ok &= here.enter(Entrant(rig, 0, 2), 2) == WAITS
        os.kill(os.getpid(), signal.SIGKILL if ok else signal.SIGTERM)
    assert os.waitpid(pid, 0)[1] == signal.SIGKILL
    other = rig.workers[1]
    assert other.enter(Entrant(rig, 1, 3), 3) == WAITS, "its place is taken until it is replaced"
    rig.workers[0] = rig.begin(0)
    other.admit(4)
    assert [one.came for one in rig.log] == [3]
    assert (other.active, rig.workers[0].active) == (1, 0)


def test_nobody_waits_for_one_that_should_be_gone() -> None:
    rig = Rig(2, 1, 5, wait=1000)
    first, second = rig.workers
    assert first.enter(Entrant(rig, 0, 1), 1) == ENTERED
    assert first.enter(Entrant(rig, 0, 2), 2) == WAITS
    assert second.enter(Entrant(rig, 1, 3), 3) == WAITS
    # The first worker stands still: its bell is not heard.
    first._admitting = True
    first.leave(4)
    second.admit(500)
    assert rig.log == []
    second.admit(10**9)  # long after the longest wait
    assert [one.came for one in rig.log] == [3]


def test_a_place_is_taken_under_a_lock_that_dies_with_its_holder() -> None:
    table = PlaceTable(2, bool, 2)
    places = table.places("g", 1)
    assert places is not None
    told, tell = os.pipe()

    def run(work: Callable[[], None]) -> int:
        pid = os.fork()
        if not pid:
            work()
            os._exit(0)
        return pid

    def hold() -> None:
        table._lock.acquire(0)  # the first group's row
        os.write(tell, b"h")
        signal.pause()

    def take() -> None:
        os.write(tell, b"t" if places.take(1, 1, 0) else b"f")

    holder = run(hold)
    assert os.read(told, 1) == b"h"
    taker = run(take)
    waits = not select.select([told], [], [], 0.3)[0]
    os.kill(holder, signal.SIGKILL)
    assert waits, "it does not wait for the lock"
    assert os.read(told, 1) == b"t"
    assert [os.waitpid(pid, 0)[1] for pid in (holder, taker)] == [signal.SIGKILL, 0]
    assert places.inside == 1
    assert not places.take(1, 1, 0)


def test_success_rates_are_compared() -> None:
    policy = OutlierPolicy(deviations=1.5, least_requests=10, least_upstreams=4)
    well = dict.fromkeys("abcd", (100, 0))
    assert outliers(well, policy) == []
    assert outliers({**well, "e": (50, 50)}, policy) == ["e"]
    assert outliers({**well, "e": (5, 4)}, policy) == [], "too few requests to tell"
    assert outliers({"a": (100, 0), "e": (0, 100)}, policy) == [], "too few upstreams to compare"
