"""What the RESP tests share: both backends by name, running a stream through one, exact shapes."""

from __future__ import annotations

import importlib
import importlib.util
import os
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any

import pytest

from nexus._speedups.resp_values import INCOMPLETE, Attributed
from nexus.errors import RespError


class Backend:
    """Decoder and encoder modules of one backend, under the names of the facade."""

    def __init__(self, suffix: str) -> None:
        decode = importlib.import_module(f"nexus._speedups._resp_{suffix}")
        encode = importlib.import_module(f"nexus._speedups._respencode_{suffix}")
        self.name = suffix
        self.RequestDecoder = decode.RequestDecoder
        self.ReplyDecoder = decode.ReplyDecoder
        self.split_inline = decode.split_inline
        self.encode_command = encode.encode_command
        self.encode_reply = encode.encode_reply


def _compiled() -> Any:
    absent = [
        name
        for name in ("nexus._speedups._resp_c", "nexus._speedups._respencode_c")
        if importlib.util.find_spec(name) is None
    ]
    if not absent:
        return pytest.param(Backend("c"), id="c")
    if os.environ.get("NEXUS_REQUIRE_EXTENSIONS", "") not in ("", "0"):
        raise RuntimeError(f"NEXUS_REQUIRE_EXTENSIONS is set, but not built: {', '.join(absent)}")
    reason = f"not built: {', '.join(absent)}"
    return pytest.param(None, id="c", marks=pytest.mark.skip(reason=reason))


BACKENDS = [pytest.param(Backend("py"), id="py"), _compiled()]


def available() -> list[Backend]:
    return [param.values[0] for param in BACKENDS if param.values[0] is not None]


def exact(value: Any) -> Any:
    """The value with its types, comparable (``True`` is not 1, 0.0 not -0.0, nan is nan)."""
    if isinstance(value, Attributed):
        return ("Attributed", exact(value.value), exact(value.attributes))
    if isinstance(value, list):
        return (type(value).__name__, [exact(item) for item in value])
    if isinstance(value, float):
        return ("float", repr(value))
    return (type(value).__name__, value)


#: Decoded messages, the error's text if one came, bytes consumed, bytes pending.
Outcome = tuple[list[Any], str | None, int, int]


def run(decoder: Any, pieces: Iterable[bytes], nothing: object) -> Outcome:
    """Feed the pieces, reading all there is after each."""
    messages: list[Any] = []
    error = None
    for piece in pieces:
        decoder.feed(piece)
        try:
            while (message := decoder.read()) is not nothing:
                messages.append(exact(message))
        except RespError as caught:
            error = str(caught)
            break
    return messages, error, decoder.consumed, decoder.pending


def requests(backend: Any, pieces: Iterable[bytes], **limits: Any) -> Outcome:
    return run(backend.RequestDecoder(**limits), pieces, None)


def replies(backend: Any, pieces: Iterable[bytes], **limits: Any) -> Outcome:
    return run(backend.ReplyDecoder(**limits), pieces, INCOMPLETE)


def one_by_one(stream: bytes) -> list[bytes]:
    return [stream[i : i + 1] for i in range(len(stream))]


def cut(stream: bytes, places: Sequence[int]) -> list[bytes]:
    """The stream cut at these places (taken modulo its length)."""
    marks = sorted({place % (len(stream) + 1) for place in places} | {0, len(stream)})
    return [stream[a:b] for a, b in pairwise(marks)]
