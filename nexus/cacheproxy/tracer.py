"""Traces of sampled commands: one span for each, from its arrival to its reply.

::

    Client.forward, Partition.take ── the counter of the plane runs out ──► Tracer ── Span
    Link, Client.settle            ── its reply is there ─────────────────► Tracer ──► SpanSink

Which command is sampled is drawn before: ``Plane.trace_left`` is the number of commands until the
next one (geometric, so that each command has the same chance whatever came before), and nothing
is allocated until it has run out. Everything here runs for sampled commands only.

What has no span: what the proxy answers itself (``HELLO``, ``NEXUS STATS`` …), what it refuses
because Redis is away, commands above 64 KiB (they are streamed), and raw connections.
"""

from __future__ import annotations

import math
import random
from typing import TYPE_CHECKING, Final, Protocol

from nexus._speedups.respscan import CommandScanner, ReplyScanner, arguments
from nexus.cacheproxy.commandspans import CommandSpan
from nexus.clock import monotonic_ns, wall_ns

if TYPE_CHECKING:
    from nexus.cacheproxy.flow import Client, Link
    from nexus.cacheproxy.near import Core

__all__ = ["Sink", "Tracer"]

#: Effect of a cacheable read, and the row of the counts that nobody reads; see commands.py and
#: session.py.
CACHED: Final = 1
UNCOUNTED: Final = 3
#: Bytes of an error's first line that are looked at for its code.
_ERROR_LINE: Final = 128


class Sink(Protocol):
    """Takes spans that have ended."""

    def consume(self, records: list[CommandSpan]) -> None: ...


class Tracer:
    """Makes the spans of one worker; ``ratio`` is the share of commands, above 0 and at most 1."""

    def __init__(self, core: Core, sink: Sink, ratio: float, keys: bool) -> None:
        self._core: Final = core
        self._plane: Final = core.plane
        self._sink: Final = sink
        self._ratio: Final = ratio
        #: Whether spans tell the keys.
        self._keys: Final = keys
        self._plane.trace_left = self._gap()

    def _gap(self) -> int:
        """Commands that are not sampled before the next one that is."""
        if self._ratio >= 1.0:
            return 0
        return int(math.log(1.0 - random.random()) / math.log1p(-self._ratio))

    # -- a command is sampled

    def forwarded(self, client: Client, data: bytearray, start: int, end: int, count: int) -> None:
        """One or more of ``count`` commands that were just sent on the client's link."""
        plane = self._plane
        link = client.link
        scanner = CommandScanner(plane.table, plane.bulk_limit, plane.big_command)
        scanner.row = UNCOUNTED
        wanted = plane.trace_left + count
        position = start
        for index in range(count):
            scanner.scan(data, position, end, 0)
            if index == wanted:
                args = arguments(data, scanner.run_end, scanner.command_end)
                span = self._begin(client, scanner, args)
                span.outcome = "pinned" if client.pinned else self._outcome(scanner, args)
                link.follow(link.sent - count + index + 1, span)
                wanted += 1 + self._gap()
            position = scanner.command_end
        plane.trace_left = wanted - count

    def hit(self, client: Client, data: bytearray, position: int, stop: int) -> None:
        """A read that the near-cache has just answered."""
        span = self._one(client, data, position, stop)
        span.outcome = "hit"
        self._end(span)

    def held(
        self, client: Client, data: bytearray, position: int, stop: int, outcome: str
    ) -> CommandSpan:
        """A read whose reply is being found."""
        span = self._one(client, data, position, stop)
        span.outcome = outcome
        return span

    def _one(self, client: Client, data: bytearray, position: int, stop: int) -> CommandSpan:
        plane = self._plane
        plane.trace_left = self._gap()
        scanner = CommandScanner(plane.table, plane.bulk_limit, plane.big_command)
        scanner.row = UNCOUNTED
        scanner.scan(data, position, stop, 0)
        return self._begin(client, scanner, arguments(data, scanner.run_end, scanner.command_end))

    def _begin(self, client: Client, scanner: CommandScanner, args: list[bytes]) -> CommandSpan:
        first, last, step = self._plane.table.keys(scanner.number) if self._keys else (0, 0, 0)
        return CommandSpan(
            started_ns=wall_ns(),
            began_ns=monotonic_ns(),
            name=args[0],
            keys=_shown(args, first, last, step) if self._keys else (),
            # Every client of a proxy is a session, which has these.
            db=client.db,  # type: ignore[attr-defined]
            peer=client.transport.get_extra_info("peername"),
        )

    def _outcome(self, scanner: CommandScanner, args: list[bytes]) -> str:
        """``miss``: a rule of the policy covers the read; else ``forwarded``."""
        core = self._core
        if not self._plane.near_on or core.matchers is None or scanner.effect != CACHED:
            return "forwarded"
        matcher = core.matchers[scanner.number]
        if matcher is None or len(args) < 2:
            return "forwarded"
        rule = matcher.find(args[1])
        return "miss" if rule is not None and rule.enabled else "forwarded"

    # -- its reply is there

    def replied(
        self, span: CommandSpan, data: bytearray, start: int, stop: int, index: int, known: bool
    ) -> None:
        """Reply number ``index`` of ``data[start:stop]`` is its; ``known``: from its first byte."""
        position = start
        if index:
            position = ReplyScanner().scan(data, start, stop, index) if known else stop
        if known:
            self._judge(span, bytes(data[position : min(stop, position + _ERROR_LINE)]))
        self._end(span)

    def found(self, span: CommandSpan, reply: bytes) -> None:
        """A held read is answered."""
        self._judge(span, reply[:_ERROR_LINE])
        self._end(span)

    def released(self, span: CommandSpan, link: Link) -> None:
        """A held read goes to Redis after all, as the last command of ``link``."""
        span.outcome = "miss"
        link.follow(link.sent, span)

    def lost(self, span: CommandSpan, error: bytes) -> None:
        """There will be no reply: ``error`` is what the client gets in its place."""
        self._judge(span, error[:_ERROR_LINE])
        self._end(span)

    def _judge(self, span: CommandSpan, reply: bytes) -> None:
        """Note the code of an error reply: its first word."""
        if reply.startswith(b"!"):
            reply = b"-" + reply.partition(b"\r\n")[2]
        if reply.startswith(b"-"):
            words = reply[1:].split(None, 1)
            span.error = words[0].decode("latin-1") if words else "_OTHER"

    def _end(self, span: CommandSpan) -> None:
        span.ended_ns = span.started_ns + max(0, monotonic_ns() - span.began_ns)
        self._sink.consume([span])


def _shown(args: list[bytes], first: int, last: int, step: int) -> tuple[bytes | None, ...]:
    """Keys as they are, every other argument as ``None``."""
    end = last if last >= 0 else last + len(args)
    keyed = range(first, end + 1, step) if step > 0 and first > 0 else range(0)
    return tuple(arg if index in keyed else None for index, arg in enumerate(args) if index)
