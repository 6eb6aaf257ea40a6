"""Time stamps for many records of the same second."""

from __future__ import annotations

from nexus import clock

__all__ = ["Stamps"]


class Stamps:
    """``clock.iso_utc`` that formats the calendar once a second; one for each writer."""

    __slots__ = ("_prefix", "_second")

    def __init__(self) -> None:
        self._second = -1
        self._prefix = ""

    def iso(self, unix_ns: int) -> str:
        """``2026-11-21T10:00:00.123Z`` of nanoseconds since the Unix epoch."""
        second, rest = divmod(unix_ns, 1_000_000_000)
        if second != self._second:
            self._prefix = clock.iso_utc(second * 1000)[:-4]
            self._second = second
        return f"{self._prefix}{rest // 1_000_000:03d}Z"
