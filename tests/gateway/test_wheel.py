"""Deadlines of a worker: on time, movable, and no hold on what is over."""

from __future__ import annotations

import gc
import random
import weakref

from nexus.gateway.wheel import TICK_NS, Timed, Wheel


class Clock(Timed):
    """Writes down when it rang."""

    def __init__(self) -> None:
        super().__init__()
        self.rang: list[int] = []

    def on_deadline(self, now: int) -> None:
        self.rang.append(now)


def test_a_deadline_rings_once_at_most_a_tick_late_and_never_early() -> None:
    rng = random.Random(5)
    wheel = Wheel(1)
    clocks = [(Clock(), rng.randrange(1, 60 * 10**9)) for _ in range(200)]
    for clock, deadline in clocks:
        # From anywhere to anywhere: later costs nothing, earlier moves the entry.
        wheel.schedule(clock, rng.randrange(1, 60 * 10**9))
        wheel.schedule(clock, deadline)
    for now in range(1, 61 * 10**9, TICK_NS // 2):
        wheel.advance(now)
    for clock, deadline in clocks:
        assert len(clock.rang) == 1
        assert deadline <= clock.rang[0] <= deadline + 2 * TICK_NS


def test_what_is_dropped_does_not_ring_and_is_not_held() -> None:
    wheel = Wheel(1)
    clock = Clock()
    gone = weakref.ref(clock)
    rang = clock.rang
    for deadline in (30 * 10**9, 5 * 10**9, 10**9, 20 * 10**9):
        wheel.schedule(clock, deadline)
    wheel.drop(clock)
    gc.disable()
    try:
        del clock
        assert gone() is None
    finally:
        gc.enable()
    wheel.advance(60 * 10**9)
    assert rang == []


def test_one_that_rings_may_move_and_drop_others_of_its_tick() -> None:
    wheel = Wheel(1)
    dropped, moved, later = Clock(), Clock(), 10 * 10**9

    class Ringing(Clock):
        def on_deadline(self, now: int) -> None:
            super().on_deadline(now)
            wheel.drop(dropped)
            wheel.schedule(moved, later)

    ringing = [Ringing() for _ in range(8)]
    for clock in (*ringing, dropped, moved):
        wheel.schedule(clock, 10**9)
    wheel.advance(2 * 10**9)
    assert all(len(clock.rang) == 1 for clock in ringing)
    # Which of one tick rings first is not said.
    assert len(dropped.rang) <= 1
    moves = len(moved.rang)
    assert moves <= 1
    wheel.advance(later + 2 * TICK_NS)
    assert len(moved.rang) == moves + 1


def test_after_a_time_in_which_nothing_ran_sockets_are_read_first() -> None:
    wheel = Wheel(1)
    clock, read, early, soon = Clock(), Clock(), Clock(), Clock()
    wheel.schedule(clock, 10**9)
    for now in range(1, 10**9 // 2, TICK_NS):
        assert not wheel.late(now)
        wheel.advance(now)
    # What a socket that is read before the tick gets counts from a time long ago.
    wheel.schedule(soon, wheel.now + 2 * 10**9)
    wheel.schedule(early, wheel.now + 7 * 10**9)
    resumed = 5 * 10**9
    assert wheel.late(resumed)
    assert clock.rang == []
    # What is read now counts from now.
    assert wheel.now == resumed
    wheel.schedule(read, wheel.now + 10**9)
    assert not wheel.late(resumed + 1), "it may not wait for ever"
    wheel.advance(resumed + 1)
    assert clock.rang == [resumed + 1]
    for rings, after in ((read, 10**9), (soon, 2 * 10**9), (early, 7 * 10**9)):
        wheel.advance(resumed + after - TICK_NS)
        assert rings.rang == []
        wheel.advance(resumed + after + TICK_NS)
        assert len(rings.rang) == 1


def test_a_deadline_passes_also_when_every_tick_is_late() -> None:
    # As under overload: the ticks that fire come right after the late ones, or as late.
    for pause in (1_000_000, 300_000_000):
        wheel = Wheel(1)
        clock = Clock()
        wheel.schedule(clock, 3 * 10**9)
        now = 1
        while not clock.rang:
            now += 300_000_000
            assert wheel.late(now)
            now += pause
            assert not wheel.late(now)
            wheel.advance(now)
            assert now <= 3 * 10**9 + 4 * 300_000_000
