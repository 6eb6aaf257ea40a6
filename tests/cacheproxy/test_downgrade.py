"""RESP3 replies as RESP2 clients get them."""

from __future__ import annotations

import pytest

from nexus.errors import RespError
from nexus.wire.downgrade import downgrade


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        (b"$3\r\na\r\n\r\n", b"$3\r\na\r\n\r\n"),
        (b"+OK\r\n", b"+OK\r\n"),
        (b"-ERR no\r\n", b"-ERR no\r\n"),
        (b":-7\r\n", b":-7\r\n"),
        (b"_\r\n", b"$-1\r\n"),
        (b",1.5\r\n", b"$3\r\n1.5\r\n"),
        (b"(12345678901234567890\r\n", b"$20\r\n12345678901234567890\r\n"),
        (b"#t\r\n", b":1\r\n"),
        (b"#f\r\n", b":0\r\n"),
        (b"=7\r\ntxt:abc\r\n", b"$3\r\nabc\r\n"),
        (b"!5\r\nERR x\r\n", b"-ERR x\r\n"),
        (b"%1\r\n$1\r\na\r\n,2\r\n", b"*2\r\n$1\r\na\r\n$1\r\n2\r\n"),
        (b"~2\r\n_\r\n*1\r\n~0\r\n", b"*2\r\n$-1\r\n*1\r\n*0\r\n"),
        (b"*2\r\n$2\r\n\r\n\r\n+OK\r\n", b"*2\r\n$2\r\n\r\n\r\n+OK\r\n"),
    ],
)
def test_each_type(reply: bytes, expected: bytes):
    assert downgrade(reply) == expected


@pytest.mark.parametrize("bad", [b"", b"*1\r\n", b"_\r\n_\r\n", b"?1\r\n", b"%1\r\n_\r\n"])
def test_what_is_not_one_reply(bad: bytes):
    with pytest.raises(RespError):
        downgrade(bad)
