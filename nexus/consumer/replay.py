"""Where a replayed record comes from: headers that ``nexus events`` writes and the pipeline reads.

::

    nexus_replay_origin   <topic>/<partition>/<offset> of its first delivery
    nexus_replay_dead     true when it was taken out of the dead letters

A record from below the mark of its first partition has had its effect, so a replay of it changes
nothing; a dead letter had none, and has it once.
"""

from __future__ import annotations

from typing import Final

from nexus.consumer.state import Origin
from nexus.errors import EventError
from nexus.wire.events import Headers

__all__ = ["DEAD", "ORIGIN", "origin_of", "replay_headers"]

ORIGIN: Final = "nexus_replay_origin"
DEAD: Final = "nexus_replay_dead"


def origin_of(headers: Headers) -> Origin | None:
    """The origin, or ``None`` for a first delivery. Raises ``EventError`` for what is none."""
    position, dead = None, False
    for name, value in headers:
        if name == ORIGIN:
            position = value
        elif name == DEAD:
            dead = value == b"true"
    if position is None:
        return None
    topic, _, rest = position.decode("ascii", "replace").partition("/")
    partition, _, offset = rest.partition("/")
    if not (topic and partition.isdecimal() and offset.isdecimal()):
        raise EventError(f"{ORIGIN}: expected topic/partition/offset, got {position!r}")
    return Origin(topic, int(partition), int(offset), dead)


def replay_headers(headers: Headers, origin: Origin) -> list[tuple[str, bytes]]:
    """The record's own headers without ours of an earlier journey, and where it comes from."""
    kept = [
        (name, value)
        for name, value in headers
        if not name.startswith("nexus_dlq_") and name not in (ORIGIN, DEAD)
    ]
    position = f"{origin.topic}/{origin.partition}/{origin.offset}"
    kept.append((ORIGIN, position.encode()))
    if origin.dead:
        kept.append((DEAD, b"true"))
    return kept
