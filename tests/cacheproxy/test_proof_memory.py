"""What idle clients and big values cost: `proofs.idle` and `proofs.bigvalue`, small."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from proofs import bigvalue, idle
from proofs.rig import RigError

BACKENDS = {"c": "compiled", "py": "pure"}


@pytest.fixture(autouse=True)
def _servers(redis_factory: object) -> None:
    """Only for its verdict on a machine without redis-server."""


def test_idle_clients_are_cheap(backend: str, tmp_path: Path):
    result = asyncio.run(idle.prove(idle.Options(1000, BACKENDS[backend]), tmp_path))
    numbers = result.numbers
    assert result.passed, result.summary
    assert numbers["backend"] == BACKENDS[backend]
    # All of them were really there, and nothing of them is left.
    assert numbers["files_held"] == 1000
    assert numbers["files_left"] <= 1
    assert numbers["answered_right"]


def test_big_values_pass_through(backend: str, tmp_path: Path):
    result = asyncio.run(bigvalue.prove(bigvalue.Options(64, BACKENDS[backend]), tmp_path))
    assert result.passed, result.summary
    assert result.numbers["intact"]
    # Half of the value would show that it is collected somewhere.
    assert max(result.numbers["peak_growth_mib"].values()) < 32
    assert len(result.numbers["peak_growth_mib"]) == 4


def test_too_many_clients_for_the_machine_is_no_verdict(tmp_path: Path):
    with pytest.raises(RigError, match="open files"):
        asyncio.run(idle.prove(idle.Options(1 << 40), tmp_path))
