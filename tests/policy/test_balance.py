"""Balancers: order, shares, what is skipped, and what a changed list does to the turn."""

from __future__ import annotations

import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nexus.policy.balance import ALGORITHMS, Balancer, Server, make_balancer


def servers(*weights: int) -> list[Server]:
    return [Server(f"http://127.0.0.1:{3001 + i}", weight) for i, weight in enumerate(weights)]


def made(algorithm: str, group: list[Server], **options: int) -> Balancer:
    balancer = make_balancer(algorithm, random.Random(1), **options)
    balancer.update(group)
    return balancer


def ports(balancer: Balancer, count: int) -> list[int]:
    picked = [balancer.pick() for _ in range(count)]
    return [int(server.url[-4:]) for server in picked if server]


def test_round_robin_in_order() -> None:
    assert ports(made("round-robin", servers(5, 1, 1)), 5) == [3001, 3002, 3003, 3001, 3002]


def test_weighted_in_the_contract_s_order() -> None:
    assert ports(made("weighted", servers(2, 1)), 6) == [3001, 3001, 3002] * 2
    assert ports(made("weighted", servers(20, 10)), 6) == [3001, 3001, 3002] * 2


def test_least_connections() -> None:
    group = servers(1, 1, 1)
    balancer = made("least-conn", group)
    for server, active in zip(group, (2, 0, 1), strict=True):
        server.active = active
    assert balancer.pick() is group[1]
    group[1].active = 3
    assert balancer.pick() is group[2]


def test_least_connections_takes_equals_in_turn() -> None:
    assert ports(made("least-conn", servers(1, 1, 1)), 6) == [3001, 3002, 3003] * 2


def test_two_choices_prefer_the_less_busy_and_reach_all() -> None:
    group = servers(1, 1, 1, 1)
    balancer = made("p2c", group)
    group[0].active = 10
    seen = Counter(ports(balancer, 4000))
    # The busiest loses every comparison: two distinct servers are drawn each time.
    assert seen.keys() == {3002, 3003, 3004}
    # Of four, each of the three idle ones is first in a third of the picks; 5 sigma is 150.
    assert all(abs(count - 4000 / 3) < 150 for count in seen.values())


def test_two_choices_draw_every_pair_alike() -> None:
    group = servers(1, 1, 1)
    balancer = made("p2c", group)
    asked: Counter[frozenset[str]] = Counter()
    pair: list[str] = []

    def usable(server: Server) -> bool:
        pair.append(server.url)
        return len(pair) == 2  # refuse the first, so that the second is asked about too

    for _ in range(3000):
        pair.clear()
        balancer.pick(usable)
        asked[frozenset(pair[:2])] += 1
    assert len(asked) == 3
    assert all(abs(count - 1000) < 130 for count in asked.values())


@pytest.mark.parametrize("algorithm", ALGORITHMS)
class TestEveryAlgorithm:
    def test_name(self, algorithm: str) -> None:
        assert made(algorithm, []).algorithm == algorithm

    def test_nobody_there(self, algorithm: str) -> None:
        assert made(algorithm, []).pick() is None

    @given(data=st.data())
    def test_finds_one_exactly_when_one_can_take_it(
        self, algorithm: str, data: st.DataObject
    ) -> None:
        group = servers(*data.draw(st.lists(st.integers(1, 5), max_size=7)))
        flags = st.lists(st.booleans(), min_size=len(group), max_size=len(group))
        usable, tried = data.draw(flags), data.draw(flags)
        for server, healthy, draining in zip(
            group, data.draw(flags), data.draw(flags), strict=True
        ):
            server.healthy, server.draining = healthy, draining
            server.active = data.draw(st.integers(0, 3))
        allowed = {s for s, yes in zip(group, usable, strict=True) if yes}
        exclude = [s for s, yes in zip(group, tried, strict=True) if yes]
        balancer = made(algorithm, group)
        good = {s for s in allowed if s.healthy and not s.draining}
        for _ in range(3):
            picked = balancer.pick(allowed.__contains__, exclude)
            if good - set(exclude):
                assert picked in good - set(exclude)
            elif good:
                assert picked in good  # a second try there is better than none
            else:
                assert picked is None

    def test_everybody_gets_a_share_when_some_are_out(self, algorithm: str) -> None:
        group = servers(1, 1, 1, 1)
        group[1].healthy = False
        seen = Counter(ports(made(algorithm, group), 3000))
        assert seen.keys() == {3001, 3003, 3004}
        assert all(abs(count - 1000) < 130 for count in seen.values())

    def test_panic_uses_the_sick_but_never_the_unusable(self, algorithm: str) -> None:
        group = servers(1, 1, 1)
        for server in group:
            server.healthy = False
        assert made(algorithm, group).pick() is None
        balancer = made(algorithm, group, panic_percent=1)
        assert {balancer.pick() for _ in range(60)} == set(group)
        assert balancer.pick(lambda server: server is group[2]) is group[2]
        assert balancer.pick(lambda server: False) is None
        assert balancer.pick(None, [group[0], group[1]]) is group[2]
        assert balancer.pick(None, group) in group
        group[0].healthy = True
        balancer.assess()
        assert {balancer.pick() for _ in range(20)} == {group[0]}

    def test_update_replaces_the_list(self, algorithm: str) -> None:
        old, new = servers(1, 1), [Server("http://b:1"), Server("http://b:2")]
        balancer = made(algorithm, old)
        balancer.pick()
        balancer.update(new)
        assert list(balancer.servers) == new
        assert {balancer.pick() for _ in range(40)} == set(new)
        balancer.update([])
        assert balancer.pick() is None


def test_the_turn_survives_a_changed_list() -> None:
    group = servers(1, 1, 1)
    balancer = made("round-robin", group)
    assert balancer.pick() is group[0]
    balancer.update([Server("http://new"), *group])
    assert balancer.pick() is group[1]
    balancer.update([group[0], group[1]])
    assert balancer.pick() is group[0]  # 3003 was next and is gone; the one behind it follows


def test_an_unchanged_list_does_not_restart_the_weighted_circle() -> None:
    group = servers(2, 1)
    balancer = made("weighted", group)
    balancer.pick()
    balancer.pick()
    balancer.update(group)
    assert balancer.pick() is group[1]
    group[1].weight = 2
    balancer.update(group)
    assert ports(balancer, 4) == [3001, 3002, 3001, 3002]


def test_a_draining_server_leaves_its_share_to_all() -> None:
    group = servers(1, 1, 1)
    group[0].draining = True
    assert Counter(ports(made("weighted", group), 60)) == {3002: 30, 3003: 30}


def test_unknown_algorithm() -> None:
    with pytest.raises(ValueError, match="unknown balancing algorithm 'fastest'; known: round-"):
        make_balancer("fastest")


def test_repr_shows_the_state() -> None:
    server = Server("http://a", 2)
    assert repr(server) == "<Server http://a weight=2 active=0 healthy>"
    server.healthy = False
    assert repr(server).endswith("unhealthy>")
    server.draining = True
    assert repr(server).endswith("draining>")
