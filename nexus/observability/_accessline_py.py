"""One line of the access log: a finished request as one JSON object, in a fixed order of fields.

The pure side; ``_accessline_c`` writes the same bytes straight from the record.
"""

from __future__ import annotations

import os
from functools import lru_cache
from select import PIPE_BUF
from typing import Final

import msgspec

from nexus.observability.record import RequestRecord
from nexus.observability.redaction import redact_text, wire_text
from nexus.observability.stamp import Stamps

__all__ = ["AccessLineEncoder"]

#: Characters of a User-Agent that are kept, and of an id that a client chose.
MAX_AGENT_CHARS: Final = 512
MAX_ID_CHARS: Final = 256


class AccessLine(msgspec.Struct, omit_defaults=True, gc=False):
    """The line's fields in their order; one that is empty is left out."""

    timestamp: str
    level: str
    logger: str
    message: str
    service: str
    worker: int | None
    pid: int
    method: str
    target: str
    status: int
    latency_ms: float
    ip: str = ""
    route: str = ""
    #: Machine-readable reason of a reply that the gateway made itself.
    reason: str = ""
    client_id: str = ""
    request_id: str = ""
    trace_id: str = ""
    span_id: str = ""
    upstream: str = ""
    upstream_status: int = 0
    upstream_ms: float | None = None
    attempts: int = 0
    retry_skipped: str = ""
    bytes_in: int = 0
    bytes_out: int = 0
    user_agent: str = ""
    inbound_request_id: str = ""
    correlation_id: str = ""


class AccessLineEncoder:
    """Encodes the records of one worker, in blocks of at most ``block_bytes``."""

    def __init__(self, service: str, worker: int | None, block_bytes: int = PIPE_BUF) -> None:
        self._block: Final = block_bytes
        self._service: Final = service
        self._worker: Final = worker
        self._pid: Final = os.getpid()
        self._stamps: Final = Stamps()
        self._encode: Final = msgspec.json.Encoder().encode

    def encode(self, records: list[RequestRecord]) -> list[bytes]:
        """One line for each record, with its newline, in blocks of whole lines.

        A block is no longer than ``block_bytes`` unless its only line is.
        """
        blocks: list[bytes] = []
        lines: list[bytes] = []
        size = 0
        for record in records:
            line = self._line(record)
            if lines and size + len(line) > self._block:
                blocks.append(b"".join(lines))
                lines.clear()
                size = 0
            lines.append(line)
            size += len(line)
        if lines:
            blocks.append(b"".join(lines))
        return blocks

    def _line(self, record: RequestRecord) -> bytes:
        method = wire_text(record.method, 32)
        target = record.shown()
        line = AccessLine(
            timestamp=self._stamps.iso(record.started_ns),
            level="error" if record.status >= 500 else "info",
            logger="nexus.access",
            message=f"{method} {record.route or target} {record.status}",
            service=self._service,
            worker=self._worker,
            pid=self._pid,
            method=method,
            target=target,
            status=record.status,
            latency_ms=_ms(record.duration_ns),
            ip=record.ip,
            route=record.route,
            reason=record.reason,
            client_id=record.client_id,
            request_id=record.request_id,
            trace_id=record.trace_id,
            span_id=record.span_id,
            upstream=record.upstream,
            upstream_status=record.upstream_status,
            upstream_ms=_ms(record.upstream_ns) if record.upstream_ns >= 500 else None,
            attempts=record.attempts,
            retry_skipped=record.retry_skipped,
            bytes_in=record.bytes_in,
            bytes_out=record.bytes_out,
            user_agent=shown_agent(record.user_agent),
            inbound_request_id=shown_id(record.inbound_request_id),
            correlation_id=shown_id(record.correlation_id),
        )
        return self._encode(line) + b"\n"


@lru_cache(maxsize=1024)
def shown_agent(wire: bytes) -> str:
    """A User-Agent as it is shown; remembered, for most requests come from few programs."""
    return redact_text(wire_text(wire, MAX_AGENT_CHARS))


def shown_id(wire: bytes) -> str:
    """An id that a client chose."""
    return redact_text(wire_text(wire, MAX_ID_CHARS)) if wire else ""


def _ms(nanoseconds: int) -> float:
    """Milliseconds, to the microsecond: what a clock read around a socket can mean."""
    return (nanoseconds + 500) // 1000 / 1000
