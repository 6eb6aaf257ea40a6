"""Bulkheads: never more inside than there are places, first come first served, nobody forgotten."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from nexus.policy.bulkhead import ENTERED, FULL, WAITS, Bulkhead
from nexus.policy.outlier import OutlierPolicy, outliers


class Entrant:
    def __init__(self, log: list[Entrant], bulkhead: Bulkhead, brief: bool) -> None:
        self.log, self.bulkhead, self.brief = log, bulkhead, brief

    def on_admitted(self) -> None:
        self.log.append(self)
        if self.brief:  # over at once, within the call
            self.bulkhead.leave()


@given(
    st.integers(1, 4),
    st.integers(0, 5),
    st.lists(st.sampled_from(["enter", "brief", "leave", "cancel"]), max_size=80),
)
def test_against_a_model(limit: int, size: int, steps: list[str]) -> None:
    log: list[Entrant] = []
    bulkhead = Bulkhead(limit, size, 1)
    inside, queue = 0, []
    for step in steps:
        if step in ("enter", "brief"):
            entrant = Entrant(log, bulkhead, step == "brief")
            expected = ENTERED if inside < limit else WAITS if len(queue) < size else FULL
            assert bulkhead.enter(entrant) == expected
            inside += expected == ENTERED
            if expected == WAITS:
                queue.append(entrant)
        elif step == "leave" and inside:
            log.clear()
            bulkhead.leave()
            inside -= 1
            admitted = []
            while queue and inside < limit:
                admitted.append(queue.pop(0))
                inside += not admitted[-1].brief
            assert log == admitted
        elif step == "cancel" and queue:
            bulkhead.cancel(queue.pop())
        assert (bulkhead.active, bulkhead.waiting) == (inside, len(queue))
        assert inside <= limit


def test_a_long_queue_of_brief_ones_is_no_recursion() -> None:
    log: list[Entrant] = []
    bulkhead = Bulkhead(1, 5000, 1)
    for _ in range(5001):
        bulkhead.enter(Entrant(log, bulkhead, brief=True))
    bulkhead.leave()
    assert (len(log), bulkhead.active) == (5000, 0)


def test_success_rates_are_compared() -> None:
    policy = OutlierPolicy(deviations=1.5, least_requests=10, least_upstreams=4)
    well = dict.fromkeys("abcd", (100, 0))
    assert outliers(well, policy) == []
    assert outliers({**well, "e": (50, 50)}, policy) == ["e"]
    assert outliers({**well, "e": (5, 4)}, policy) == [], "too few requests to tell"
    assert outliers({"a": (100, 0), "e": (0, 100)}, policy) == [], "too few upstreams to compare"
