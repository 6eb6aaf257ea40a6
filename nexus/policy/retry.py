"""Whether a failed attempt is made again, when, and what keeps retries from becoming a storm.

::

    failure ─► retriable kind? ─► attempts left? ─► nothing reached the client yet?
            ─► allowed for the method (RFC 9110 §9.2.2)? ─► body still at hand?
            ─► time left before the deadline? ─► budget? ─► again, after a full-jitter delay

The first "no" names itself in :attr:`RetryDecision.why_not`, which becomes a log field.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from enum import Enum
from typing import Final, NamedTuple

from nexus.policy.budget import RetryBudget

__all__ = [
    "IDEMPOTENT",
    "MAX_DELAY_NS",
    "RETRIABLE_STATUS",
    "Failure",
    "RetryBudget",
    "RetryDecision",
    "RetryPolicy",
    "decide",
    "delay_ns",
    "retry_after_ns",
]

#: Idempotent methods, RFC 9110 §9.2.2. Methods are case-sensitive (§9.1).
IDEMPOTENT: Final = frozenset((b"GET", b"HEAD", b"OPTIONS", b"TRACE", b"PUT", b"DELETE"))

#: Replies that say "not now" rather than "no".
RETRIABLE_STATUS: Final = frozenset((502, 503, 504))

#: No delay is longer than 10 s, however many attempts are configured.
MAX_DELAY_NS: Final = 10_000_000_000


class Failure(Enum):
    """How an attempt ended."""

    #: No connection: refused, unreachable, connect timeout, TLS failure.
    CONNECT = "connect"
    #: The connection was closed or reset before a complete response head.
    RESET = "reset"
    #: No response head in time.
    TIMEOUT = "timeout"
    #: A complete response head whose status is an error.
    STATUS = "status"
    #: Bytes that are no HTTP response.
    MALFORMED = "malformed"


class RetryDecision(NamedTuple):
    """``retry`` after ``delay_ns``; or ``why_not``: ``not_retriable``, ``response_started``,
    ``attempts``, ``not_idempotent``, ``body``, ``deadline``, ``retry_after`` or ``budget``.
    """

    retry: bool
    why_not: str
    delay_ns: int = 0


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """``max_attempts`` counts the first one; see :func:`delay_ns` for ``base_delay_ns``."""

    max_attempts: int = 3
    base_delay_ns: int = 200_000_000

    def __post_init__(self) -> None:
        if self.max_attempts < 1:
            raise ValueError(f"max_attempts must be at least 1, got {self.max_attempts}")
        if self.base_delay_ns < 0:
            raise ValueError(f"base_delay_ns must be at least 0, got {self.base_delay_ns}")


def delay_ns(attempt: int, base: int, rng: random.Random) -> int:
    """Full jitter: uniform over ``[0, base * 2**(attempt - 1)]``, capped, in nanoseconds.

    ``attempt`` is the attempt that failed, from 1. The cap bounds the interval that is drawn from,
    not the draw, so the spread survives it (AWS, *Exponential Backoff And Jitter*, 2015).
    """
    # 2**34 ns is beyond the cap already; the shift stays small whatever is configured.
    ceiling = min(MAX_DELAY_NS, base << min(attempt - 1, 34))
    return int(rng.random() * ceiling)


def retry_after_ns(value: bytes, wall_ns: int) -> int:
    """``Retry-After`` (RFC 9110 §10.2.3), seconds or a date, as a wait; 0 for what is neither."""
    if value.isdigit() and len(value) <= 9:
        return int(value) * 1_000_000_000
    try:
        at = parsedate_to_datetime(value.decode("latin-1")).timestamp()
    except (ValueError, OverflowError):
        return 0
    return max(0, int(at * 1e9) - wall_ns)


def decide(
    policy: RetryPolicy,
    budget: RetryBudget,
    rng: random.Random,
    *,
    attempt: int,
    method: bytes,
    failure: Failure,
    status: int = 0,
    sent: bool,
    response_started: bool = False,
    body_replayable: bool = True,
    idempotency_key: bool = False,
    now_ns: int,
    deadline_ns: int,
    not_before_ns: int = 0,
) -> RetryDecision:
    """What to do after attempt number ``attempt`` (from 1) failed.

    ``sent``: any byte of the request may have reached the upstream. ``response_started``: any byte
    of a response went to the client. ``body_replayable``: the whole request body is buffered (or
    there is none). ``idempotency_key``: the route allows it and the request carries one.
    ``deadline_ns``: end of the request's total time. ``not_before_ns``: a wait that the upstream
    asked for (``Retry-After``), where the next attempt would meet it again. A "yes" holds one
    unit of ``budget``; give it back with :meth:`RetryBudget.release` when that attempt ends.
    """
    why_not = _why_not(
        policy,
        attempt=attempt,
        may_repeat=not sent or idempotency_key or method in IDEMPOTENT,
        retriable=failure is not Failure.MALFORMED
        and (failure is not Failure.STATUS or status in RETRIABLE_STATUS),
        response_started=response_started,
        body_replayable=body_replayable,
    )
    if why_not:
        return RetryDecision(False, why_not)
    pause = max(delay_ns(attempt, policy.base_delay_ns, rng), not_before_ns)
    if now_ns + pause >= deadline_ns:
        return RetryDecision(False, "retry_after" if not_before_ns else "deadline")
    if not budget.try_acquire():
        return RetryDecision(False, "budget")
    return RetryDecision(True, "", pause)


def _why_not(
    policy: RetryPolicy,
    *,
    attempt: int,
    may_repeat: bool,
    retriable: bool,
    response_started: bool,
    body_replayable: bool,
) -> str:
    if not retriable:
        return "not_retriable"
    if response_started:
        return "response_started"
    if attempt >= policy.max_attempts:
        return "attempts"
    if not may_repeat:
        return "not_idempotent"
    if not body_replayable:
        return "body"
    return ""
