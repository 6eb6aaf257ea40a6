"""What a user may do with the proxy itself: Redis is asked, the proxy knows no rights of its own.

Subcommands of ``NEXUS`` that show others' keys or change something for everybody are for those who
may use Redis's commands of the category ``@admin``. One of them that changes nothing goes down the
client's own connection, as its user; only where Redis answers it the subcommand is run.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from nexus.cacheproxy.flow import DOWN, Receiver
from nexus.wire.resp import encode_command

if TYPE_CHECKING:
    from nexus.cacheproxy.session import Session

__all__ = ["ASKING", "if_admin"]

#: Why a client's input waits, beside the reasons in ``flow``: for the proxy's own command.
ASKING: Final = 1 << 10

_QUESTION: Final = encode_command([b"SLOWLOG", b"LEN"])
_REFUSAL: Final = (
    b"-NOPERM this user has no permissions to run it: it needs those of SLOWLOG LEN\r\n"
)


def if_admin(session: Session, run: Callable[[], bytes]) -> bytes | None:
    """Answer with what ``run`` gives if the client's user is an administrator at Redis.

    Returns a reply where Redis cannot be asked, ``None`` where one will come.
    """
    if session.link is None:
        session.bind()
    if session.link.state == DOWN:
        return bytes(session.link.refusal)
    session.expecting(1)
    session.blocked |= ASKING
    request = bytearray(_QUESTION)
    session.link.send(_Answer(session, run), request, 0, len(request), 1)
    return None


class _Answer(Receiver):
    """Redis's answer to the question."""

    __slots__ = ("_data", "_run", "_session")

    def __init__(self, session: Session, run: Callable[[], bytes]) -> None:
        super().__init__()
        self.split = True
        self._session = session
        self._run = run
        self._data = b""

    def deliver(self, data: bytearray, start: int, end: int, done: int) -> None:
        self._data += bytes(data[start:end])
        if done:
            # Not here: it may close links, of which one is being read.
            self._session.plane.loop.call_soon(self._answer)

    def _answer(self) -> None:
        reply = self._data
        if reply.startswith(b":"):
            reply = self._run()
        elif reply.startswith(b"-NOPERM"):
            reply = _REFUSAL
        self._session.deliver(bytearray(reply), 0, len(reply), 1)
        self._session.unblock(ASKING)

    def lost(self, _count: int, _partial: bool, error: bytes) -> None:
        self._session.lost(1, False, error)
        self._session.unblock(ASKING)
