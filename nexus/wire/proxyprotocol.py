"""The PROXY protocol, versions 1 and 2: who the client of a connection behind a balancer is.

Source: "The PROXY protocol, versions 1 & 2" (HAProxy, doc/proxy-protocol.txt), sections 2.1 to 2.2.
Read only, and only whole headers: they are sent in one piece in front of everything else.
"""

from __future__ import annotations

import ipaddress
import re
import struct
from dataclasses import dataclass
from typing import Final

from nexus.errors import ProxyHeaderError

__all__ = ["MAX_HEADER", "ProxyHeader", "parse_proxy_header"]

#: Longest header that is read; TLVs (certificates' names, cloud ids) fit in practice.
MAX_HEADER: Final = 4096

_V2: Final = b"\r\n\r\n\x00\r\nQUIT\n"
#: Section 2.1: 107 bytes with CRLF.
_V1_LONGEST: Final = 107
_PORT: Final = re.compile(r"0|[1-9][0-9]{0,4}")

_LOCAL, _PROXY = 0, 1
_UNSPEC, _INET, _INET6, _UNIX = range(4)
_STREAM: Final = 1
_TLV_SSL: Final = 0x20
_CLIENT_SSL: Final = 0x01


@dataclass(frozen=True, slots=True)
class ProxyHeader:
    """``size`` bytes that come before the client's own.

    ``source`` is the client's address; ``""`` where the header names none (a health check of the
    balancer itself, a unix socket): the connection's own address counts then. ``tls``: the client
    spoke TLS to the balancer.
    """

    size: int
    source: str
    tls: bool = False


def parse_proxy_header(data: bytes) -> ProxyHeader | None:
    """The header that ``data`` begins with; ``None`` while it is incomplete.

    Raises :class:`~nexus.errors.ProxyHeaderError` for what is none.
    """
    if data[: len(_V2)] == _V2[: len(data)]:
        return _parse_v2(data)
    if data[:6] == b"PROXY "[: len(data)]:
        return _parse_v1(data)
    raise ProxyHeaderError("expected a PROXY protocol header, got something else")


def _parse_v1(data: bytes) -> ProxyHeader | None:
    end = data.find(b"\r\n", 0, _V1_LONGEST)
    if end < 0:
        if len(data) >= _V1_LONGEST:
            raise ProxyHeaderError(f"version 1: no end of line within {_V1_LONGEST} bytes")
        return None
    size = end + 2
    words = data[:end].decode("latin-1").split(" ")
    family = words[1]
    if family == "UNKNOWN":
        return ProxyHeader(size, "")
    if family not in ("TCP4", "TCP6") or len(words) != 6:
        raise ProxyHeaderError(f"version 1: expected TCP4 or TCP6 and four fields, got {words[1:]}")
    kind = ipaddress.IPv4Address if family == "TCP4" else ipaddress.IPv6Address
    try:
        source, _ = kind(words[2]), kind(words[3])
    except ValueError as error:
        raise ProxyHeaderError(f"version 1: {error}") from None
    for port in words[4:]:
        if _PORT.fullmatch(port) is None or int(port) > 65_535:
            raise ProxyHeaderError(f"version 1: expected a port, got {port!r}")
    return ProxyHeader(size, str(source))


def _parse_v2(data: bytes) -> ProxyHeader | None:
    if len(data) < 16:
        return None
    version_command, family_transport, length = struct.unpack_from("!BBH", data, 12)
    if version_command >> 4 != 2:
        raise ProxyHeaderError(f"version 2: expected version 2, got {version_command >> 4}")
    command = version_command & 15
    if command not in (_LOCAL, _PROXY):
        raise ProxyHeaderError(f"version 2: unknown command {command}")
    size = 16 + length
    if size > MAX_HEADER:
        raise ProxyHeaderError(
            f"version 2: a header of {size} bytes; at most {MAX_HEADER} are read"
        )
    if len(data) < size:
        return None
    family, transport = family_transport >> 4, family_transport & 15
    if command == _LOCAL:
        return ProxyHeader(size, "")
    if family > _UNIX or transport > 2:
        raise ProxyHeaderError(f"version 2: unknown family or transport {family_transport:#04x}")
    needed = (0, 12, 36, 216)[family]
    if length < needed:
        raise ProxyHeaderError(f"version 2: {length} bytes of addresses, expected {needed}")
    tls = _spoke_tls(data[16 + needed : size])
    if transport != _STREAM or family not in (_INET, _INET6):
        return ProxyHeader(size, "", tls)  # section 2.2: accepted, but the addresses say nothing
    if family == _INET:
        return ProxyHeader(size, str(ipaddress.IPv4Address(data[16:20])), tls)
    return ProxyHeader(size, str(ipaddress.IPv6Address(data[16:32])), tls)


def _spoke_tls(data: bytes) -> bool:
    """Section 2.2.6: the SSL TLV's first byte has a bit for it."""
    at = 0
    while at < len(data):
        if at + 3 > len(data):
            raise ProxyHeaderError("version 2: a TLV is cut off")
        kind, length = struct.unpack_from("!BH", data, at)
        at += 3
        if at + length > len(data):
            raise ProxyHeaderError("version 2: a TLV is longer than the header")
        if kind == _TLV_SSL and length >= 5:
            return bool(data[at] & _CLIENT_SSL)
        at += length
    return False
