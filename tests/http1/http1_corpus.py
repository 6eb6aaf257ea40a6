# ruff: noqa: E501  (one case per line reads better than wrapped bytes)
"""Malformed and ambiguous messages with what each is refused for, and valid ones with what they mean.

Written from RFC 9110, RFC 9112 and the published classes of request smuggling. Each bad request is
(name, bytes, status, reason); it must be refused so however its bytes are split over reads.
"""

from __future__ import annotations

H = b"Host: a\r\n"
GET = b"GET / HTTP/1.1\r\n" + H
POST = b"POST / HTTP/1.1\r\n" + H


def _head(*lines: bytes, start: bytes = b"GET / HTTP/1.1", host: bytes = b"Host: a") -> bytes:
    return b"\r\n".join([start, *([host] if host else []), *lines, b"", b""])


def _controls() -> list[tuple[str, bytes, int, str]]:
    cases = []
    for byte in [*range(1, 9), 0x0B, 0x0C, *range(0x0E, 0x20), 0x7F]:
        raw = bytes([byte])
        cases += [
            (f"control {byte:#x} in value", _head(b"X: a" + raw + b"b"), 400, "bad_field_value"),
            (f"control {byte:#x} in name", _head(b"X" + raw + b": a"), 400, "bad_field_name"),
            (
                f"control {byte:#x} in target",
                _head(start=b"GET /" + raw + b" HTTP/1.1"),
                400,
                "bad_start_line",
            ),
        ]
    return cases


def _delimiters() -> list[tuple[str, bytes, int, str]]:
    cases = []
    for byte in b'"(),/;<=>?@[\\]{}' + bytes(range(0x80, 0x100, 17)):
        raw = bytes([byte])
        cases += [
            (f"{raw!r} in name", _head(b"X" + raw + b"Y: a"), 400, "bad_field_name"),
            (f"{raw!r} in method", _head(start=b"G" + raw + b" / HTTP/1.1"), 400, "bad_start_line"),
        ]
    return cases


def _lengths() -> list[tuple[str, bytes, int, str]]:
    bad = [
        b"", b"+5", b"-5", b"-0", b"5,5", b"5, 5", b"5 5", b"0x5", b"5.0", b"5e1", b"1_0", b"five",
        b"5;", b'"5"', b"9" * 19, b"0" * 19, b"5\t5", "\u0665".encode(), b"\xb2", b",5", b"5,",
    ]  # fmt: skip
    return [
        (
            f"length {v[:12]!r}",
            _head(b"Content-Length: " + v, start=b"POST / HTTP/1.1"),
            400,
            "bad_length",
        )
        for v in bad
    ]


def _encodings() -> list[tuple[str, bytes, int, str]]:
    bad = [
        b"", b"identity", b"gzip", b"xchunked", b"chunkedx", b"chunk", b"chunked, chunked",
        b"chunked, gzip", b"chunked, identity", b"chunked;q=1", b'"chunked"', b"chunked,", b",",
        b"chunked\x0b"[:7] + b" x", b"c hunked", b"chunked chunked", b"chunked, gzip, chunked",
    ]  # fmt: skip
    unsupported = [
        b"gzip, chunked", b"deflate,chunked", b"identity, chunked", b", chunked", b"x, y, chunked",
        b"gzip;a=b, chunked", b"compress , chunked",
    ]  # fmt: skip

    def case(value: bytes, status: int, reason: str) -> tuple[str, bytes, int, str]:
        head = _head(b"Transfer-Encoding: " + value, start=b"POST / HTTP/1.1")
        return (f"encoding {value!r}", head, status, reason)

    return [case(v, 400, "bad_encoding") for v in bad] + [
        case(v, 501, "unsupported_encoding") for v in unsupported
    ]


def _hosts() -> list[tuple[str, bytes, int, str]]:
    bad = [
        b"", b"a b", b"a,b", b"a/b", b"a?b", b"a#b", b"user@a", b"a:b", b"a:80:80", b"a:99999",
        b"a:123456", b"[::1", b"::1", b"[::1]x", b"[::1]:x", b"a\\b", b"http://a", b"a%", b"a%2",
        b"a%zz", b"<a>", b"a\xff", b"a|b", b"a^b", b"a`b", b'"a"', b"[g::]", b"a" * 256, b"[]",
        b":80", b"a:-1", b"a:+1", b"a: 80",
    ]  # fmt: skip
    return [
        (f"host {v[:12]!r}", _head(host=b"Host: " + v), 400, "bad_host")
        for v in bad
        if b"," not in v
    ]


def _nominations() -> list[tuple[str, bytes, int, str]]:
    known = [
        b"authorization", b"Cookie", b"host", b"content-length", b"Content-Type", b"content-custom",
        b"X-Forwarded-For", b"x-forwarded-whatever", b"set-cookie", b"x-request-id", b"etag",
        b"cache-control", b"transfer-encoding", b"traceparent", b"x-internal-secret", b"expect",
        b"idempotency-key", b"x-real-ip", b"forwarded", b"via", b"date", b"origin",
    ]  # fmt: skip
    return [
        (f"nominates {v!r}", _head(b"Connection: close, " + v), 400, "nominates_end_to_end")
        for v in known
    ]


def _paths() -> list[tuple[str, bytes, int, str]]:
    bad = [
        b"/%", b"/%2", b"/%zz", b"/a%2fb", b"/a%2Fb", b"/a%5cb", b"/a%5Cb", b"/%00", b"/a\\b",
        b"/%2e%2e%2f", b"/a%", b"/%g0",
    ]  # fmt: skip
    escaping = [b"/..", b"/../", b"/a/../..", b"/%2e%2e/", b"/.%2e", b"/a/%2e%2E/../b", b"//../x"]
    targets = [b"a", b"?x", b"*", b"a.b/c", b"ftp://a/", b"://a", b"http:/a", b"/a#b", b"/?a#b",
               b"http://u@a/", b"http://u:p@a/", b"a:80"]  # fmt: skip
    return (
        [(f"path {p!r}", _head(start=b"GET " + p + b" HTTP/1.1"), 400, "bad_path") for p in bad]
        + [
            (f"path {p!r}", _head(start=b"GET " + p + b" HTTP/1.1"), 400, "path_escapes_root")
            for p in escaping
        ]
        + [
            (f"target {t!r}", _head(start=b"GET " + t + b" HTTP/1.1"), 400, "bad_target")
            for t in targets
        ]
    )


BAD_REQUESTS: list[tuple[str, bytes, int, str]] = [
    # --- line ends (RFC 9112 §2.2)
    ("bare LF after request line", b"GET / HTTP/1.1\nHost: a\r\n\r\n", 400, "bare_lf"),
    ("bare LF everywhere", b"GET / HTTP/1.1\nHost: a\n\n", 400, "bare_lf"),
    ("bare LF after field", GET + b"X: a\nY: b\r\n\r\n", 400, "bare_lf"),
    ("bare LF as the empty line", GET + b"\n", 400, "bare_lf"),
    ("bare LF hides a field", GET + b"X: a\nTransfer-Encoding: chunked\r\n\r\n", 400, "bare_lf"),
    ("LF first", b"\nGET / HTTP/1.1\r\nHost: a\r\n\r\n", 400, "bare_lf"),
    ("LF after the leading CRLF", b"\r\n\nGET / HTTP/1.1\r\nHost: a\r\n\r\n", 400, "bare_lf"),
    ("two leading CRLF", b"\r\n\r\n" + GET + b"\r\n", 400, "bare_cr"),
    ("CR first", b"\rGET / HTTP/1.1\r\nHost: a\r\n\r\n", 400, "bare_cr"),
    ("bare CR in value", GET + b"X: a\rb\r\n\r\n", 400, "bare_cr"),
    ("bare CR hides a field", GET + b"X: a\rContent-Length: 5\r\n\r\n", 400, "bare_cr"),
    ("CR CR LF", GET + b"X: a\r\r\n\r\n", 400, "bare_cr"),
    ("bare CR in name", GET + b"X\rY: a\r\n\r\n", 400, "bare_cr"),
    ("bare CR in method", b"GE\rT / HTTP/1.1\r\nHost: a\r\n\r\n", 400, "bare_cr"),
    ("bare CR in target", b"GET /\ra HTTP/1.1\r\nHost: a\r\n\r\n", 400, "bare_cr"),
    ("CR before the version", b"GET /\rHTTP/1.1\r\nHost: a\r\n\r\n", 400, "bare_cr"),
    ("NUL in value", GET + b"X: a\0b\r\n\r\n", 400, "nul_byte"),
    ("NUL in name", GET + b"X\0: a\r\n\r\n", 400, "nul_byte"),
    ("NUL in target", b"GET /\0 HTTP/1.1\r\nHost: a\r\n\r\n", 400, "nul_byte"),
    ("NUL in method", b"G\0T / HTTP/1.1\r\nHost: a\r\n\r\n", 400, "nul_byte"),
    ("NUL first", b"\0GET / HTTP/1.1\r\nHost: a\r\n\r\n", 400, "nul_byte"),
    ("NUL in length", POST + b"Content-Length: 5\0\r\n\r\n", 400, "nul_byte"),
    # --- request line (RFC 9112 §3)
    ("TLS hello", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400, "bad_start_line"),
    ("leading space", b" GET / HTTP/1.1\r\nHost: a\r\n\r\n", 400, "bad_start_line"),
    ("leading tab", b"\tGET / HTTP/1.1\r\nHost: a\r\n\r\n", 400, "bad_start_line"),
    ("two spaces after method", _head(start=b"GET  / HTTP/1.1"), 400, "bad_start_line"),
    ("tab after method", _head(start=b"GET\t/ HTTP/1.1"), 400, "bad_start_line"),
    ("two spaces before version", _head(start=b"GET /  HTTP/1.1"), 400, "bad_version"),
    ("tab before version", _head(start=b"GET /\tHTTP/1.1"), 400, "bad_start_line"),
    ("space in target", _head(start=b"GET /a b HTTP/1.1"), 400, "bad_version"),
    ("trailing space", _head(start=b"GET / HTTP/1.1 "), 400, "bad_version"),
    ("trailing tab", _head(start=b"GET / HTTP/1.1\t"), 400, "bad_version"),
    ("HTTP/0.9", b"GET /\r\n\r\n", 400, "bad_start_line"),
    ("method alone", b"GET\r\n\r\n", 400, "bad_start_line"),
    ("method and space", b"GET \r\n\r\n", 400, "bad_start_line"),
    ("no version", b"GET / \r\n\r\n", 400, "bad_version"),
    ("lower-case version", _head(start=b"GET / http/1.1"), 400, "bad_version"),
    ("version 1", _head(start=b"GET / HTTP/1"), 400, "bad_version"),
    ("version 1.", _head(start=b"GET / HTTP/1."), 400, "bad_version"),
    ("version 1.10", _head(start=b"GET / HTTP/1.10"), 400, "bad_version"),
    ("version 01.1", _head(start=b"GET / HTTP/01.1"), 400, "bad_version"),
    ("version 1,1", _head(start=b"GET / HTTP/1,1"), 400, "bad_version"),
    ("version x.y", _head(start=b"GET / HTTP/x.y"), 400, "bad_version"),
    ("other protocol", _head(start=b"GET / ICAP/1.0"), 400, "bad_version"),
    ("version 2.0", _head(start=b"GET / HTTP/2.0"), 505, "unsupported_version"),
    ("version 1.2", _head(start=b"GET / HTTP/1.2"), 505, "unsupported_version"),
    ("version 0.9", _head(start=b"GET / HTTP/0.9"), 505, "unsupported_version"),
    ("version 3.0", _head(start=b"GET / HTTP/3.0"), 505, "unsupported_version"),
    ("HTTP/2 preface", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505, "unsupported_version"),
    ("long method", _head(start=b"A" * 33 + b" / HTTP/1.1"), 400, "bad_method"),
    ("CONNECT", b"CONNECT a:80 HTTP/1.1\r\nHost: a:80\r\n\r\n", 501, "connect_unsupported"),
    ("8-bit target", _head(start=b"GET /\xe4 HTTP/1.1"), 400, "bad_start_line"),
    ("DEL in target", _head(start=b"GET /\x7f HTTP/1.1"), 400, "bad_start_line"),
    ("long request line", b"GET /" + b"a" * 8200 + b" HTTP/1.1\r\nHost: a\r\n\r\n", 414, "uri_too_long"),
    ("endless request line", b"GET /" + b"a" * 9000, 414, "uri_too_long"),
    # --- field lines (RFC 9112 §5)
    ("obs-fold", GET + b"X: a\r\n b\r\n\r\n", 400, "obs_fold"),
    ("obs-fold with tab", GET + b"X: a\r\n\tb\r\n\r\n", 400, "obs_fold"),
    ("fold on the first field", b"GET / HTTP/1.1\r\n Host: a\r\n\r\n", 400, "obs_fold"),
    ("fold hides a length", POST + b"X: a\r\n Content-Length: 5\r\n\r\n", 400, "obs_fold"),
    ("line of spaces", GET + b"  \r\n\r\n", 400, "obs_fold"),
    ("space before colon", GET + b"X : a\r\n\r\n", 400, "space_before_colon"),
    ("tab before colon", GET + b"X\t: a\r\n\r\n", 400, "space_before_colon"),
    ("space before colon of length", POST + b"Content-Length : 5\r\n\r\n", 400, "space_before_colon"),
    ("space before colon of TE", POST + b"Transfer-Encoding : chunked\r\n\r\n", 400, "space_before_colon"),
    ("space inside name", GET + b"X Y: a\r\n\r\n", 400, "space_before_colon"),
    ("no colon", GET + b"garbage\r\n\r\n", 400, "bad_field_name"),
    ("empty name", GET + b": a\r\n\r\n", 400, "bad_field_name"),
    ("lone colon", GET + b":\r\n\r\n", 400, "bad_field_name"),
    ("8-bit name", GET + b"X\xff: a\r\n\r\n", 400, "bad_field_name"),
    ("101 fields", GET + b"X: a\r\n" * 100 + b"\r\n", 431, "too_many_fields"),
    ("head too large", GET + b"X: " + b"a" * 33000 + b"\r\n\r\n", 431, "head_too_large"),
    ("head too large over many lines", GET + (b"X: " + b"a" * 500 + b"\r\n") * 80, 431, "head_too_large"),
    ("endless head", GET + b"X: " + b"a" * 33000, 431, "head_too_large"),
    # --- host (RFC 9112 §3.2)
    ("no host", b"GET / HTTP/1.1\r\n\r\n", 400, "host_missing"),
    ("two hosts", GET + b"Host: a\r\n\r\n", 400, "host_repeated"),
    ("two different hosts", GET + b"Host: b\r\n\r\n", 400, "host_repeated"),
    ("two hosts in 1.0", b"GET / HTTP/1.0\r\nHost: a\r\nHost: a\r\n\r\n", 400, "host_repeated"),
    ("bad host in 1.0", b"GET / HTTP/1.0\r\nHost: a b\r\n\r\n", 400, "bad_host"),
    ("absolute-form against host", b"GET http://b/ HTTP/1.1\r\nHost: a\r\n\r\n", 400, "host_mismatch"),
    ("absolute-form, other port", b"GET http://a:81/ HTTP/1.1\r\nHost: a\r\n\r\n", 400, "host_mismatch"),
    ("absolute-form without host", b"GET http://a/ HTTP/1.1\r\n\r\n", 400, "host_missing"),
    ("absolute-form, bad authority", b"GET http://a:b/ HTTP/1.1\r\nHost: a\r\n\r\n", 400, "bad_host"),
    # --- framing (RFC 9112 §6)
    ("CL and TE", POST + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n", 400, "length_and_encoding"),
    ("TE and CL", POST + b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n", 400, "length_and_encoding"),
    ("CL 0 and TE", POST + b"Content-Length: 0\r\nTransfer-Encoding: chunked\r\n\r\n", 400, "length_and_encoding"),
    ("CL and unknown TE", POST + b"Content-Length: 5\r\nTransfer-Encoding: x\r\n\r\n", 400, "length_and_encoding"),
    ("TE in HTTP/1.0", b"POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n", 400, "encoding_in_http10"),
    ("two equal lengths", POST + b"Content-Length: 5\r\nContent-Length: 5\r\n\r\n", 400, "length_repeated"),
    ("two lengths", POST + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\n", 400, "length_repeated"),
    ("three lengths", POST + b"Content-Length: 5\r\n" * 3 + b"\r\n", 400, "length_repeated"),
    ("two lengths in different case", POST + b"Content-Length: 5\r\ncontent-length: 5\r\n\r\n", 400, "length_repeated"),
    ("chunked twice in two lines", POST + b"Transfer-Encoding: chunked\r\n" * 2 + b"\r\n", 400, "bad_encoding"),
    ("chunked, then gzip", POST + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: gzip\r\n\r\n", 400, "bad_encoding"),
    ("gzip, then chunked", POST + b"Transfer-Encoding: gzip\r\nTransfer-Encoding: chunked\r\n\r\n", 501, "unsupported_encoding"),
    # --- connection, authorization, expect
    ("connection not a token", GET + b"Connection: a b\r\n\r\n", 400, "bad_connection"),
    ("connection quoted", GET + b'Connection: "close"\r\n\r\n', 400, "bad_connection"),
    ("connection too long", GET + b"Connection: " + b"a," * 17 + b"\r\n\r\n", 400, "bad_connection"),
    ("nominates in a second line", GET + b"Connection: close\r\nConnection: cookie\r\n\r\n", 400, "nominates_end_to_end"),
    ("two authorizations", GET + b"Authorization: a\r\nAuthorization: b\r\n\r\n", 400, "authorization_repeated"),
    ("unknown expectation", POST + b"Expect: 200-ok\r\n\r\n", 417, "expectation_failed"),
    ("empty expectation", POST + b"Expect:\r\n\r\n", 417, "expectation_failed"),
    ("two expectations", POST + b"Expect: 100-continue\r\nExpect: 100-continue\r\n\r\n", 417, "expectation_failed"),
    ("expectation list", POST + b"Expect: 100-continue, x\r\n\r\n", 417, "expectation_failed"),
    *_controls(),
    *_delimiters(),
    *_lengths(),
    *_encodings(),
    *_hosts(),
    *_nominations(),
    *_paths(),
]  # fmt: skip

#: (name, body bytes, reason): chunked bodies that must be refused.
BAD_CHUNKS: list[tuple[str, bytes, str]] = [
    ("empty size", b"\r\n", "bare_cr"),
    ("empty size with extension", b";a\r\n", "bad_chunk_size"),
    ("0x", b"0x5\r\nhello\r\n", "bad_chunk_size"),
    ("plus", b"+5\r\nhello\r\n", "bad_chunk_size"),
    ("minus", b"-5\r\nhello\r\n", "bad_chunk_size"),
    ("underscore", b"1_0\r\n", "bad_chunk_size"),
    ("leading space", b" 5\r\nhello\r\n", "bad_chunk_size"),
    ("trailing space", b"5 \r\nhello\r\n", "bad_chunk_size"),
    ("trailing tab", b"5\t\r\nhello\r\n", "bad_chunk_size"),
    ("space before extension", b"5 ;a\r\nhello\r\n", "bad_chunk_size"),
    ("not hex", b"g\r\n", "bad_chunk_size"),
    ("comma", b"5,5\r\n", "bad_chunk_size"),
    ("16 digits", b"0000000000000005\r\nhello\r\n", "bad_chunk_size"),
    ("overflow", b"ffffffffffffffff\r\n", "bad_chunk_size"),
    ("overflow by one", b"10000000000000005\r\nhello\r\n", "bad_chunk_size"),
    ("NUL in size", b"5\0\r\n", "nul_byte"),
    ("bare LF after size", b"5\nhello\r\n", "bare_lf"),
    ("bare CR after size", b"5\rhello\r\n", "bare_cr"),
    ("CR CR LF after size", b"5\r\r\nhello\r\n", "bare_cr"),
    ("bare LF in extension", b"5;a\nhello\r\n", "bare_lf"),
    ("bare CR in extension", b"5;a\rb\r\n", "bare_cr"),
    ("NUL in extension", b"5;\0\r\n", "nul_byte"),
    ("control in extension", b"5;\x01\r\n", "bad_chunk_extension"),
    ("long extension", b"5;" + b"a" * 2000 + b"\r\n", "bad_chunk_extension"),
    ("many extensions", (b"1;" + b"a" * 900 + b"\r\nx\r\n") * 20, "bad_chunk_extension"),
    ("data too long", b"5\r\nhelloX\r\n", "bad_chunk_end"),
    ("data ends with LF", b"5\r\nhello\n", "bad_chunk_end"),
    ("data ends with CR x", b"5\r\nhello\rx", "bad_chunk_end"),
    ("no CRLF after data", b"5\r\nhello0\r\n\r\n", "bad_chunk_end"),
    ("size after the data's end", b"5\r\nhello\r\n\r\n", "bare_cr"),
    ("bare LF after last chunk", b"0\n\n", "bare_lf"),
    ("bare LF ends the trailers", b"0\r\n\n", "bare_lf"),
    ("bare LF in trailers", b"0\r\nA: b\n\r\n", "bare_lf"),
    ("bare CR in trailers", b"0\r\nA: b\rc\r\n\r\n", "bare_cr"),
    ("NUL in trailers", b"0\r\nA: \0\r\n\r\n", "nul_byte"),
    ("fold in trailers", b"0\r\nA: b\r\n c\r\n\r\n", "bad_trailer"),
    ("empty name in trailers", b"0\r\n: b\r\n\r\n", "bad_trailer"),
    ("control in trailers", b"0\r\nA: \x02\r\n\r\n", "bad_trailer"),
    ("long trailers", b"0\r\n" + b"A: b\r\n" * 3000, "bad_trailer"),
    ("CR CR at the end", b"0\r\n\r\r", "bare_cr"),
    # --- published: TERM.EXT, EXT.TERM and the like (Funky Chunks, 2025)
    ("TERM.EXT: bare LF ends an extension", b"2;\nxx\r\n0\r\n\r\n", "bare_lf"),
    ("TERM.EXT on the last chunk", b"0;\n\r\n", "bare_lf"),
    ("EXT.TERM: bare CR in an extension", b"2;a\rxx\r\n", "bare_cr"),
    ("TERM.SPILL: LF for CRLF behind data", b"2\r\nxx\n0\r\n\r\n", "bad_chunk_end"),
    ("SPILL.TERM: any two bytes behind data", b"2\r\nxxyy0\r\n\r\n", "bad_chunk_end"),
    ("ONE.TWO: LF LF behind data", b"2\r\nxx\n\n0\r\n\r\n", "bad_chunk_end"),
    ("TWO.ONE: CR CR behind data", b"2\r\nxx\r\r0\r\n\r\n", "bad_chunk_end"),
    ("ZERO.TWO: nothing behind data", b"2\r\nxx0\r\n\r\n\r\n", "bad_chunk_end"),
    ("LF CR ends a size", b"2\n\rxx\r\n", "bare_lf"),
    ("no-break space before a size", b"\xa02\r\nxx\r\n", "bad_chunk_size"),
    ("no-break space behind a size", b"2\xa0\r\nxx\r\n", "bad_chunk_size"),
    ("vertical tab behind a size", b"2\x0b\r\nxx\r\n", "bad_chunk_size"),
    ("form feed before a size", b"\x0c2\r\nxx\r\n", "bad_chunk_size"),
    ("next line character in a size", b"2\x85\r\nxx\r\n", "bad_chunk_size"),
    ("full-width digit", b"\xef\xbc\x92\r\nxx\r\n", "bad_chunk_size"),
    ("quoted size", b'"2"\r\nxx\r\n', "bad_chunk_size"),
    ("size in decimals", b"2.0\r\nxx\r\n", "bad_chunk_size"),
    ("two sizes", b"2 2\r\nxx\r\n", "bad_chunk_size"),
    ("comment on a size", b"2#a\r\nxx\r\n", "bad_chunk_size"),
    ("negative zero", b"-0\r\n\r\n", "bad_chunk_size"),
    ("hexadecimal zero", b"0x0\r\n\r\n", "bad_chunk_size"),
    ("zero with a space", b"0 \r\n\r\n", "bad_chunk_size"),
    ("zero with a tab", b"0\t\r\n\r\n", "bad_chunk_size"),
    ("sixteen zeros", b"0" * 16 + b"\r\n\r\n", "bad_chunk_size"),
    ("2^32 digits wrap", b"100000000000000000002\r\nxx\r\n", "bad_chunk_size"),
    ("2^63", b"8000000000000000\r\nxx\r\n", "bad_chunk_size"),
    ("2^64 - 1", b"ffffffffffffffff\r\nxx\r\n", "bad_chunk_size"),
    ("bare CR behind the last chunk", b"0\r\n\rX", "bare_cr"),
    ("bare LF behind the last chunk", b"0\r\n\nX", "bare_lf"),
    (
        "a request where trailers are",
        b"0\r\nGET /hidden HTTP/1.1\r\nHost: a\r\n\r\n",
        "bad_trailer",
    ),
    ("trailer without a colon", b"0\r\nhidden\r\n\r\n", "bad_trailer"),
    ("trailer with space before the colon", b"0\r\nA : b\r\n\r\n", "bad_trailer"),
    ("trailer with an 8-bit name", b"0\r\nA\xe4: b\r\n\r\n", "bad_trailer"),
    ("trailer folded", b"0\r\nA: b\r\n\tc\r\n\r\n", "bad_trailer"),
    ("second chunk is wrong", b"2\r\nok\r\n+2\r\nxx\r\n", "bad_chunk_size"),
]

#: (name, bytes, reason without "upstream_"): responses that must not be believed.
BAD_RESPONSES: list[tuple[str, bytes, str]] = [
    ("not HTTP", b"SSH-2.0-OpenSSH\r\n", "bad_status_line"),
    ("lower case", b"http/1.1 200 OK\r\n\r\n", "bad_status_line"),
    ("leading CRLF", b"\r\nHTTP/1.1 200 OK\r\n\r\n", "bad_status_line"),
    ("HTTP/2", b"HTTP/2.0 200 OK\r\n\r\n", "bad_status_line"),
    ("HTTP/1.2", b"HTTP/1.2 200 OK\r\n\r\n", "bad_status_line"),
    ("no status", b"HTTP/1.1\r\n\r\n", "bad_status_line"),
    ("two digits", b"HTTP/1.1 20\r\n\r\n", "bad_status_line"),
    ("four digits", b"HTTP/1.1 2000 OK\r\n\r\n", "bad_status_line"),
    ("status 099", b"HTTP/1.1 099 OK\r\n\r\n", "bad_status_line"),
    ("status 600", b"HTTP/1.1 600 OK\r\n\r\n", "bad_status_line"),
    ("two spaces", b"HTTP/1.1  200 OK\r\n\r\n", "bad_status_line"),
    ("tab", b"HTTP/1.1\t200 OK\r\n\r\n", "bad_status_line"),
    ("NUL in reason", b"HTTP/1.1 200 O\0K\r\n\r\n", "bad_status_line"),
    ("CR in reason", b"HTTP/1.1 200 O\rK\r\n\r\n", "bad_status_line"),
    ("bare LF", b"HTTP/1.1 200 OK\nA: b\r\n\r\n", "bare_lf"),
    ("bare LF at the end", b"HTTP/1.1 200 OK\r\nA: b\n\n", "bare_lf"),
    ("obs-fold", b"HTTP/1.1 200 OK\r\nA: b\r\n c\r\n\r\n", "obs_fold"),
    ("space before colon", b"HTTP/1.1 200 OK\r\nA : b\r\n\r\n", "space_before_colon"),
    ("NUL in value", b"HTTP/1.1 200 OK\r\nA: \0\r\n\r\n", "nul_byte"),
    ("bare CR in value", b"HTTP/1.1 200 OK\r\nA: a\rSet-Cookie: x\r\n\r\n", "bare_cr"),
    ("bad length", b"HTTP/1.1 200 OK\r\nContent-Length: +5\r\n\r\n", "bad_length"),
    ("two lengths", b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 5\r\n\r\n", "length_repeated"),
    ("CL and TE", b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n", "length_and_encoding"),
    ("TE in HTTP/1.0", b"HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", "encoding_in_http10"),
    ("gzip coding", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\n", "bad_encoding"),
    ("gzip, chunked", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n", "unsupported_encoding"),
    ("nominates", b"HTTP/1.1 200 OK\r\nConnection: set-cookie\r\n\r\n", "nominates_end_to_end"),
    ("too large", b"HTTP/1.1 200 OK\r\n" + b"A: b\r\n" * 6000, "head_too_large"),
    ("101 fields", b"HTTP/1.1 200 OK\r\n" + b"A: b\r\n" * 101 + b"\r\n", "too_many_fields"),
]  # fmt: skip
