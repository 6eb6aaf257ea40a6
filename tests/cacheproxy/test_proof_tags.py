"""Invalidating a big tag: `proofs.tags`, small."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from proofs import tags

pytestmark = pytest.mark.evidence

#: Far above what a script takes on a machine that is busy otherwise: its pace is not judged here.
CALM = 60_000.0


@pytest.fixture(autouse=True)
def _servers(redis_factory: object) -> None:
    """Only for its verdict on a machine without redis-server."""


def test_no_old_value_behind_the_reply(tmp_path: Path):
    options = tags.Options(keys=700, rounds=1, atomic=100, stall_ms=CALM)
    result = asyncio.run(tags.prove(options, tmp_path))
    assert result.passed, result.summary
    # The move, then pieces.
    assert result.numbers["zset"]["scripts"] == 5
    assert result.numbers["set"]["scripts"] == 8


@pytest.mark.once
def test_it_notices_an_old_value(tmp_path: Path):
    options = tags.Options(keys=700, rounds=1, atomic=100, stall_ms=CALM, sabotage=True)
    result = asyncio.run(tags.prove(options, tmp_path))
    assert not result.passed
    assert result.numbers["stale_reads"] > 0
