"""The proxy's own commands (``NEXUS …``), and admission of clients.

Each family of subcommands has a module of its own (``statscommand``, ``policycommand``, …); what
they have in common is here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Final, NamedTuple

from nexus.wire.resp import BulkError, SimpleError, SimpleString, VerbatimString, encode_reply

if TYPE_CHECKING:
    from nexus.cacheproxy.counts import SharedCounts, Stats
    from nexus.cacheproxy.pools import Pools
    from nexus.cacheproxy.session import Session

__all__ = ["LocalCommands", "Subcommand", "error_reply", "text_reply"]


class Subcommand(NamedTuple):
    """One ``NEXUS`` subcommand.

    ``run`` gets the session and all arguments, ``NEXUS`` included, and returns the reply; ``None``:
    it has seen to the reply itself. ``least`` and ``most`` count all arguments; -1: no limit.
    """

    run: Callable[[Session, list[bytes]], bytes | None]
    usage: str
    what: str
    least: int
    most: int


def text_reply(session: Session, lines: Iterable[str]) -> bytes:
    """Lines as one text, as ``INFO`` gives it."""
    text = "".join(f"{line}\r\n" for line in lines).encode("utf-8", "surrogateescape")
    return encode_reply(VerbatimString(b"txt:" + text), 3 if session.protocol == 3 else 2)


def error_reply(text: bytes) -> bytes:
    """``-ERR text``; line ends in it become blanks."""
    return encode_reply(BulkError(b"ERR " + text), 2)


class LocalCommands:
    """What a session asks its worker: admission, and answers to ``NEXUS``."""

    def __init__(self, pools: Pools, counts: SharedCounts, worker: int, stats: Stats) -> None:
        self.pools: Final = pools
        self.counts: Final = counts
        self.worker: Final = worker
        self.stats: Final = stats
        #: Over all workers.
        self.max_clients = 0
        self._commands: Final = {
            b"help": Subcommand(self._help, "HELP", "Print this help.", 2, 2),
        }

    def add(self, subcommands: Mapping[bytes, Subcommand]) -> None:
        """Know these, too; by lower-case name."""
        self._commands.update(subcommands)

    def admit(self) -> bool:
        """Whether one more client fits; it is counted if so."""
        if self.counts.clients.total() >= self.max_clients:
            self.stats.refused += 1
            return False
        self.stats.accepted += 1
        self.counts.clients.set(self.worker, len(self.pools.sessions) + 1)
        return True

    def departed(self) -> None:
        """An admitted client is gone (and out of ``pools.sessions``)."""
        self.counts.clients.set(self.worker, len(self.pools.sessions))

    def run(self, session: Session, args: list[bytes]) -> bytes | None:
        """The reply to ``NEXUS subcommand …``; ``None``: it comes by itself, in its turn."""
        if len(args) < 2:
            return encode_reply(SimpleError(b"ERR wrong number of arguments for 'nexus' command"))
        name = args[1].lower()
        found = self._commands.get(name)
        if found is None:
            return error_reply(b"unknown subcommand '%b'. Try NEXUS HELP." % args[1][:128])
        if len(args) < found.least or len(args) > found.most >= 0:
            return error_reply(
                b"wrong number of arguments; expected NEXUS %b" % found.usage.encode()
            )
        return found.run(session, args)

    def _help(self, _session: Session, _args: list[bytes]) -> bytes:
        lines = ["NEXUS <subcommand>. Subcommands are:"]
        for command in self._commands.values():
            lines += [command.usage, f"    {command.what}"]
        return encode_reply([SimpleString(line.encode()) for line in lines])
