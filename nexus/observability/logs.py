"""Application logs: the standard library in front, JSON lines or a human format behind.

Code logs with ``logging.getLogger("nexus.x").info("text", extra={"field": value})``; everything in
``extra`` becomes a field of the line::

    {"timestamp": "2026-11-21T10:00:00.123Z", "level": "warning", "logger": "nexus.gateway",
     "message": "upstream unhealthy", "service": "gateway", "worker": 0, "pid": 71,
     "upstream": "http://127.0.0.1:3001", "trace_id": "…", "span_id": "…"}

One schema for these and for the access log. Secrets are redacted by key and by pattern; an
exception becomes the field ``error`` (type, message, stack). Lines go to standard error, or to a
file, through a :class:`~nexus.observability.linewriter.LineWriter`, so that logging never blocks
the event loop.
"""

from __future__ import annotations

import atexit
import logging
import os
import sys
import traceback
from collections.abc import Callable, Mapping
from typing import Any, Final

import msgspec

from nexus import clock
from nexus.errors import ConfigError
from nexus.observability.linewriter import LineWriter
from nexus.observability.redaction import redact_fields, redact_text
from nexus.observability.registry import LocalMetrics

__all__ = [
    "HumanFormatter",
    "JsonFormatter",
    "add_fields",
    "configure",
    "count_drops",
    "encode_line",
    "flush",
    "reopen",
    "unconfigure",
]

#: Attributes of every LogRecord; what is beside them came from ``extra``.
_STANDARD: Final = frozenset(
    (*vars(logging.LogRecord("", 0, "", 0, "", None, None)), "message", "asctime", "taskName")
)

#: Characters of one text field, and of a stack, that are kept: a line must fit a log shipper.
MAX_FIELD_CHARS: Final = 4096
MAX_STACK_CHARS: Final = 16_384

#: Libraries whose everyday news is not ours.
_QUIET: Final = ("aiokafka", "aiohttp", "asyncio", "redis", "kafka", "urllib3")

_encoder: Final = msgspec.json.Encoder(enc_hook=lambda value: redact_text(repr(value)))


class _State:
    """The process's one log output; replaced as a whole by :func:`configure`."""

    writer: LineWriter | None = None
    handler: logging.Handler | None = None
    #: What it was configured with.
    options: tuple[object, ...] = ()
    #: Fields that every line gets besides its own.
    fields: Callable[[], Mapping[str, Any]] | None = None


def add_fields(fields: Callable[[], Mapping[str, Any]]) -> None:
    """``fields()`` is asked with every line, in the thread and context that wrote it; what a line
    says itself goes first. A later call replaces the earlier."""
    _State.fields = fields


def configure(
    level: str,
    format: str,  # noqa: A002  (the name of the setting)
    service: str,
    *,
    worker: int | None = None,
    path: str = "-",
    fd: int = 2,
) -> None:
    """Send every logger of this process to the file ``path``, or to ``fd`` where that is ``-``.

    ``level``: debug, info, warning or error. ``format``: json, human, or auto (human on a
    terminal, JSON elsewhere). ``worker``: index of the worker slot; ``None`` in a supervisor.
    May be called again, by a worker after the fork or on reload; nothing happens where nothing has
    changed.

    Raises ``ConfigError`` when the file cannot be opened; everything is as it was then.
    """
    options = (level, format, service, worker, path, fd, os.getpid())
    if _State.writer is not None and _State.options == options:
        return
    try:
        writer = LineWriter(fd=fd) if path == "-" else LineWriter(path=path)
    except OSError as error:
        raise ConfigError(
            f"cannot be opened: {error.strerror}", source=path, path="log.path"
        ) from None
    unconfigure()
    _State.writer = writer
    _State.options = options
    if path != "-":
        fd = -1
    formatter: logging.Formatter
    if format == "human" or (format == "auto" and fd >= 0 and os.isatty(fd)):
        formatter = HumanFormatter(service, worker, colour=_wants_colour(fd))
    else:
        formatter = JsonFormatter(service, worker)
    handler = _Handler(_State.writer)
    handler.setFormatter(formatter)
    root = logging.getLogger()
    _State.handler = handler
    root.addHandler(handler)
    root.setLevel(level.upper())
    for name in _QUIET:
        logging.getLogger(name).setLevel(max(logging.WARNING, root.level))
    # A handler that fails counts a drop; it must not print to the stream that just failed.
    logging.raiseExceptions = False


def unconfigure() -> None:
    """Write what is left and take our handler away; without one, the standard library's rule."""
    if _State.handler is not None:
        logging.getLogger().removeHandler(_State.handler)
        _State.handler = None
    if _State.writer is not None:
        _State.writer.close(0.5)
        _State.writer = None


def count_drops(metrics: LocalMetrics) -> None:
    """Count lost log lines into ``nexus_log_lines_dropped_total{stream="log"}``."""
    if _State.writer is not None:
        _State.writer.count_into(
            {
                reason: metrics.counter(
                    "nexus_log_lines_dropped_total", stream="log", reason=reason
                )
                for reason in _State.writer.dropped
            }
        )


def flush(seconds: float = 1.0) -> None:
    """Wait until the lines so far are written, for at most ``seconds``."""
    if _State.writer is not None:
        _State.writer.flush(seconds)


def reopen() -> None:
    """Open the log file anew, for it may have been rotated; standard error stays."""
    if _State.writer is not None:
        _State.writer.reopen()


def encode_line(fields: dict[str, Any]) -> bytes:
    """One JSON line. Values that JSON does not know are shown by ``repr``."""
    try:
        return _encoder.encode(fields) + b"\n"
    except (UnicodeEncodeError, msgspec.MsgspecError, TypeError, ValueError, RecursionError):
        # Lone surrogates, keys of odd types, cycles: a line that says less beats no line.
        plain = {str(k): _plain(v) for k, v in fields.items()}
        return _encoder.encode(plain) + b"\n"


def _plain(value: Any) -> Any:
    if value is None or isinstance(value, bool | int | float):
        return value
    text = value if isinstance(value, str) else repr(value)
    return text.encode("utf-8", "backslashreplace").decode()


class _Handler(logging.Handler):
    def __init__(self, writer: LineWriter) -> None:
        super().__init__()
        self._writer: Final = writer

    def emit(self, record: logging.LogRecord) -> None:
        try:
            line = self.format(record).encode("utf-8", "backslashreplace")
        except Exception as error:  # noqa: BLE001  (any argument of any caller may fail to format)
            line = encode_line(
                {
                    "timestamp": clock.iso_utc(clock.wall_ms()),
                    "level": "error",
                    "logger": "nexus.logs",
                    "message": "a log call could not be formatted",
                    "error": {"type": type(error).__name__, "message": str(error)},
                    "at": f"{record.pathname}:{record.lineno}",
                }
            )
            self._writer.write((line,))
        else:
            self._writer.write((line + b"\n",))


class JsonFormatter(logging.Formatter):
    """One JSON object for each record, without newlines in it."""

    def __init__(self, service: str, worker: int | None) -> None:
        super().__init__()
        self._service: Final = service
        self._worker: Final = worker

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "timestamp": clock.iso_utc(int(record.created * 1000)),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": _cut(redact_text(record.getMessage())),
            "service": self._service,
        }
        if self._worker is not None:
            line["worker"] = self._worker
        line["pid"] = record.process
        for key, value in _extra(record).items():
            line.setdefault(key, value)
        error = _error(record)
        if error is not None:
            line["error"] = error
        return encode_line(line)[:-1].decode()


class HumanFormatter(logging.Formatter):
    """``10:00:00.123 WARN  gateway/0 upstream unhealthy upstream=http://… (nexus.gateway)``."""

    _COLOURS: Final = {"DEBUG": "2", "INFO": "32", "WARNING": "33", "ERROR": "31", "CRITICAL": "31"}
    _SHORT: Final = {"WARNING": "WARN", "CRITICAL": "FATAL"}

    def __init__(self, service: str, worker: int | None, *, colour: bool) -> None:
        super().__init__()
        self._who: Final = service if worker is None else f"{service}/{worker}"
        self._colour: Final = colour

    def format(self, record: logging.LogRecord) -> str:
        clock_text = clock.iso_utc(int(record.created * 1000))[11:-1]
        level = f"{self._SHORT.get(record.levelname, record.levelname):<5}"
        parts = [
            self._paint("2", clock_text),
            self._paint(self._COLOURS.get(record.levelname, "0"), level),
            self._paint("36", self._who),
            _visible(_cut(redact_text(record.getMessage()))),
        ]
        parts += [
            f"{self._paint('2', key + '=')}{_visible(_cut(redact_text(str(value))))}"
            for key, value in _extra(record).items()
        ]
        error = _error(record)
        if error is not None:
            parts.append(f"{error['type']}: {_visible(error['message'])}")
            if error["stack"]:
                parts.append("\n" + _visible(error["stack"].rstrip(), keep="\n"))
        return " ".join(parts)

    def _paint(self, code: str, text: str) -> str:
        return f"\x1b[{code}m{text}\x1b[0m" if self._colour else text


def _extra(record: logging.LogRecord) -> dict[str, Any]:
    given = {k: v for k, v in vars(record).items() if k not in _STANDARD}
    if _State.fields is not None:
        given = {**_State.fields(), **given}
    if not given:
        return given
    return {k: _cut(v) if isinstance(v, str) else v for k, v in redact_fields(given).items()}


def _error(record: logging.LogRecord) -> dict[str, str] | None:
    info = record.exc_info
    if not info or info[0] is None:
        return None
    stack = "".join(traceback.format_exception(*info))
    return {
        "type": info[0].__qualname__,
        "message": _cut(redact_text(str(info[1]))),
        "stack": redact_text(stack)[-MAX_STACK_CHARS:],
    }


def _cut(text: str) -> str:
    return text if len(text) <= MAX_FIELD_CHARS else text[:MAX_FIELD_CHARS] + "…"


def _visible(text: str, keep: str = "") -> str:
    """Control characters written out: what a client sends must not forge lines or move a cursor."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in keep else ascii(c)[1:-1] for c in text)


def _wants_colour(fd: int) -> bool:
    """Colour on a terminal; ``NO_COLOR`` and ``FORCE_COLOR`` (any value) decide otherwise."""
    if os.environ.get("NO_COLOR"):
        return False
    return bool(os.environ.get("FORCE_COLOR")) or (fd >= 0 and os.isatty(fd))


def _at_exit() -> None:
    sys.stderr.flush()
    flush(1.0)


atexit.register(_at_exit)
