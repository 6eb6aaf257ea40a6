"""One client: what happens to every command that does not simply pass through.

The hot path (:mod:`nexus.cacheproxy.flow`) forwards runs of plain commands and calls
:meth:`Session.special` at anything else. A session is in one of three modes::

    shared ──(a command that needs a connection of its own; barrier)──► pinned
    pinned ──(nothing outstanding, no transaction, no state left)─────► shared
    shared or pinned ──(state that stays; barrier)──► spliced: raw bytes both ways, for life

*Barrier*: ``BARRIER`` blocks the input until nothing is outstanding, so that no reply of the new
connection can overtake one of the old.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from nexus._speedups.respscan import BIG, COMMAND, ERROR, INLINE, CommandScanner, arguments
from nexus.cacheproxy.commands import COMMANDS, Kind
from nexus.cacheproxy.flow import BARRIER, DOWN, HELD, PIN_WAIT, Client, Link
from nexus.cacheproxy.permission import ASKING
from nexus.cacheproxy.tagging import join
from nexus.cacheproxy.watches import Action, SharedExec, Watch
from nexus.clock import monotonic
from nexus.wire.resp import encode_command, split_inline

if TYPE_CHECKING:
    from nexus.cacheproxy.local import LocalCommands
    from nexus.cacheproxy.pools import LinkState, Pools, SharedLink
    from nexus.cacheproxy.tagging import Tagger

__all__ = ["Session"]

SHARED: Final = int(Kind.SHARED)
#: Kinds with one reply and no effect on the connection: on a dedicated link all alike.
PLAIN_WHEN_PINNED: Final = int(Kind.SHARED | Kind.DEDICATED | Kind.BLOCK_OPTION)
CONTAINER: Final = int(Kind.CONTAINER)
LOCAL: Final = int(Kind.LOCAL)
PROBE: Final = int(Kind.PROBE)
RESCUE: Final = int(Kind.RESCUE)

_BULK_PING: Final = bytearray(encode_command([b"PING"]))
_SPOILER: Final = bytearray(encode_command([b"NEXUS"]))
#: Rows of the command counts (``CommandTable.count``): how a command travelled.
FORWARDED: Final = 0
PINNED: Final = 1
ANSWERED: Final = 2
UNCOUNTED: Final = 3
#: ``-NEXUS…`` is ours, never Redis's.
_PUSHED_OUT: Final = b"-ERR max number of clients reached\r\n"

_TRANSACTION: Final = {
    b"multi": Action.MULTI,
    b"exec": Action.EXEC,
    b"discard": Action.DISCARD,
    b"watch": Action.WATCH,
    b"unwatch": Action.UNWATCH,
}


class Session(Client):
    """A client connection; see the module."""

    __slots__ = (
        "alone",
        "db",
        "eof_passed_on",
        "identity",
        "in_multi",
        "library",
        "life",
        "local",
        "multi_sent",
        "name",
        "pin_died",
        "pin_error",
        "pools",
        "probing",
        "protocol",
        "replaying",
        "shared",
        "tags_due",
        "watching",
    )

    def __init__(self, pools: Pools, local: LocalCommands) -> None:
        super().__init__(pools.plane)
        self.pools: Final = pools
        self.local: Final = local
        self.identity = pools.base
        self.protocol = 2
        self.db = pools.target.db
        self.name = b""
        self.library: dict[bytes, bytes] = {}
        self.shared: SharedLink | None = None
        #: A MULTI was forwarded and not yet its EXEC or DISCARD.
        self.multi_sent = False
        #: What the replies so far say about the pinned link.
        self.in_multi = False
        self.watching = False
        #: Tags that keys join when the transaction is executed.
        self.tags_due: dict[bytes, list[bytes]] = {}
        #: Unknown commands whose reply is outstanding; Redis may close the connection at one.
        self.probing = 0
        #: Replies to replayed state that are outstanding on the dedicated link.
        self.replaying = 0
        #: A ``RESCUE`` command is outstanding: nothing may be sent behind it.
        self.alone = False
        #: Redis accepted something that we do not know: the link is never given back.
        self.life = False
        self.pin_error: bytes | None = None
        self.pin_died = False
        self.eof_passed_on = False
        if pools.paused:
            self.mask = 0

    # -- links

    def bind(self) -> None:
        """Set ``link`` to the shared link of the session's user, protocol and db."""
        shared = self.shared
        if shared is not None and (
            shared.identity is not self.identity
            or shared.protocol != self.protocol
            or shared.db != self.db
            or shared.closing
        ):
            self.pools.leave(shared)
            shared = None
        if shared is None:
            shared = self.pools.shared(self.identity, self.protocol, self.db)
        self.write_seq = self.read_seq = 0  # nothing is outstanding
        self.shared = shared
        self.near = shared.partition
        self.link = shared.link

    def _pin(self, any_db: bool = False) -> bool:
        """Get a dedicated link; False: not yet (the input is blocked), or never (``pin_error``)."""
        if not self._quiet():
            return False
        link = self.pools.acquire(self, any_db)
        if link is None:
            self.blocked |= PIN_WAIT
            return False
        self._take_pin(link)
        return True

    def _take_pin(self, link: Link) -> None:
        if self.guarded:
            self.pools.near.leases.guard.forget(self)
        self.link = link
        self.pinned = True
        self.pin_died = False
        self.set_pinned_mask()
        self.scanner.row = PINNED

    def set_pinned_mask(self) -> None:
        """What passes on a dedicated link without a look: nothing while written keys are tagged."""
        if not self.alone:
            self.mask = 0 if self.tagger is not None else PLAIN_WHEN_PINNED

    @property
    def tagger(self) -> Tagger | None:
        """What tags written keys; ``None``: nothing does."""
        found: Tagger | None = self.pools.near.core.tagger
        return found

    def pin_ready(self, link: Link) -> None:
        """The dedicated link that :meth:`_pin` asked for is there."""
        self._take_pin(link)
        self.unblock(PIN_WAIT)

    def pin_failed(self, error: bytes) -> None:
        """There will be none; ``error`` answers the command that wanted it."""
        self.pin_error = error
        self.unblock(PIN_WAIT)

    def replayed(self) -> None:
        """Redis has answered one command of the replayed state."""
        self.replaying -= 1
        if self.replaying == 0:
            self.unblock(PIN_WAIT)

    def _unpin(self) -> None:
        link = self.link
        self.link = None
        self.pinned = False
        # Nobody knows what it did there: see R9 of the near-cache.
        self.fence_after = monotonic()
        self.multi_sent = self.in_multi = self.watching = False
        self.tags_due = {}
        self.probing = self.replaying = 0
        self.alone = False
        self.mask = 0 if self.pools.paused else SHARED
        self.scanner.row = FORWARDED
        if self.pin_died:
            link.close()
        else:
            self.pools.release(link)

    def _clean(self) -> bool:
        return not (
            self.in_multi
            or self.watching
            or self.life
            or self.spliced_through
            or self.scanner.streaming
            or self.outstanding
            or self.slots
        )

    def pin_losing(self) -> None:
        """The dedicated link broke; the replies that it owes are about to be given up."""
        self.pin_died = True
        if not self.eof and not self._carries_state():
            return
        # State is gone with the connection; a client library knows what a closed connection means.
        self.quitting = True

    def _carries_state(self) -> bool:
        return (
            self.in_multi
            or self.watching
            or self.multi_sent
            or self.probing > 0
            or self.alone  # SHUTDOWN has no reply
            or self.life
            or self.spliced_through
            or self.scanner.streaming
        )

    def pin_lost(self, link: Link) -> None:
        """The dedicated link is gone and everything outstanding was answered."""
        if self.closed:
            return
        if self.quitting:
            self._close()
        elif self.link is link:
            self._unpin()
            self.unblock(BARRIER | PIN_WAIT)

    def lost(self, count: int, partial: bool, error: bytes) -> None:
        if self.quitting and self.pinned:
            self.outstanding -= count  # closed without a word, as Redis did it
        else:
            super().lost(count, partial, error)

    # -- decisions, by command

    def special(self, verdict: int, data: bytearray, start: int, end: int) -> int:
        """Handle what is not a plain command at ``start``; returns where to go on."""
        if self.held:
            self.blocked |= HELD  # it goes behind what is still being found
            return start
        if verdict == COMMAND:
            return self._command(self.scanner.kind, data, start, self.scanner.command_end, end)
        if verdict == INLINE:
            return self._inline(data, start, self.scanner.command_end)
        if verdict == BIG:
            return self._big(data, start, end)
        assert verdict == ERROR  # noqa: S101  (the scanner's fifth verdict never comes here)
        self.protocol_error()
        return end

    def _command(self, kind: int, data: bytearray, start: int, stop: int, end: int) -> int:
        if self.alone and not self._rejoined():
            return start
        args: list[bytes] = [] if kind == SHARED else arguments(data, start, stop)
        if kind == CONTAINER:
            kind = self._subcommand_kind(args)
        if kind == LOCAL:
            if not self.multi_sent or args[0].lower() in (b"reset", b"quit"):
                return self._local(args, start, stop)
            kind = SHARED  # inside MULTI it is Redis that refuses it, and aborts the transaction
        if not self.pinned:
            if self._goes_shared(kind, args):
                self.pin_error = None
                self._count(FORWARDED)
                if self.plane.near_on:
                    if self.link is None:
                        self.bind()
                    self.near.note(self, data, start, stop)
                self.forward(data, start, stop, 1)
                return stop
            if args and args[0].lower() == b"multi" and len(args) == 1 and not self.pools.paused:
                whole = self._whole_transaction(data, start, stop, end)
                if whole:
                    return whole
            any_db = kind == RESCUE
            if self.pin_error is not None:
                if not (self.pin_error.startswith(b"-BUSY") and args[0].lower() == b"multi"):
                    self._refuse_alone(kind, stop < end)
                    return stop
                self.pin_error = None
                any_db = True  # Redis takes a MULTI even now; see _on_pin
            if not self._pin(any_db):
                return start
        return self._on_pin(kind, args, data, start, stop)

    def _rejoined(self) -> bool:
        """Whether the ``RESCUE`` command is answered; else the input is blocked until it is."""
        if not self._quiet():
            return False
        self.alone = False
        if self.pinned:
            self.set_pinned_mask()
        return True

    def _goes_shared(self, kind: int, args: list[bytes]) -> bool:
        if self.pools.paused:
            return False
        if kind == SHARED:
            if self.plane.tick < self.big_until:
                return False
            self.mask = SHARED
            return True
        if kind == Kind.BLOCK_OPTION:
            # The option stands before STREAMS; a key of that name behind it costs only a pin.
            return not any(arg.lower() == b"block" for arg in args[1:])
        # Without a transaction these are answered with an error, or do nothing.
        return kind == Kind.TRANSACTION and args[0].lower() in (b"exec", b"discard", b"unwatch")

    def _on_pin(self, kind: int, args: list[bytes], data: bytearray, start: int, stop: int) -> int:
        if kind == Kind.SPLICED or (kind == Kind.SESSION and self.multi_sent):
            self._splice_when_quiet()
            return start
        if self.tags_due and kind == Kind.TRANSACTION and self._tags_wait(args):
            return start
        self._count(PINNED)
        if kind & PLAIN_WHEN_PINNED:
            self._tag_pinned(args, data, start, stop)
            self.forward(data, start, stop, 1)
        elif kind == RESCUE:
            self.alone = True
            self.mask = 0
            self.forward(data, start, stop, 1)
        elif kind == Kind.WAIT:
            if not self.multi_sent:
                ping = Watch(self, Action.HIDDEN, [])
                self.link.send(ping, _BULK_PING, 0, len(_BULK_PING), 1)
            self.forward(data, start, stop, 1)
        else:
            action = self._action(kind, args)
            if action in (Action.MULTI, Action.EXEC, Action.DISCARD):
                self.multi_sent = action == Action.MULTI
            elif action == Action.PROBE:
                self.probing += 1
            elif action == Action.PAUSE:
                self.pools.pause(args[2])
            self.link.send(Watch(self, action, args), data, start, stop, 1)
            self.plane.pinned_commands += 1
            self.expecting(1)
            if self.plane.tracing:
                self.traced(data, start, stop, 1)
            if action == Action.MULTI and self.link.info.db != self.db:
                # Begun while Redis was too busy to SELECT: an unknown command makes sure that
                # the transaction ends in EXECABORT, whenever Redis has time again.
                hidden = Watch(self, Action.HIDDEN, [])
                self.link.send(hidden, _SPOILER, 0, len(_SPOILER), 1)
        return stop

    def _tag_pinned(self, args: list[bytes], data: bytearray, start: int, stop: int) -> None:
        """Written keys join their tags; in a transaction just before its EXEC."""
        tagger = self.tagger
        if tagger is None or self.scanner.number not in tagger.numbers:
            return
        joined = tagger.joined(args or arguments(data, start, stop))
        if self.multi_sent:
            join(self.tags_due, joined)
        else:
            tagger.send(self.link, self.identity, joined)

    def _tags_wait(self, args: list[bytes]) -> bool:
        """Whether EXEC must wait because the tags of what it writes have just been sent."""
        due, self.tags_due = self.tags_due, {}
        tagger = self.tagger
        if tagger is None or args[0].lower() != b"exec":
            return False
        shared = self.pools.shared(self.identity, self.protocol, self.db)
        self.pools.leave(shared)
        self.blocked |= ASKING
        tagger.send(shared.link, self.identity, due, lambda: self.unblock(ASKING))
        return True

    def _count(self, row: int, number: int = 1) -> None:
        """Count the command that the scanner stopped at."""
        self.plane.table.count(row, self.scanner.group, number)

    @staticmethod
    def _action(kind: int, args: list[bytes]) -> Action:
        name = args[0].lower()
        if kind == Kind.TRANSACTION:
            return _TRANSACTION[name]
        if kind in (Kind.SESSION, Kind.PAUSE):
            return Action[(args[1] if name == b"client" else name).decode().upper()]
        return Action.PROBE

    def _subcommand_kind(self, args: list[bytes]) -> int:
        if len(args) < 2:
            return SHARED  # an error, whoever asks
        name = b"|".join(args[:2]).lower().decode("latin-1")
        known = COMMANDS.get(name)
        return int(known.kind) if known is not None else PROBE

    def _whole_transaction(self, data: bytearray, start: int, stop: int, end: int) -> int:
        """Forward MULTI … EXEC in one piece down the shared link.

        Returns 0 where it is not all there, or not plain. Contiguous in the link's output, it
        cannot mix with other clients' commands; without WATCH, EXEC leaves no state behind.
        """
        ahead = CommandScanner(self.plane.table, self.plane.bulk_limit, self.plane.big_command)
        ahead.row = UNCOUNTED
        if ahead.scan(data, stop, end, SHARED) != COMMAND:
            return 0
        if ahead.command_end - start > self.plane.big_command:
            return 0
        last = arguments(data, ahead.run_end, ahead.command_end)
        if len(last) != 1 or last[0].lower() != b"exec":
            return 0
        if self.tagger is not None:
            if self.link is None:
                self.bind()
            joined = self.tagger.within(data, stop, ahead.run_end)
            self.tagger.send(self.link, self.identity, joined)
        self._count(FORWARDED, ahead.run_count + 2)  # all under the group of MULTI
        self.forward(data, start, ahead.run_end, ahead.run_count + 1)
        if self.link.state == DOWN:
            self.forward(data, ahead.run_end, ahead.command_end, 1)
            return ahead.command_end
        self.plane.shared_commands += 1
        exec_ = SharedExec(self, self.link)
        self.link.send(exec_, data, ahead.run_end, ahead.command_end, 1)
        self.expecting(1)
        if self.plane.tracing:
            self.traced(data, ahead.run_end, ahead.command_end, 1)
        if self.plane.near_on:
            self.near.note_unknown(self, self.link.sent)
        return ahead.command_end

    def _big(self, data: bytearray, start: int, end: int) -> int:
        """A command too long to wait for: on a connection of its own, as it comes."""
        scanner = self.scanner
        if self.alone and not self._rejoined():
            return start
        if not self.pinned:
            if self.pin_error is not None:
                self.discarding = scanner.streaming = True
                return start
            if not self._pin():
                return start
        if not scanner.kind & PLAIN_WHEN_PINNED:
            self._splice_when_quiet()
            return start
        if self.tagger is not None:
            joined = self.tagger.beginning(data, start, end)
            if self.multi_sent:
                join(self.tags_due, joined)
            else:
                self.tagger.send(self.link, self.identity, joined)
        scanner.streaming = True
        self._count(PINNED)
        self.plane.pinned_commands += 1
        self.link.expect(self, 1)
        self.expecting(1)
        return start

    def _inline(self, data: bytearray, start: int, stop: int) -> int:
        """Inline requests go on as multibulk: the quoting is ours to judge."""
        args = split_inline(bytes(data[start:stop]))
        if args is None:
            self.scanner.error = "Protocol error: unbalanced quotes in request"
            self.protocol_error()
            return stop
        if not args:
            return stop
        request = bytearray(encode_command(args))
        size = len(request)
        near = self.plane.near_on and not self.pinned
        verdict = self.scanner.scan(request, 0, size, 0 if near else self.mask)
        if self.scanner.run_count:
            self.forward(request, 0, size, 1)
            return stop
        used = self._command(self.scanner.kind, request, 0, size, size) if verdict == COMMAND else 0
        if self.spliced_through and not used:
            self.link.send(self, request, 0, size, 0)
            return stop
        return stop if used else start

    def _local(self, args: list[bytes], start: int, stop: int) -> int:
        name = args[0].lower()
        if name == b"reset":
            if not self._quiet():  # the next command may take another connection
                return start
            self._reset()
            self.answer(b"+RESET\r\n")
        elif name == b"quit":
            self.quitting = True
            self.answer(b"+OK\r\n")
            self._close_if_quiet()
        else:
            reply = self.local.run(self, args)
            if reply is not None:
                self.answer(reply)
        self.plane.local_commands += 1
        self._count(ANSWERED)
        return stop

    def _reset(self) -> None:
        if self.pinned:
            self.pin_died = not self._clean()
            self.in_multi = self.watching = self.life = False
            self._unpin()
        self.identity = self.pools.base
        self.protocol = 2
        self.db = self.pools.target.db
        self.name = b""
        self.library = {}
        self.link = None

    def ask(self, request: bytearray) -> None:
        """Send a command of the proxy's own in the client's place; the reply is the client's."""
        self.forward(request, 0, len(request), 1)
        if self.plane.near_on and not self.pinned:
            self.near.note_unknown(self, self.link.sent)

    def _refuse(self) -> None:
        error, self.pin_error = self.pin_error, None
        self.plane.refused_commands += 1
        self.answer(error or self.plane.loading)

    def _refuse_alone(self, kind: int, more: bool) -> None:
        """Refuse one command; what is sent behind a MULTI would run outside of its transaction."""
        self._refuse()
        if kind == Kind.TRANSACTION and more:
            self.quitting = True
            self._close_if_quiet()

    def discarded(self) -> None:
        """A big command was read to its end without being sent anywhere."""
        self._refuse()

    # -- decisions, by reply

    def decided(self, watch: Watch) -> None:
        """A reply that the session's state depends on is complete."""
        lead, action = watch.lead, watch.action
        failed = lead.startswith((b"-", b"!"))
        if action == Action.HIDDEN:
            return
        if action == Action.PROBE:
            self.probing -= 1
            self.life = self.life or not failed
        elif Action.MULTI <= action <= Action.UNWATCH:
            self._transaction_decided(action, lead, failed)
        elif action in (Action.PAUSE, Action.UNPAUSE):
            if failed == (action == Action.PAUSE):
                self.pools.unpause()
        elif action == Action.HELLO and failed:
            # AUTH inside a HELLO that fails later has taken effect; who knows.
            if len(watch.args) > 2:
                self.life = True
        elif not failed:
            self._state_decided(action, watch.args)

    def _transaction_decided(self, action: Action, lead: bytes, failed: bool) -> None:
        if action == Action.MULTI:
            self.in_multi = self.in_multi or not failed
        elif action == Action.WATCH:
            self.watching = self.watching or lead.startswith(b"+OK")
        elif action == Action.UNWATCH:
            self.watching = self.watching and not lead.startswith(b"+OK")
        elif not failed or lead.startswith(b"-EXECABORT"):
            self.in_multi = self.watching = False

    def _state_decided(self, action: Action, args: list[bytes]) -> None:
        state: LinkState = self.link.info
        if action == Action.SELECT:
            self.db = state.db = int(args[1])
        elif action == Action.AUTH:
            user = args[1] if len(args) > 2 else b"default"
            self.identity = state.identity = self.pools.identity(user, args[-1])
        elif action == Action.SETNAME:
            self.name = state.name = args[2]
        elif action == Action.SETINFO:
            self.library[args[2].upper()] = state.library[args[2].upper()] = args[3]
        else:
            self._hello_decided(state, args)

    def _hello_decided(self, state: LinkState, args: list[bytes]) -> None:
        if len(args) < 2:
            return
        self.protocol = state.protocol = int(args[1])
        position = 2
        while position < len(args):
            option = args[position].lower()
            if option == b"auth":
                user, password = args[position + 1 : position + 3]
                self.identity = state.identity = self.pools.identity(user, password)
                position += 3
            else:
                self.name = state.name = args[position + 1]
                position += 2

    # -- barriers and ends

    def _quiet(self) -> bool:
        """Whether nothing is outstanding; else the input is blocked until that is so."""
        if self.outstanding == 0 and not self.slots:
            return True
        self.blocked |= BARRIER
        return False

    def _splice_when_quiet(self) -> None:
        """Splice, or block the input until that can be done.

        What was replayed must be answered, too: Redis refuses SYNC behind a reply that it has not
        written yet.
        """
        if self.replaying:
            self.blocked |= PIN_WAIT
        elif self._quiet():
            self._splice()

    def _splice(self) -> None:
        """Raw bytes from here on; only between two replies."""
        self._count(PINNED)
        self.spliced_through = True
        self.link.splice = True

    def drained(self) -> None:
        """Nothing is outstanding any more."""
        if self.pinned and not self.spliced_through:
            if self.life:
                self._splice()
                self.unblock(BARRIER)
                self.resume()
                return
            if self._clean() and (self.alone or self.plane.tick >= self.big_until):
                if not (self.eof_passed_on or self.quitting):
                    self._unpin()
        self.unblock(BARRIER)
        self._close_if_quiet()
        if self.eof and not self.closed:
            self.finish()

    def _close_if_quiet(self) -> None:
        if self.quitting and self.outstanding == 0 and not self.slots:
            self._close()

    def _close(self) -> None:
        """Deliver what is written, then close."""
        if not self.closed:
            self.closed = True
            self.transport.close()

    def protocol_error(self) -> None:
        """Answer as Redis does, behind what is outstanding, and close."""
        self.quitting = True
        self.answer(b"-ERR %b\r\n" % self.scanner.error.encode("latin-1"))
        self.local.stats.protocol_errors += 1
        self._close_if_quiet()

    def finish(self) -> None:
        """The client sends no more: answer what is outstanding, then close.

        On a dedicated link Redis is told; what it still does for a client that is half gone
        (nothing, for a blocked one) is its own decision.
        """
        if self.pending is not None and self.blocked:
            return
        if self.spliced_through or (self.pinned and self.outstanding):
            if not self.eof_passed_on:
                self.eof_passed_on = True
                self.link.write_eof()
        elif self.outstanding == 0 and not self.slots:
            self._close()

    def drain(self) -> None:
        """The proxy stops: no more input; close when everything outstanding is delivered.

        A dedicated link gets an end of input: Redis ends what only blocks, and answers the rest.
        """
        if self.closed:
            return
        if self.spliced_through:
            self._close()
            return
        self.quitting = True
        if self.held:
            self.pools.near.leases.behind(self)
        self._close_if_quiet()
        if self.pinned and not self.eof_passed_on and not self.transport.is_closing():
            self.eof_passed_on = True
            self.link.write_eof()

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        if self.local.admit():
            self.pools.sessions.add(self)
            return
        self.closed = True
        transport.write(_PUSHED_OUT)
        transport.close()

    def gone(self) -> None:
        """The connection is closed: free what it held."""
        if self in self.pools.sessions:
            self.pools.sessions.discard(self)
            self.local.departed()
        self.pools.near.leases.gone(self)
        if self.shared is not None:
            self.pools.leave(self.shared)
            self.shared = None
        if self.pinned:
            link, self.link, self.pinned = self.link, None, False
            if self._clean() and not self.pin_died and not self.eof_passed_on:
                self.pools.release(link)
            else:
                link.pin = None
                link.close()
        if self.name:
            self.pools.forget_name(self.identity, self.protocol, self.name)
