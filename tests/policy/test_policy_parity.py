"""Balancers, breakers and the retry budget decide alike on both backends, whatever is done."""

from __future__ import annotations

import importlib
import os
import random
from types import ModuleType
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nexus._speedups import COMPILED_MODULES, _built
from nexus.policy.breaker import BreakerConfig

pytestmark = pytest.mark.skipif(
    not all(_built(name) for name in COMPILED_MODULES)
    and os.environ.get("NEXUS_REQUIRE_EXTENSIONS", "") in ("", "0"),
    reason="the kernels are not built",
)

ALGORITHMS = ("round-robin", "least-conn", "weighted", "weighted-smooth", "p2c")


def sides(module: str) -> tuple[ModuleType, ModuleType]:
    base = f"nexus.policy._{module}"
    return importlib.import_module(f"{base}_py"), importlib.import_module(f"{base}_c")


@settings(deadline=None, max_examples=150)
@given(
    st.sampled_from(ALGORITHMS),
    st.lists(st.integers(1, 5), max_size=5),
    st.sampled_from([0, 50, 100]),
    st.integers(0, 2**32),
    st.lists(
        st.tuples(
            st.sampled_from(["pick", "pick", "pick", "sick", "well", "drain", "ramp", "finish"]),
            st.integers(0, 4),
            st.sets(st.integers(0, 4), max_size=3),
        ),
        max_size=40,
    ),
)
def test_balancers(algorithm, weights, panic, seed, steps) -> None:
    made: list[tuple[Any, list[Any]]] = []
    for module in sides("balance"):
        servers = [module.Server(f"http://{i}", weight) for i, weight in enumerate(weights)]
        balancer = module.make_balancer(algorithm, random.Random(seed), panic_percent=panic)
        balancer.update(servers)
        made.append((balancer, servers))
    for what, index, others in steps:
        picked = []
        for balancer, servers in made:
            if what == "pick":
                out = [server for i, server in enumerate(servers) if i in others]
                usable = None if index == 4 else (lambda s, i=index: s.url != f"http://{i}")
                server = balancer.pick(usable, out)
                if server is not None:
                    server.active += 1
                picked.append(server and server.url)
            elif index < len(servers):
                server = servers[index]
                if what == "finish":
                    server.active = 0
                elif what == "ramp":
                    server.ramp = 0.3
                elif what == "drain":
                    server.draining = not server.draining
                else:
                    server.healthy = what == "well"
                balancer.assess()
        assert len(set(picked)) <= 1, (what, picked)


@settings(deadline=None, max_examples=150)
@given(
    st.integers(1, 100),
    st.integers(1, 4),
    st.lists(
        st.tuples(
            st.sampled_from(["allow", "success", "failure", "failure", "release", "open", "close"]),
            st.integers(0, 4000),
        ),
        max_size=60,
    ),
)
def test_breakers(threshold, volume, steps) -> None:
    config = BreakerConfig(threshold, 1000, volume, 500)
    made = [
        module.Breaker("u", config, module.private_words(), 0, 1, None, 0)
        for module in sides("breaker")
    ]
    permits: list[list[int]] = [[], []]
    now = 10**12
    for what, pause in steps:
        now += pause * 1_000_000
        seen: list[Any] = []
        for breaker, held in zip(made, permits, strict=True):
            permit = held.pop(0) if held and what in ("success", "failure", "release") else 0
            if what == "allow":
                answer = breaker.allow(now)
                held.append(answer)
            elif what == "success":
                answer = breaker.record_success(now, permit)
            elif what == "failure":
                answer = breaker.record_failure(now, permit)
            elif what == "release":
                answer = breaker.release(now, permit)
            else:
                answer = (breaker.force_open if what == "open" else breaker.force_close)(now)
            seen.append((answer, breaker.ready(now), breaker.snapshot(now)))
        assert seen[0] == seen[1], what


@given(
    st.floats(0, 1),
    st.integers(0, 4),
    st.lists(st.sampled_from(["begin", "end", "try", "try", "release"]), max_size=80),
)
def test_budgets(ratio, floor, steps) -> None:
    made = [module.RetryBudget(ratio, floor) for module in sides("budget")]
    for what in steps:
        seen = []
        for budget in made:
            answer = None
            if what == "try":
                answer = budget.try_acquire()
            elif what == "release":
                if budget.retrying:
                    budget.release()
            elif what == "begin" or budget.active:
                (budget.begin if what == "begin" else budget.end)()
            seen.append((answer, budget.active, budget.retrying, budget.refused))
        assert seen[0] == seen[1], what
