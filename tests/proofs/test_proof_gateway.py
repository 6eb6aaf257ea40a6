"""The gateway's proofs, small: ``make prove-reload``, ``-gateway-idle``, ``-gateway-bigbody``."""

from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path

import pytest
import uvloop

from proofs import gatewaybigbody, gatewayidle, hostile, reload, steady
from proofs.gatewayrig import gateway, keep_asking
from proofs.report import save


def test_reloads_fail_nothing_and_kills_only_what_was_under_way(tmp_path: Path) -> None:
    result = reload.prove(seconds=2, kills=1)
    assert save(result, tmp_path) == 0, result
    assert set(result.numbers["reload_answers"]) == {"200"}


def test_idle_connections_cost_little(tmp_path: Path) -> None:
    result = gatewayidle.prove(clients=600)
    assert save(result, tmp_path) == 0, result
    assert result.numbers["served"] == 600


def test_big_bodies_are_not_collected(tmp_path: Path) -> None:
    result = gatewaybigbody.prove(mebibytes=64)
    assert save(result, tmp_path) == 0, result
    assert result.numbers["whole"] == [True, True, True]


def test_hostile_clients_fail_nobody_else() -> None:
    # How fast the others are answered meanwhile is for the proof on a quiet machine.
    numbers = hostile.prove(alternations=1, seconds=1.5).numbers
    assert set(numbers["answers"]) <= {"200", "between"}, numbers
    assert numbers["answers"]["200"] > 100
    assert numbers["most_kib"] - numbers["before_kib"] < 65_536


@pytest.mark.skipif(shutil.which("wrk") is None, reason="wrk is not installed")
def test_steady_counts_what_failed() -> None:
    numbers = steady.prove(requests=2, spells=2).numbers
    assert numbers["failed"] == 0
    assert len(numbers["memory_kib"]) == 2


@pytest.mark.once
def test_what_is_lost_is_seen() -> None:
    """The client that judges tells a cut connection from an answer, and no server from both."""
    answers: Counter[str] = Counter()
    turns = iter([True, True, False])
    with gateway(1) as running:  # nobody is behind it
        uvloop.run(keep_asking(running.port, answers, lambda: next(turns, False)))
        port = running.port
    assert answers == {"502": 1}
    turns = iter([True, False])
    uvloop.run(keep_asking(port, answers, lambda: next(turns, False)))
    assert answers == {"502": 1, "refused": 1}
