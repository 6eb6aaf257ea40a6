"""What ``nexus up`` prints: every line with the name of who said it, in colour on a terminal.

The services write JSON lines, one object each; people get them as text. Lines that are no JSON
(Redis, a traceback) pass as they are.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, Final, TextIO

import msgspec

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

__all__ = ["Console", "last_words", "readable", "wants_colour"]

RESET: Final = "\x1b[0m"
BOLD: Final = "\x1b[1m"
RED: Final = "\x1b[31m"
DIM: Final = "\x1b[2m"

#: One for each child, in the order in which they first speak; none is red, which means trouble.
_PALETTE: Final = tuple(f"\x1b[{code}m" for code in (36, 32, 35, 34, 33, 96, 92, 95))

#: Longest line shown; more is cut, because a line may carry a whole payload.
MAX_LINE: Final = 2000

#: Fields of a log line that say nothing beside the prefix; an ``error`` with its stack
#: is shown below the line, any other at its end.
_OMITTED: Final = frozenset(
    {"timestamp", "level", "logger", "message", "service", "worker", "pid"}
    | {"trace_id", "span_id", "error"}
)

#: Fields of an access line that are shown; the whole line is in the service's own output.
_ACCESS: Final = ("upstream", "attempts", "reason", "retry_skipped", "client_id", "ip")

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
    if record.get("logger") == "nexus.access":
        return _access(record)
    level = str(record.get("level", "info")).upper()
    words = [] if level == "INFO" else [level]
    if record.get("message"):
        words.append(str(record["message"]))
    words += _pairs(record, [name for name in record if name not in _OMITTED])
    error = record.get("error")
    if isinstance(error, dict):
        words.append(f"{error.get('type')}: {error.get('message')}")
        return "\n".join([" ".join(words), str(error.get("stack", "")).rstrip()]).rstrip()
    words += _pairs(record, ["error"])
    return " ".join(words)


def last_words(lines: Iterable[str], most: int) -> list[str]:
    """What of a dead child's lines tells why it died, ``most`` at most.

    Its warnings and errors, and what is no log line (a traceback, Redis); its last lines where
    there is none of these. JSON lines come out as text.
    """
    written = [line for line in lines if line.strip()]
    trouble = [line for line in written if _level(line) not in ("debug", "info")]
    text = [part for line in trouble or written for part in readable(line).split("\n")]
    return text[-most:]


def _level(line: str) -> str:
    """Of a JSON log line; empty for any other line."""
    try:
        return str(_decode(line.encode()).get("level", "info")).lower()
    except msgspec.DecodeError:
        return ""


def _access(record: dict[str, Any]) -> str:
    """``GET /api/products 200 1.2 ms upstream=… client_id=…``"""
    latency = record.get("latency_ms", 0)
    milliseconds = f"{latency:.1f}" if isinstance(latency, int | float) else str(latency)
    words = [str(record.get(name, "-")) for name in ("method", "target", "status")]
    names = [name for name in _ACCESS if not (name == "attempts" and record.get(name) == 1)]
    return " ".join([*words, milliseconds, "ms", *_pairs(record, names)])


def _pairs(record: dict[str, Any], names: Iterable[str]) -> list[str]:
    return [
        f"{name}={_value(record[name])}"
        for name in names
        if name in record and record[name] not in ("", None)
    ]


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
