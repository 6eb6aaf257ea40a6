"""Leases: by example, and against a made-up Redis under random events."""

from __future__ import annotations

import random
from collections import Counter
from math import inf

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nexus.policy.leases import (
    Delta,
    Lease,
    LeaseCounts,
    Lock,
    StaleStore,
    State,
    refresh_is_due,
)

WAIT, TTL = 1.0, 10.0


class FakePort:
    """Notes what it is asked for."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.outcomes: list[tuple[str, str, object]] = []

    def take(self) -> list[str]:
        asked, self.asked = self.asked, []
        return asked

    def of(self, kind: str) -> list[str]:
        return [waiter for outcome, waiter, _ in self.outcomes if outcome == kind]

    def read(self) -> None:
        self.asked.append("read")

    def lock(self, ttl: float) -> None:
        self.asked.append("lock")

    def unlock(self) -> None:
        self.asked.append("unlock")

    def extend(self, ttl: float) -> None:
        self.asked.append("extend")

    def leave(self, ttl: float) -> None:
        self.asked.append("leave")

    def cool(self, ttl: float) -> None:
        self.asked.append("cool")

    def grant(self, waiter: str, reply: object) -> None:
        self.outcomes.append(("grant", waiter, reply))

    def serve(self, waiter: str, reply: object) -> None:
        self.outcomes.append(("serve", waiter, reply))

    def release(self, waiter: str, *, late: bool) -> None:
        self.outcomes.append(("late" if late else "release", waiter, None))


def make() -> tuple[Lease, FakePort]:
    port = FakePort()
    return Lease(port, WAIT, TTL, LeaseCounts(), Delta()), port


def held() -> tuple[Lease, FakePort]:
    """A lease that ``a`` holds and ``b``, ``c`` wait for."""
    lease, port = make()
    for waiter in ("a", "b", "c"):
        assert lease.arrive(waiter, 0.0)
    assert port.take() == ["read"]
    lease.found("nil", True, 0.1)
    assert port.take() == ["lock"]
    lease.locked(Lock.WON, 0.2)
    assert port.take() == ["read"]
    assert port.outcomes == []
    lease.found("nil", True, 0.3)
    assert port.take() == []
    assert port.of("grant") == ["a"]
    assert lease.state is State.HELD
    return lease, port


def test_a_value_is_everybodys():
    lease, port = make()
    lease.arrive("a", 0.0)
    lease.arrive("b", 0.1)  # after the read was sent
    lease.found("value", False, 0.2)
    assert port.of("serve") == ["a"]
    assert port.take() == ["read", "read"]
    lease.found("value", False, 0.3)
    assert port.of("serve") == ["a", "b"]
    assert lease.forgettable(0.3)


def test_one_loads_and_the_others_get_what_it_wrote():
    lease, port = held()
    lease.arrive("d", 0.4)
    lease.changed(0.5)
    assert port.take() == ["unlock", "read"]
    lease.found("value", False, 0.6)
    assert port.of("serve") == ["b", "c", "d"]
    assert lease.forgettable(0.6)
    assert lease.delta.seconds == pytest.approx(0.2)
    assert lease.counts == LeaseCounts(granted=1, written=1, waited=4, served=3)


def test_a_write_while_the_lock_is_asked_for_is_not_missed():
    lease, port = make()
    lease.arrive("a", 0.0)
    lease.found("nil", True, 0.1)
    lease.changed(0.15)
    lease.locked(Lock.WON, 0.2)
    lease.found("value", False, 0.3)
    assert port.take() == ["read", "lock", "read", "unlock"]
    assert port.of("serve") == ["a"]


def test_a_nil_that_was_overtaken_by_a_write_is_read_again():
    lease, port = make()
    lease.arrive("a", 0.0)
    lease.changed(0.05)
    lease.found("nil", True, 0.1)
    assert port.take() == ["read", "read"]
    lease.found("value", False, 0.2)
    assert port.of("serve") == ["a"]


def test_the_next_takes_over_from_a_holder_that_is_gone():
    lease, port = held()
    lease.gone("a", 0.4)
    assert port.take() == ["unlock", "lock"]
    lease.locked(Lock.WON, 0.45)
    assert port.take() == ["read"]
    lease.found("nil", True, 0.5)
    assert port.of("grant") == ["a", "b"]
    lease.changed(0.6)
    lease.found("value", False, 0.7)
    assert port.of("serve") == ["c"]
    assert lease.counts.handed_over == 1
    assert lease.counts.granted == 2


def test_a_holder_that_is_gone_with_nobody_waiting_ends_it():
    lease, port = held()
    lease.gone("b", 0.4)
    lease.gone("c", 0.4)
    lease.gone("a", 0.4)
    assert port.take() == ["leave"]
    assert not lease.arrive("d", 0.5)
    assert lease.arrive("e", 0.4 + TTL)


def test_nobody_waits_longer_than_the_wait():
    lease, port = held()
    assert lease.due() == WAIT
    lease.arrive("d", 0.5)
    lease.tick(WAIT)
    assert port.of("late") == ["b", "c"]
    assert lease.due() == 0.5 + WAIT
    lease.tick(1.6)
    assert port.of("late") == ["b", "c", "d"]
    assert lease.counts.released_late == 3
    assert lease.due() == pytest.approx(0.3 + TTL)


def test_a_key_that_nobody_loads_costs_nobody():
    lease, port = held()
    lease.tick(5.0)
    lease.arrive("d", 9.9)
    lease.tick(10.3)
    assert port.take() == ["cool", "read"]
    assert not lease.arrive("e", 10.35)  # the cool-down has begun
    lease.found("nil", True, 10.4)
    assert port.of("grant") == ["a", "d"]
    assert port.take() == []
    assert not lease.arrive("f", 15.0)
    lease.tick(20.4)
    assert port.take() == ["leave"]
    assert lease.counts.expired == 2
    assert lease.state is State.IDLE
    assert not lease.arrive("g", 25.0)


def test_a_write_ends_the_cool_down_everywhere():
    lease, port = held()
    lease.tick(5.0)
    lease.arrive("d", 9.9)
    lease.tick(10.3)
    lease.found("nil", True, 10.4)
    port.take()
    lease.changed(10.5)
    assert port.take() == ["unlock"]


def test_the_next_loads_when_what_the_holder_loaded_is_not_stored():
    lease, port = held()
    lease.refused("b")  # not the holder
    assert port.take() == []
    lease.refused("a")
    assert port.take() == ["unlock", "lock"]
    lease.locked(Lock.WON, 0.5)
    lease.found("nil", True, 0.6)
    assert port.of("grant") == ["a", "b"]
    lease.gone("c", 0.6)
    lease.refused("b")
    assert lease.state is State.IDLE
    assert lease.arrive("d", 0.7)  # no cool-down


def test_a_lock_that_another_has_is_waited_for():
    lease, port = make()
    lease.arrive("a", 0.0)
    lease.found("nil", True, 0.0)
    lease.locked(Lock.TAKEN, 0.0)
    assert port.take() == ["read", "lock"]
    assert lease.due() == 0.05
    lease.tick(0.05)
    assert port.take() == ["lock"]
    lease.locked(Lock.TAKEN, 0.06)
    assert lease.due() == pytest.approx(0.16)  # asked for less and less often
    lease.changed(0.1)
    assert port.take() == ["read"]
    lease.found("value", False, 0.1)
    assert port.of("serve") == ["a"]


def test_a_lock_that_nobody_may_have_holds_nobody():
    for lock in (Lock.COOLING, Lock.FAILED):
        lease, port = make()
        lease.arrive("a", 0.0)
        lease.found("nil", True, 0.0)
        lease.locked(lock, 0.0)
        assert port.of("release") == ["a"]
        assert not lease.arrive("b", 0.5)


def test_those_who_waited_follow_a_holder_elsewhere_and_nobody_joins_them():
    for second in (Lock.INHERITED, Lock.COOLING):
        lease, port = make()
        lease.arrive("a", 0.0)
        lease.arrive("b", 0.0)
        lease.found("nil", True, 0.0)
        assert not lease.waited
        lease.locked(Lock.TAKEN, 0.0)
        lease.tick(0.05)
        assert lease.waited
        lease.locked(second, 0.06)
        assert port.of("release") == []
        assert not lease.arrive("c", 0.07)
        if second is Lock.INHERITED:
            lease.found("nil", True, 0.08)
            assert port.of("grant") == ["a"]
            port.take()
            lease.gone("a", 0.1)
            assert port.take() == ["extend", "read"]
        else:
            assert lease.state is State.ELSEWHERE
            assert lease.waiting == 2


def test_what_is_sent_behind_a_read_frees_it():
    lease, port = held()
    lease.behind("b")
    lease.behind("x")
    assert port.of("release") == ["b"]
    assert lease.counts.released_early == 1
    assert lease.waiting == 1


def test_nobody_waits_for_a_connection_that_is_lost():
    lease, port = held()
    lease.lost()
    assert port.of("release") == ["b", "c"]
    assert port.take() == ["unlock"]
    assert lease.forgettable(0.4)


def test_early_refresh_sends_one_and_survives_the_expiry():
    lease, port = make()
    assert lease.offer("a", 0.0)
    assert not lease.offer("b", 0.0)
    assert port.take() == ["lock"]
    lease.locked(Lock.WON, 0.01)
    assert port.of("grant") == ["a"]
    assert not lease.offer("c", 0.02)
    lease.changed(0.05)  # the expiry
    assert port.take() == ["read"]
    lease.arrive("d", 0.06)
    lease.found("nil", True, 0.07)
    assert lease.state is State.HELD
    lease.changed(0.1)  # the write
    assert port.take() == ["unlock", "read"]
    lease.found("value", False, 0.11)
    assert port.of("serve") == ["d"]
    assert lease.counts.granted == lease.counts.early == 1


def test_early_refresh_that_another_does_is_left_to_it():
    lease, port = make()
    lease.offer("a", 0.0)
    lease.locked(Lock.TAKEN, 0.01)
    assert port.of("release") == ["a"]
    assert lease.state is State.IDLE
    assert not lease.offer("b", 0.02)
    assert lease.offer("b", 0.06)


class RandomRun:
    """Random events; reads and locks are answered some time after they were asked for."""

    def __init__(self, rng: random.Random) -> None:
        self.random = rng
        self.lease, self.port = make()
        self.now = 0.0
        self.arrived: dict[str, float] = {}
        #: Who needs no answer any more.
        self.left: set[str] = set()
        self.nil = True
        self.reads: list[float] = []
        self.locks = 0

    def step(self) -> None:
        self.now += self.random.choice((0.0, 0.01, 0.05, 0.2) * 5 + (3.0,))
        if self.lease.due() <= self.now:
            self.lease.tick(self.now)
        self._note()
        events = (self._arrive, self._arrive, self._change, self._go, self._offer)
        self.random.choice((*events, self._found, self._found, self._locked, self._rarely_lost))()
        self._note()

    def _note(self) -> None:
        asked = self.port.take()
        self.reads += [self.now] * asked.count("read")
        self.locks += asked.count("lock")

    def _name(self) -> str:
        name = f"w{len(self.arrived)}"
        self.arrived[name] = self.now
        return name

    def _arrive(self) -> None:
        name = self._name()
        if not self.lease.arrive(name, self.now):
            self.left.add(name)

    def _offer(self) -> None:
        name = self._name()
        if not self.lease.offer(name, self.now):
            self.left.add(name)

    def _change(self) -> None:
        self.nil = self.random.random() < 0.4
        self.lease.changed(self.now)

    def _go(self) -> None:
        if self.arrived:
            name = self.random.choice(list(self.arrived))
            if self.random.random() < 0.1:
                self.lease.refused(name)
            elif self.random.random() < 0.5:
                self.lease.gone(name, self.now)
                self.left.add(name)
            else:
                self.lease.behind(name)

    def _found(self) -> None:
        if self.reads:
            sent = self.reads[-1]
            self.reads = []
            self.lease.found(sent, self.nil, self.now)

    def _locked(self) -> None:
        if self.locks:
            self.locks = 0
            self.lease.locked(self.random.choice(list(Lock)), self.now)

    def _rarely_lost(self) -> None:
        if self.random.random() < 0.1:
            self.lease.lost()
            self.reads, self.locks = [], 0


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 2**32))
def test_whatever_happens_everybody_is_answered_once_in_time_and_truly(seed: int):
    run = RandomRun(random.Random(seed))
    for _ in range(200):
        run.step()
        assert run.lease._queue.deadline > run.now
    lease, port, arrived, now = run.lease, run.port, run.arrived, run.now
    lease.tick(now + WAIT)
    lease.lost()
    times = Counter(waiter for _, waiter, _ in port.outcomes)
    assert set(times) | run.left >= set(arrived)
    assert all(count == 1 for count in times.values())
    for outcome, waiter, reply in port.outcomes:
        if outcome == "serve":
            assert isinstance(reply, float)
            assert reply >= arrived[waiter]  # read after it came
    assert lease.waiting == 0


# -- early refresh, stale values


def test_refresh_comes_with_the_probability_of_the_paper():
    rng = random.Random(1)
    draws = [1.0 - rng.random() for _ in range(20_000)]
    for left, expected in ((0.0, 1.0), (0.1, 0.368), (0.3, 0.050), (2.0, 0.0)):
        share = sum(refresh_is_due(10.0, 10.0 + left, 0.1, draw) for draw in draws) / len(draws)
        assert share == pytest.approx(expected, abs=0.01)
    assert not refresh_is_due(9.0, 10.0, 0.0, 0.5)


def test_delta_is_a_mean_that_follows():
    delta = Delta()
    delta.add(0.1)
    assert delta.seconds == 0.1
    for _ in range(40):
        delta.add(0.5)
    assert delta.seconds == pytest.approx(0.5, rel=0.01)


def test_stale_values_are_bounded_and_have_their_time():
    store = StaleStore(1000)
    for n in range(10):
        store.put(n, b"x" * 100, float(n))
    assert store.bytes <= 1000
    assert len(store) == 3
    assert store.get(0, 10.0, inf) is None
    assert store.get(9, 10.0, 1.0) == b"x" * 100
    assert store.get(9, 10.1, 1.0) is None
    assert len(store) == 2
    store.put(8, b"y", 8.0)
    assert store.get(8, 9.0, 10.0) == b"y"
    store.drop(8)
    store.drop(7)
    assert (len(store), store.bytes) == (0, 0)
    store.put(1, b"z" * 1000, 0.0)
    assert len(store) == 0
