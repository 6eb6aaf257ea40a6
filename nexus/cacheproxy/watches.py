"""Replies that a session's state depends on: who stands in a link's FIFO for them."""

from __future__ import annotations

from enum import IntEnum
from typing import TYPE_CHECKING, Final

from nexus.cacheproxy.flow import Link, Receiver

if TYPE_CHECKING:
    from nexus.cacheproxy.session import Session

__all__ = ["Action", "SharedExec", "Watch"]

#: Errors of EXEC behind which the connection is certainly outside of MULTI.
_EXEC_IS_OVER: Final = (b"-EXECABORT", b"-ERR EXEC without MULTI")
_EXEC_LEAD: Final = 24


class Action(IntEnum):
    """What a reply decides about the session; see :class:`Watch`."""

    HIDDEN = 0
    SELECT = 1
    AUTH = 2
    HELLO = 3
    SETNAME = 4
    SETINFO = 5
    MULTI = 6
    EXEC = 7
    DISCARD = 8
    WATCH = 9
    UNWATCH = 10
    PROBE = 11
    PAUSE = 12
    UNPAUSE = 13


class Watch(Receiver):
    """Stands in the FIFO for a session whose state depends on this one reply."""

    __slots__ = ("action", "args", "lead", "session")

    def __init__(self, session: Session, action: Action, args: list[bytes]) -> None:
        super().__init__()
        self.session = session
        self.action = action
        self.args = args
        #: First bytes of the reply, enough to tell ``+OK``, ``+QUEUED`` and ``-EXECABORT``.
        self.lead = b""

    def deliver(self, data: bytearray, start: int, end: int, done: int) -> None:
        if len(self.lead) < 16:
            self.lead += bytes(data[start : min(end, start + 16)])
        if done:
            self.session.decided(self)
        if self.action != Action.HIDDEN:
            self.session.deliver(data, start, end, done)

    def pushed(self, data: bytearray, start: int, end: int) -> None:
        self.session.pushed(data, start, end)

    def lost(self, count: int, partial: bool, error: bytes) -> None:
        if self.action != Action.HIDDEN:
            self.session.lost(count, partial, error)


class SharedExec(Receiver):
    """Stands in a shared link's FIFO for the session whose transaction ends there.

    A server that refuses EXEC itself (renamed, say) may still be inside MULTI: such a link is
    closed at once, before it queues what other clients send.
    """

    __slots__ = ("_lead", "_link", "_session")

    def __init__(self, session: Session, link: Link) -> None:
        super().__init__()
        self._session = session
        self._link = link
        self._lead = b""

    def deliver(self, data: bytearray, start: int, end: int, done: int) -> None:
        if len(self._lead) < _EXEC_LEAD:
            self._lead += bytes(data[start : min(end, start + _EXEC_LEAD)])
        if done and self._lead.startswith(b"-") and not self._lead.startswith(_EXEC_IS_OVER):
            self._link.close()
        self._session.deliver(data, start, end, done)

    def lost(self, count: int, partial: bool, error: bytes) -> None:
        self._session.lost(count, partial, error)
