"""Who a client is: its address once trusted proxies were believed, and its bucket's key."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from typing import Final

from nexus.errors import ConfigError

__all__ = ["UNIX", "Clients", "canonical", "limit_key"]

Network = ipaddress.IPv4Network | ipaddress.IPv6Network
Address = ipaddress.IPv4Address | ipaddress.IPv6Address

#: Hops of X-Forwarded-For that are walked; no honest chain is longer.
MAX_HOPS: Final = 32

#: The address of whoever connects through a unix socket.
UNIX: Final = "unix"


class Clients:
    """Decides by the configured proxies; raises ``ConfigError`` for what is no network."""

    __slots__ = ("_networks", "_unix")

    def __init__(self, trusted_proxies: Iterable[str], *, setting: str = "trusted_proxies") -> None:
        """``trusted_proxies``: networks, or ``unix``; ``setting`` is their place, for errors."""
        networks: list[Network] = []
        self._unix = False
        for i, text in enumerate(trusted_proxies):
            if text == UNIX:
                self._unix = True
                continue
            try:
                networks.append(ipaddress.ip_network(text, strict=False))
            except ValueError as error:
                raise ConfigError(
                    f"expected a network like 10.0.0.0/8, or unix, got {text!r} ({error})",
                    path=f"{setting}[{i}]",
                ) from None
        self._networks: Final = tuple(networks)

    def is_trusted(self, ip: str) -> bool:
        """Whether this peer's X-Forwarded-For is believed."""
        if ip == UNIX:
            return self._unix
        if not self._networks:
            return False
        address = _parse(ip)
        return address is not None and any(address in network for network in self._networks)

    def behind(self, peer: str, chain: bytes) -> str:
        """The client of a trusted ``peer``: the rightmost address that is no trusted proxy.

        Right to left, because only what trusted proxies appended can be believed; at an entry that
        is no address the walk ends at the proxy that reported it.
        """
        known = peer
        for part in reversed(chain.split(b",")[-MAX_HOPS:]):
            address = _parse(part.strip().decode("latin-1"))
            if address is None:
                break
            known = str(address)
            if not any(address in network for network in self._networks):
                break
        return known


def limit_key(ip: str) -> bytes:
    """What shares a bucket: an IPv4 address, or the /64 that one IPv6 customer gets."""
    address = _parse(ip)
    if isinstance(address, ipaddress.IPv6Address):
        return b"6" + address.packed[:8]
    return b"4" + (address.packed if address is not None else ip.encode())


def canonical(ip: str) -> str:
    """The one spelling of a peer's address; an IPv4 address mapped into IPv6 is the IPv4 one."""
    address = _parse(ip)
    return str(address) if address is not None else ip


def _parse(text: str) -> Address | None:
    # Ports and brackets as some proxies write them: 192.0.2.1:443, [2001:db8::1]:443.
    if text.startswith("["):
        text = text[1:].partition("]")[0]
    elif text.count(":") == 1:
        text = text.partition(":")[0]
    try:
        address: Address = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return None
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        return address.ipv4_mapped
    return address
