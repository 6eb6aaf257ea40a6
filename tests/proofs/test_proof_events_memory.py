"""The proof of `make prove-events-memory`, small: it runs, and its judge sees what grows."""

from __future__ import annotations

import pytest

from proofs.eventsmemory import MOST_MIB, judge, prove
from tests.conftest import KafkaBroker


@pytest.mark.kafka
def test_memory_is_read_while_every_event_is_handled(kafka_broker: KafkaBroker) -> None:
    result = prove(60_000, kafka_broker.bootstrap)
    assert result.numbers["samples"] > 3
    assert 20 < result.numbers["mib_last_tenth"] < 400
    assert result.passed, result.summary


@pytest.mark.once
def test_a_few_bytes_of_each_event_are_seen() -> None:
    flat = [(float(done), 60.0) for done in range(0, 1_000_001, 1000)]
    assert judge(flat, 1_000_000) == (60.0, 60.0)
    leaking = [(done, mib + done * 16 / 1048576) for done, mib in flat]
    early, late = judge(leaking, 1_000_000)
    assert late - early > MOST_MIB
