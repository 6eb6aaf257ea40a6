"""One event through its states, with handlers that fail in every way; and the lanes' order."""

import asyncio
import json
from types import SimpleNamespace

import pytest

from nexus.consumer.deadletters import dead_letter_headers
from nexus.consumer.duplicates import RecentIds
from nexus.consumer.lanes import Lanes
from nexus.consumer.offsets import PartitionProgress
from nexus.consumer.pipeline import Pipeline
from nexus.consumer.settings import FailureSettings
from nexus.errors import EventError, UpstreamError

TOPIC = "gateway.rate_limit.hit"


def hit(offset, event_id=None, key=None, value=None):
    body = {
        "id": event_id or f"e-{offset}",
        "emittedAt": "2026-11-21T10:00:00.000Z",
        "ip": "192.0.2.7",
        "method": "GET",
        "url": "/api/x",
    }
    return SimpleNamespace(
        topic=TOPIC,
        partition=0,
        offset=offset,
        key=key,
        value=json.dumps(body).encode() if value is None else value,
        headers=(("ce_specversion", b"1.0"),),
    )


class Harness:
    def __init__(self, metrics, script=(), max_attempts=3):
        self.metrics = metrics
        self.script = list(script)
        self.handled = []
        self.letters = []
        self.delays = []
        self.progress = PartitionProgress()
        self.pipeline = Pipeline(
            self.handle,
            self,
            RecentIds(100),
            FailureSettings(max_attempts=max_attempts, base_ms=100, cap_ms=1000),
            metrics,
            self.sleep,
        )

    async def handle(self, event):
        if self.script:
            answer = self.script.pop(0)
            if answer is not None:
                raise answer
        self.handled.append(event.id)

    async def send(self, record, reason, error, attempts):
        self.letters.append((record.offset, reason, error, attempts))

    async def sleep(self, seconds):
        self.delays.append(seconds)

    async def run(self, *records):
        for record in records:
            self.progress.received(record.offset)
        for record in records:
            await self.pipeline.run(record, self.progress)

    def results(self, result):
        return self.metrics.counter("nexus_consumer_events_total", topic=TOPIC, result=result).value


@pytest.fixture
def harness(metrics):
    return lambda *script, **kw: Harness(metrics, script, **kw)


async def test_a_good_event_has_its_effect_and_is_finished(harness):
    h = harness()
    await h.run(hit(5))
    assert h.handled == ["e-5"]
    assert h.progress.committable == 6
    assert h.results("handled") == 1


async def test_a_duplicate_is_finished_without_an_effect(harness):
    h = harness()
    await h.run(hit(1, "same"), hit(2, "same"))
    assert h.handled == ["same"]
    assert h.progress.committable == 3
    assert h.results("duplicate") == 1


async def test_an_event_that_breaks_its_schema_goes_to_the_dead_letters_at_once(harness):
    h = harness()
    await h.run(hit(1, value=b"{}"), hit(2))
    [(offset, reason, error, attempts)] = h.letters
    assert (offset, reason, attempts) == (1, "schema", 0)
    assert "emittedAt" in error
    assert h.handled == ["e-2"]
    assert h.progress.committable == 3
    assert h.delays == []


async def test_a_failing_handler_is_tried_again_with_jitter_then_set_aside(harness):
    h = harness(*[ValueError("no")] * 3)
    await h.run(hit(1), hit(2))
    assert h.letters == [(1, "handler", "ValueError: no", 3)]
    assert h.handled == ["e-2"]
    assert h.progress.committable == 3
    assert len(h.delays) == 2
    assert all(0 <= delay <= 0.1 * 2**i for i, delay in enumerate(h.delays))
    assert h.metrics.counter("nexus_consumer_retries_total", topic=TOPIC).value == 2


async def test_a_handler_that_recovers_has_its_effect_once(harness):
    h = harness(ValueError("no"), None)
    await h.run(hit(1))
    assert (h.handled, h.letters) == (["e-1"], [])


async def test_a_missing_dependency_never_makes_a_dead_letter(harness):
    h = harness(*[UpstreamError("Redis is away", sent=False)] * 50)
    await h.run(hit(1))
    assert (h.handled, h.letters) == (["e-1"], [])
    assert len(h.delays) == 50
    assert max(h.delays) <= 1.0


async def test_a_handler_may_refuse_an_event(harness):
    h = harness(EventError("ip: not an address"))
    await h.run(hit(1))
    assert h.letters == [(1, "handler", "ip: not an address", 1)]


async def test_an_event_whose_partition_was_taken_away_stays_unfinished(harness):
    h = harness(ValueError("no"))

    async def revoke(_seconds):
        h.progress.revoked = True

    h.pipeline._sleep = revoke
    await h.run(hit(1))
    assert h.handled == []
    assert h.progress.committable is None
    h.progress.revoked = False
    await h.pipeline.run(hit(1), h.progress)  # read again: it is no duplicate
    assert h.handled == ["e-1"]


async def test_a_cancelled_event_is_no_duplicate_when_it_comes_again(harness):
    h = harness(asyncio.CancelledError())
    with pytest.raises(asyncio.CancelledError):
        await h.run(hit(1))
    await h.pipeline.run(hit(1), h.progress)
    assert h.handled == ["e-1"]


def test_a_dead_letter_says_where_and_why():
    headers = dead_letter_headers(hit(7), "schema", "x" * 900, 0, "2026-11-21T10:00:00.000Z")
    assert headers[0] == ("ce_specversion", b"1.0")
    named = dict(headers)
    assert named["nexus_dlq_topic"] == TOPIC.encode()
    assert (named["nexus_dlq_partition"], named["nexus_dlq_offset"]) == (b"0", b"7")
    assert named["nexus_dlq_reason"] == b"schema"
    assert len(named["nexus_dlq_error"]) == 500


async def until(condition):
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.001)


async def test_lanes_keep_the_order_of_a_key_and_let_others_pass():
    handled, gate = [], asyncio.Event()

    async def process(record, progress):
        if record.offset == 0:
            await gate.wait()
        else:
            await asyncio.sleep(0)
        handled.append((record.key, record.offset))
        progress.finished(record.offset)

    lanes, progress = Lanes(4, process, pytest.fail), PartitionProgress()
    keys = [b"k%d" % i for i in range(20)]
    for offset in range(400):
        progress.received(offset)
        lanes.put(hit(offset, key=keys[offset % 20]), progress)
    # Only the lane of the first key waits; which keys share it depends on this process's hashes.
    topic = hit(0).topic
    free = {k for k in keys if (hash((topic, k)) - hash((topic, keys[0]))) % 4}
    await until(lambda: {k for k, _ in handled} == free)
    assert progress.committable is None
    gate.set()
    await until(lambda: not progress.in_flight)
    for key in keys:
        offsets = [o for k, o in handled if k == key]
        assert offsets == sorted(offsets)
        assert len(offsets) == 20
    assert progress.committable == 400
    await lanes.stop()


async def test_lanes_spread_events_without_a_key():
    running, most, gate = 0, 0, asyncio.Event()

    async def process(record, progress):
        nonlocal running, most
        running += 1
        most = max(most, running)
        await gate.wait()
        running -= 1
        progress.finished(record.offset)

    lanes, progress = Lanes(4, process, pytest.fail), PartitionProgress()
    for offset in range(40):
        progress.received(offset)
        lanes.put(hit(offset), progress)
    await until(lambda: most == 4)
    gate.set()
    await until(lambda: not progress.in_flight)
    assert most == 4
    await lanes.stop()


async def test_lanes_skip_what_was_taken_away_and_report_a_bug():
    handled, failures = [], []

    async def process(record, progress):
        if record.offset == 9:
            raise RuntimeError("bug")
        handled.append(record.offset)

    lanes, gone, kept = Lanes(1, process, failures.append), PartitionProgress(), PartitionProgress()
    gone.revoked = True
    for offset, progress in ((1, gone), (2, kept), (9, kept)):
        progress.received(offset)
        lanes.put(hit(offset), progress)
    await until(lambda: failures)
    assert handled == [2]
    assert "gateway.rate_limit.hit/0/9" in failures[0]
    await lanes.stop()
