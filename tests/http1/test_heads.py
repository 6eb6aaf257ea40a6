"""Heads: what is refused and for what, what is understood, and that reads cannot change either."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import pytest
from http1_backends import kernel
from http1_corpus import BAD_REQUESTS, BAD_RESPONSES
from hypothesis import given, settings
from hypothesis import strategies as st

from nexus._speedups import http1_table as table
from nexus.errors import HttpError

LIMITS = (32_768, 8192, 100)


def request_head(module: ModuleType) -> Any:
    return module.RequestHead(*LIMITS)


def response_head(module: ModuleType) -> Any:
    return module.ResponseHead(32_768, 100)


def feed(head: Any, data: bytes, cuts: list[int]) -> int:
    """Parse with the buffer ending at each of ``cuts`` first, as reads would bring it."""
    buffer = bytearray(b"##") + data
    for cut in sorted({c for c in cuts if c < len(data)} | {len(data)}):
        used = head.parse(buffer, 2, 2 + cut)
        if used:
            return int(used)
    return 0


@pytest.mark.parametrize(
    ("data", "status", "reason"), [c[1:] for c in BAD_REQUESTS], ids=[c[0] for c in BAD_REQUESTS]
)
def test_bad_request_is_refused_whole_and_byte_by_byte(
    http1: ModuleType, data: bytes, status: int, reason: str
) -> None:
    for cuts in ([], list(range(1, min(len(data), 600)))):
        with pytest.raises(HttpError) as caught:
            feed(request_head(http1), data, cuts)
        assert (caught.value.status, caught.value.reason) == (status, reason)
        assert "RFC" in caught.value.detail


@pytest.mark.parametrize(
    ("data", "reason"), [c[1:] for c in BAD_RESPONSES], ids=[c[0] for c in BAD_RESPONSES]
)
def test_bad_response_is_a_502_whole_and_byte_by_byte(
    http1: ModuleType, data: bytes, reason: str
) -> None:
    for cuts in ([], list(range(1, min(len(data), 600)))):
        with pytest.raises(HttpError) as caught:
            feed(response_head(http1), data, cuts)
        assert (caught.value.status, caught.value.reason) == (502, f"upstream_{reason}")


def test_the_corpus_is_as_large_as_promised() -> None:
    assert len({data for _, data, *_ in BAD_REQUESTS}) >= 280


@given(case=st.sampled_from(BAD_REQUESTS), cuts=st.lists(st.integers(1, 700), max_size=6))
@settings(max_examples=150, deadline=None)
@pytest.mark.parametrize("backend", ["py", "c"])
def test_no_split_changes_a_refusal(backend: str, case: Any, cuts: list[int]) -> None:
    with pytest.raises(HttpError) as caught:
        feed(request_head(kernel(backend)), case[1], cuts)
    assert (caught.value.status, caught.value.reason) == case[2:]


def test_a_plain_get(http1: ModuleType) -> None:
    head = request_head(http1)
    data = b"GET /api/products?x=1 HTTP/1.1\r\nHost: shop.example:8080\r\nAccept: */*\r\n\r\nrest"
    assert head.parse(bytearray(data), 0, len(data)) == len(data) - 4
    assert head.method == b"GET"
    assert head.target == b"/api/products?x=1"
    assert (head.path, head.query) == (b"/api/products", b"?x=1")
    assert head.host == b"shop.example:8080"
    assert (head.minor, head.keep_alive, head.content_length, head.chunked) == (1, True, -1, False)
    assert head.value(table.field(b"accept")) == b"*/*"
    assert head.value(table.field(b"cookie")) is None
    assert head.fields(table.FRAMING) == b"Accept: */*\r\n"


@pytest.mark.parametrize(
    ("raw", "path"),
    [
        (b"/", b"/"),
        (b"/a", b"/a"),
        (b"/a/", b"/a/"),
        (b"//a//b", b"/a/b"),
        (b"/./a", b"/a"),
        (b"/a/./b", b"/a/b"),
        (b"/a/../b", b"/b"),
        (b"/a/..", b"/"),
        (b"/a/b/..", b"/a/"),
        (b"/a/.", b"/a/"),
        (b"/%41%7e", b"/A~"),
        (b"/%e4", b"/%E4"),
        (b"/a%2eb", b"/a.b"),
        (b"/a/%2e%2e/b", b"/b"),
        (b"/a/.b", b"/a/.b"),
        (b"/a/..b", b"/a/..b"),
        (b"/...", b"/..."),
        (b"/a b"[:2], b"/a"),
        (b"/{x}|", b"/%7Bx%7D%7C"),
        (b"/a;b=c", b"/a;b=c"),
        (b"/%20", b"/%20"),
        (b"/%25", b"/%25"),
        (b"/%252e%252e/", b"/%252e%252e/"),
        (b"//", b"/"),
        (b"/a//", b"/a/"),
        (b"/[x]", b"/%5Bx%5D"),
        (b"/api%3Fx", b"/api%3Fx"),
    ],
)
def test_the_path_has_one_form(http1: ModuleType, raw: bytes, path: bytes) -> None:
    head = request_head(http1)
    data = b"GET " + raw + b" HTTP/1.1\r\nHost: a\r\n\r\n"
    assert head.parse(data, 0, len(data)) == len(data)
    assert head.path == path
    again = b"GET " + path + b" HTTP/1.1\r\nHost: a\r\n\r\n"
    head.reset()
    head.parse(again, 0, len(again))
    assert head.path == path  # normalising is idempotent: nothing is decoded twice


@pytest.mark.parametrize(
    ("target", "host", "path", "query"),
    [
        (b"http://a/x?y", b"a", b"/x", b"?y"),
        (b"HTTP://A:80/x", b"a:80", b"/x", b""),
        (b"https://a", b"a", b"/", b""),
        (b"http://a?y", b"a", b"/", b"?y"),
        (b"/x?y?z", b"a", b"/x", b"?y?z"),
        (b"/?", b"a", b"/", b"?"),
        (b"/", b"[::1]:80", b"/", b""),
    ],
)
def test_targets(http1: ModuleType, target: bytes, host: bytes, path: bytes, query: bytes) -> None:
    head = request_head(http1)
    data = b"GET " + target + b" HTTP/1.1\r\nHost: " + host + b"\r\n\r\n"
    assert head.parse(data, 0, len(data)) == len(data)
    assert (head.path, head.query, head.host) == (path, query, host)


def test_one_leading_empty_line_is_ignored(http1: ModuleType) -> None:
    data = b"\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n"
    for cuts in ([], list(range(1, len(data)))):
        assert feed(request_head(http1), data, cuts) == len(data)


def test_hop_by_hop_fields_and_nominated_ones_go_no_further(http1: ModuleType) -> None:
    head = request_head(http1)
    data = (
        b"GET / HTTP/1.1\r\nHost: a\r\nConnection: X-Hop, keep-alive\r\nKeep-Alive: 5\r\n"
        b"X-Hop: 1\r\nTE: trailers\r\nTrailer: x\r\nProxy-Connection: y\r\nUpgrade: h2c\r\n"
        b"HTTP2-Settings: AAMA\r\nProxy-Authorization: z\r\nX-Stays:  1 \r\nx-hop: 2\r\n"
        b"X_Under: 1\r\nX-Internal-Secret: s\r\nX-Admin-Override: 1\r\nCookie: a\r\nX-Stays: 2\r\n\r\n"  # noqa: E501
    )
    head.parse(data, 0, len(data))
    drop = table.HOP | table.FRAMING | table.SECRET | table.UNDERSCORE
    assert head.fields(drop) == b"X-Stays: 1\r\nCookie: a\r\nX-Stays: 2\r\n"
    assert b"X_Under: 1\r\n" in head.fields(drop & ~table.UNDERSCORE)
    assert head.fields(drop) == head.fields(drop)  # the walk leaves no marks behind


@pytest.mark.parametrize(
    ("version", "connection", "kept"),
    [
        (b"1.1", None, True),
        (b"1.0", None, False),
        (b"1.1", b"close", False),
        (b"1.0", b"keep-alive", True),
        (b"1.0", b"Keep-Alive", True),
        (b"1.1", b"CLOSE", False),
        (b"1.1", b"keep-alive, close", False),
        (b"1.0", b"close, keep-alive", False),
        (b"1.1", b", ,x", True),
        (b"1.1", b"", True),
    ],
)
def test_keep_alive(
    http1: ModuleType, version: bytes, connection: bytes | None, kept: bool
) -> None:
    line = b"" if connection is None else b"Connection: " + connection + b"\r\n"
    data = b"GET / HTTP/" + version + b"\r\nHost: a\r\n" + line + b"\r\n"
    head = request_head(http1)
    head.parse(data, 0, len(data))
    assert bool(head.keep_alive) is kept


def test_framing_expectation_and_upgrade(http1: ModuleType) -> None:
    head = request_head(http1)

    def parse(*lines: bytes, start: bytes = b"POST / HTTP/1.1") -> Any:
        data = b"\r\n".join([start, b"Host: a", *lines, b"", b""])
        head.reset()
        assert head.parse(data, 0, len(data)) == len(data)
        return head

    assert parse(b"Content-Length: 000012").content_length == 12
    assert parse(b"Content-Length: " + b"9" * 18).content_length == 10**18 - 1
    assert parse(b"Transfer-Encoding: \tChunked ").chunked
    assert parse(b"Expect: 100-Continue", b"Content-Length: 1").expect_continue
    assert not parse(b"Expect: anything", start=b"POST / HTTP/1.0").expect_continue
    websocket = (b"Connection: keep-alive, Upgrade", b"Upgrade: WebSocket")
    assert parse(*websocket, start=b"GET / HTTP/1.1").upgrade
    assert not parse(*websocket).upgrade
    assert not parse(b"Upgrade: websocket", start=b"GET / HTTP/1.1").upgrade
    assert not parse(b"Connection: Upgrade", b"Upgrade: h2c", start=b"GET / HTTP/1.1").upgrade
    assert not parse(*websocket, b"Content-Length: 5", start=b"GET / HTTP/1.1").upgrade
    assert (
        parse(b"X-Forwarded-For: 1", b"x-forwarded-for: 2").joined(table.field(b"x-forwarded-for"))
        == b"1, 2"
    )


def test_a_response(http1: ModuleType) -> None:
    head = response_head(http1)
    data = (
        b"HTTP/1.1 404 Not here\xe4\r\nContent-Length: 3\r\nSet-Cookie: a\r\nset-cookie: b\r\n"
        b'ETag: "x"\r\nConnection: close\r\n\r\nabc'
    )
    assert head.parse(data, 0, len(data)) == len(data) - 3
    assert (head.status, head.reason, head.content_length) == (404, b"Not here\xe4", 3)
    assert not head.keep_alive
    assert head.block(table.HOP | table.FRAMING | table.REPRESENTATION) == (
        b"HTTP/1.1 404 Not here\xe4\r\nSet-Cookie: a\r\nset-cookie: b\r\n"
    )


@pytest.mark.parametrize("line", [b"HTTP/1.1 204", b"HTTP/1.1 204 ", b"HTTP/1.0 204 x y"])
def test_status_lines_with_and_without_reason(http1: ModuleType, line: bytes) -> None:
    head = response_head(http1)
    assert head.parse(line + b"\r\n\r\n", 0, len(line) + 4) == len(line) + 4
    assert head.status == 204


PIECES = [
    b"GET / HTTP/1.1\r\n",
    b"POST /a%2e?b HTTP/1.1\r\n",
    b"Host: a\r\n",
    b"Host: b:80\r\n",
    b"Content-Length: 5\r\n",
    b"Transfer-Encoding: chunked\r\n",
    b"Transfer-Encoding: x, chunked\r\n",
    b"Connection: close, x-a\r\n",
    b"X-A: b\r\n",
    b"X_b:c\r\n",
    b"Expect: 100-continue\r\n",
    b"\r\n",
    b"\n",
    b"\r",
    b" ",
    b"\t",
    b":",
    b"\0",
    b"\xff",
    b"A",
    b"HTTP/1.0",
    b"Upgrade: websocket\r\n",
    b"GET http://a/ HTTP/1.0\r\n",
    b"HTTP/1.1 200 OK\r\n",
    b"HTTP/1.0 304\r\n",
    b"%",
    b"..",
    b"/",
]


def outcome(head: Any, data: bytes, cuts: list[int]) -> object:
    try:
        used = feed(head, data, cuts)
    except HttpError as error:
        return (error.status, error.reason, str(error))
    names = "minor content_length chunked keep_alive upgrade method target path query host status"
    names += " reason expect_continue"
    state = {n: getattr(head, n) for n in names.split() if hasattr(head, n)}
    return (used, state, head.fields(0) if used else None, head.fields(3) if used else None)


@given(
    data=st.lists(st.sampled_from(PIECES) | st.binary(max_size=3), max_size=14).map(b"".join),
    cuts=st.lists(st.integers(1, 300), max_size=5),
)
@settings(max_examples=600, deadline=None)
def test_both_backends_agree_on_anything_and_for_every_split(data: bytes, cuts: list[int]) -> None:
    for make in (request_head, response_head):
        expected = outcome(make(kernel("py")), data, [])
        assert outcome(make(kernel("py")), data, cuts) == expected
        assert outcome(make(kernel("c")), data, cuts) == expected


def test_an_underscore_does_not_open_what_a_hyphen_closes(http1: ModuleType) -> None:
    head = request_head(http1)
    data = (
        b"GET / HTTP/1.1\r\nHost: a\r\nX_Internal-Secret: s\r\nx_auth_client: root\r\n"
        b"Content_Length: 5\r\nX_Forwarded_For: 1\r\nX_Mine: 1\r\n\r\n"
    )
    head.parse(data, 0, len(data))
    drop = table.HOP | table.FRAMING | table.OURS | table.SECRET
    assert head.fields(drop) == b"X_Mine: 1\r\n"
    assert head.content_length == -1


def test_any_field_is_found_by_its_name(http1: ModuleType) -> None:
    head = request_head(http1)
    data = b"GET / HTTP/1.1\r\nHost: a\r\nX-Beta:  1 \r\nX-Bet: 2\r\nx-beta: 3\r\nX-None:\r\n\r\n"
    head.parse(data, 0, len(data))
    assert head.named(b"host") == b"a"
    assert head.named(b"x-beta") == b"1, 3"
    assert head.named(b"x-bet") == b"2"
    assert head.named(b"x-none") == b""
    assert head.named(b"x-betas") is None
    assert head.named(b"") is None
