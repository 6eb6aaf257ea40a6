"""Byte streams that try to make two parties see two different requests, and what becomes of each.

Written from RFC 9110, RFC 9112 and the published classes: CL.TE, TE.CL and TE.TE with their
obfuscations (Linhart et al. 2005; Kettle, *HTTP Desync Attacks* 2019 and *Browser-Powered Desync*
2022), 0.CL and early responses (2025), chunk terminators and extensions (TERM.EXT, EXT.TERM,
*Funky Chunks* 2025), response queue poisoning, hop-by-hop abuse, upgrades that are not.

Every attack is followed on its connection by :data:`HIDDEN`, which must never reach the upstream.
"""

# ruff: noqa: E501  (tables read better by the row)

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "http1"))

from http1_corpus import BAD_CHUNKS, BAD_REQUESTS, BAD_RESPONSES

HIDDEN = b"GET /api/hidden HTTP/1.1\r\nHost: a\r\n\r\n"
BEFORE = b"GET /api/before HTTP/1.1\r\nHost: a\r\n\r\n"
POST = b"POST /api/bad HTTP/1.1\r\nHost: a\r\n"


@dataclass(frozen=True)
class Attack:
    """``data`` is refused with ``status`` and ``reason`` and its connection closed."""

    name: str
    data: bytes
    status: int
    reason: str
    #: The head is fine and the body is not: part of it may have been streamed, never all of it.
    partial: bool = False


def _crafted(lines: bytes) -> bytes:
    """A body that is complete for who believes the length, and for who believes the encoding."""
    return POST + lines + b"\r\n\r\n0\r\n\r\n"


#: Field lines that some servers take for ``Transfer-Encoding: chunked``: wrong on their own.
TE_SYNTAX: list[tuple[bytes, str]] = [
    (b"Transfer-Encoding : chunked", "space_before_colon"),
    (b"Transfer-Encoding\t: chunked", "space_before_colon"),
    (b"Transfer-Encoding  : chunked", "space_before_colon"),
    (b"Transfer Encoding: chunked", "space_before_colon"),
    (b" Transfer-Encoding: chunked", "obs_fold"),
    (b"\tTransfer-Encoding: chunked", "obs_fold"),
    (b"Foo: bar\r\n Transfer-Encoding: chunked", "obs_fold"),
    (b"Foo: bar\r\n\tTransfer-Encoding: chunked", "obs_fold"),
    (b"Transfer-Encoding:\r\n chunked", "obs_fold"),
    (b"Transfer-Encoding:\r\n\tchunked", "obs_fold"),
    (b"Transfer-Encoding:\r\n \r\n chunked", "obs_fold"),
    (b"Transfer-Encoding: chunked\r\n , gzip", "obs_fold"),
    (b"Transfer-Encoding: identity\r\n , chunked", "obs_fold"),
    (b"Transfer-Encoding:\n chunked", "bare_lf"),
    (b"Transfer-Encoding: \n\x0bchunked", "bare_lf"),
    (b"Transfer-Encoding: \n\tchunked", "bare_lf"),
    (b"Transfer-Encoding\n : chunked", "bare_lf"),
    (b"Transfer-Encoding\n: chunked", "bare_lf"),
    (b"Foo: bar\nTransfer-Encoding: chunked", "bare_lf"),
    (b"Foo: bar\n\nTransfer-Encoding: chunked", "bare_lf"),
    (b"\nTransfer-Encoding: chunked", "bare_lf"),
    (b"Transfer-Encoding: chunked\nFoo: bar", "bare_lf"),
    (b"Foo: bar\rTransfer-Encoding: chunked", "bare_cr"),
    (b"Foo: bar\r\r\nTransfer-Encoding: chunked", "bare_cr"),
    (b"Foo: bar\r\n\rTransfer-Encoding: chunked", "bare_cr"),
    (b"\rTransfer-Encoding: chunked", "bare_cr"),
    (b"Transfer-Encoding\r: chunked", "bare_cr"),
    (b"Transfer-Encoding:\rchunked", "bare_cr"),
    (b"Transfer-Encoding: chunked\r", "bare_cr"),
    (b"Transfer-Encoding: chun\rked", "bare_cr"),
    (b"Transfer-Encoding\0: chunked", "nul_byte"),
    (b"\0Transfer-Encoding: chunked", "nul_byte"),
    (b"Transfer-Encoding:\0chunked", "nul_byte"),
    (b"Transfer-Encoding: chunked\0", "nul_byte"),
    (b"Transfer-Encoding: chunked\0identity", "nul_byte"),
    (b"Foo: bar\0Transfer-Encoding: chunked", "nul_byte"),
    (b"Transfer-Encoding\r\n: chunked", "bad_field_name"),
    (b"Transfer-Encoding", "bad_field_name"),
    (b"Transfer-Encoding chunked"[:17] + b"=chunked", "bad_field_name"),
    (b":Transfer-Encoding: chunked", "bad_field_name"),
    (b"Transfer-Encoding\x0b: chunked", "bad_field_name"),
    (b"Transfer-Encoding\xa0: chunked", "bad_field_name"),
    (b"\xa0Transfer-Encoding: chunked", "bad_field_name"),
    (b"Transf\x82r-Encoding: chunked", "bad_field_name"),
    (b"Transfer\\-Encoding: chunked", "bad_field_name"),
    (b'"Transfer-Encoding": chunked', "bad_field_name"),
    (b"Transfer\x1fEncoding: chunked", "bad_field_name"),
    (b"Transfer-Encoding:\x0bchunked", "bad_field_value"),
    (b"Transfer-Encoding:\x0cchunked", "bad_field_value"),
    (b"Transfer-Encoding: chunked\x0b", "bad_field_value"),
    (b"Transfer-Encoding: chunked\x0c", "bad_field_value"),
    (b"Transfer-Encoding: \x08chunked", "bad_field_value"),
    (b"Transfer-Encoding: \x1bchunked", "bad_field_value"),
    (b"Transfer-Encoding: \x1cchunked", "bad_field_value"),
    (b"Transfer-Encoding: chunked\x7f", "bad_field_value"),
]

#: Values of a proper ``Transfer-Encoding`` field that are not exactly ``chunked``.
TE_VALUES: list[tuple[bytes, int, str]] = [
    *(
        (value, 400, "bad_encoding")
        for value in (
            b"xchunked", b"chunk", b"chunkedx", b"x chunked", b"chunked x", b'"chunked"', b"'chunked'",
            b"chunked;q=1", b"chunked;foo=bar", b"chunked, identity", b"identity, chunked, identity",
            b"chunked, chunked", b"chunked,", b"chunked,,", b"identity", b"", b"\xffchunked",
            b"chunked\xa0", b"ch\x96nked", b"chunked\x85", b"\xe7hunked", b"chun\xe2\x84\xaaed",
            b"0chunked", b"chunked 0", b"chunked:", b":chunked", b"[chunked]", b"{chunked}",
            b"(x)chunked", b"gzip", b"chunked, x-custom", b"chunked\tx", b"=chunked", b"cow",
            b"chunked\r\nTransfer-Encoding: identity", b"chunked\r\nTransfer-encoding: cow",
            b"chunked\r\nTransfer-Encoding:", b"chunked\r\ntransfer-encoding: chunked",
            b"identity\r\nTransfer-Encoding: gzip",
        )
    ),
    *(
        (value, 501, "unsupported_encoding")
        for value in (
            b"identity, chunked", b",chunked", b", chunked", b"gzip, chunked", b"cow, chunked",
            b"x-gzip ,chunked", b"identity\r\nTransfer-Encoding: chunked",
            b"cow\r\nTransfer-Encoding: chunked", b"\r\nTransfer-Encoding: chunked",
        )
    ),
]  # fmt: skip

#: Field lines that some servers take for a length.
LENGTHS: list[tuple[bytes, str]] = [
    *(
        (b"Content-Length: " + value, "bad_length")
        for value in (
            b"+6", b"-6", b"+0", b"0x6", b"06h", b"6 6", b"6,6", b"6, 6", b"6;", b"6.0", b"6.", b".6",
            b"6e0", b"1_0", b"6\xa0", b"6\x85", b"\xa06", b"\xd9\xa6", b"\xef\xbc\x96", b"six",
            b'"6"', b"'6'", b"6 bytes", b"6=", b"(6)", b"6\t6", b"", b"9" * 19, b"0" * 18 + b"6",
            b"18446744073709551622", b"4294967296000000000000", b"6,", b",6", b"0,6", b"6%", b"%36",
            b"NaN", b"Infinity", b"true", b"null", b"6L", b"0b110", b"0o6", b"6-", b"--6", b"6+0",
        )
    ),
    (b"Content-Length: 0\r\nContent-Length: 6", "length_repeated"),
    (b"Content-Length: 6\r\nContent-Length: 6", "length_repeated"),
    (b"Content-Length: 6\r\nX: y\r\ncontent-length: 0", "length_repeated"),
    (b"Content-Length: 6\r\nContent-Length:", "length_repeated"),
    (b"Content-Length: 6\r\nContent-Length: +6", "length_repeated"),
    (b"Content-Length : 6", "space_before_colon"),
    (b"Content-Length\t: 6", "space_before_colon"),
    (b"Content Length: 6", "space_before_colon"),
    (b" Content-Length: 6", "obs_fold"),
    (b"X: y\r\n Content-Length: 6", "obs_fold"),
    (b"Content-Length:\r\n 6", "obs_fold"),
    (b"Content-Length: 0\r\n 6", "obs_fold"),
    (b"Content-Length:\n 6", "bare_lf"),
    (b"X: y\nContent-Length: 6", "bare_lf"),
    (b"Content-Length: 6\nX: y", "bare_lf"),
    (b"X: y\rContent-Length: 6", "bare_cr"),
    (b"Content-Length: 6\r", "bare_cr"),
    (b"Content-Length: 0\r6", "bare_cr"),
    (b"Content-Length: 6\0", "nul_byte"),
    (b"Content-Length\0: 6", "nul_byte"),
    (b"Content-Length: \x0b6", "bad_field_value"),
    (b"Content-Length: 6\x0c", "bad_field_value"),
    (b"Content-Length\xa0: 6", "bad_field_name"),
    (b"Content-Length=6", "bad_field_name"),
    (b"Content-Length\r\n: 6", "bad_field_name"),
]  # fmt: skip

#: Heads beside those of the kernel's own table, with a path that would be proxied.
HEADS: list[tuple[str, bytes, int, str]] = [
    ("absolute-form against Host", b"GET http://b/api/bad HTTP/1.1\r\nHost: a\r\n\r\n", 400, "host_mismatch"),
    ("absolute-form, Host with port", b"GET http://a/api/bad HTTP/1.1\r\nHost: a:81\r\n\r\n", 400, "host_mismatch"),
    ("absolute-form with user", b"GET http://u@a/api/bad HTTP/1.1\r\nHost: a\r\n\r\n", 400, "bad_target"),
    ("absolute-form, no authority", b"GET http:///api/bad HTTP/1.1\r\nHost: a\r\n\r\n", 400, "bad_target"),
    ("absolute-form, other scheme", b"GET gopher://a/api/bad HTTP/1.1\r\nHost: a\r\n\r\n", 400, "bad_target"),
    ("authority-form", b"GET a:80 HTTP/1.1\r\nHost: a:80\r\n\r\n", 400, "bad_target"),
    ("Host as a list", b"GET /api/bad HTTP/1.1\r\nHost: a b\r\n\r\n", 400, "bad_host"),
    ("Host with a path", b"GET /api/bad HTTP/1.1\r\nHost: a/b\r\n\r\n", 400, "bad_host"),
    ("Host with user", b"GET /api/bad HTTP/1.1\r\nHost: u@a\r\n\r\n", 400, "bad_host"),
    ("Host empty", b"GET /api/bad HTTP/1.1\r\nHost:\r\n\r\n", 400, "bad_host"),
    ("Host repeated, other case", b"GET /api/bad HTTP/1.1\r\nHost: a\r\nhOST: a\r\n\r\n", 400, "host_repeated"),
    ("Host twice around others", b"GET /api/bad HTTP/1.1\r\nHost: a\r\nX: y\r\nHost: b\r\n\r\n", 400, "host_repeated"),
    ("Host behind a fold", b"GET /api/bad HTTP/1.1\r\nX: y\r\n Host: a\r\n\r\n", 400, "obs_fold"),
    ("Host missing", b"GET /api/bad HTTP/1.1\r\nX: y\r\n\r\n", 400, "host_missing"),
    ("Host with space before the colon", b"GET /api/bad HTTP/1.1\r\nHost : a\r\n\r\n", 400, "space_before_colon"),
    ("request in the method", b"GET /api/hidden HTTP/1.1\rX / HTTP/1.1\r\nHost: a\r\n\r\n", 400, "bad_version"),
    ("request line twice", b"GET /api/bad HTTP/1.1 HTTP/1.1\r\nHost: a\r\n\r\n", 400, "bad_version"),
    ("encoded slash", b"GET /api%2fbad HTTP/1.1\r\nHost: a\r\n\r\n", 400, "bad_path"),
    ("encoded slash upwards", b"GET /api/..%2f..%2fetc HTTP/1.1\r\nHost: a\r\n\r\n", 400, "bad_path"),
    ("encoded backslash", b"GET /api/..%5cbad HTTP/1.1\r\nHost: a\r\n\r\n", 400, "bad_path"),
    ("encoded NUL", b"GET /api/bad%00.json HTTP/1.1\r\nHost: a\r\n\r\n", 400, "bad_path"),
    ("dots above the root", b"GET /api/../../bad HTTP/1.1\r\nHost: a\r\n\r\n", 400, "path_escapes_root"),
    ("encoded dots above the root", b"GET /api/%2e%2e/%2E./bad HTTP/1.1\r\nHost: a\r\n\r\n", 400, "path_escapes_root"),
    ("overlong UTF-8 backslash", b"GET /api/\xc0\xaf HTTP/1.1\r\nHost: a\r\n\r\n", 400, "bad_start_line"),
    ("fragment", b"GET /api/bad#x HTTP/1.1\r\nHost: a\r\n\r\n", 400, "bad_target"),
    ("1.0 and chunked", b"POST /api/bad HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400, "encoding_in_http10"),
    ("1.0 keep-alive and chunked", b"POST /api/bad HTTP/1.0\r\nConnection: keep-alive\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400, "encoding_in_http10"),
    ("HTTP/1.1 in lower case", b"GET /api/bad Http/1.1\r\nHost: a\r\n\r\n", 400, "bad_version"),
    ("HTTP/2 preface", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505, "unsupported_version"),
    ("Connection: Transfer-Encoding", POST + b"Connection: Transfer-Encoding\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400, "nominates_end_to_end"),
    ("Connection: Content-Length", POST + b"Connection: close, Content-Length\r\nContent-Length: 5\r\n\r\n0\r\n\r\n", 400, "nominates_end_to_end"),
    ("Connection: Host", POST + b"Connection: hOsT\r\n\r\n", 400, "nominates_end_to_end"),
    ("Connection: Cookie", POST + b"Connection: cookie\r\n\r\n", 400, "nominates_end_to_end"),
    ("Connection: X-Forwarded-For", POST + b"Connection: keep-alive, X-Forwarded-For\r\n\r\n", 400, "nominates_end_to_end"),
    ("Connection with a colon", POST + b"Connection: X:\r\n\r\n", 400, "bad_connection"),
    ("Expect obfuscated", POST + b"Expect: y 100-continue\r\nContent-Length: 5\r\n\r\n", 417, "expectation_failed"),
]  # fmt: skip


def _kernel_heads() -> list[Attack]:
    # A path that would be proxied, were the request believed.
    return [
        Attack(f"head: {name}", data.replace(b" / HTTP", b" /api/bad HTTP", 1), status, reason)
        for name, data, status, reason in BAD_REQUESTS
    ]


def _encodings() -> list[Attack]:
    attacks = []
    for line, reason in TE_SYNTAX:
        attacks += [
            Attack(f"TE {line!r}", _crafted(line), 400, reason),
            Attack(f"CL + TE {line!r}", _crafted(b"Content-Length: 5\r\n" + line), 400, reason),
            Attack(f"TE {line!r} + CL", _crafted(line + b"\r\nContent-Length: 5"), 400, reason),
        ]
    for value, status, reason in TE_VALUES:
        line = b"Transfer-Encoding: " + value
        both = (400, "length_and_encoding")
        attacks += [
            Attack(f"TE {line!r}", _crafted(line), status, reason),
            Attack(f"CL + TE {line!r}", _crafted(b"Content-Length: 5\r\n" + line), *both),
            Attack(f"TE {line!r} + CL", _crafted(line + b"\r\nContent-Length: 5"), *both),
        ]
    return attacks


def _bodies() -> list[Attack]:
    head = POST + b"Transfer-Encoding: chunked\r\n\r\n"
    return [
        Attack(f"chunks: {name}", head + data, 400, reason, partial=True)
        for name, data, reason in BAD_CHUNKS
    ]


ATTACKS: list[Attack] = [
    *_kernel_heads(),
    *(Attack(f"stream: {name}", data, status, why) for name, data, status, why in HEADS),
    *_encodings(),
    *(Attack(f"CL {line!r}", _crafted(line), 400, reason) for line, reason in LENGTHS),
    *_bodies(),
]


@dataclass(frozen=True)
class Valid:
    """``data`` is answered ``statuses`` in order; the upstream sees exactly ``reached``."""

    name: str
    data: bytes
    #: (method, target, body)
    reached: tuple[tuple[str, str, bytes], ...]
    statuses: tuple[int, ...] = ()
    closes: bool = False


def _post(*lines: bytes, body: bytes = b"", path: bytes = b"/api/v") -> bytes:
    return b"\r\n".join([b"POST " + path + b" HTTP/1.1", b"Host: a", *lines, b"", b""]) + body


_V = (("POST", "/v", b"0\r\n\r\n"),)
_CHUNKED = b"Transfer-Encoding: chunked"
_SECOND = b"GET /api/second HTTP/1.1\r\nHost: a\r\n\r\n"
_2ND = ("GET", "/second", b"")

#: What looks alike and is right.
VALID: list[Valid] = [
    Valid("length", _post(b"Content-Length: 5", body=b"0\r\n\r\n"), _V),
    Valid("length with zeros", _post(b"Content-Length: 0005", body=b"0\r\n\r\n"), _V),
    Valid("length with white space", _post(b"Content-Length:\t 5 \t", body=b"0\r\n\r\n"), _V),
    Valid("length without space", _post(b"content-LENGTH:5", body=b"0\r\n\r\n"), _V),
    Valid("chunked", _post(_CHUNKED, body=b"5\r\n0\r\n\r\n\r\n0\r\n\r\n"), _V),
    Valid("chunked in other case", _post(b"TrAnSFer-EnCODinG:\tcHuNkeD ", body=b"5\r\n0\r\n\r\n\r\n0\r\n\r\n"), _V),
    Valid("upper-case sizes", _post(_CHUNKED, body=b"A\r\n0123456789\r\n0\r\n\r\n"), (("POST", "/v", b"0123456789"),)),
    Valid("zeros before a size", _post(_CHUNKED, body=b"00002\r\nhi\r\n000\r\n\r\n"), (("POST", "/v", b"hi"),)),
    Valid("extensions", _post(_CHUNKED, body=b'2;a=b;c="d e"\r\nhi\r\n0;x\r\n\r\n'), (("POST", "/v", b"hi"),)),
    Valid("trailers", _post(_CHUNKED, body=b"2\r\nhi\r\n0\r\nA: b\r\nContent-Length: 9\r\nC:\r\n\r\n"), (("POST", "/v", b"hi"),)),
    Valid("trailer that names an encoding", _post(_CHUNKED, body=b"0\r\nTransfer-Encoding: chunked\r\n\r\n") + _SECOND, (("POST", "/v", b""), _2ND)),
    Valid("a request inside a length", _post(b"Content-Length: %d" % len(HIDDEN), body=HIDDEN), (("POST", "/v", HIDDEN),)),
    Valid("a request inside a chunk", _post(_CHUNKED, body=b"%x\r\n%b\r\n0\r\n\r\n" % (len(HIDDEN), HIDDEN)), (("POST", "/v", HIDDEN),)),
    Valid("the end of chunks inside a chunk", _post(_CHUNKED, body=b"c\r\n\r\n0\r\n\r\nGET /\r\n0\r\n\r\n"), (("POST", "/v", b"\r\n0\r\n\r\nGET /"),)),
    Valid("GET with a body", b"GET /api/v HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n%b" % (len(HIDDEN), HIDDEN), (("GET", "/v", HIDDEN),)),
    Valid("GET with chunks", b"GET /api/v HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n", (("GET", "/v", b"hi"),)),
    Valid("DELETE with a body", b"DELETE /api/v HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nhi", (("DELETE", "/v", b"hi"),)),
    Valid("empty body, then another", _post(b"Content-Length: 0") + _SECOND, (("POST", "/v", b""), _2ND)),
    Valid("no body, then another", _post() + _SECOND, (("POST", "/v", b""), _2ND)),
    Valid("body, then another", _post(b"Content-Length: 2", body=b"hi") + _SECOND, (("POST", "/v", b"hi"), _2ND)),
    Valid("chunks, then another", _post(_CHUNKED, body=b"2\r\nhi\r\n0\r\n\r\n") + _SECOND, (("POST", "/v", b"hi"), _2ND)),
    Valid("an empty line between", _post(b"Content-Length: 2", body=b"hi") + b"\r\n" + _SECOND, (("POST", "/v", b"hi"), _2ND)),
    Valid("an empty line first", b"\r\n" + _SECOND, (_2ND,)),
    Valid("nothing is read behind close", _SECOND.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n") + HIDDEN, (_2ND,), closes=True),
    Valid("nothing is read behind 1.0", b"GET /api/second HTTP/1.0\r\n\r\n" + HIDDEN, (_2ND,), closes=True),
    Valid("1.0 that is kept", b"GET /api/v HTTP/1.0\r\nConnection: keep-alive\r\n\r\n" + _SECOND, (("GET", "/v", b""), _2ND)),
    Valid("expectation, body at once", _post(b"Expect: 100-continue", b"Content-Length: 5", body=b"0\r\n\r\n") + _SECOND, (*_V, _2ND)),
    Valid("expectation without a body", b"GET /api/v HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\n\r\n" + _SECOND, (("GET", "/v", b""), _2ND)),
    Valid("h2c is no upgrade", b"GET /api/v HTTP/1.1\r\nHost: a\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA\r\n\r\n" + _SECOND, (("GET", "/v", b""), _2ND)),
    Valid("an upgrade that is not accepted", b"GET /api/v HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 777\r\n\r\n" + _SECOND, (("GET", "/v", b""), _2ND)),
    Valid("underscores are no hyphens", _post(b"Content-Length: 5", b"Transfer_Encoding: chunked", b"Content_Length: 0", body=b"0\r\n\r\n"), _V),
    Valid("other names", _post(b"Content-Length: 5", b"X-Transfer-Encoding: chunked", b"Transfer-%45ncoding: chunked", b"Content-Encoding: chunked", b"TE: chunked", body=b"0\r\n\r\n"), _V),
    Valid("absolute-form", b"GET http://a/api/v?x HTTP/1.1\r\nHost: a\r\n\r\n", (("GET", "/v?x", b""),)),
    Valid("absolute-form in other case", b"GET HTTP://A/api/v HTTP/1.1\r\nHost: a\r\n\r\n", (("GET", "/v", b""),)),
    Valid("dots inside", b"GET /api/x/../v HTTP/1.1\r\nHost: a\r\n\r\n", (("GET", "/v", b""),)),
    Valid("dots that leave the route", b"GET /api/../health HTTP/1.1\r\nHost: a\r\n\r\n", (), (200,)),
    Valid("encoded dots that leave the route", b"GET /api/%2e%2e/health HTTP/1.1\r\nHost: a\r\n\r\n", (), (200,)),
    Valid("matrix parameters", b"GET /api/..;/health HTTP/1.1\r\nHost: a\r\n\r\n", (("GET", "/..;/health", b""),)),
    Valid("encoded twice", b"GET /api/%252e%252e%252fv HTTP/1.1\r\nHost: a\r\n\r\n", (("GET", "/%252e%252e%252fv", b""),)),
    Valid("slashes in the query", b"GET /api/v?../..%2f HTTP/1.1\r\nHost: a\r\n\r\n", (("GET", "/v?../..%2f", b""),)),
    Valid("8-bit field value", b"GET /api/v HTTP/1.1\r\nHost: a\r\nX: \xe4\xff\r\n\r\n", (("GET", "/v", b""),)),
    Valid("TRACE is not passed on", b"TRACE /api/v HTTP/1.1\r\nHost: a\r\n\r\n" + _SECOND, (_2ND,), (405, 200)),
    Valid("methods are case-sensitive", b"get /api/v HTTP/1.1\r\nHost: a\r\n\r\n" + _SECOND, (_2ND,), (405, 200)),
    Valid("server-wide OPTIONS", b"OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n" + _SECOND, (_2ND,), (404, 200)),
]  # fmt: skip


@dataclass(frozen=True)
class BadAnswer:
    """An upstream's ``pieces`` are answered 502 with ``reason``, and nobody is used again."""

    name: str
    pieces: tuple[bytes, ...]
    reason: str
    method: str = "GET"
    #: Where the head is fine and the body is not, the client is told only if both come at once.
    at_once: bool = False


def _answers() -> list[BadAnswer]:
    ok = b"HTTP/1.1 200 OK\r\n"
    cases = [
        BadAnswer(f"kernel: {n}", (data,), f"upstream_{why}") for n, data, why in BAD_RESPONSES
    ]
    more: list[tuple[str, bytes, str]] = [
        *(
            (f"length {v!r}", ok + b"Content-Length: " + v + b"\r\n\r\nhello", "bad_length")
            for v in (b"+5", b"-5", b"0x5", b"5,5", b"5 5", b"", b"5.0", b"9" * 19, b"five", b"5;")
        ),
        *(
            (f"encoding {v!r}", ok + b"Transfer-Encoding: " + v + b"\r\n\r\n0\r\n\r\n", "bad_encoding")
            for v in (b"", b"identity", b"xchunked", b"chunked, gzip", b"chunked, chunked", b'"chunked"')
        ),
        ("length in two cases", ok + b"Content-Length: 2\r\ncontent-length: 3\r\n\r\nokk", "length_repeated"),
        ("encoding with a length", ok + b"Transfer-Encoding: chunked\r\nContent-Length: 0\r\n\r\n0\r\n\r\n", "length_and_encoding"),
        ("field with a bare LF", ok + b"A: b\nSet-Cookie: x=y\r\nContent-Length: 0\r\n\r\n", "bare_lf"),
        ("field with a bare CR", ok + b"A: b\rSet-Cookie: x=y\r\nContent-Length: 0\r\n\r\n", "bare_cr"),
        ("folded length", ok + b"A: b\r\n Content-Length: 5\r\n\r\n", "obs_fold"),
        ("space before the colon of a length", ok + b"Content-Length : 0\r\n\r\n", "space_before_colon"),
        ("NUL in a name", ok + b"A\0: b\r\n\r\n", "nul_byte"),
        ("no colon", ok + b"garbage\r\n\r\n", "bad_field_name"),
        ("control in a value", ok + b"A: \x01\r\n\r\n", "bad_field_value"),
        ("HTTP/1.0 and chunked", b"HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", "encoding_in_http10"),
        ("HTTP/0.9", b"<html>hello</html>\r\n\r\n", "bad_status_line"),
        ("body of an earlier response", b"hello" + ok + b"Content-Length: 0\r\n\r\n", "bad_status_line"),
        ("signed status", b"HTTP/1.1 +20 OK\r\n\r\n", "bad_status_line"),
        ("status in hexadecimals", b"HTTP/1.1 0xC OK\r\n\r\n", "bad_status_line"),
        ("ICY", b"ICY 200 OK\r\n\r\n", "bad_status_line"),
        ("101 that nobody asked for", b"HTTP/1.1 101 X\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n", "unasked_upgrade"),
        ("many interim responses", b"HTTP/1.1 102 X\r\n\r\n" * 40 + ok + b"Content-Length: 0\r\n\r\n", "too_many_1xx"),
        ("interim response with a body", b"HTTP/1.1 102 X\r\nContent-Length: 5\r\n\r\nhello" + ok + b"\r\n", "bad_status_line"),
        ("bad interim response", b"HTTP/1.1 103 X\r\nA : b\r\n\r\n" + ok + b"Content-Length: 0\r\n\r\n", "space_before_colon"),
        ("chunk: bad size", ok + b"Transfer-Encoding: chunked\r\n\r\n0x5\r\nhello\r\n0\r\n\r\n", "bad_chunk_size"),
        ("chunk: bad end", ok + b"Transfer-Encoding: chunked\r\n\r\n2\r\nhello\r\n0\r\n\r\n", "bad_chunk_end"),
    ]  # fmt: skip
    cases += [
        BadAnswer(name, (data,), f"upstream_{why}", at_once=name.startswith("chunk: "))
        for name, data, why in more
    ]
    return cases


BAD_ANSWERS: list[BadAnswer] = _answers()
