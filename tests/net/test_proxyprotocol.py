"""PROXY protocol headers: what both versions say, for every cut, and what is none."""

from __future__ import annotations

import socket
import struct

import pytest

from nexus.errors import ProxyHeaderError
from nexus.wire.proxyprotocol import MAX_HEADER, ProxyHeader, parse_proxy_header

MAGIC = b"\r\n\r\n\x00\r\nQUIT\n"


def v2(command: int, family: int, payload: bytes, version: int = 2) -> bytes:
    return MAGIC + struct.pack("!BBH", version << 4 | command, family, len(payload)) + payload


INET = socket.inet_aton("192.0.2.7") + socket.inet_aton("10.0.0.1") + struct.pack("!HH", 1, 2)
INET6 = (
    socket.inet_pton(socket.AF_INET6, "2001:db8::7")
    + socket.inet_pton(socket.AF_INET6, "::1")
    + struct.pack("!HH", 1, 2)
)
SSL_TLV = b"\x20" + struct.pack("!HBI", 5, 1, 0)

GOOD = {
    b"PROXY TCP4 192.0.2.7 10.0.0.1 56324 443\r\n": ("192.0.2.7", False),
    b"PROXY TCP6 2001:DB8::7 ::1 0 65535\r\n": ("2001:db8::7", False),
    b"PROXY UNKNOWN\r\n": ("", False),
    b"PROXY UNKNOWN ffff::1 ffff::2 1 2\r\n": ("", False),
    v2(1, 0x11, INET): ("192.0.2.7", False),
    v2(1, 0x21, INET6): ("2001:db8::7", False),
    v2(1, 0x11, INET + b"\x04\x00\x02ab" + SSL_TLV): ("192.0.2.7", True),
    v2(0, 0x00, b""): ("", False),
    v2(0, 0x11, INET): ("", False),  # LOCAL: the addresses are to be ignored
    v2(1, 0x31, bytes(216)): ("", False),  # a unix socket
    v2(1, 0x12, INET): ("", False),  # datagrams
    v2(1, 0x00, b"anything"[:0]): ("", False),
}


@pytest.mark.parametrize("data", GOOD)
def test_what_a_header_says_for_every_cut(data: bytes) -> None:
    source, tls = GOOD[data]
    for cut in range(len(data)):
        assert parse_proxy_header(data[:cut]) is None, data[:cut]
    for behind in (b"", b"GET / HTTP/1.1\r\n\r\n", data):
        assert parse_proxy_header(data + behind) == ProxyHeader(len(data), source, tls)


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\n",
        b"\x16\x03\x01",
        b"proxy TCP4 192.0.2.7 10.0.0.1 1 2\r\n",
        b"PROXY TCP4 192.0.2.7 10.0.0.1 1\r\n",
        b"PROXY TCP4 192.0.2.7 10.0.0.1 1 2 3\r\n",
        b"PROXY  TCP4 192.0.2.7 10.0.0.1 1 2\r\n",
        b"PROXY TCP4 2001:db8::7 ::1 1 2\r\n",
        b"PROXY TCP6 192.0.2.7 10.0.0.1 1 2\r\n",
        b"PROXY TCP4 192.0.2.07 10.0.0.1 1 2\r\n",
        b"PROXY TCP4 192.0.2.7 10.0.0.1 01 2\r\n",
        b"PROXY TCP4 192.0.2.7 10.0.0.1 1 65536\r\n",
        b"PROXY TCP4 192.0.2.7 10.0.0.1 +1 2\r\n",
        b"PROXY \r\n",
        b"PROXY UNIX a b\r\n",
        b"PROXY UNKNOWN " + b"x" * 100,
        v2(1, 0x11, INET, version=1),
        v2(2, 0x11, INET),
        v2(1, 0x41, INET),
        v2(1, 0x13, INET),
        v2(1, 0x11, INET[:-1]),
        v2(1, 0x21, INET),
        v2(1, 0x11, INET + b"\x04\x00\x09ab"),
        v2(1, 0x11, INET + b"\x04\x00"),
        MAGIC + struct.pack("!BBH", 0x21, 0x11, MAX_HEADER),
        MAGIC[:-1] + b"\r",
    ],
)
def test_what_is_none(data: bytes) -> None:
    with pytest.raises(ProxyHeaderError):
        parse_proxy_header(data)
