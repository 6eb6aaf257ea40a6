"""Rate limits in words and header fields; the arithmetic is in ``_speedups/buckets.py``.

``tokens = min(capacity, tokens + Δt·rate)``; a request takes one token or is refused with 429.
"""

from __future__ import annotations

from fractions import Fraction
from math import ceil
from typing import Final, NamedTuple

__all__ = ["RateLimit", "Verdict"]

_SECOND_NS: Final = 1_000_000_000
#: The kernel's bound on time, 73 years; see ``_buckets_py``.
_MAX_TIME_NS: Final = 1 << 61
#: Field values kept per limit: those of the last tokens, which are the ones that are asked for.
_CACHED: Final = 1024
#: Structured Fields integers end here (RFC 9651 §3.3.1).
_MAX_SF_INTEGER: Final = 999_999_999_999_999


class Verdict(NamedTuple):
    """What a client is told. Seconds are whole and rounded up; ``retry_after`` is 0 if admitted."""

    admitted: bool
    remaining: int
    retry_after: int
    #: Seconds until the bucket is full again, or, when refused, until one token is there.
    reset: int


class RateLimit:
    """One limit: ``capacity`` tokens of burst, refilled at ``refill_per_second``.

    ``interval_ns`` and ``burst`` are what ``BucketTable.take`` wants; hand its answer to
    :meth:`verdict` or :meth:`fields`. Raises ``ValueError`` for values out of range.
    """

    __slots__ = ("_fields", "burst", "interval_ns", "name", "policy_field", "refill_per_second")

    def __init__(self, capacity: int, refill_per_second: float, *, name: str = "default") -> None:
        if capacity < 1:
            raise ValueError(f"capacity must be at least 1, got {capacity}")
        if not 0 < refill_per_second <= _SECOND_NS:
            raise ValueError(
                f"refill_per_second must be above 0 and at most 10**9, got {refill_per_second}"
            )
        if not name.isascii() or not name.isprintable() or '"' in name or "\\" in name:
            raise ValueError(f"the name must be printable ASCII without quotes, got {name!r}")
        self.name: Final = name
        self.burst: Final = capacity
        self.refill_per_second: Final = refill_per_second
        #: Nanoseconds per token, rounded up: never more than the configured rate.
        self.interval_ns: Final = ceil(_SECOND_NS / Fraction(refill_per_second))
        if self.interval_ns * capacity > _MAX_TIME_NS:
            raise ValueError(
                f"a bucket of {capacity} tokens at {refill_per_second}/s takes "
                "more than 73 years to fill"
            )
        #: Value of ``RateLimit-Policy``: quota and the window in which it grows back.
        self.policy_field: Final = (
            f'"{name}";q={min(capacity, _MAX_SF_INTEGER)};w={self._seconds_to_fill(0)}'.encode()
        )
        self._fields: dict[int, bytes] = {}

    def verdict(self, taken: int) -> Verdict:
        """Read the answer of ``BucketTable.take``."""
        if taken >= 0:
            return Verdict(True, taken, 0, self._seconds_to_fill(taken))
        wait = self.retry_after(taken)
        return Verdict(False, 0, wait, wait)

    @staticmethod
    def retry_after(taken: int) -> int:
        """``Retry-After`` of a refusal: whole seconds, at least 1 (RFC 9110 §10.2.3)."""
        return max(1, -(taken // _SECOND_NS))

    def fields(self, taken: int) -> bytes:
        """Value of ``RateLimit``: what is left now, ``t`` seconds until more is there.

        Syntax of draft-ietf-httpapi-ratelimit-headers-10. On a refusal ``t`` is the same moment as
        ``Retry-After``, so that the two can never contradict each other.
        """
        # Refusals differ by nanoseconds and answer in whole seconds; they share keys below 0.
        key = taken if taken >= 0 else -self.retry_after(taken)
        value = self._fields.get(key)
        if value is None:
            verdict = self.verdict(taken)
            value = f'"{self.name}";r={verdict.remaining};t={verdict.reset}'.encode()
            if len(self._fields) < _CACHED:
                self._fields[key] = value
        return value

    def _seconds_to_fill(self, tokens: int) -> int:
        missing = (self.burst - tokens) * self.interval_ns
        return max(1, -(-missing // _SECOND_NS))

    def __repr__(self) -> str:
        return f"<RateLimit {self.name} {self.burst} + {self.refill_per_second}/s>"
