"""One event through its states, with handlers that fail in every way; and the lanes' order."""

import asyncio
import json
from types import SimpleNamespace

import pytest
from redis.exceptions import ResponseError

from nexus.consumer.deadletters import dead_letter_headers
from nexus.consumer.handlers import Handlers
from nexus.consumer.lanes import Lanes
from nexus.consumer.offsets import PartitionProgress
from nexus.consumer.pipeline import Pipeline
from nexus.consumer.replay import origin_of, replay_headers
from nexus.consumer.script import BLOCK, DUPLICATE
from nexus.consumer.settings import ConsumerSettings, FailureSettings
from nexus.consumer.state import Answer, Origin
from nexus.errors import UpstreamError

TOPIC = "gateway.rate_limit.hit"


def hit(offset, event_id=None, key=None, value=None, headers=(("ce_specversion", b"1.0"),)):
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
        headers=headers,
    )


class Harness:
    """A pipeline whose Redis answers what the test says; ``script``: one entry for each call."""

    def __init__(self, metrics, script=(), max_attempts=3):
        self.metrics = metrics
        self.script = list(script)
        self.judged = []
        self.letters = []
        self.delays = []
        self.progress = PartitionProgress()
        self.pipeline = Pipeline(
            self,
            Handlers(ConsumerSettings(), metrics),
            self,
            FailureSettings(max_attempts=max_attempts, base_ms=100, cap_ms=1000),
            metrics,
            None,
            self.sleep,
        )

    async def judge(self, topic, partition, committed, events):
        answer = self.script.pop(0) if self.script else []
        if isinstance(answer, BaseException):
            raise answer
        self.judged.append([event.id for _, event, _ in events])
        return answer

    def subject(self, ip):
        return ip

    async def send(self, record, reason, error, attempts):
        self.letters.append((record.offset, reason, error, attempts))

    async def sleep(self, seconds):
        self.delays.append(seconds)

    async def run(self, *records):
        for record in records:
            self.progress.received(record.offset)
        await self.pipeline.run(records, self.progress)

    def results(self, result):
        return self.metrics.counter("nexus_consumer_events_total", topic=TOPIC, result=result).value


@pytest.fixture
def harness(metrics):
    return lambda *script, **kw: Harness(metrics, script, **kw)


async def test_good_events_are_judged_together_and_finished(harness):
    h = harness()
    await h.run(hit(5), hit(6))
    assert h.judged == [["e-5", "e-6"]]
    assert h.progress.committable == 7
    assert h.results("handled") == 2


async def test_a_duplicate_is_finished_without_a_line(harness, caplog):
    caplog.set_level("INFO", "nexus.consumer.events")
    h = harness([Answer(1, DUPLICATE)])
    await h.run(hit(1, "same"), hit(2, "same"))
    assert h.progress.committable == 3
    assert (h.results("duplicate"), h.results("handled")) == (1, 1)
    assert caplog.text.count("rate limit hit by") == 1


async def test_a_verdict_becomes_an_action_that_waits_for_its_commit(harness, caplog):
    h = harness([Answer(1, BLOCK, 1_795_000_000_000, 5, 300_000)])
    trace = b"00-" + b"ab" * 16 + b"-" + b"cd" * 8 + b"-01"
    await h.run(hit(1), hit(2, headers=(("traceparent", trace),)), hit(3))
    [pending] = h.progress.actions
    action = pending.action
    assert (pending.offset, pending.traceparent) == (2, trace)
    assert (action.id, action.type, action.subject) == (
        "e-2:block",
        "address.blocked",
        "192.0.2.7",
    )
    assert (action.hits, action.ttl_ms, action.trace_id) == (5, 300_000, "ab" * 16)
    [line] = [r for r in caplog.records if r.name == "nexus.consumer.audit"]
    assert (line.action_id, line.subject, line.actor) == ("e-2:block", "192.0.2.7", "auto")
    assert h.progress.committable == 4


async def test_with_a_webhook_the_event_is_open_until_it_is_delivered(harness):
    h = harness([Answer(0, BLOCK, 1_795_000_000_000, 5, 300_000)])
    deeds = []
    h.pipeline.webhook = lambda deed, progress: deeds.append(deed)
    await h.run(hit(1), hit(2))
    assert [deed.action.id for deed in deeds] == ["e-1:block"]
    assert h.progress.committable is None
    h.progress.finished(1)
    assert h.progress.committable == 3


async def test_an_event_that_breaks_its_schema_goes_to_the_dead_letters_at_once(harness):
    h = harness()
    await h.run(hit(1, value=b"{}"), hit(2))
    [(offset, reason, error, attempts)] = h.letters
    assert (offset, reason, attempts) == (1, "schema", 0)
    assert "emittedAt" in error
    assert h.judged == [["e-2"]]
    assert h.progress.committable == 3
    assert h.delays == []


async def test_a_batch_that_redis_refuses_is_tried_event_by_event(harness):
    no = ResponseError("WRONGTYPE no")
    h = harness(no, [], no, no, no, [])
    await h.run(hit(1), hit(2), hit(3))
    assert h.judged == [["e-1"], ["e-3"]]
    assert h.letters == [(2, "handler", "ResponseError: WRONGTYPE no", 3)]
    assert h.progress.committable == 4
    assert len(h.delays) == 2
    assert all(0 <= delay <= 0.1 * 2**i for i, delay in enumerate(h.delays))


async def test_a_missing_dependency_never_makes_a_dead_letter(harness):
    h = harness(*[UpstreamError("Redis is away", sent=False)] * 50)
    await h.run(hit(1))
    assert (h.judged, h.letters) == ([["e-1"]], [])
    assert len(h.delays) == 50
    assert max(h.delays) <= 1.0
    assert h.metrics.counter("nexus_consumer_retries_total", topic=TOPIC).value == 50


async def test_events_whose_partition_was_taken_away_stay_unfinished(harness):
    h = harness(UpstreamError("away", sent=False))

    async def revoke(_seconds):
        h.progress.revoked = True

    h.pipeline._sleep = revoke
    await h.run(hit(1))
    assert (h.judged, h.progress.committable) == ([], None)


async def test_a_replayed_record_says_where_it_comes_from(harness):
    h = harness()
    headers = replay_headers(
        (("nexus_dlq_reason", b"schema"), ("x", b"y")), Origin(TOPIC, 2, 40, True)
    )
    assert headers[0] == ("x", b"y")
    assert origin_of(headers) == (TOPIC, 2, 40, True)
    await h.run(hit(1, headers=(("nexus_replay_origin", b"nonsense"),)))
    assert h.letters[0][:2] == (1, "schema")


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
