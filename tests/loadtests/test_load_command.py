"""``python -m loadtests``: which scenarios run, against what, and what the exit status says."""

from __future__ import annotations

import subprocess
from typing import Any

import pytest

from loadtests import __main__ as command


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[list[str], str]]:
    """Locust's command lines, and the gateway that each is told of; the stampede misses."""
    seen: list[tuple[list[str], str]] = []

    def run(
        line: list[str], *, env: dict[str, str], **_: Any
    ) -> subprocess.CompletedProcess[bytes]:
        seen.append((line, env["NEXUS_LOAD_GATEWAY"]))
        return subprocess.CompletedProcess(line, int("loadtests/stampede.py" in line))

    monkeypatch.setattr(subprocess, "run", run)
    return seen


def test_against_what_runs_nothing_is_started(
    calls: list[tuple[list[str], str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NEXUS_LOAD_GATEWAY", "http://127.0.0.1:1")
    monkeypatch.setattr(command, "system", lambda: pytest.fail("it started a system"))
    assert command.main(["gateway", "cacheproxy", "--users", "3"]) == 0
    assert [line[4] for line, _ in calls] == ["loadtests/gateway.py", "loadtests/cacheproxy.py"]
    assert all(line[-2:] == ["--users", "3"] for line, _ in calls)
    assert {gateway for _, gateway in calls} == {"http://127.0.0.1:1"}
    assert command.main([]) == 1
    assert len(calls) == 2 + len(command.SCENARIOS)


def test_a_system_that_does_not_start_is_shown(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("NEXUS_LOAD_GATEWAY", "NEXUS_LOAD_CACHEPROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NEXUS_UP_START_SECONDS", "soon")
    assert command.main(["gateway"]) == 2
    assert "start_seconds" in capsys.readouterr().err
