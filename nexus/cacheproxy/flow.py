"""The cacheproxy's hot path, compiled where that is built; see ``_client_py.py`` for the map."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from nexus._speedups import BACKEND

if TYPE_CHECKING or BACKEND == "pure":
    from nexus.cacheproxy._client_py import Client, Held, Near
    from nexus.cacheproxy._link_py import Link, Plane, Receiver
else:
    from nexus.cacheproxy._client_c import Client, Held, Near
    from nexus.cacheproxy._link_c import Link, Plane, Receiver

__all__ = [
    "BARRIER",
    "CLIENT_FULL",
    "CONNECTING",
    "DOWN",
    "HELD",
    "LINK_FULL",
    "PIN_WAIT",
    "UP",
    "Client",
    "Held",
    "Link",
    "Near",
    "Plane",
    "Receiver",
]

#: Why a client's input waits: replies must arrive first; a dedicated connection is being opened;
#: the client does not read; Redis does not read; a reply before is still being found.
BARRIER: Final = 1
PIN_WAIT: Final = 2
CLIENT_FULL: Final = 4
LINK_FULL: Final = 8
HELD: Final = 16

#: State of a link: commands are queued; are sent; are refused.
CONNECTING: Final = 0
UP: Final = 1
DOWN: Final = 2
