"""How far a partition may be committed while its events finish in any order."""

from __future__ import annotations

from collections import deque
from typing import NamedTuple

from nexus.wire.actions import Action

__all__ = ["PartitionProgress", "Pending"]


class Pending(NamedTuple):
    """An action that Kafka does not have yet; ``offset`` is that of its event."""

    offset: int
    action: Action
    traceparent: bytes


class PartitionProgress:
    """Open offsets of one partition, from its assignment to us to its revocation.

    Kafka's commit is one number: everything below it is done. So the committable offset moves only
    over a gapless run of finished ones; one slow event holds it back, whatever finished behind it.
    Offsets need not be dense (compaction and transaction markers leave holes).

    ::

        received   10 11 12 13 14          finished 10, 11, 13  →  committable 12
    """

    __slots__ = ("_done", "_next", "_open", "actions", "committed", "paused", "revoked")

    def __init__(self) -> None:
        self._open: deque[int] = deque()
        self._done: set[int] = set()
        self._next: int | None = None
        #: Where the group stands, as far as we know.
        self.committed: int | None = None
        #: Actions to publish before their offsets are committed, in the order of their offsets.
        self.actions: deque[Pending] = deque()
        #: Set when the partition is taken away: what is still queued belongs to another member.
        self.revoked = False
        #: Fetching is paused because too much is open.
        self.paused = False

    @property
    def in_flight(self) -> int:
        """Events received and not finished."""
        return len(self._open) - len(self._done)

    @property
    def held(self) -> int:
        """Events that a commit does not cover yet, finished ones behind an open one included."""
        return len(self._open)

    def received(self, offset: int) -> None:
        """An event was fetched; offsets come in rising order."""
        if self._next is None:
            # The group stands here already: it is where fetching began.
            self._next = self.committed = offset
        self._open.append(offset)

    def finished(self, offset: int) -> None:
        """Its effect is done, or it is safe in the dead-letter topic."""
        self._done.add(offset)
        while self._open and self._open[0] in self._done:
            done = self._open.popleft()
            self._done.remove(done)
            self._next = done + 1

    @property
    def position(self) -> int | None:
        """The next offset to do: what a commit would say; ``None`` before the first event."""
        return self._next

    def due(self, offset: int) -> list[Pending]:
        """The actions that go with a commit of ``offset``."""
        return [pending for pending in self.actions if pending.offset < offset]

    def was_committed(self, offset: int) -> None:
        """The group stands at ``offset``, and what was due with it is published."""
        self.committed = offset
        while self.actions and self.actions[0].offset < offset:
            self.actions.popleft()

    @property
    def committable(self) -> int | None:
        """The offset to commit now, or ``None`` when there is nothing new."""
        if self._next == self.committed:
            return None
        return self._next
