"""Contiguous commits, against a naive model."""

from hypothesis import given
from hypothesis import strategies as st

from nexus.consumer.offsets import PartitionProgress


def test_a_slow_event_holds_the_commit_back():
    progress = PartitionProgress()
    for offset in (10, 11, 12, 13):
        progress.received(offset)
    assert progress.committable is None
    progress.finished(11)
    progress.finished(13)
    assert progress.committable is None
    assert (progress.in_flight, progress.held) == (2, 4)
    progress.finished(10)
    assert progress.committable == 12
    progress.finished(12)
    assert progress.committable == 14
    assert (progress.in_flight, progress.held) == (0, 0)


def test_nothing_new_is_not_committed_again():
    progress = PartitionProgress()
    assert progress.committable is None
    progress.received(0)
    progress.finished(0)
    progress.committed = progress.committable
    assert progress.committed == 1
    assert progress.committable is None
    progress.received(1)
    assert progress.committable is None
    progress.finished(1)
    assert progress.committable == 2


@given(st.data())
def test_the_commit_is_the_first_unfinished_offset(data):
    steps = data.draw(st.lists(st.integers(1, 3), min_size=1, max_size=30))
    offsets = [sum(steps[: i + 1]) for i in range(len(steps))]  # rising, with holes
    order = data.draw(st.permutations(offsets))
    progress = PartitionProgress()
    for offset in offsets:
        progress.received(offset)
    unfinished = set(offsets)
    for offset in order:
        progress.finished(offset)
        unfinished.discard(offset)
        below = [o for o in offsets if not any(u <= o for u in unfinished)]
        assert progress.committable == (below[-1] + 1 if below else None)
        assert progress.in_flight == len(unfinished)
    assert progress.held == 0
