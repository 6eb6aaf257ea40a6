"""The proof of `make prove-broker-outage`, small: the broker is gone for seconds, not for a minute.

How fast anything is does not count here; what is lost, held and found again does.
"""

from __future__ import annotations

import dataclasses

import pytest
from support.requirements import tool

from proofs.brokeroutage import How, Plan, _judge, prove

SMALL = Plan(seconds=2.5, rate=160, clients=8, buffer_bytes=65_536, speed=False)


@pytest.mark.kafka
@pytest.mark.timeout(240)
@pytest.mark.parametrize("how", ["stop", pytest.param("freeze", marks=pytest.mark.once)])
def test_no_request_notices_and_every_event_is_accounted_for(how: How) -> None:
    for name in ("java", "mvn"):
        tool(name)
    result = prove(dataclasses.replace(SMALL, how=how))
    assert result.passed, result.summary
    assert result.numbers["dropped_for"] == ["buffer_full"]
    assert result.numbers["sent"] > 0


GOOD = {
    "bad_responses": 0,
    "recovered": True,
    "unaccounted": 0,
    "held_in_outage": 9,
    "memory_mib": [70.0, 80.0],
    "cpu_us": {"before": 100.0, "outage": 109.0},
    "p99_ms": {"before": 10.0, "outage": 12.4},
}


@pytest.mark.once
@pytest.mark.parametrize(
    ("seen", "word"),
    [
        ({"bad_responses": 1}, "200"),
        ({"recovered": False}, "find the broker"),
        ({"unaccounted": 3}, "3 events"),
        ({"unaccounted": -3}, "-3 events"),
        ({"held_in_outage": 0}, "no outage"),
        ({"memory_mib": [70.0, 120.0]}, "memory"),
        ({"cpu_us": {"before": 100.0, "outage": 111.0}}, "CPU"),
        ({"p99_ms": {"before": 10.0, "outage": 12.6}}, "p99"),
        ({"p99_ms": {"before": 1.0, "outage": 1.3}}, "p99"),
    ],
)
def test_the_judge_finds_what_is_wrong(seen: dict[str, object], word: str) -> None:
    plan = dataclasses.replace(SMALL, speed=True)
    assert _judge(plan, GOOD) == []
    [fault] = _judge(plan, GOOD | seen)
    assert word in fault
