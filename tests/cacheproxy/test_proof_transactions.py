"""Transactions borrow connections: `proofs.transactions`, small."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from proofs import transactions

pytestmark = pytest.mark.evidence


@pytest.fixture(autouse=True)
def _servers(redis_factory: object) -> None:
    """Only for its verdict on a machine without redis-server."""


def test_no_more_connections_than_transactions_at_once(tmp_path: Path):
    options = transactions.Options(clients=120, rate=500, seconds=2, seed=3, least=0)
    result = asyncio.run(transactions.prove(options, tmp_path))
    assert result.passed, result.summary
    assert result.numbers["done"] > 200
    assert result.numbers["connections_reused"] > result.numbers["connections_opened"]
