"""The proof of `make prove-events-memory`, small: it runs, and its judge sees what grows."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from proofs.eventsmemory import MOST_MIB, judge, prove
from tests.conftest import KafkaBroker

#: Loaded by the consumer's interpreter before anything else: keeps a KiB of every event.
LEAK = """
from nexus.consumer.pipeline import Pipeline

kept = []
carry_out = Pipeline._carry_out

def leaking(self, records, *others):
    kept.extend(bytearray(1024) for _ in records)
    carry_out(self, records, *others)

Pipeline._carry_out = leaking
"""


@pytest.mark.kafka
def test_memory_is_read_while_every_event_is_handled(kafka_broker: KafkaBroker) -> None:
    result = prove(30_000, kafka_broker.bootstrap, most=12.0)
    assert result.numbers["samples"] > 3
    assert 20 < result.numbers["mib_last_tenth"] < 400
    assert result.passed, result.summary


@pytest.mark.once
@pytest.mark.kafka
def test_a_consumer_that_keeps_events_is_seen(
    kafka_broker: KafkaBroker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sitecustomize.py").write_text(LEAK)
    paths = [str(tmp_path), os.environ.get("PYTHONPATH", "")]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, paths)))
    result = prove(30_000, kafka_broker.bootstrap, most=12.0)
    assert not result.passed, result.summary


@pytest.mark.once
def test_a_few_bytes_of_each_event_are_seen() -> None:
    flat = [(float(done), 60.0) for done in range(0, 1_000_001, 1000)]
    assert judge(flat, 1_000_000) == (60.0, 60.0)
    leaking = [(done, mib + done * 12 / 1048576) for done, mib in flat]
    early, late = judge(leaking, 1_000_000)
    assert late - early > MOST_MIB
    warming = [(done, mib - max(0, 250_000 - done) / 10_000) for done, mib in flat]
    assert judge(warming, 1_000_000) == (60.0, 60.0)
