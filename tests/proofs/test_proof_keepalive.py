"""The proof of `make prove-keepalive`, small; and that it fails where it must."""

from __future__ import annotations

from pathlib import Path

import pytest

from proofs import keepalive
from proofs.report import save

pytestmark = pytest.mark.evidence


def test_idle_connections_that_are_closed_all_the_time_give_no_502(tmp_path: Path) -> None:
    result = keepalive.prove(requests=4000, seed=11)
    assert save(result, tmp_path) == 0, result
    assert result.numbers["answers"] == {"200": 4000}
    assert result.numbers["races"] > 0


@pytest.mark.once
def test_it_fails_where_the_gateway_may_not_repeat(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NEXUS_GATEWAY_RETRY__MAX_ATTEMPTS", "1")
    result = keepalive.prove(requests=4000, seed=11)
    assert not result.passed
    assert any(answer.startswith("502") for answer in result.numbers["answers"])


@pytest.mark.once
def test_it_fails_where_the_race_never_happened(monkeypatch: pytest.MonkeyPatch) -> None:
    result = keepalive.prove(requests=1, seed=11, clients=1)
    assert result.numbers["answers"] == {"200": 1}
    assert not result.passed
