"""Who is served, by network: lists of CIDR networks that are let in or kept out."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from typing import Final

from nexus.errors import ConfigError

__all__ = ["NetworkRules"]

#: Clients of a unix socket have no address; the lists name them so.
UNIX: Final = "unix"

#: Decisions kept; the same clients come again and again.
_MAX_KNOWN: Final = 65_536


class NetworkRules:
    """``denied(ip)``: the longest network that holds the address decides, then whether any are
    let in by name. Raises ``ConfigError`` for what is no network, or stands in both lists.
    """

    __slots__ = ("_by_length", "_known", "_only_allowed", "_unix")

    def __init__(
        self, allow: Iterable[str], deny: Iterable[str], *, setting: str = "networks"
    ) -> None:
        #: (version, prefix length) → network as a number → denied; longest first.
        found: dict[tuple[int, int], dict[int, bool]] = {}
        self._unix: bool | None = None
        self._only_allowed = False
        for name, networks, denied in (("allow", allow, False), ("deny", deny, True)):
            for i, text in enumerate(networks):
                path = f"{setting}.{name}[{i}]"
                self._only_allowed = self._only_allowed or not denied
                if text == UNIX:
                    if self._unix is not None and self._unix is not denied:
                        raise ConfigError("unix is both allowed and denied", path=path)
                    self._unix = denied
                    continue
                network = _parse(text, path)
                same = found.setdefault((network.version, network.prefixlen), {})
                number = int(network.network_address) >> (network.max_prefixlen - network.prefixlen)
                if same.setdefault(number, denied) is not denied:
                    raise ConfigError(f"{network} is both allowed and denied", path=path)
        self._by_length: Final = sorted(found.items(), key=lambda item: -item[0][1])
        self._known: Final[dict[str, bool]] = {}

    def __bool__(self) -> bool:
        return bool(self._by_length) or self._unix is not None

    def denied(self, ip: str) -> bool:
        """Whether a client of this address is refused; what is no address counts as none."""
        known = self._known.get(ip)
        if known is None:
            known = self._decide(ip)
            if len(self._known) < _MAX_KNOWN:
                self._known[ip] = known
        return known

    def _decide(self, ip: str) -> bool:
        if ip == UNIX:
            return self._only_allowed if self._unix is None else self._unix
        try:
            address = ipaddress.ip_address(ip.partition("%")[0])
        except ValueError:
            return self._only_allowed
        if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
            address = address.ipv4_mapped
        number = int(address)
        for (version, length), networks in self._by_length:
            if version == address.version:
                denied = networks.get(number >> (address.max_prefixlen - length))
                if denied is not None:
                    return denied
        return self._only_allowed


def _parse(text: str, path: str) -> ipaddress.IPv4Network | ipaddress.IPv6Network:
    try:
        return ipaddress.ip_network(text)
    except ValueError as error:
        raise ConfigError(
            f"expected a network like 10.0.0.0/8, or unix, got {text!r} ({error})", path=path
        ) from None
