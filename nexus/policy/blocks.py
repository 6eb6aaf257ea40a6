"""Blocked addresses: how they are named in Redis, what one block covers, who is never blocked.

::

    consumer ─► SET nexus:block:<subject> {…} PX ttl ─► PUBLISH nexus:blocks ─► every gateway worker
    nexus block add|remove ──────┘

The key with its time to live is the truth; the notification only makes it quick. An IPv4 address is
its own subject; IPv6 addresses are grouped by /64, as the address limit groups them, because one
customer holds a whole /64 and can change the address with every request.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from functools import lru_cache
from typing import Final

from nexus.errors import ConfigError

__all__ = ["CHANNEL", "INDEX_KEY", "KEY_PREFIX", "Networks", "subject_of"]

#: Redis keys of blocks: this and the subject.
KEY_PREFIX: Final = "nexus:block:"

#: Sorted set of the blocked subjects by the time of their end, Unix ms: a directory of those keys,
#: so that nobody scans a Redis full of other things. Without its key a subject is not blocked.
INDEX_KEY: Final = "nexus:block-index"

#: Redis channel on which a changed subject is announced: the message is the subject, nothing else,
#: so that whoever hears it reads the key and cannot be told a state that Redis does not hold.
CHANNEL: Final = "nexus:blocks"

#: Parsed addresses kept; the same few offenders come again and again.
_MAX_KNOWN: Final = 65_536

_Network = ipaddress.IPv4Network | ipaddress.IPv6Network


@lru_cache(maxsize=_MAX_KNOWN)
def subject_of(address: str) -> str:
    """What a block of ``address`` covers: ``192.0.2.7``, or ``2001:db8::/64``.

    A /64 names itself. Raises ``ValueError`` for what is neither.
    """
    if address.endswith("/64"):
        return str(ipaddress.IPv6Network(address, strict=False))
    parsed = ipaddress.ip_address(address)
    if isinstance(parsed, ipaddress.IPv4Address):
        return str(parsed)
    if parsed.ipv4_mapped is not None:
        return str(parsed.ipv4_mapped)
    return str(ipaddress.IPv6Network((parsed.packed[:8] + bytes(8), 64)))


class Networks:
    """A set of networks; raises ``ConfigError`` at ``path`` for what is none."""

    __slots__ = ("_known", "_networks")

    def __init__(self, networks: Iterable[str], path: str) -> None:
        found: list[_Network] = []
        for index, text in enumerate(networks):
            try:
                found.append(ipaddress.ip_network(text, strict=False))
            except ValueError as error:
                raise ConfigError(
                    f"expected a network like 10.0.0.0/8, got {text!r} ({error})",
                    path=f"{path}[{index}]",
                ) from None
        self._networks: Final = tuple(found)
        self._known: Final[dict[str, bool]] = {}

    def touches(self, subject: str) -> bool:
        """Whether a block of ``subject`` would hit any address of these networks."""
        if not self._networks:
            return False
        known = self._known.get(subject)
        if known is None:
            covered = ipaddress.ip_network(subject)
            known = any(
                network.version == covered.version and network.overlaps(covered)
                for network in self._networks
            )
            if len(self._known) < _MAX_KNOWN:
                self._known[subject] = known
        return known
