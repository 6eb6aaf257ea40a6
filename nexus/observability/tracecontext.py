"""W3C Trace Context: identifiers, ``traceparent`` and ``tracestate``, the sampling decision.

https://www.w3.org/TR/trace-context-2/ — pure but for the random numbers. Of the flags, two are
known: :data:`SAMPLED`, and :data:`RANDOM` of Level 2 (the trace id's last 56 bits at least are
random), which goes on unchanged as long as the trace id does.
"""

from __future__ import annotations

import os
import random
import re
from collections.abc import Iterable
from typing import Final

__all__ = [
    "RANDOM",
    "SAMPLED",
    "Sampler",
    "format_traceparent",
    "new_span_id",
    "new_trace_id",
    "parse_traceparent",
    "parse_tracestate",
    "trace_flags",
]

#: Bits of the trace flags.
SAMPLED: Final = 1
RANDOM: Final = 2

# Not for secrets; seeded from the system, and again after every fork, or workers would draw alike.
_random: Final = random.Random()
os.register_at_fork(after_in_child=_random.seed)

# §3.2: version "-" trace-id "-" parent-id "-" trace-flags, lower-case hex; a version above 00 may
# be longer, but what follows starts with "-".
_TRACEPARENT: Final = re.compile(
    rb"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?", re.DOTALL
)
_HEX_DIGITS: Final = b"0123456789abcdef"
#: Digit → the flags that are known in it.
_FLAGS: Final = {digit: int(chr(digit), 16) & (SAMPLED | RANDOM) for digit in _HEX_DIGITS}
_DASH: Final = ord("-")
_NO_TRACE: Final = "0" * 32
_NO_SPAN: Final = "0" * 16

# §3.3.1.3, with the keys of Level 2, which take "@" anywhere but first (Level 1 knew one form of
# tenant@system); a value is printable ASCII without "," and "=", not ending in a space.
_MEMBER: Final = re.compile(
    rb"[a-z0-9][a-z0-9_\-*/@]{0,255}"
    rb"=[\x20-\x2b\x2d-\x3c\x3e-\x7e]{0,255}[\x21-\x2b\x2d-\x3c\x3e-\x7e]"
)
_MAX_MEMBERS: Final = 32


def new_trace_id() -> str:
    """32 lower-case hex digits, not all zero."""
    return f"{_random.getrandbits(128) or 1:032x}"


def new_span_id() -> str:
    """16 lower-case hex digits, not all zero."""
    return f"{_random.getrandbits(64) or 1:016x}"


def parse_traceparent(value: bytes) -> tuple[str, str, int] | None:
    """(trace id, parent span id, known flags), or ``None`` where ``value`` is ignored (§3.2.2).

    ``value`` is one field value without surrounding whitespace; a request with two ``traceparent``
    fields has none that is valid.
    """
    # What nearly every caller sends, told in a few C calls: version 00 with its dashes in place and
    # nothing but hex digits between them.
    if (
        len(value) == 55
        and value.startswith(b"00-")
        and value[35] == value[52] == _DASH
        and value.translate(None, _HEX_DIGITS) == b"---"
    ):
        text = value.decode()
        trace_id, span_id = text[3:35], text[36:52]
        if trace_id == _NO_TRACE or span_id == _NO_SPAN:
            return None
        return trace_id, span_id, _FLAGS[value[54]]
    return _parse_unusual(value)


def _parse_unusual(value: bytes) -> tuple[str, str, int] | None:
    """Versions to come, and everything that is malformed."""
    match = _TRACEPARENT.fullmatch(value)
    if match is None:
        return None
    version, trace, span, flags, more = match.groups()
    if version == b"ff" or (version == b"00" and more is not None):
        return None
    trace_id, span_id = trace.decode(), span.decode()
    if trace_id == _NO_TRACE or span_id == _NO_SPAN:
        return None
    return trace_id, span_id, int(flags, 16) & (SAMPLED | RANDOM)


def format_traceparent(trace_id: str, span_id: str, flags: int) -> bytes:
    """The field value to send on, version 00; ``flags`` of those that are known."""
    return b"00-%b-%b-%02x" % (trace_id.encode(), span_id.encode(), flags)


def trace_flags(sampled: bool, random_id: bool) -> int:
    """The flags as bits."""
    return (SAMPLED if sampled else 0) | (RANDOM if random_id else 0)


def parse_tracestate(values: Iterable[bytes]) -> bytes:
    """The fields of one request as one valid field value; ``b""`` when they are to be dropped.

    §3.3.1: fields combine in order; empty members are allowed and left out; more than 32 members or
    a malformed one make the whole list invalid. Of members with one key the first goes on: it is
    the newest. Only to be used when ``traceparent`` was valid.
    """
    members = [
        m for value in values for m in (part.strip(b" \t") for part in value.split(b",")) if m
    ]
    if len(members) > _MAX_MEMBERS:
        return b""
    if not all(_MEMBER.fullmatch(member) for member in members):
        return b""
    by_key: dict[bytes, bytes] = {}
    for member in members:
        by_key.setdefault(member.partition(b"=")[0], member)
    return b",".join(by_key.values())


class Sampler:
    """Parent-based ratio sampling: a caller's decision is followed, a root's is drawn.

    The draw is a comparison with the trace id's last 64 bits (as OpenTelemetry's
    ``TraceIdRatioBased``), so every service that uses the same ratio decides alike.
    """

    def __init__(self, ratio: float, parent_based: bool = True) -> None:
        """``ratio``: share of root requests that are traced, 0 to 1; ``parent_based``: whether a
        caller's decision is followed, or every trace is drawn alike."""
        if not 0.0 <= ratio <= 1.0:
            raise ValueError(f"ratio: expected 0 to 1, got {ratio}")
        #: Of 2⁶⁴: a trace id below it is sampled.
        self.bound: Final = round(ratio * 2**64)
        self._parent_based: Final = parent_based

    def decide(self, trace_id: str, parent_sampled: bool | None) -> bool:
        """Whether to trace; ``parent_sampled`` is ``None`` at a root."""
        if parent_sampled is not None and self._parent_based:
            return parent_sampled
        return int(trace_id[16:], 16) < self.bound
