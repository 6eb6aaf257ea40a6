"""The access log: one JSON line for each finished request, in the schema of the application log."""

from __future__ import annotations

import asyncio
import os
from functools import lru_cache
from typing import Final

import msgspec

from nexus.errors import ConfigError
from nexus.observability.linewriter import LineWriter
from nexus.observability.record import RequestRecord
from nexus.observability.redaction import redact_target, redact_text, wire_text
from nexus.observability.registry import LocalMetrics
from nexus.observability.stamp import Stamps

__all__ = ["AccessLine", "AccessLog"]

#: Characters of a target and of a User-Agent that are kept.
MAX_TARGET_CHARS: Final = 2048
MAX_AGENT_CHARS: Final = 512


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
    upstream_ms: float = 0.0
    attempts: int = 0
    retry_skipped: str = ""
    bytes_in: int = 0
    bytes_out: int = 0
    user_agent: str = ""
    inbound_request_id: str = ""
    correlation_id: str = ""


class AccessLog:
    """A recorder sink that writes lines to a file or, for the path ``-``, to standard output."""

    def __init__(
        self,
        path: str,
        metrics: LocalMetrics,
        *,
        service: str = "gateway",
        worker: int | None = None,
    ) -> None:
        """Raises ``ConfigError`` when the file cannot be opened."""
        try:
            self._writer: Final = LineWriter(fd=1) if path == "-" else LineWriter(path=path)
        except OSError as error:
            raise ConfigError(
                f"cannot be opened: {error.strerror}", source=path, path="access_log.path"
            ) from None
        self._writer.count_into(
            {
                reason: metrics.counter(
                    "nexus_log_lines_dropped_total", stream="access", reason=reason
                )
                for reason in self._writer.dropped
            }
        )
        self._service: Final = service
        self._worker: Final = worker
        self._pid: Final = os.getpid()
        self._stamps: Final = Stamps()
        self._encode: Final = msgspec.json.Encoder().encode

    def consume(self, records: list[RequestRecord]) -> None:
        self._writer.write([self._line(record) for record in records])

    async def start(self) -> None:
        """Nothing to open: the writer's thread starts with the first line."""

    async def stop(self, deadline_seconds: float) -> None:
        """Write what is left, within ``deadline_seconds``."""
        await asyncio.to_thread(self._writer.close, deadline_seconds)

    def reopen(self) -> None:
        """Open the file anew, after a rotation."""
        self._writer.reopen()

    def _line(self, record: RequestRecord) -> bytes:
        method = wire_text(record.method, 32)
        target = redact_target(record.target, MAX_TARGET_CHARS)
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
            upstream_ms=_ms(record.upstream_ns),
            attempts=record.attempts,
            retry_skipped=record.retry_skipped,
            bytes_in=record.bytes_in,
            bytes_out=record.bytes_out,
            user_agent=_agent(record.user_agent),
            inbound_request_id=_foreign_id(record.inbound_request_id),
            correlation_id=_foreign_id(record.correlation_id),
        )
        return self._encode(line) + b"\n"


@lru_cache(maxsize=1024)
def _agent(wire: bytes) -> str:
    """A User-Agent as it is shown; remembered, for most requests come from few programs."""
    return redact_text(wire_text(wire, MAX_AGENT_CHARS))


def _foreign_id(wire: bytes) -> str:
    return redact_text(wire_text(wire, 256)) if wire else ""


def _ms(nanoseconds: int) -> float:
    """Milliseconds, to the microsecond: what a clock read around a socket can mean."""
    return round(nanoseconds / 1e6, 3)
