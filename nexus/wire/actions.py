"""What the consumer decided, as records of the topic ``nexus.actions``.

::

    type               about                subject
    address.blocked    gateway.rate_limit.hit    address, or IPv6 /64
    circuit.opened     gateway.circuit.opened    upstream URL
    latency.spike      gateway.request.completed route template

``id`` follows from the event alone, so that whoever hears of an action twice can tell.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import msgspec

__all__ = ["ACTIONS", "Action", "action_headers", "encode_action"]

ACTIONS: Final = "nexus.actions"

_SOURCE: Final = b"/nexus/consumer"


class Action(msgspec.Struct, frozen=True, kw_only=True, rename="camel", omit_defaults=True):
    """One action; fields that its type does not have are absent."""

    id: str
    type: str
    event_id: str
    #: ``emittedAt`` of the event: when the cause was seen, ISO 8601.
    emitted_at: str
    #: When it was decided, ISO 8601; the same again when it is delivered again.
    decided_at: str
    subject: str
    #: Trace of the request that caused it, lower-case hex.
    trace_id: str = ""
    # address.blocked
    hits: int = 0
    ttl_ms: int = 0
    # latency.spike, milliseconds
    latency_ms: float = 0.0
    mean_ms: float = 0.0
    samples: int = 0
    # the request that caused it
    method: str = ""
    url: str = ""
    ip: str = ""


encode_action = msgspec.json.Encoder().encode


def action_headers(action: Action, traceparent: bytes) -> Sequence[tuple[str, bytes]]:
    """CloudEvents 1.0 attributes as Kafka headers."""
    headers = [
        ("ce_id", action.id.encode()),
        ("ce_source", _SOURCE),
        ("ce_type", action.type.encode()),
        ("ce_specversion", b"1.0"),
        ("ce_time", action.decided_at.encode()),
        ("content-type", b"application/json"),
    ]
    if traceparent:
        headers.append(("traceparent", traceparent))
    return headers
