"""Which loader calls were needed: one for each time that the value was gone.

Without locust in it, so that the rule itself is tested with the rest of the suite.
"""

from __future__ import annotations

__all__ = ["Loads"]


class Loads:
    """Loader calls for one key whose values live ``ttl`` seconds; times are seconds."""

    def __init__(self, ttl: float) -> None:
        self._ttl = ttl
        self._loading = False
        #: Before this the last value cannot have expired: it was written later than this says.
        self._alive_until = float("-inf")

    def begin(self, now: float) -> str | None:
        """A loader call begins; says why it was not needed, None where it was."""
        if self._loading:
            return "a second loader call for one expiry: another one is under way"
        self._loading = True
        if now < self._alive_until:
            return f"a loader call {self._alive_until - now:.2f} s before the value expires"
        return None

    def write(self, now: float) -> None:
        """A value is about to be written."""
        self._loading = False
        self._alive_until = now + self._ttl
