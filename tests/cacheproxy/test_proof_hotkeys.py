"""Counters of hot keys stay within their memory: `proofs.hotkeys`, small."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from proofs import hotkeys


@pytest.fixture(autouse=True)
def _servers(redis_factory: object) -> None:
    """Only for its verdict on a machine without redis-server."""


def test_memory_does_not_grow_and_the_hot_key_is_found(tmp_path: Path):
    options = hotkeys.Options(keys=400_000, proxied=20_000)
    result = asyncio.run(hotkeys.prove(options, tmp_path))
    assert result.passed, result.summary
    assert result.numbers["kernel_found_hot"] >= 30
