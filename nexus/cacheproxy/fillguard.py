"""The guard against late fills: what a holder loaded is old once somebody else has written the key.

::

    holder: GET k → nil ── loads ── SET k v ─► EVAL: is the lock still the one of this lease, and
    anybody else:         SET k w                    the key not there? else +OK, and not stored
    anybody else:         DEL k    ─► DEL nexus:lease:{k}, DEL k

The lock among workers and proxies (:mod:`nexus.cacheproxy.leases`) is the holder's token, and Redis
itself compares it, in one step with the write. It ends when Redis tells of a write of the key. Only
the removal of a key that is not there is told to nobody; so whoever sends one through a proxy ends
the token first. After an early refresh the key may be there, so a write is only known once we have
been told.

What is guarded is the first SET, SETEX or PSETEX of the key on the holder's own connection, within
the lease. Not guarded, and sent as it is: a SET whose reply says what was there (NX, XX, GET); what
is in MULTI, in a script, or sent in pieces on a connection of its own; a SET of another connection;
and what follows another read or write of the key by the holder, because it knows more by then.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, Final

from nexus._speedups.respscan import arguments
from nexus.cacheproxy.flow import DOWN, Receiver
from nexus.clock import monotonic
from nexus.wire.resp import encode_command

if TYPE_CHECKING:
    from nexus.cacheproxy.dial import Identity
    from nexus.cacheproxy.flow import Client, Link
    from nexus.cacheproxy.leases import LeaseEntry, Leases
    from nexus.cacheproxy.near import Partition, Reading

__all__ = ["LOCKS", "FillGuard"]

log = logging.getLogger("nexus.cacheproxy")

#: Names of the locks; reserved.
LOCKS: Final = b"nexus:lease:"
#: KEYS: the key, its lock; ARGV: the token, whether the key is still there (``1``: early refresh),
#: the command's name, its arguments behind the key.
_FILL: Final = (
    b"if redis.call('get',KEYS[2])~=ARGV[1] "
    b"or (ARGV[2]=='0' and redis.call('exists',KEYS[1])==1) then return 0 end "
    b"return redis.pcall(ARGV[3],KEYS[1],unpack(ARGV,4))"
)
_REFUSED: Final = b":0\r\n"
_OK: Final = b"+OK\r\n"
_MAY: Final = b"return redis.call('exists',KEYS[1])"
#: Commands that fill; that remove what need not be there.
_FILLS: Final = (b"set", b"setex", b"psetex")
_REMOVES: Final = (b"del", b"unlink", b"getdel")
_TIMED: Final = (b"EX", b"PX", b"EXAT", b"PXAT")
#: Seconds for which a user that lacks rights is not asked again.
_REFUSED_SECONDS: Final = 60.0


class _Grant:
    """A holder's right to fill."""

    __slots__ = ("early", "entry", "reading", "token", "until")

    def __init__(self, entry: LeaseEntry, reading: Reading, early: bool) -> None:
        self.entry: Final = entry
        self.reading: Final = reading
        self.early: Final = early
        self.token: Final = entry.id
        self.until: Final[float] = entry.lease.expires


class FillGuard:
    """One worker's holders under rules with ``stale_fill_guard``."""

    def __init__(self, leases: Leases) -> None:
        self._leases: Final = leases
        self._grants: Final[dict[Client, dict[bytes, _Grant]]] = {}
        commands = leases.core.commands
        self._fills: Final = frozenset(commands.number(name) for name in _FILLS)
        self._removes: Final = frozenset(commands.number(name) for name in _REMOVES)
        #: User → monotonic seconds from which it may be asked (again) whether it may; inf: it may.
        self._rights: Final[dict[Identity, float]] = {}
        #: Fills that passed, that were kept out, and that could not be guarded for want of rights.
        self.stored = 0
        self.refused = 0
        self.unguarded = 0

    # -- holders

    def granted(self, entry: LeaseEntry, reading: Reading, *, early: bool) -> None:
        """``reading.client`` is sent to load."""
        client = reading.client
        if client.closed:
            return
        self._grants.setdefault(client, {})[entry.key] = _Grant(entry, reading, early)
        client.guarded = True
        partition: Partition = reading.partition
        identity: Identity = partition.identity
        if identity is self._leases.base:
            return  # it has the lock
        now = monotonic()
        if client.link.state != DOWN and now >= self._rights.get(identity, 0.0):
            self._rights[identity] = now + _REFUSED_SECONDS
            _ask(client.link, _Rights(self, identity), b"EVAL", _MAY, 1, entry.name)

    def forget(self, client: Client) -> None:
        """Nothing of the client's is guarded any more."""
        self._grants.pop(client, None)
        client.guarded = False

    def _end(self, client: Client, key: bytes) -> None:
        grants = self._grants.get(client)
        if grants is not None:
            grants.pop(key, None)
            if not grants:
                self.forget(client)

    def reset(self) -> None:
        """Another policy is in force."""
        for client in list(self._grants):
            self.forget(client)

    def explain(self, client: Client, key: bytes, now: float) -> str:
        """What would become of a fill by this client now; empty: it is no holder."""
        grant = self._grants.get(client, {}).get(key)
        if grant is None or now >= grant.until:
            return ""
        if grant.entry.lease.holder is not grant.reading:
            return "this client's next SET of the key is not stored: it was written since the miss"
        return (
            "this client's next SET of the key is stored unless somebody else writes it before, "
            f"for {grant.until - now:.1f} s yet"
        )

    # -- from the path of commands

    def concerns(self, client: Client, number: int) -> bool:
        """Whether :meth:`before` wants to see a command."""
        return client.guarded or number in self._removes

    def reads(self, client: Client, data: bytearray, start: int, stop: int) -> None:
        """A holder reads a key again: what it then writes is based on that."""
        self._end(client, arguments(data, start, stop)[1])

    def before(
        self, partition: Partition, client: Client, data: bytearray, start: int, stop: int,
        may_send: bool,
    ) -> bool:  # fmt: skip
        """A command is about to be sent; whether it was sent here, as a guarded fill."""
        number = client.scanner.number
        args = arguments(data, start, stop)
        if number in self._removes:
            self._remove(partition, client, args[1:])
        if not client.guarded:
            return False
        if may_send and number in self._fills and len(args) > 2:
            grant = self._grants[client].get(args[1])
            self._end(client, args[1])
            if grant is None:
                return False
            return self._fill(partition, client, data, start, stop, grant, args)
        first, last, step = self._leases.core.commands.keys(number)
        if not first or not step:
            self.forget(client)
            return False
        for key in args[first : (last + 1) or None : step] if last >= 0 else args[first::step]:
            self._end(client, key)
        return False

    def _fill(
        self, partition: Partition, client: Client, data: bytearray, start: int, stop: int,
        grant: _Grant, args: list[bytes],
    ) -> bool:  # fmt: skip
        link = client.link
        if monotonic() >= grant.until or link.state == DOWN or not _well_formed(args):
            return False
        if not self._may(partition.identity):
            self.unguarded += 1
            return False
        entry = grant.entry
        # Once the lease is over within its time the key was written, and no token fits.
        token = grant.token if entry.lease.holder is grant.reading else b""
        early = b"1" if grant.early else b"0"
        partition.prepare(client, data, start, stop)
        words: tuple[bytes, ...] = (
            b"EVAL",
            _FILL,
            b"2",
            entry.key,
            entry.name,
            token,
            early,
            args[0],
            *args[2:],
        )
        _ask(link, _Fill(self, client, grant), *words)
        client.expecting(1)
        self._leases.core.plane.shared_commands += 1
        return True

    def _may(self, identity: Any) -> bool:
        return identity is self._leases.base or self._rights.get(identity) == float("inf")

    def _remove(self, partition: Partition, client: Client, keys: list[bytes]) -> None:
        """End the tokens of keys that are being removed, in front of that."""
        matcher = self._leases.core.matchers[self._leases.get_number]
        if matcher is None or client.link is None or client.link.state == DOWN:
            return
        names = []
        for key in keys:
            rule = matcher.find(key)
            if rule is not None and rule.fill_guard:
                names.append(LOCKS + key)
        if names and (partition.identity is self._leases.base or self._asks(partition.identity)):
            _ask(client.link, _Rights(self, partition.identity, ends=True), b"DEL", *names)

    def _asks(self, identity: Any) -> bool:
        known = self._rights.get(identity, 0.0)
        return known == float("inf") or monotonic() >= known

    # -- what Redis says

    def allowed(self, identity: Any, reply: bytes) -> None:
        """Redis lets a user see to the locks, or does not."""
        if not reply.startswith(b"-"):
            self._rights[identity] = float("inf")
            return
        if reply.startswith((b"-NOPERM", b"-NOAUTH")) or b"ACL" in reply:
            self._rights[identity] = monotonic() + _REFUSED_SECONDS
            text = reply[1:200].strip().decode("utf-8", "replace")
            log.warning(
                "late fills of a user are not guarded",
                extra={"error": text, "user": identity.label},
            )

    def answered(self, grant: _Grant, reply: bytes) -> bytes:
        """The reply that the holder gets."""
        if reply != _REFUSED:
            self.stored += reply == _OK
            return reply
        self.refused += 1
        entry = grant.entry
        entry.lease.refused(grant.reading)
        self._leases.after(entry)
        return _OK


def _well_formed(args: list[bytes]) -> bool:
    """Whether Redis would only say ``+OK`` to a fill, and tell nothing of what was there."""
    if args[0].lower() != b"set":
        return len(args) == 4 and _positive(args[2])
    options = [arg.upper() for arg in args[3:]]
    if not options or options == [b"KEEPTTL"]:
        return True
    return len(options) == 2 and options[0] in _TIMED and _positive(options[1])


def _positive(text: bytes) -> bool:
    return text.isdigit() and 0 < int(text) < 10**14


def _ask(link: Link, receiver: Receiver, *words: bytes | int) -> None:
    data = bytearray(encode_command(list(words)))
    link.send(receiver, data, 0, len(data), 1)


class _Fill(Receiver):
    """Stands in the FIFO for a holder whose SET was sent as a script."""

    def __init__(self, guard: FillGuard, client: Client, grant: _Grant) -> None:
        super().__init__()
        self._guard: Final = guard
        self._client: Final = client
        self._grant: Final = grant
        self._data = b""

    def deliver(self, data: bytearray, start: int, end: int, done: int) -> None:
        self._data += bytes(data[start:end])
        if done:
            reply = bytearray(self._guard.answered(self._grant, self._data))
            self._client.deliver(reply, 0, len(reply), 1)

    def pushed(self, data: bytearray, start: int, end: int) -> None:
        self._client.pushed(data, start, end)

    def lost(self, count: int, _partial: bool, error: bytes) -> None:
        self._client.lost(count, False, error)


class _Rights(Receiver):
    """Redis says whether a user may see to the locks."""

    def __init__(self, guard: FillGuard, identity: Any, *, ends: bool = False) -> None:
        super().__init__()
        self._guard: Final = guard
        self._identity: Final = identity
        #: It may end them; what else it may is not known by that.
        self._ends: Final = ends
        self._data = b""

    def deliver(self, data: bytearray, start: int, end: int, done: int) -> None:
        self._data += bytes(data[start:end])
        if done and not (self._ends and not self._data.startswith(b"-")):
            self._guard.allowed(self._identity, self._data)

    def lost(self, _count: int, _partial: bool, _error: bytes) -> None:
        """It is asked again in a while."""
