"""What ``nexus up`` prints: every line with the name of who said it, in colour on a terminal.

The services write JSON lines, one object each; people get them as text. Lines that are no JSON
(Redis, a traceback) pass as they are.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, Final, TextIO

import msgspec

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

__all__ = ["Console", "readable", "wants_colour"]

RESET: Final = "\x1b[0m"
BOLD: Final = "\x1b[1m"
RED: Final = "\x1b[31m"
DIM: Final = "\x1b[2m"

#: One for each child, in the order in which they first speak; none is red, which means trouble.
_PALETTE: Final = tuple(f"\x1b[{code}m" for code in (36, 32, 35, 34, 33, 96, 92, 95))

#: Longest line shown; more is cut, because a line may carry a whole payload.
MAX_LINE: Final = 2000

#: Fields that every JSON line carries and that say nothing beside a prefix.
_OMITTED: Final = frozenset(
    {"timestamp", "ts", "time", "level", "message", "msg", "service", "logger", "kind", "pid"}
    | {"worker", "trace_id", "span_id", "exception"}
)

_decode: Final = msgspec.json.Decoder(dict[str, Any]).decode


def wants_colour(stream: TextIO, environ: Mapping[str, str] = os.environ) -> bool:
    """True on a terminal that understands colours, unless ``NO_COLOR`` is set (no-color.org)."""
    if environ.get("NO_COLOR") or environ.get("TERM") == "dumb":
        return False
    return stream.isatty()


def readable(line: str) -> str:
    """A JSON log line as ``LEVEL message key=value …``; any other line unchanged."""
    if not line.startswith("{"):
        return line
    try:
        record = _decode(line.encode())
    except msgspec.DecodeError:
        return line
    level = str(record.get("level", "info")).upper()
    message = record.get("message", record.get("msg", ""))
    fields = [
        f"{name}={_value(value)}"
        for name, value in record.items()
        if name not in _OMITTED and value not in ("", None)
    ]
    words = [] if level == "INFO" else [level]
    if message:
        words.append(str(message))
    text = " ".join(words + fields)
    trace = record.get("exception")
    return f"{text}\n{trace}" if trace else text


def _value(value: object) -> str:
    if isinstance(value, str):
        return repr(value) if " " in value or not value.isprintable() else value
    if isinstance(value, float):
        return f"{value:.4g}"
    return msgspec.json.encode(value).decode()


def _printable(text: str) -> str:
    """Without control characters: a request's bytes must not steer the terminal."""
    if text.isprintable():
        return text
    return "".join(
        c if c.isprintable() or c == "\t" else c.encode("unicode_escape").decode() for c in text
    )


class Console:
    """Writes whole lines to ``stream``.

    When nobody reads any more (a closed terminal, ``| head``) writing stops silently and
    ``on_lost`` is called once.
    """

    def __init__(
        self, stream: TextIO, *, colour: bool, on_lost: Callable[[], None] = lambda: None
    ) -> None:
        self._stream = stream
        self._colour = colour
        self.on_lost = on_lost
        self._lost = False
        self._paints: dict[str, str] = {}
        self._width = 0

    def know(self, *names: str) -> None:
        """Reserve room and a colour for these children, so that the columns line up."""
        for name in names:
            self._paints.setdefault(name, _PALETTE[len(self._paints) % len(_PALETTE)])
            self._width = max(self._width, len(name))

    def child(self, name: str, line: str) -> None:
        """One line that a child wrote."""
        self.know(name)
        for text in readable(line).split("\n"):
            text = _printable(text)
            if len(text) > MAX_LINE:
                text = f"{text[:MAX_LINE]}… ({len(text) - MAX_LINE} more)"
            prefix = f"{name:<{self._width}} │"
            self._write(f"{self._paint(prefix, self._paints[name])} {text}")

    def say(self, text: str, *, bold: bool = False, dim: bool = False) -> None:
        """Text of our own."""
        self._write(self._paint(text, BOLD if bold else DIM if dim else ""))

    def error(self, text: str) -> None:
        """A reason to stop."""
        self._write(self._paint(text, RED))

    def _paint(self, text: str, paint: str) -> str:
        return f"{paint}{text}{RESET}" if self._colour and paint and text else text

    def _write(self, text: str) -> None:
        if self._lost:
            return
        try:
            print(text, file=self._stream, flush=True)
        except (OSError, ValueError):
            self._lost = True
            self.on_lost()
