"""The one receive buffer of a worker.

A read and the callback that consumes it are one synchronous step of the event loop, so that all
connections of a worker can read into the same memory: an idle connection owns no buffer. What a
callback does not consume it must copy before it returns.
"""

from __future__ import annotations

from typing import Final

__all__ = ["RECEIVE_BUFFER", "RECEIVE_BYTES"]

#: Most bytes of one read: four times a default socket buffer's worth, so that one read empties it.
RECEIVE_BYTES: Final = 262_144
RECEIVE_BUFFER: Final = bytearray(RECEIVE_BYTES)


# The compiled path has its own of what follows (``_primitives.pxd``).


def copied(buffer: bytearray, at: int, end: int) -> bytes:
    """A copy of ``buffer[at:end]``."""
    return bytes(buffer[at:end])


def cut(data: bytes, at: int, end: int) -> bytes:
    """``data[at:end]``."""
    return data[at:end]


def slash(path: bytes, at: int) -> int:
    """Where the next ``/`` is, from ``at`` on; -1: nowhere."""
    return path.find(b"/", at)


def joined(parts: tuple[bytes, ...]) -> bytes:
    """One after the other."""
    return b"".join(parts)


def length_field(length: int) -> bytes:
    """The field line of a body of so many bytes."""
    return b"Content-Length: %d\r\n" % length
