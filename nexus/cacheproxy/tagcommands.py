"""``NEXUS TAG``, ``UNTAG``, ``INVALIDATE``: on the client's own connection, as its own user.

So they keep the order that the client gave its commands, in its database, and do what Redis lets
that user do. The reply to INVALIDATE waits until no near-cache can show an old value any more.
"""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING, Final

from nexus.cacheproxy.flow import DOWN
from nexus.cacheproxy.local import Subcommand
from nexus.cacheproxy.permission import ASKING
from nexus.cacheproxy.tags import Invalidation, tag_request, untag_request

if TYPE_CHECKING:
    from nexus.cacheproxy.counts import Stats
    from nexus.cacheproxy.flow import Plane
    from nexus.cacheproxy.session import Session
    from nexus.cacheproxy.settings import CacheproxySettings

__all__ = ["TagCommands"]


class TagCommands:
    """See the module."""

    def __init__(self, plane: Plane, stats: Stats) -> None:
        self._plane: Final = plane
        self._stats: Final = stats
        #: Most keys that one script deletes at once.
        self._atomic_max_members = 5000
        #: Seconds that a hit may lag behind Redis, in any worker or proxy.
        self._staleness = 0.0

    def configure(self, settings: CacheproxySettings) -> None:
        """Take over what may change while running."""
        near = settings.near_cache
        self._atomic_max_members = settings.tags.atomic_max_members
        caches = near.enabled and bool(settings.policy_file)
        self._staleness = near.max_staleness_ms / 1000 if caches else 0.0

    def subcommands(self) -> dict[bytes, Subcommand]:
        """By lower-case name."""
        return {
            b"tag": Subcommand(
                self._tag,
                "TAG <tag> <key> [<key> ...]",
                "Add keys to a tag; how many are new.",
                4,
                -1,
            ),
            b"untag": Subcommand(
                self._untag, "UNTAG <tag> <key> [<key> ...]", "Take keys out of a tag.", 4, -1
            ),
            b"invalidate": Subcommand(
                self._invalidate,
                "INVALIDATE <tag> [<tag> ...]",
                "Delete all keys of the tags; how many there were. Nobody reads an old value then.",
                3,
                -1,
            ),
        }

    def _tag(self, session: Session, args: list[bytes]) -> None:
        self._stats.tagged += len(args) - 3
        session.ask(tag_request({args[2]: args[3:]}, session.identity))

    def _untag(self, session: Session, args: list[bytes]) -> None:
        session.ask(untag_request(args[2], args[3:]))

    def _invalidate(self, session: Session, args: list[bytes]) -> bytes | None:
        if session.link is None:
            session.bind()
        link = session.link
        if link.state == DOWN:
            return bytes(link.refusal)
        plane, stats = self._plane, self._stats

        def deliver(reply: bytes) -> None:
            session.deliver(bytearray(reply), 0, len(reply), 1)
            session.unblock(ASKING)

        def done(reply: bytes | None) -> None:
            stats.invalidated += invalidation.deleted
            if reply is None:
                session.lost(1, False, plane.lost)
                session.unblock(ASKING)
            elif self._staleness and invalidation.deleted:
                # A hit shows a value of at most this long ago: behind it, none from before now.
                plane.loop.call_later(self._staleness, deliver, reply)
            else:
                deliver(reply)

        stats.invalidations += len(args) - 2
        invalidation = Invalidation(link, args[2:], session.identity, done)
        session.expecting(1)
        session.blocked |= ASKING
        invalidation.start(self._atomic_max_members, secrets.token_hex(8).encode())
        return None
