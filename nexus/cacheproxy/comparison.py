"""Proof in production: what Redis says of an entry that a hit was answered from."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nexus.cacheproxy.flow import Receiver
from nexus.clock import monotonic
from nexus.wire.downgrade import downgrade

if TYPE_CHECKING:
    from nexus.cacheproxy.near import Partition, Source

__all__ = ["Comparison"]


class Comparison(Receiver):
    """What Redis says of an entry: where nothing has touched the key before, the same.

    Pushes come in front of the reply that they belong to, so an entry that is alive when the reply
    is here is Redis's own value, or there is an error in the near-cache.
    """

    def __init__(
        self, source: Source, partition: Partition, number: int, request: bytes,
        facts: tuple[int, bytes, float, int],
    ) -> None:  # fmt: skip
        super().__init__()
        self.source = source
        self.partition = partition
        self.number = number
        self.request = request
        self.facts = facts
        self.data = b""

    def deliver(self, data: bytearray, start: int, end: int, done: int) -> None:
        self.data += bytes(data[start:end])
        if not done:
            return
        token, kept, expiry, _hits = self.facts
        core = self.source.core
        space = self.partition.space
        if monotonic() >= expiry or not core.table.alive(space, self.number, self.request, token):
            return
        reply = downgrade(self.data) if self.partition.protocol == 2 else self.data
        core.compared += 1
        if reply != kept and not _same_members(reply, kept):
            core.differed += 1
            key = self.request[self.request.index(b"\r\n") + 2 :]
            core.table.drop(key[: int(self.request[1 : self.request.index(b"\r\n")])])
            self.source.owner.differed()

    def pushed(self, data: bytearray, start: int, end: int) -> None:
        self.source.pushed(data, start, end)

    def lost(self, _count: int, _partial: bool, _error: bytes) -> None:
        """Nothing is known then."""


def _same_members(one: bytes, other: bytes) -> bool:
    """Whether two aggregates differ only in their order, which is Redis's to choose."""
    if one[:1] not in (b"*", b"~", b"%") or len(one) != len(other):
        return False
    return sorted(one.split(b"\r\n")) == sorted(other.split(b"\r\n"))
