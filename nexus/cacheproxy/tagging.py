"""Keys that join tags as they are written, by the policy.

Tag first, then write: the tag command goes down the same connection right in front of the write, so
whoever reads the written key can invalidate it. In a transaction it must be answered before EXEC
goes; it would be queued inside, and its reply would be one of the client's.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Final

from nexus._speedups.respscan import COMMAND, CommandScanner, arguments
from nexus.cacheproxy.commands import COMMANDS
from nexus.cacheproxy.flow import DOWN, Receiver
from nexus.cacheproxy.tags import tag_request

if TYPE_CHECKING:
    from collections.abc import Callable

    from nexus._speedups.respscan import CommandTable
    from nexus.cacheproxy.counts import Stats
    from nexus.cacheproxy.dial import Identity
    from nexus.cacheproxy.flow import Link, Plane
    from nexus.policy.policyfile import RuleBook

__all__ = ["STORING", "Tagged", "Tagger", "written_keys"]

log = logging.getLogger("nexus.cacheproxy")

#: Tag → keys that join it.
Joined = dict[bytes, list[bytes]]

#: Commands that store or change a value, under their first key.
_FIRST: Final = """\
    append bitfield decr decrby geoadd geosearchstore getset hincrby hincrbyfloat hmset hset hsetnx
    incr incrby incrbyfloat linsert lpush lpushx lset pfadd pfmerge psetex restore rpush rpushx
    sadd sdiffstore set setbit setex setnx setrange sinterstore sunionstore xadd zadd zdiffstore
    zincrby zinterstore zrangestore zunionstore
"""
#: Under their second.
_SECOND: Final = "bitop copy lmove rename renamenx rpoplpush smove"
#: Under every second argument.
_PAIRS: Final = ("mset", "msetnx")

#: Seconds between two log lines about refused tags.
_LOG_SECONDS: Final = 60


def written_keys(args: Sequence[bytes]) -> Sequence[bytes]:
    """Keys under which a command (name first) stores values; empty where it is none that does."""
    name = args[0].lower().decode("latin-1")
    if name in _PAIRS:
        return args[1::2]
    return args[_POSITION[name] : _POSITION[name] + 1] if name in _POSITION else ()


_POSITION: Final = dict.fromkeys(_FIRST.split(), 1) | dict.fromkeys(_SECOND.split(), 2)

#: Commands that store values under keys that are known, lower case.
STORING: Final = frozenset((*_POSITION, *_PAIRS))
assert COMMANDS.keys() >= STORING  # noqa: S101


class Tagger:
    """The tags of one policy."""

    def __init__(self, book: RuleBook, plane: Plane, stats: Stats) -> None:
        self._book: Final = book
        self._plane: Final = plane
        self._stats: Final = stats
        table: CommandTable = plane.table
        #: Numbers of the commands that may tag, in the scanner's table.
        self.numbers: Final = frozenset(table.number(name.encode()) for name in STORING)
        self._logged = -_LOG_SECONDS

    def joined(self, args: Sequence[bytes]) -> Joined:
        """Which keys of a command join which tags."""
        found: Joined = {}
        keys = written_keys(args)
        if keys:
            name = args[0].upper().decode("latin-1")
            for key in keys:
                for tag in self._book.tags(name, key):
                    found.setdefault(tag, []).append(key)
        return found

    def send(
        self, link: Link, who: Identity, joined: Joined, done: Callable[[], None] | None = None
    ) -> None:
        """Tag these as ``who``, whose link it is, in front of what is sent next.

        ``done`` is called when Redis has answered.
        """
        if not joined or link.state == DOWN:
            if done is not None:
                self._plane.call_soon(done)
            return
        self._stats.tagged += sum(map(len, joined.values()))
        request = tag_request(joined, who)
        link.send(Tagged(self, done), request, 0, len(request), 1)

    def before(self, link: Link, who: Identity, data: bytearray, start: int, stop: int) -> None:
        """The command in ``data[start:stop]`` is about to be sent: its tags go first."""
        self.send(link, who, self.joined(arguments(data, start, stop)))

    def within(self, data: bytearray, start: int, stop: int) -> Joined:
        """The same for all commands of a stretch."""
        found: Joined = {}
        scanner = CommandScanner(self._plane.table, self._plane.bulk_limit, stop - start)
        scanner.row = 3  # not counted again
        while start < stop and scanner.scan(data, start, stop, 0) == COMMAND:
            join(found, self.joined(arguments(data, scanner.run_end, scanner.command_end)))
            start = scanner.command_end
        return found

    def beginning(self, data: bytearray, start: int, end: int) -> Joined:
        """The same for a command of which only the beginning is there: the keys so far."""
        args = list(_complete(data, start, end))
        return self.joined(args) if args else {}

    def refused(self, reply: bytes) -> None:
        """Redis did not tag what was then written: no invalidation will find it."""
        self._stats.tags_refused += 1
        if self._plane.tick - self._logged >= _LOG_SECONDS:
            self._logged = self._plane.tick
            text = reply[1:200].strip().decode("utf-8", "replace")
            log.warning("redis refuses to tag written keys", extra={"error": text})


def join(into: Joined, more: Joined) -> None:
    """Add ``more`` to ``into``."""
    for tag, keys in more.items():
        into.setdefault(tag, []).extend(keys)


def _complete(data: bytearray, start: int, end: int) -> Iterator[bytes]:
    """The arguments of a multibulk command that are wholly there."""
    position = data.find(b"\r\n", start, end)
    while position >= 0:
        head = position + 2
        position = data.find(b"\r\n", head, end)
        if position < 0 or data[head] != 36:  # '$'
            return
        length = int(data[head + 1 : position])
        begin = position + 2
        if begin + length + 2 > end:
            return
        yield bytes(data[begin : begin + length])
        position = begin + length


class Tagged(Receiver):
    """Stands in the FIFO for a tag command that no client sent."""

    __slots__ = ("_done", "_first", "_tagger")

    def __init__(self, tagger: Tagger, done: Callable[[], None] | None) -> None:
        super().__init__()
        self._tagger = tagger
        self._done = done
        self._first = b""

    def deliver(self, data: bytearray, start: int, end: int, done: int) -> None:
        if len(self._first) < 200:
            self._first += bytes(data[start:end])
        if not done:
            return
        if not self._first.startswith(b":"):
            self._tagger.refused(self._first)
        self._finish()

    def lost(self, _count: int, _partial: bool, _error: bytes) -> None:
        self._finish()

    def _finish(self) -> None:
        done, self._done = self._done, None
        if done is not None:
            done()
