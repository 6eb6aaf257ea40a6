"""``NEXUS HOTKEYS``: what is read most, over all workers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from nexus.cacheproxy.local import Subcommand, error_reply, text_reply
from nexus.cacheproxy.permission import if_admin

if TYPE_CHECKING:
    from nexus.cacheproxy.hotkeys import HotBoard
    from nexus.cacheproxy.session import Session

__all__ = ["HotCommand"]

_FEW: Final = 10


class HotCommand:
    """See the module."""

    def __init__(self, board: HotBoard) -> None:
        self._board: Final = board

    def subcommands(self) -> dict[bytes, Subcommand]:
        """By lower-case name."""
        return {
            b"hotkeys": Subcommand(
                self._run,
                "HOTKEYS [<count>]",
                "The hottest keys of all workers: reads lately, times prolonged.",
                2,
                3,
            )
        }

    def _run(self, session: Session, args: list[bytes]) -> bytes | None:
        most = _FEW
        if len(args) == 3:
            if not args[2].isdigit() or not 0 < int(args[2]) <= 10_000:
                return error_reply(b"expected a count from 1 to 10000, got '%b'" % args[2][:64])
            most = int(args[2])
        # The key last: it may hold anything.
        return if_admin(
            session,
            lambda: text_reply(
                session,
                (
                    f"db={found.db} reads={found.reads} prolonged={found.extended} "
                    f"key={found.key.decode('utf-8', 'surrogateescape')}"
                    for found in self._board.read()[:most]
                ),
            ),
        )
