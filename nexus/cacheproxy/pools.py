"""Connections to Redis: the shared one of each (user, protocol, db), and the dedicated ones.

::

    Pools ─┬─ shared  (identity, protocol, db) ─► SharedLink   multiplexed, reconnects by itself
           └─ warm    (identity, protocol)     ─► idle dedicated links, last in first out

A dedicated link is lent to one client; its :class:`LinkState` says what the connection is (db,
name, …), so that the next borrower's state can be replayed in front of its first command, in the
same write. It comes back only if nothing of the last borrower is left on it.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from nexus.cacheproxy.dial import DialError, Identity, dial
from nexus.cacheproxy.flow import CONNECTING, DOWN, UP, Link, Plane, Receiver
from nexus.cacheproxy.nearcache import NearCache
from nexus.cacheproxy.outage import Outage
from nexus.cacheproxy.target import Target
from nexus.wire.resp import encode_command

if TYPE_CHECKING:
    from nexus.cacheproxy.counts import Stats, Tally
    from nexus.cacheproxy.session import Session

__all__ = ["LinkState", "Pools", "SharedLink"]

log = logging.getLogger("nexus.cacheproxy")

#: Reconnect delay, seconds: uniformly between 0 and min(cap, base · 2^attempt) (full jitter). The
#: cap keeps service back within a second of Redis being back.
RECONNECT_BASE: Final = 0.05
RECONNECT_CAP: Final = 0.5
#: Warm links that are looked at for one that needs no replay.
_LOOK_AT: Final = 8
#: Seconds for which replies of others wait behind a big one whose client reads slowly; then it is
#: buffered, up to the output limit.
SLOW_SECONDS: Final = 5
#: Seconds after which an unused link is closed. How many are kept has no limit of its own: a load
#: that needed them a moment ago would open them again, thousands of times.
IDLE_SECONDS: Final = 60
#: Answers a command that needs a dedicated connection when there may be no more of them.
NO_ROOM: Final = (
    b"-NEXUSLIMIT no more dedicated connections to redis (limits.max_dedicated); try again\r\n"
)


def _unobserved(_seconds: float) -> None:
    """Nobody measures."""


@dataclass(slots=True)
class LinkState:
    """What a dedicated connection is at Redis."""

    identity: Identity
    protocol: int
    db: int
    name: bytes = b""
    #: ``CLIENT SETINFO`` attributes, upper-case name → value.
    library: dict[bytes, bytes] = field(default_factory=dict)
    idle_since: int = 0


class SharedLink:
    """A multiplexed link that is kept open: connect, lose, back off, connect again."""

    def __init__(self, pools: Pools, identity: Identity, protocol: int, db: int) -> None:
        self.pools: Final = pools
        self.identity: Final = identity
        self.protocol: Final = protocol
        self.db: Final = db
        self.link = Link(pools.plane, self)
        self.partition = pools.near.partition(self.link, protocol, identity, db)
        #: Former links that still owe replies behind a big one.
        self.retired: Final[set[Link]] = set()
        #: Clients bound to this link.
        self.users = 0
        self.idle_since = pools.plane.tick
        self.closing = False
        self.last_error = ""
        self.first_attempt: Final = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._connect()

    def _connect(self) -> None:
        self._task = asyncio.get_running_loop().create_task(self._keep_trying())

    async def _keep_trying(self) -> None:
        attempt = 0
        while not self.closing:
            try:
                transport = await dial(self.pools.target, self.identity, self.protocol, self.db)
            except DialError as error:
                self._failed(error)
            else:
                self.last_error = ""
                self.pools.outage.ends()
                self.link.attach(transport)
                self.first_attempt.set()
                return
            ceiling = min(RECONNECT_CAP, RECONNECT_BASE * 2 ** min(attempt, 10))
            await asyncio.sleep(random.random() * ceiling)
            # One that is there and busy with a script is asked often: that ends at any moment.
            attempt = attempt + 1 if self.link.refusal is self.pools.plane.loading else 0

    def _failed(self, error: DialError) -> None:
        if not error.reply:
            self.pools.outage.begins(str(error), lost=False)
        elif str(error) != self.last_error:
            log.warning("redis is not reachable", extra={"error": str(error)})
        self.last_error = str(error)
        self.link.state = DOWN
        # Never sent, so it is safe to say so: clients retry -LOADING. A Redis that is there and
        # busy says so itself.
        busy = error.reply.startswith(b"-BUSY ")
        self.link.refusal = error.reply if busy else self.pools.plane.loading
        self.link.give_up(self.link.refusal)
        self.link.resume_writing()
        self.first_attempt.set()
        if error.reply.startswith((b"-WRONGPASS", b"-NOAUTH")):
            self.pools.identity_refused(self)

    def link_retired(self, link: Link) -> None:
        """A client reads a big reply slowly: everybody's next commands take another connection."""
        self.retired.add(link)
        self.link = Link(self.pools.plane, self)
        self.partition = self.pools.near.successor(self.partition, self.link)
        self.pools.stats.retired += 1
        self._connect()

    def relieve(self) -> None:
        """Once a second."""
        for link in self.retired:
            link.relieve(SLOW_SECONDS)

    def link_losing(self, link: Link) -> None:
        link.state = DOWN if self.closing or link.retired else CONNECTING

    def link_lost(self, link: Link, error: Exception | None) -> None:
        if link.retired:
            self.retired.discard(link)
            return
        if self.closing:
            return
        self.pools.stats.lost["shared"] += 1
        self.pools.stats.reconnects += 1
        self.pools.outage.begins(str(error or "closed"), lost=True)
        if self.users or self.pools.is_base(self):
            self._connect()
        else:
            self.pools.drop(self)

    def link_broken(self, _link: Link, error: Exception) -> None:
        log.error("redis sent what is not RESP", extra={"error": str(error)})

    def observe(self, seconds: float) -> None:
        self.pools.observe_shared(seconds)

    def close(self) -> None:
        self.closing = True
        if self._task is not None:
            self._task.cancel()
        self.link.close()
        for link in list(self.retired):
            link.close()


class Pools:
    """All connections of one worker to one Redis."""

    def __init__(
        self, plane: Plane, target: Target, stats: Stats, tally: Tally, worker: int
    ) -> None:
        self.plane: Final = plane
        self.target: Final = target
        self.stats: Final = stats
        self.outage: Final = Outage()
        self.near: Final = NearCache(self, plane)
        #: Told of sampled latencies, on shared and on dedicated links.
        self.observe_shared: Callable[[float], None] = _unobserved
        self.observe: Callable[[float], None] = _unobserved
        #: Dedicated connections, over all workers and how many there may be.
        self.max_dedicated = 1
        self._tally: Final = tally
        self._worker: Final = worker
        #: Who a client is until it says AUTH.
        self.base: Final = Identity(target.user, target.password)
        self.sessions: Final[set[Session]] = set()
        self.dedicated = 0
        self._paused_until = 0
        self._identities: Final[dict[bytes, Identity]] = {}
        self._shared: Final[dict[tuple[Identity, int, int], SharedLink]] = {}
        self._warm: Final[dict[tuple[Identity, int], list[Link]]] = {}
        self._opening: Final[set[asyncio.Task[None]]] = set()

    # -- identities

    def identity(self, user: bytes, password: bytes) -> Identity:
        """The identity of a user whom Redis has just let in with ``password``."""
        known = self._identities.get(user)
        if known is None:
            known = self._identities[user] = Identity(user, password)
        known.password = password
        return known

    def identity_refused(self, shared: SharedLink) -> None:
        """A password that worked no longer does: its clients must log in again."""
        if shared.identity is self.base:
            return
        log.warning("redis refuses a user", extra={"user": shared.identity.label})
        for session in [s for s in self.sessions if s.identity is shared.identity]:
            session.abort()

    # -- shared

    def shared(self, identity: Identity, protocol: int, db: int) -> SharedLink:
        """The shared link of a pool, opened at first use; the caller counts as a user."""
        key = (identity, protocol, db)
        found = self._shared.get(key)
        if found is None:
            found = self._shared[key] = SharedLink(self, identity, protocol, db)
        found.users += 1
        return found

    def shared_links(self) -> Iterable[SharedLink]:
        """All shared links."""
        return self._shared.values()

    def is_base(self, shared: SharedLink) -> bool:
        """Whether it is the link of clients that say nothing of themselves: always kept open."""
        return shared.identity is self.base and shared.db == self.target.db

    def drop(self, shared: SharedLink) -> None:
        """Close a shared link that nobody uses."""
        del self._shared[(shared.identity, shared.protocol, shared.db)]
        self.near.forget(shared.partition)
        shared.close()

    def leave(self, shared: SharedLink) -> None:
        """The caller is no user any more."""
        shared.users -= 1
        shared.idle_since = self.plane.tick

    # -- dedicated

    def acquire(self, session: Session, any_db: bool) -> Link | None:
        """A dedicated link in ``session``'s state, or ``None``: it comes by ``pin_ready``.

        ``any_db``: in whatever db it is, and at once where there is one, because Redis is busy.
        """
        stack = self._warm.get((session.identity, session.protocol))
        while stack:
            link = stack.pop(_fitting(stack, session))
            if link.state != UP:
                continue
            self.stats.pins_reused += 1
            if any_db or link.info.db == session.db:
                self._lend(link, session, any_db)
                return link
            self._select(link, session)
            return None
        if self._tally.total() >= self.max_dedicated and not self._make_room():
            self.stats.pins_refused += 1
            # The caller is about to wait for it.
            self.plane.call_soon(session.pin_failed, NO_ROOM)
            return None
        self.stats.pins_opened += 1
        self._count_dedicated(+1)
        task = asyncio.get_running_loop().create_task(self._open(session, any_db))
        self._opening.add(task)
        task.add_done_callback(self._opening.discard)
        return None

    async def _open(self, session: Session, any_db: bool) -> None:
        identity, protocol = session.identity, session.protocol
        db = 0 if any_db else session.db
        try:
            transport = await dial(self.target, identity, protocol, db)
        except DialError as error:
            self._count_dedicated(-1)
            session.pin_failed(error.reply or self.plane.loading)
            return
        except BaseException:
            self._count_dedicated(-1)
            raise
        link = Link(self.plane, self)
        link.info = LinkState(identity, protocol, db)
        link.attach(transport)
        if session.closed:
            self.release(link)
            return
        self._lend(link, session, any_db)
        session.pin_ready(link)

    def _count_dedicated(self, number: int) -> None:
        """Dedicated connections came (or went), those being opened included."""
        self.dedicated += number
        self._tally.set(self._worker, self.dedicated)

    def _make_room(self) -> bool:
        """Give up a warm connection of another user; False: there is none."""
        for stack in self._warm.values():
            if stack:
                stack.pop(0).close()
                return True
        return False

    def _select(self, link: Link, session: Session) -> None:
        """Lend the link once it is in the session's db.

        Nothing may be sent behind the SELECT before Redis has accepted it: it would run in the
        wrong db where Redis refuses (``-BUSY``).
        """
        request = bytearray(encode_command([b"SELECT", session.db]))
        link.send(Selected(self, session, link), request, 0, len(request), 1)

    def selected(self, link: Link, session: Session, refusal: bytes) -> None:
        """Redis has answered the SELECT of :meth:`_select`; ``refusal`` is its error or empty."""
        if not refusal:
            link.info.db = session.db
        if refusal or session.closed:
            self.release(link)
            if not session.closed:
                session.pin_failed(refusal)
            return
        self._lend(link, session, bare=False)
        session.pin_ready(link)

    def _lend(self, link: Link, session: Session, bare: bool) -> None:
        """Make the link what the session is; the replay goes in front of the first command.

        ``bare``: without a replay.
        """
        link.pin = session
        if bare:
            return
        state: LinkState = link.info
        replay = []
        if state.name != session.name:
            replay.append(encode_command([b"CLIENT", b"SETNAME", session.name]))
            state.name = session.name
        for attribute in state.library.keys() | session.library.keys():
            value = session.library.get(attribute, b"")
            if state.library.get(attribute, b"") != value:
                replay.append(encode_command([b"CLIENT", b"SETINFO", attribute, value]))
                state.library[attribute] = value
        session.replaying = len(replay)
        for request in replay:
            data = bytearray(request)
            link.send(Replayed(session, link), data, 0, len(data), 1)

    def release(self, link: Link) -> None:
        """Take back a link on which nothing of its borrower is left."""
        link.pin = None
        link.pause(False)
        state: LinkState = link.info
        stack = self._warm.setdefault((state.identity, state.protocol), [])
        if link.state != UP:
            link.close()
            return
        state.idle_since = self.plane.tick
        stack.append(link)

    def forget_name(self, identity: Identity, protocol: int, name: bytes) -> None:
        """A client is gone: warm connections do not carry its name in CLIENT LIST any longer."""
        for link in self._warm.get((identity, protocol), ()):
            if link.info.name == name:
                request = bytearray(encode_command([b"CLIENT", b"SETNAME", b""]))
                link.info.name = b""
                link.send(Replayed(None, link), request, 0, len(request), 1)

    # -- CLIENT PAUSE

    @property
    def paused(self) -> bool:
        """Whether a client of this worker has paused clients, so that shared links would stall."""
        return self.plane.tick < self._paused_until

    def pause(self, milliseconds: bytes) -> None:
        """CLIENT PAUSE is about to be sent; what Redis refuses as a number pauses nothing."""
        if milliseconds.isdigit():
            self._paused_until = self.plane.tick + int(milliseconds) // 1000 + 2
            for session in self.sessions:
                if not session.pinned:
                    session.mask = 0  # every command is looked at

    def unpause(self) -> None:
        """CLIENT UNPAUSE was answered."""
        self._paused_until = 0

    # -- owner of the dedicated links

    def link_losing(self, link: Link) -> None:
        link.state = DOWN
        if link.pin is not None:
            link.pin.pin_losing()

    def link_lost(self, link: Link, _error: Exception | None) -> None:
        self._count_dedicated(-1)
        pin, link.pin = link.pin, None
        if pin is not None:
            self.stats.lost["pinned"] += 1
            pin.pin_lost(link)
            return
        state: LinkState = link.info
        stack = self._warm.get((state.identity, state.protocol), [])
        if link in stack:
            stack.remove(link)

    def link_broken(self, _link: Link, error: Exception) -> None:
        log.error("redis sent what is not RESP", extra={"error": str(error)})

    # -- housekeeping

    def sweep(self) -> None:
        """Close what has been idle for too long; once a second."""
        limit = self.plane.tick - IDLE_SECONDS
        for stack in self._warm.values():
            while stack and stack[0].info.idle_since < limit:
                stack.pop(0).close()
        for shared in list(self._shared.values()):
            shared.relieve()
            if shared.users == 0 and shared.idle_since < limit and not self.is_base(shared):
                self.drop(shared)

    def links(self) -> dict[str, int]:
        """Numbers of links, by use."""
        warm = sum(len(stack) for stack in self._warm.values())
        return {
            "shared": sum(s.link.state == UP for s in self._shared.values()),
            "shared_down": sum(s.link.state != UP for s in self._shared.values()),
            "pinned": self.dedicated - warm,
            "warm": warm,
        }

    def close(self) -> None:
        """Drop everything."""
        for task in list(self._opening):
            task.cancel()
        self.near.close()
        for shared in self._shared.values():
            shared.close()
        for stack in self._warm.values():
            for link in list(stack):
                link.close()


def _fitting(stack: list[Link], session: Session) -> int:
    """Index of the link to take: the last used that needs the least replay.

    A name is left alone where another link will do: people look for it in CLIENT LIST.
    """
    best, least = len(stack) - 1, 4
    for index in range(len(stack) - 1, max(-1, len(stack) - _LOOK_AT - 1), -1):
        state: LinkState = stack[index].info
        replay = 2 * (state.db != session.db) + (state.name != session.name)
        if replay == 0:
            return index
        if replay < least:
            best, least = index, replay
    return best


class Selected(Receiver):
    """Waits for the reply to the SELECT in front of a loan."""

    __slots__ = ("_lead", "_link", "_pools", "_session")

    def __init__(self, pools: Pools, session: Session, link: Link) -> None:
        super().__init__()
        self._pools = pools
        self._session = session
        self._link = link
        self._lead = b""

    def deliver(self, data: bytearray, start: int, end: int, done: int) -> None:
        self._lead += bytes(data[start:end])
        if done:
            refusal = self._lead if self._lead.startswith(b"-") else b""
            self._pools.selected(self._link, self._session, refusal)

    def lost(self, _count: int, _partial: bool, _error: bytes) -> None:
        # The command was not sent: safe to retry, and said so.
        if not self._session.closed:
            self._session.pin_failed(self._pools.plane.loading)


class Replayed(Receiver):
    """Swallows the reply to a replayed command; one that fails ends the client, on the spot.

    Without a session: of a command that cleans a warm connection.
    """

    __slots__ = ("_first", "_link", "_session")

    def __init__(self, session: Session | None, link: Link) -> None:
        super().__init__()
        self._session = session
        self._link = link
        self._first = True

    def deliver(self, data: bytearray, start: int, end: int, done: int) -> None:
        if self._first and end > start and data[start] == 45:  # '-'
            log.warning("redis refused a client's replayed state")
            self._link.close()  # it is not what its LinkState says
            if self._session is not None:
                self._session.abort()
        self._first = False
        if done and self._session is not None:
            self._session.replayed()

    def pushed(self, data: bytearray, start: int, end: int) -> None:
        if self._session is not None:
            self._session.pushed(data, start, end)

    def lost(self, count: int, partial: bool, error: bytes) -> None:
        """The session hears of it by itself."""
