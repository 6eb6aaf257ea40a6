"""The group member's duties, played against a client that remembers what it was told."""

import asyncio
from types import SimpleNamespace

import pytest
from aiokafka import TopicPartition
from aiokafka.errors import CommitFailedError, KafkaConnectionError

from nexus.consumer import loop as module
from nexus.consumer.loop import ConsumerLoop
from nexus.consumer.offsets import Pending
from nexus.consumer.publisher import TransactionLostError
from nexus.consumer.settings import ConsumerSettings, FlowSettings
from nexus.wire.actions import Action

TP = TopicPartition("gateway.rate_limit.hit", 0)
OTHER = TopicPartition("gateway.rate_limit.hit", 1)


class FakeConsumer:
    def __init__(self):
        self.calls = []
        self.commits = []
        self.failures = []
        self.batches = []
        self.asked = ()

    def highwater(self, _tp):
        return 100

    async def end_offsets(self, partitions):
        return dict.fromkeys(partitions, 100)

    async def committed(self, _tp):
        return None

    def seek(self, tp, offset):
        self.calls.append(("seek", tp, offset))

    async def getmany(self, *partitions, **_):
        self.asked = partitions
        return self.batches.pop(0) if self.batches else {}

    async def commit(self, offsets):
        if self.failures:
            raise self.failures.pop(0)
        self.commits.append(dict(offsets))


class FakeState:
    def name_cluster(self, cluster):
        pass

    async def reconcile(self, topic, partition, end):
        return False


class FakePublisher:
    """Says what it was given and how it went."""

    transactional = True

    def __init__(self):
        self.owned = []
        self.committed = []
        self.failures = []

    async def own(self, partitions):
        self.owned.append(list(partitions))

    async def commit(self, tp, due, offset):
        if self.failures:
            raise self.failures.pop(0)
        self.committed.append((tp, [p.action.id for p in due], offset))


@pytest.fixture
def settled():
    return []


@pytest.fixture
async def member(metrics, settled):
    async def settle():
        settled.append(len(member._consumer.commits))

    async def run(records, progress):
        member.ran.extend((record, progress) for record in records)

    member = ConsumerLoop(
        ConsumerSettings(flow=FlowSettings(partition_events=16)),
        ("gateway.rate_limit.hit",),
        run,
        FakeState(),
        FakePublisher(),
        metrics,
        "test",
        settle,
    )
    member.ran = []
    member._consumer = FakeConsumer()
    yield member
    member._forget(list(member._partitions))
    await asyncio.gather(*member._workers.values(), return_exceptions=True)


def records(tp, start, stop):
    return {
        tp: [
            SimpleNamespace(topic=tp.topic, partition=tp.partition, offset=offset)
            for offset in range(start, stop)
        ]
    }


async def fetch(member, batch):
    member.ran.clear()
    member._consumer.batches.append(batch)
    await member._turn(member._consumer)
    await asyncio.sleep(0.01)
    return list(member.ran)


async def test_commits_cover_finished_events_only_after_their_effects_are_settled(member, settled):
    await member.on_partitions_assigned([TP])
    for record, progress in (await fetch(member, records(TP, 40, 50)))[:4]:
        progress.finished(record.offset)
    await member._try_commit(member._consumer)
    await member._try_commit(member._consumer)
    assert member._consumer.commits == [{TP: 44}]
    assert settled == [0]  # once, before the commit
    assert member.in_flight == 6
    assert member.status()["partitions"][0]["lag"] == 56


async def test_a_failed_commit_is_covered_by_the_next(member, metrics):
    await member.on_partitions_assigned([TP])
    for record, progress in await fetch(member, records(TP, 0, 3)):
        progress.finished(record.offset)
    member._consumer.failures = [KafkaConnectionError(), CommitFailedError("late")]
    for _ in range(3):
        await member._try_commit(member._consumer)
    assert member._consumer.commits == [{TP: 3}]
    for result in ("failed", "outdated", "done"):
        assert metrics.counter("nexus_consumer_commits_total", result=result).value == 1


async def test_a_full_partition_is_paused_and_resumed_and_others_go_on(member):
    await member.on_partitions_assigned([TP, OTHER])
    mine = await fetch(member, records(TP, 0, 16) | records(OTHER, 0, 3))
    assert member._consumer.asked == ()  # all of them
    await fetch(member, {})
    assert set(member._consumer.asked) - {module._NONE} == {OTHER}
    assert [p["paused"] for p in member.status()["partitions"]] == [True, False]
    for record, progress in mine[1:16]:
        progress.finished(record.offset)
    await fetch(member, {})
    assert TP not in member._consumer.asked  # the first one still holds all of them
    mine[0][1].finished(0)
    await fetch(member, {})
    assert member._consumer.asked == ()


async def test_where_all_are_full_nothing_is_read_and_the_membership_lives(member):
    await member.on_partitions_assigned([TP])
    await fetch(member, records(TP, 0, 16))
    await fetch(member, {})
    # Without any partition named it would read all of them.
    assert member._consumer.asked == (module._NONE,)


async def test_a_revoked_partition_is_finished_committed_and_forgotten(member):
    await member.on_partitions_assigned([TP, OTHER])
    mine = await fetch(member, records(TP, 0, 5))
    revoking = asyncio.create_task(member.on_partitions_revoked([TP]))
    await asyncio.sleep(0.05)
    assert not revoking.done()  # it waits for what is open
    for record, progress in mine:
        progress.finished(record.offset)
    await asyncio.wait_for(revoking, 2)
    assert member._consumer.commits == [{TP: 5}]
    assert mine[0][1].revoked
    assert await fetch(member, records(TP, 5, 7)) == []  # not ours any more
    assert member._consumer.calls == [("seek", TP, 5)]


async def test_a_revocation_does_not_wait_for_ever(member, monkeypatch):
    monkeypatch.setattr(module, "_REVOKE_SECONDS", 0.05)
    await member.on_partitions_assigned([TP])
    mine = await fetch(member, records(TP, 0, 5))
    mine[0][1].finished(0)
    await asyncio.wait_for(member.on_partitions_revoked([TP]), 2)
    assert member._consumer.commits == [{TP: 1}]
    assert mine[1][1].revoked


async def test_draining_finishes_commits_and_fetches_no_more(member):
    await member.on_partitions_assigned([TP])
    mine = await fetch(member, records(TP, 0, 5))
    draining = asyncio.create_task(member.drain(5))
    await asyncio.sleep(0.05)
    assert not draining.done()
    assert await fetch(member, records(TP, 5, 9)) == []
    for record, progress in mine:
        progress.finished(record.offset)
    await asyncio.wait_for(draining, 2)
    assert member._consumer.commits == [{TP: 5}]


async def test_draining_keeps_its_deadline(member):
    await member.on_partitions_assigned([TP])
    await fetch(member, records(TP, 0, 5))
    await asyncio.wait_for(member.drain(0.1), 2)
    assert member._consumer.commits == []


def pending(offset):
    action = Action(
        id=f"a-{offset}", type="t", event_id="e", emitted_at="", decided_at="", subject="s"
    )
    return Pending(offset, action, b"")


async def test_actions_go_with_the_offsets_of_their_events_in_one_transaction(member):
    await member.on_partitions_assigned([TP, OTHER])
    for record, progress in await fetch(member, records(TP, 0, 5) | records(OTHER, 0, 2)):
        if record.partition == 0 and record.offset in (1, 3):
            progress.actions.append(pending(record.offset))
        if record.offset != 3:
            progress.finished(record.offset)
    await member._try_commit(member._consumer)
    # The third is still open: its action waits with it.
    assert member._publisher.committed == [(TP, ["a-1"], 3)]
    assert member._consumer.commits == [{OTHER: 2}]
    member._partitions[TP].finished(3)
    await member._try_commit(member._consumer)
    assert member._publisher.committed[1:] == [(TP, ["a-3"], 5)]
    await member._try_commit(member._consumer)
    assert len(member._publisher.committed) == 2


async def test_a_transaction_of_unknown_outcome_ends_the_session(member):
    await member.on_partitions_assigned([TP])
    for record, progress in await fetch(member, records(TP, 0, 2)):
        progress.actions.append(pending(record.offset))
        progress.finished(record.offset)
    member._publisher.failures = [TransactionLostError("no answer")]
    await member._try_commit(member._consumer)
    assert member._partitions[TP].committed == 0
    with pytest.raises(TransactionLostError):
        await fetch(member, {})


async def test_earlier_owners_are_shut_out_before_the_group_is_asked_where_it_stands(member):
    order = []

    async def own(partitions):
        order.append("own")

    async def committed(_tp):
        order.append("committed")
        return 7

    member._publisher.own = own
    member._consumer.committed = committed
    await member.on_partitions_assigned([TP])
    assert order == ["own", "committed"]
    assert member._consumer.calls == [("seek", TP, 7)]


async def test_what_was_fetched_before_the_fence_is_fetched_again(member):
    assert await fetch(member, records(TP, 5, 9)) == []
    assert member._consumer.calls == [("seek", TP, 5)]


async def test_a_fence_that_fails_ends_the_session(member):
    async def own(_partitions):
        raise KafkaConnectionError

    member._publisher.own = own
    await member.on_partitions_assigned([TP])
    assert not member.joined.is_set()
    with pytest.raises(KafkaConnectionError):
        await fetch(member, {})
