"""Spans of commands in OTLP's protobuf, with OpenTelemetry's names for databases.

https://opentelemetry.io/docs/specs/semconv/database/redis/ — and ``nexus.outcome``, how the command
was answered. Values never appear; keys only where the settings ask for them, in ``db.query.text``,
where everything else stands as ``?``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from opentelemetry.proto.common.v1.common_pb2 import InstrumentationScope

from nexus._version import __version__
from nexus.cacheproxy.target import Target
from nexus.observability._spans_py import encoded_resource
from nexus.observability.otlpwire import KIND_SERVER, delimited, integer, recurring, span, text
from nexus.observability.tracecontext import new_span_id, new_trace_id

__all__ = ["CommandSpan", "CommandSpanEncoder"]

_SAMPLED: Final = 1
_HAS_IS_REMOTE: Final = 0x100
#: Longest command name that is shown; what is longer, or no word, is ``_OTHER``: names are whatever
#: clients send.
_NAME_LIMIT: Final = 32
#: Characters of ``db.query.text``, arguments in it.
_MAX_TEXT: Final = 1024
_MAX_ARGUMENTS: Final = 64


@dataclass(slots=True)
class CommandSpan:
    """One traced command; times are nanoseconds, ``began_ns`` on the monotonic clock."""

    started_ns: int
    began_ns: int
    name: bytes
    #: Its arguments behind the name, ``None`` where they are no keys; empty: not told.
    keys: tuple[bytes | None, ...]
    db: int
    #: The client's socket address as asyncio gives it.
    peer: Any
    outcome: str = "forwarded"
    #: Code of the error that it was answered with; empty: none.
    error: str = ""
    ended_ns: int = 0
    #: For the sink: it is exported, and no second guess is made.
    sampled: bool = True


class CommandSpanEncoder:
    """Encodes batches for one resource (this process) in front of one Redis."""

    def __init__(self, resource: Mapping[str, str | int], target: Target) -> None:
        self._resource: Final = encoded_resource(resource)[0]
        scope = InstrumentationScope(name="nexus.cacheproxy", version=__version__)
        self._scope: Final = delimited(b"\x0a", scope.SerializeToString())
        self._always: Final = [recurring("db.system.name", "redis")]
        if target.path:
            self._always.append(recurring("server.address", target.path))
        else:
            self._always.append(recurring("server.address", target.host))
            self._always.append(integer("server.port", target.port))

    def encode(self, spans: Sequence[CommandSpan]) -> bytes:
        """An ``ExportTraceServiceRequest``; several of them concatenated are one again."""
        encoded = [self._scope, *(self._encode(one) for one in spans)]
        return delimited(b"\x0a", self._resource + delimited(b"\x12", b"".join(encoded)))

    def _encode(self, one: CommandSpan) -> bytes:
        name = _operation(one.name)
        attributes = [
            *self._always,
            recurring("db.operation.name", name),
            recurring("db.namespace", str(one.db)),
            recurring("nexus.outcome", one.outcome),
        ]
        if isinstance(one.peer, tuple) and len(one.peer) >= 2:
            attributes.append(text("client.address", str(one.peer[0])))
            attributes.append(integer("client.port", int(one.peer[1])))
        if one.keys:
            attributes.append(text("db.query.text", _query(name, one.keys)))
        if one.error:
            attributes.append(text("db.response.status_code", one.error))
            attributes.append(text("error.type", one.error))
        return span(
            trace_id=bytes.fromhex(new_trace_id()),
            span_id=bytes.fromhex(new_span_id()),
            parent_id=b"",
            tracestate="",
            flags=_HAS_IS_REMOTE | _SAMPLED,
            name=name,
            kind=KIND_SERVER,
            start_ns=one.started_ns,
            end_ns=one.ended_ns,
            attributes=attributes,
            error=bool(one.error),
        )


def _operation(name: bytes) -> str:
    if len(name) > _NAME_LIMIT or not name.replace(b".", b"").replace(b"_", b"").isalnum():
        return "_OTHER"
    return name.decode("latin-1").upper() if name.isascii() else "_OTHER"


def _query(name: str, keys: tuple[bytes | None, ...]) -> str:
    shown = [name]
    shown += (
        "?" if key is None else key.decode("utf-8", "backslashreplace")
        for key in keys[:_MAX_ARGUMENTS]
    )
    if len(keys) > _MAX_ARGUMENTS:
        shown.append("…")
    return " ".join(shown)[:_MAX_TEXT]
