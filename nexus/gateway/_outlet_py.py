# cython: annotation_typing=False
"""The way out of one socket: straight into the kernel while nothing waits, else by the transport.

One source, compiled as ``_outlet_c``. A transport queues every write to the end of the loop's turn
and walks through five calls for it; most messages fit the socket's buffer, and for those one
``send`` is all there is to do. What the kernel does not take goes to the transport, and so does
everything behind it until the transport's own buffer is empty, so the order is kept and its flow
control works. Pure Python always uses the transport: the bytes are the same.
"""

from __future__ import annotations

from typing import Any

import cython  # type: ignore[import-untyped]

if not cython.compiled:

    def send_now(_fd: int, _data: bytes) -> int:
        """See ``_primitives.pxd``."""
        return -1


__all__ = ["Outlet"]


class Outlet:
    """One per connection. A uvloop transport's descriptor stays open until ``connection_lost``."""

    __slots__ = ("_fd", "_transport", "_waiting")

    def __init__(self, transport: Any) -> None:
        self._transport = transport
        self._waiting = False
        self._fd = -1
        if cython.compiled and transport.get_extra_info("sslcontext") is None:
            sock = transport.get_extra_info("socket")
            if sock is not None:
                self._fd = sock.fileno()

    def write(self, data: bytes, more: bool = False) -> None:
        """Send ``data`` behind everything before it; ``more`` follows within this turn."""
        if self._fd >= 0:
            if self._waiting and self._transport.get_write_buffer_size() == 0:
                self._waiting = False
            if not self._waiting:
                sent = -1 if more else send_now(self._fd, data)
                if sent == len(data):
                    return
                self._waiting = True
                if sent > 0:
                    data = data[sent:]
        self._transport.write(data)

    def close(self) -> None:
        """The descriptor is about to belong to somebody else."""
        self._fd = -1
