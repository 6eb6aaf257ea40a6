"""The access log: one JSON line for each finished request, in the schema of the application log."""

from __future__ import annotations

import asyncio
from typing import Final

from nexus.errors import ConfigError
from nexus.observability.accessline import AccessLineEncoder
from nexus.observability.linewriter import LineWriter
from nexus.observability.record import RequestRecord
from nexus.observability.registry import LocalMetrics

__all__ = ["AccessLog"]

#: Seconds that lines wait for others before they are written together; below what anybody who
#: watches a log notices.
GATHER_SECONDS: Final = 0.025


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
            self._writer: Final = LineWriter(
                path=None if path == "-" else path,
                fd=1 if path == "-" else None,
                gather_seconds=GATHER_SECONDS,
            )
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
        self._encoder: Final = AccessLineEncoder(service, worker, self._writer.block_bytes)

    def consume(self, records: list[RequestRecord]) -> None:
        self._writer.write(self._encoder.encode(records))

    async def start(self) -> None:
        """Nothing to open: the writer's thread starts with the first line."""

    async def stop(self, deadline_seconds: float) -> None:
        """Write what is left, within ``deadline_seconds``."""
        await asyncio.to_thread(self._writer.close, deadline_seconds)

    def reopen(self) -> None:
        """Open the file anew, after a rotation."""
        self._writer.reopen()
