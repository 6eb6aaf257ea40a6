"""The chunked decoder: what it refuses, what it decodes, and that reads cannot change either."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import pytest
from http1_backends import kernel
from http1_corpus import BAD_CHUNKS
from hypothesis import given, settings
from hypothesis import strategies as st

from nexus.errors import HttpError


def drain(decoder: Any, data: bytes, cuts: list[int]) -> tuple[bytes, int, bool]:
    """(payload, bytes consumed, whether the body ended)."""
    at = 0
    payload = b""
    for cut in [*sorted({c for c in cuts if c < len(data)}), len(data)]:
        if decoder.done:
            break
        at += decoder.feed(bytearray(data), at, cut)
        payload += decoder.payload
    return payload, at, bool(decoder.done)


@pytest.mark.parametrize(
    ("data", "reason"), [c[1:] for c in BAD_CHUNKS], ids=[c[0] for c in BAD_CHUNKS]
)
def test_bad_chunks(http1: ModuleType, data: bytes, reason: str) -> None:
    for cuts in ([], list(range(1, min(len(data), 2000)))):
        with pytest.raises(HttpError) as caught:
            drain(http1.ChunkedDecoder(True), data, cuts)
        assert (caught.value.status, caught.value.reason) == (400, reason)
        with pytest.raises(HttpError) as caught:
            drain(http1.ChunkedDecoder(False), data, cuts)
        assert (caught.value.status, caught.value.reason) == (502, f"upstream_{reason}")


@pytest.mark.parametrize(
    ("data", "payload"),
    [
        (b"0\r\n\r\n", b""),
        (b"5\r\nhello\r\n0\r\n\r\n", b"hello"),
        (b"5;name=value\r\nhello\r\n000\r\n\r\n", b"hello"),
        (
            b'3;a;b="c"\r\nabc\r\nA\r\n0123456789\r\na\r\n0123456789\r\n0;x\r\n\r\n',
            b"abc" + b"0123456789" * 2,
        ),
        (b"1\r\n\r\r\n1\r\n\n\r\n0\r\nTrailer: x\r\nOther: y\r\n\r\n", b"\r\n"),
        (b"000000000000005\r\nhello\r\n0\r\n\r\n", b"hello"),
    ],
)
def test_good_chunks_and_where_the_body_ends(
    http1: ModuleType, data: bytes, payload: bytes
) -> None:
    behind = b"GET / HTTP/1.1\r\n"
    for cuts in ([], list(range(1, len(data)))):
        assert drain(http1.ChunkedDecoder(True), data + behind, cuts) == (payload, len(data), True)


def test_a_decoder_can_be_reused(http1: ModuleType) -> None:
    decoder = http1.ChunkedDecoder(True)
    for _ in range(2):
        assert drain(decoder, b"2\r\nhi\r\n0\r\n\r\n", [3]) == (b"hi", 12, True)
        decoder.reset()


@given(
    parts=st.lists(st.binary(min_size=1, max_size=40), max_size=6),
    cuts=st.lists(st.integers(1, 200)),
)
@settings(max_examples=100, deadline=None)
@pytest.mark.parametrize("backend", ["py", "c"])
def test_what_is_encoded_decodes(backend: str, parts: list[bytes], cuts: list[int]) -> None:
    module = kernel(backend)
    data = b"".join(module.chunk(part) for part in parts) + b"0\r\n\r\n"
    assert drain(module.ChunkedDecoder(True), data, cuts) == (b"".join(parts), len(data), True)


PIECES = [
    b"5\r\nhello\r\n",
    b"0\r\n",
    b"\r\n",
    b";a=b",
    b"1\r\nx\r\n",
    b"\n",
    b"\r",
    b" ",
    b"f",
    b"A: b\r\n",
]


@given(
    data=st.lists(st.sampled_from(PIECES) | st.binary(max_size=2), max_size=12).map(b"".join),
    cuts=st.lists(st.integers(1, 80), max_size=4),
)
@settings(max_examples=400, deadline=None)
def test_both_backends_agree_on_anything(data: bytes, cuts: list[int]) -> None:
    def outcome(backend: str, cuts: list[int]) -> object:
        try:
            return drain(kernel(backend).ChunkedDecoder(True), data, cuts)
        except HttpError as error:
            return str(error)

    expected = outcome("py", [])
    assert outcome("py", cuts) == expected
    assert outcome("c", cuts) == expected
