"""The regression gate judges right; how fast anything is is not tested here."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
from support.requirements import kernels

from bench import gate
from bench.kernels import CASES, Case, variants

built = pytest.mark.usefixtures("_kernels")


@pytest.fixture
def _kernels() -> None:
    kernels()


def busy(steps: int) -> Any:
    def work() -> None:
        for _ in range(steps):
            pass

    return work


def test_the_baseline_holds_ratios_of_every_case_and_nothing_else() -> None:
    ratios = json.loads(gate.BASELINES.read_text())["ratios"]
    assert list(ratios) == sorted(case.name for case in CASES)
    for case in CASES:
        assert set(ratios[case.name]) == {"pure", *case.others}
        assert all(0 < ratio < 2 for ratio in ratios[case.name].values())


def test_a_ratio_is_that_of_the_work() -> None:
    ratios = gate.measure({"compiled": busy(2000), "pure": busy(8000)}, rounds=15)
    assert 0.15 < ratios["pure"] < 0.4


def test_slowing_does_the_work_more_often() -> None:
    calls = []
    slow = gate.slowed(lambda: calls.append(1), 1.3)
    calls.clear()
    for _ in range(100):
        slow()
    assert len(calls) == 130


def test_slowing_long_work_makes_each_call_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = itertools.count(step=1000)
    monkeypatch.setattr(gate, "thread_time_ns", lambda: next(clock))

    def work() -> None:
        for _ in range(999):
            next(clock)

    slow = gate.slowed(work, 1.3)
    begun = next(clock)
    slow()
    assert (next(clock) - begun) / 1_000_000 == pytest.approx(1.3, abs=0.01)


def test_thirty_percent_more_work_is_found_and_named(monkeypatch: pytest.MonkeyPatch) -> None:
    # Work counted, not timed: each call says how long it took.
    clock = [0]

    def costs(nanoseconds: int) -> Any:
        def work() -> None:
            clock[0] += nanoseconds

        return work

    monkeypatch.setattr(gate, "thread_time_ns", lambda: clock[0])
    baseline = {"pure": 0.1, "hiredis": 0.5}
    works = {"pure": costs(10_000), "hiredis": costs(2000)}

    def findings(compiled: Any) -> list[gate.Finding]:
        ratios = gate.measure(works | {"compiled": compiled}, rounds=3)
        return gate.judge(ratios, baseline)

    assert gate.change(findings(costs(1000))) == pytest.approx(0, abs=0.01)
    assert gate.change(findings(gate.slowed(costs(1000), 1.1))) == pytest.approx(0.1, abs=0.01)
    found = findings(gate.slowed(costs(1000), 1.3))
    assert gate.change(found) == pytest.approx(0.3, abs=0.01)
    assert str(found[0]).startswith("pure 0.1300, baseline 0.1000")


def test_a_changed_reference_alone_is_no_slower_kernel() -> None:
    baseline = {"pure": 0.1, "hiredis": 0.5}
    assert gate.change(gate.judge({"pure": 0.2, "hiredis": 0.5}, baseline)) == 0
    assert gate.change(gate.judge({"pure": 0.143, "hiredis": 0.53}, baseline)) < gate.TOLERANCE


def test_the_noise_of_one_reference_hides_nothing() -> None:
    baseline = {"pure": 0.1, "hiredis": 0.5}
    found = gate.judge({"pure": 0.13, "hiredis": 0.565}, baseline)
    assert gate.change(found) > gate.TOLERANCE
    assert gate.change(gate.judge({"pure": 0.13}, {})) == 0


def test_looks_are_pooled_by_their_median() -> None:
    looks = [{"pure": 0.2}, {"pure": 0.3}, {"pure": 9.0}]
    assert gate.pool(looks) == {"pure": 0.3}
    assert gate._pooled([{"a": {"pure": 1.0}, "b": {"pure": 3.0}}, {"a": {"pure": 2.0}}]) == {
        "a": {"pure": 1.5},
        "b": {"pure": 3.0},
    }


@built
@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_every_case_runs(case: Case) -> None:
    for work in variants(case).values():
        work()
        work()


@built
def test_exit_status(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gate, "FIRST", 1)
    monkeypatch.setattr(gate, "MORE", 1)
    base = tmp_path / "baselines.json"
    arguments = ["--only", "wrr.sequence", "--baselines", str(base)]
    base.write_text(json.dumps({"ratios": {"wrr.sequence": {"pure": 100.0}}}))
    assert gate.main(arguments) == 0
    base.write_text(json.dumps({"ratios": {"wrr.sequence": {"pure": 0.001}}}))
    assert gate.main(arguments) == 1
    assert "slower than the baseline: wrr.sequence" in capsys.readouterr().err
    assert gate.main(["--only", "nothing"]) == 2
    base.unlink()
    assert gate.main(arguments) == 2
