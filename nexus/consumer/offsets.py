"""How far a partition may be committed while its events finish in any order."""

from __future__ import annotations

from collections import deque

__all__ = ["PartitionProgress"]


class PartitionProgress:
    """Open offsets of one partition, from its assignment to us to its revocation.

    Kafka's commit is one number: everything below it is done. So the committable offset moves only
    over a gapless run of finished ones; one slow event holds it back, whatever finished behind it.
    Offsets need not be dense (compaction and transaction markers leave holes).

    ::

        received   10 11 12 13 14          finished 10, 11, 13  →  committable 12
    """

    __slots__ = ("_done", "_next", "_open", "committed", "paused", "revoked")

    def __init__(self) -> None:
        self._open: deque[int] = deque()
        self._done: set[int] = set()
        self._next: int | None = None
        #: Where the group stands, as far as we know.
        self.committed: int | None = None
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

    @property
    def committable(self) -> int | None:
        """The offset to commit now, or ``None`` when there is nothing new."""
        if self._next == self.committed:
            return None
        return self._next
