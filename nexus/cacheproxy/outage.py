"""Whether Redis is away, said once: when it goes, and when it is back.

Every shared connection of a worker notices an outage by itself; people want one line of it, and
``/ready`` one answer.
"""

from __future__ import annotations

import logging

from nexus import clock

__all__ = ["Outage"]

log = logging.getLogger("nexus.cacheproxy")


class Outage:
    """Of one worker."""

    def __init__(self) -> None:
        self._since = 0.0
        self._error = ""

    def begins(self, error: str, *, lost: bool) -> None:
        """A connection was ``lost`` or could not be made; what is known already is not repeated."""
        if not self._since:
            self._since = clock.monotonic()
            what = "connection to redis lost" if lost else "redis is not reachable"
            log.warning(what, extra={"error": error})
        self._error = error

    def ends(self) -> None:
        """A connection was made."""
        if self._since:
            seconds = clock.monotonic() - self._since
            self._since = 0.0
            log.info("redis is back", extra={"seconds": round(seconds, 3)})

    def reason(self) -> str:
        """Why the worker is not ready; empty while Redis is there."""
        if not self._since:
            return ""
        seconds = clock.monotonic() - self._since
        return f"redis is away for {seconds:.1f} s: {self._error}"
