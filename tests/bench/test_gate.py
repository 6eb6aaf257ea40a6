"""The regression gate judges right; how fast anything is is not tested here."""

from __future__ import annotations

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
    times = gate.measure({"compiled": busy(2000), "pure": busy(8000)}, rounds=15)
    assert 0.15 < gate.ratios(times)["pure"] < 0.4


def test_slowing_does_the_work_more_often() -> None:
    calls = []
    slow = gate.slowed(lambda: calls.append(1), 1.3)
    for _ in range(100):
        slow()
    assert 129 <= len(calls) <= 130


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
        times = gate.measure(works | {"compiled": compiled}, rounds=3)
        return gate.judge("k.work", times, baseline, gate.TOLERANCE)

    assert not any(finding.slower for finding in findings(costs(1000)))
    assert not any(finding.slower for finding in findings(gate.slowed(costs(1000), 1.1)))
    found = findings(gate.slowed(costs(1000), 1.3))
    assert all(finding.slower for finding in found)
    assert str(found[0]).startswith("k.work: SLOWER against pure: 0.13")


def test_a_changed_reference_alone_is_no_slower_kernel() -> None:
    baseline = {"pure": 0.1, "hiredis": 0.5}
    times = {"compiled": 10.0, "pure": 50.0, "hiredis": 20.0}
    found = gate.judge("k", times, baseline, gate.TOLERANCE)
    assert [finding.slower for finding in found] == [True, False]
    assert not gate._all_slower(found)


def test_looks_are_pooled_by_their_least_times() -> None:
    looks = [{"compiled": 3.0, "pure": 10.0}, {"compiled": 2.0, "pure": 12.0}]
    assert gate.ratios(gate.pool(looks)) == {"pure": 0.2}


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
    monkeypatch.setattr(gate, "PROCESSES", 1)
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
