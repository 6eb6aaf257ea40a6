"""Boundary scanners for RESP: where commands and replies end, without decoding them.

Pure-Python twin of ``_respscan_c.pyx``; both give the same answers for the same bytes. See
:mod:`nexus._speedups.respscan` for the map.
"""

from __future__ import annotations

import os
from bisect import bisect_right
from collections.abc import Iterable
from typing import Final

from nexus.errors import RespError

__all__ = ["CommandScanner", "CommandTable", "ReplyScanner", "append", "arguments", "cut", "send"]

#: ``PROTO_INLINE_MAX_SIZE`` of Redis: longest header line and longest inline request, bytes.
LINE_LIMIT: Final = 65_536
#: Longest command name that is looked up; no Redis command comes near.
NAME_LIMIT: Final = 32
#: Redis compares the argument count with C's INT_MAX.
ARGC_LIMIT: Final = 2_147_483_647
#: Upper bound on announced reply lengths and element counts: far above proto-max-bulk-len, low
#: enough that sums of a few stay within 64 bits.
REPLY_LIMIT: Final = 1 << 40
#: Values that one reply may still be waiting for.
VALUES_LIMIT: Final = 1 << 60

#: Rows and groups of the command counts.
ROWS: Final = 8
GROUPS: Final = 32

#: In a mask: see :meth:`CommandTable.watch`.
UNWATCHED: Final = 1 << 31

MORE: Final = 0
COMMAND: Final = 1
BIG: Final = 2
INLINE: Final = 3
ERROR: Final = 4

_CR: Final = 13
_LF: Final = 10
_STAR: Final = 42
_DOLLAR: Final = 36
_MINUS: Final = 45
_BAD: Final = -(1 << 62)

_LINE_TYPES: Final = frozenset(b"+-:,#(_")
_BULK_TYPES: Final = frozenset(b"$!=")
_AGGREGATES: Final = frozenset(b"*~>%|")
_PAIRS: Final = frozenset(b"%|")


def append(out: bytearray, data: bytearray, start: int, end: int) -> None:
    """``out += data[start:end]`` with one copy."""
    _check(data, start, end)
    out += memoryview(data)[start:end]


def cut(data: bytearray, start: int, end: int) -> bytes:
    """``bytes(data[start:end])`` with one copy."""
    _check(data, start, end)
    return bytes(memoryview(data)[start:end])


def send(descriptor: int, data: bytearray, start: int, end: int) -> int:
    """Write to a non-blocking socket at once; how many bytes it took.

    0 also where it failed: whoever owns the socket finds out by its own write.
    """
    _check(data, start, end)
    try:
        return os.write(descriptor, memoryview(data)[start:end])
    except OSError:
        return 0


def send_bytes(descriptor: int, data: bytes) -> int:
    """The same for all of ``data``."""
    try:
        return os.write(descriptor, data)
    except OSError:
        return 0


def _check(data: bytearray, start: int, end: int) -> None:
    if not 0 <= start <= end <= len(data):
        raise ValueError(f"[{start}:{end}] is not within {len(data)} bytes")


def _integer(data: bytearray, start: int, end: int) -> int:
    """Redis's ``string2ll``: no sign but ``-``, no leading zero, no blanks; ``_BAD`` otherwise."""
    if start == end or end - start > 20:
        return _BAD
    if data[start] == 48:
        return 0 if end - start == 1 else _BAD
    first = start + 1 if data[start] == _MINUS else start
    if first == end or not 49 <= data[first] <= 57:
        return _BAD
    digits = data[first:end]
    if not digits.isdigit():
        return _BAD
    value = int(digits)
    if value > 1 << 61:
        return _BAD
    return -value if first != start else value


class CommandTable:
    """Command name → class, a power of two (so that sets of classes are masks).

    Names are compared without case. ``unknown`` is the class of every other name.

    It also counts: each name belongs to a group (0 to 31; 0 unless ``groups`` says otherwise), and
    every command of a scanner's run is counted under its group in that scanner's ``row`` (0 to 7).
    What a scanner stops at is the caller's to ``count``.

    ``effects`` says what a command does to keys: a number of the caller's own (0: nothing) and the
    key positions ``first, last, step`` as ``COMMAND`` gives them.
    """

    __slots__ = (
        "_classes",
        "_counts",
        "_effects",
        "_groups",
        "_numbers",
        "_watched",
        "_watched_effect",
        "unknown",
    )

    def __init__(
        self,
        classes: dict[bytes, int],
        unknown: int,
        groups: dict[bytes, int] | None = None,
        effects: dict[bytes, tuple[int, int, int, int]] | None = None,
    ) -> None:
        for name, value in classes.items():
            if not 0 < len(name) <= NAME_LIMIT:
                raise ValueError(f"command name {name!r} is not 1 to {NAME_LIMIT} bytes long")
            if value <= 0 or value & (value - 1) or value > 1 << 30:
                raise ValueError(f"class {value} of {name!r} is not a power of two below 2**31")
        for name, group in (groups or {}).items():
            if not 0 <= group < GROUPS:
                raise ValueError(f"group {group} of {name!r} is not from 0 to {GROUPS - 1}")
        self._classes = {name.lower(): value for name, value in classes.items()}
        self._groups = {name.lower(): group for name, group in (groups or {}).items()}
        self._counts = [[0] * GROUPS for _ in range(ROWS)]
        self._numbers = {name: number for number, name in enumerate(self._classes, 1)}
        self._effects = [(0, 0, 0, 0)] * (len(self._classes) + 1)
        for name, effect in (effects or {}).items():
            if name.lower() not in self._numbers:
                raise ValueError(f"{name!r} has an effect and no class")
            self._effects[self._numbers[name.lower()]] = effect
        self.unknown = unknown
        self._watched: list[bytes] | None = None
        self._watched_effect = 0

    def watch(self, effect: int, prefixes: Iterable[bytes] | None) -> None:
        """Watch the keys that begin with any of ``prefixes``; ``None``: all keys.

        With ``UNWATCHED`` beside the classes of its mask a scanner passes over those of their
        commands only that have this effect and name one key, their first argument, which is not
        watched.
        """
        kept: list[bytes] | None = None
        if prefixes is not None:
            kept = []
            for prefix in sorted(set(prefixes)):
                # Without those that begin with another, only the last one up to a key can fit it.
                if not kept or not prefix.startswith(kept[-1]):
                    kept.append(prefix)
        self._watched = kept
        self._watched_effect = effect

    def watched(self, key: bytes) -> bool:
        """Whether a key is watched."""
        if self._watched is None:
            return True
        index = bisect_right(self._watched, key) - 1
        return index >= 0 and key.startswith(self._watched[index])

    def unwatched(self, number: int, argc: int, data: bytearray, begin: int) -> bool:
        """Whether a complete command may be passed over; ``begin``: its second argument."""
        effect, first, last, _step = self._effects[number]
        if argc < 2 or effect != self._watched_effect or first != 1 or (argc > 2 and last != 1):
            return False
        line = data.index(b"\r", begin)
        payload = line + 2
        return not self.watched(bytes(data[payload : payload + int(data[begin + 1 : line])]))

    def lookup(self, name: bytes) -> int:
        """Class of a command."""
        return self._classes.get(name.lower(), self.unknown)

    def group(self, name: bytes) -> int:
        """Group of a command; 0 for a name without a class."""
        lower = name.lower()
        return self._groups.get(lower, 0) if lower in self._classes else 0

    def count(self, row: int, group: int, number: int = 1) -> None:
        """Count commands that no scanner counted. Raises ``IndexError``."""
        if not (0 <= row < ROWS and 0 <= group < GROUPS):
            raise IndexError(f"row {row} or group {group} is out of range")
        self._counts[row][group] += number

    def number(self, name: bytes) -> int:
        """A command's place in the table; 0: it is not there."""
        return self._numbers.get(name.lower(), 0)

    def effect(self, number: int) -> int:
        """What the command does to keys."""
        return self._effects[number][0]

    def keys(self, number: int) -> tuple[int, int, int]:
        """Key positions of a command: first, last, step; zeros: none that are known."""
        _effect, first, last, step = self._effects[number]
        return first, last, step

    def counts(self, row: int) -> list[int]:
        """Commands counted so far in a row, by group. Raises ``IndexError``."""
        if not 0 <= row < ROWS:
            raise IndexError(f"row {row} is out of range")
        return list(self._counts[row])


class CommandScanner:
    """Boundaries in one client's request stream.

    ``scan(data, start, end, mask)`` looks at ``data[start:end]``, where ``start`` is the first byte
    that no earlier call has given away: ``run_end`` of the last call, or ``command_end`` where
    that call stopped at a command. It returns

    ``MORE``     the rest is an incomplete command; what was seen of it is not scanned again
    ``COMMAND``  a complete command outside ``mask`` stands at ``[run_end, command_end)`` (or one
                 that ``UNWATCHED`` in the mask takes out of it: :meth:`CommandTable.watch`)
    ``INLINE``   a complete inline request stands at ``[run_end, command_end)``
    ``BIG``      the incomplete command at ``run_end`` is longer than ``big_bytes``: stream it
    ``ERROR``    ``error`` is what Redis would answer behind ``-ERR ``; nothing after is believed

    Before that place stand ``run_count`` complete commands of classes in ``mask``, back to back in
    ``[start, run_end)``. ``kind`` and ``group`` are those of the command stopped at. After ``BIG``,
    ``stream()`` passes the command on piecemeal. The framing is Redis's own, to the byte (line
    ends at the first CR, payload terminators are skipped unread), so that scanner and server can
    never disagree on where a command begins.
    """

    __slots__ = (
        "_args_left",
        "_bulk_left",
        "_first",
        "_progress",
        "_searched",
        "_table",
        "argc",
        "big_bytes",
        "bulk_limit",
        "command_end",
        "effect",
        "error",
        "group",
        "kind",
        "name_end",
        "number",
        "row",
        "run_count",
        "run_end",
        "streaming",
    )

    def __init__(self, table: CommandTable, bulk_limit: int, big_bytes: int) -> None:
        self._table = table
        self.bulk_limit = bulk_limit
        self.big_bytes = big_bytes
        self.run_end = 0
        self.run_count = 0
        self.command_end = 0
        self.kind = 0
        self.group = 0
        #: Of the command stopped at: its effect on keys, its number in the table (0: unknown), and
        #: where its second argument begins, from its own first byte.
        self.effect = 0
        self.number = 0
        self.name_end = 0
        self.row = 0
        self.argc = 0
        self.error = ""
        self.streaming = False
        self._args_left = 0
        self._bulk_left = -1
        self._first = False
        self._progress = 0
        self._searched = 0

    def scan(self, data: bytearray, start: int, end: int, mask: int) -> int:
        """See the class. Raises ``ValueError`` for a range outside of ``data``."""
        _check(data, start, end)
        command = start
        position = start + self._progress
        if position > end:
            raise ValueError("the bytes scanned before are not there any more")
        self.run_count = 0
        while True:
            self.run_end = command
            if self._args_left == 0:
                if position >= end:
                    return self._pause(0, MORE)
                if data[position] != _STAR:
                    return self._inline(data, command, end)
                stop = self._line(data, position, end, "mbulk count")
                if stop < 0:
                    return self._pause(0, MORE if stop == -1 else ERROR)
                count = _integer(data, position + 1, stop)
                if count == _BAD or count > ARGC_LIMIT:
                    return self._fail("invalid multibulk length")
                position = stop + 2
                if count <= 0:  # Redis reads over it and answers nothing
                    command = position
                    continue
                self._args_left = self.argc = count
                self._first = True
                self.kind = self._table.unknown
                self.group = 0
                self.effect = self.number = 0
            position = self._arguments(data, command, position, end)
            if self._args_left:
                return -1 - position if position < 0 else self._pause(position - command, MORE)
            if not self.kind & mask or (
                mask & UNWATCHED
                and not self._table.unwatched(self.number, self.argc, data, command + self.name_end)
            ):
                self.command_end = position
                return self._pause(0, COMMAND)
            self.run_count += 1
            self._table.count(self.row & (ROWS - 1), self.group)
            command = position

    def stream(self, data: bytearray, start: int, end: int) -> int:
        """Where the bytes end that may be passed on now, at most at the command's own end.

        Only after ``BIG``. ``streaming`` is False once the command is complete. A negative answer
        is a protocol error (``error`` is set), at ``-1 - answer``.
        """
        _check(data, start, end)
        if not self._args_left:
            raise ValueError("no command is being streamed")
        self.streaming = True
        position = start + self._progress
        self._searched = max(self._searched - self._progress, 0)
        self._progress = 0
        if position > end:
            raise ValueError("the bytes scanned before are not there any more")
        while self._args_left:
            if self._bulk_left >= 0:
                taken = min(self._bulk_left, end - position)
                position += taken
                self._bulk_left -= taken
                if self._bulk_left:
                    return position
                self._finish_argument()
                continue
            header = self._bulk_header(data, position, position, end)
            if header < 0:
                if self.error:
                    self._args_left = 0
                    return -1 - position
                return position
            position = header
        self.streaming = False
        return position

    def _arguments(self, data: bytearray, command: int, position: int, end: int) -> int:
        """Scan arguments; a negative answer is ``-1 - verdict`` to return."""
        while self._args_left:
            if self._bulk_left < 0:
                header = self._bulk_header(data, command, position, end)
                if header < 0:
                    if self.error:
                        self._args_left = 1
                        return -1 - ERROR
                    return self._incomplete(command, position, position - command)
                position = header
            if end - position < self._bulk_left:
                return self._incomplete(command, position, position - command + self._bulk_left)
            if self._first:
                name = bytes(data[position : position + self._bulk_left - 2])
                if len(name) <= NAME_LIMIT:
                    self.kind = self._table.lookup(name)
                    self.group = self._table.group(name)
                    self.number = self._table.number(name)
                    self.effect = self._table.effect(self.number)
                self.name_end = position + self._bulk_left - command
            position += self._bulk_left
            self._finish_argument()
        return position

    def _incomplete(self, command: int, position: int, size: int) -> int:
        if size > self.big_bytes:
            self._progress = position - command
            return -1 - BIG
        return position

    def _finish_argument(self) -> None:
        self._bulk_left = -1
        self._first = False
        self._args_left -= 1

    def _bulk_header(self, data: bytearray, command: int, position: int, end: int) -> int:
        """Read ``$<length>``; -1 when it is incomplete or wrong (then ``error`` is set)."""
        stop = self._line(data, position, end, "bulk count", command)
        if stop < 0:
            return -1
        if data[position] != _DOLLAR:
            byte = data[position]
            shown = 32 if byte in (_CR, _LF) else byte
            self.error = f"Protocol error: expected '$', got '{chr(shown)}'"
            return -1
        length = _integer(data, position + 1, stop)
        if length < 0 or length > self.bulk_limit:
            self.error = "Protocol error: invalid bulk length"
            return -1
        self._bulk_left = length + 2
        return stop + 2

    def _line(
        self, data: bytearray, position: int, end: int, what: str, command: int | None = None
    ) -> int:
        """Index of the CR that ends the line at ``position``; -1: not there yet; -2: too long."""
        base = position if command is None else command
        found = data.find(b"\r", max(position, base + self._searched), end)
        if found >= 0:
            if found + 2 <= end:
                self._searched = 0
                return found
            self._searched = found - base
            return -1
        if end - position > LINE_LIMIT:
            self.error = f"Protocol error: too big {what} string"
            return -2
        self._searched = end - base
        return -1

    def _inline(self, data: bytearray, command: int, end: int) -> int:
        found = data.find(b"\n", command + self._searched, end)
        if found < 0:
            if end - command > LINE_LIMIT:
                return self._fail("too big inline request")
            self._searched = end - command
            return self._pause(0, MORE)
        self._searched = 0
        self.command_end = found + 1
        self.kind = self._table.unknown
        self.group = self.effect = self.number = 0
        return self._pause(0, INLINE)

    def _pause(self, progress: int, verdict: int) -> int:
        self._progress = progress
        return verdict

    def _fail(self, text: str) -> int:
        self.error = f"Protocol error: {text}"
        return ERROR


def arguments(data: bytearray, start: int, end: int) -> list[bytes]:
    """Arguments of the complete multibulk command in ``data[start:end]``.

    Raises :class:`RespError` where the range does not hold exactly one command.
    """
    _check(data, start, end)
    found: list[bytes] = []
    stop = data.find(b"\r", start, end)
    count = _integer(data, start + 1, stop) if stop > start and data[start] == _STAR else _BAD
    position = stop + 2
    while len(found) < count:
        stop = data.find(b"\r", position, end)
        length = _BAD
        if stop > position and data[position] == _DOLLAR:
            length = _integer(data, position + 1, stop)
        if length < 0 or stop + 2 + length + 2 > end:
            raise RespError("Protocol error: invalid bulk length")
        found.append(bytes(data[stop + 2 : stop + 2 + length]))
        position = stop + 2 + length + 2
    if count < 0 or position != end:
        raise RespError("Protocol error: invalid multibulk length")
    return found


class ReplyScanner:
    """Boundaries in an upstream's reply stream; keeps no byte: replies may be passed on in parts.

    ``scan(data, start, end, want)`` reads on from ``start`` and returns where it stopped: behind
    the ``want``-th reply, in front of a push, behind a push, or at ``end``. ``done`` is how many
    replies ended in that stretch; ``push`` whether the stretch is (part of) a push; ``partial``
    whether it ends within a reply or push. An attribute belongs to the reply behind it. Raises
    :class:`RespError`: the stream cannot be believed any further. Streamed RESP3 types (``$?``)
    are refused; no Redis sends them.
    """

    __slots__ = ("_left", "_line", "_negative", "_number", "_skip", "_state", "done", "push")

    def __init__(self) -> None:
        self.done = 0
        self.push = False
        self._left = 0  # values that the current reply still needs; 0: between replies
        self._skip = 0  # bytes of the current payload, CRLF included
        self._line = 0  # type byte of an unfinished header line
        self._state = 0  # of that line: 0 sign or digit, 1 digit, 2 CR seen
        self._number = 0
        self._negative = False

    @property
    def partial(self) -> bool:
        return self._left != 0

    def scan(self, data: bytearray, start: int, end: int, want: int) -> int:
        """See the class."""
        _check(data, start, end)
        self.done = 0
        if self._left == 0:
            self.push = False
        position = start
        while position < end:
            if self._skip:
                taken = min(self._skip, end - position)
                position += taken
                self._skip -= taken
                if self._skip:
                    return position
                self._left -= 1
            else:
                if self._line == 0:
                    kind = data[position]
                    if self._left == 0:
                        if kind == 62:  # '>'
                            if position > start:
                                return position
                            self.push = True
                        self._left = 1
                    self._begin(kind)
                    position += 1
                position = self._header(data, position, end)
                if self._line:
                    return position
            if self._left == 0 and self._line == 0 and self._skip == 0:
                if self.push:
                    return position
                self.done += 1
                if self.done == want:
                    return position
        return position

    def _begin(self, kind: int) -> None:
        if kind not in _LINE_TYPES and kind not in _BULK_TYPES and kind not in _AGGREGATES:
            raise RespError(f"Protocol error: unknown reply type byte 0x{kind:02x}")
        self._line = kind
        self._state = 0
        self._number = 0
        self._negative = False

    def _header(self, data: bytearray, position: int, end: int) -> int:
        kind = self._line
        if kind in _LINE_TYPES:
            found = data.find(b"\n", position, end)
            if found < 0:
                return end
            self._line = 0
            self._left -= 1
            return found + 1
        while position < end:
            byte = data[position]
            position += 1
            if self._state == 2:
                if byte != _LF:
                    raise RespError("Protocol error: reply length is not followed by CRLF")
                self._line = 0
                self._length(kind, -self._number if self._negative else self._number)
                return position
            if 48 <= byte <= 57:
                self._number = self._number * 10 + byte - 48
                if self._number > REPLY_LIMIT:
                    raise RespError("Protocol error: reply length is out of bounds")
                self._state = 1
            elif byte == _CR and self._state == 1:
                self._state = 2
            elif byte == _MINUS and self._state == 0 and not self._negative:
                self._negative = True
            else:
                raise RespError("Protocol error: reply length is not a number")
        return position

    def _length(self, kind: int, length: int) -> None:
        if length < -1:
            raise RespError("Protocol error: reply length is out of bounds")
        if kind in _BULK_TYPES:
            if length < 0:
                self._left -= 1
            else:
                self._skip = length + 2
            return
        values = max(length, 0) * (2 if kind in _PAIRS else 1)
        if kind != 124:  # an attribute is not a value: the reply is still to come
            self._left -= 1
        self._left += values
        if self._left > VALUES_LIMIT:
            raise RespError("Protocol error: reply length is out of bounds")
