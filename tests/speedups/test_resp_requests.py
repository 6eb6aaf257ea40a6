"""Requests: specified answers, Redis's own error texts, every cut, both backends alike."""

from __future__ import annotations

import random
import socket
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from resp_backends import BACKENDS, available, cut, exact, one_by_one, requests

from nexus._speedups.resp_values import MAX_INLINE_BYTES
from nexus.errors import RespError

backends = pytest.mark.parametrize("backend", BACKENDS)

# ------------------------------------------------------------------------------ specified answers

GOOD: list[tuple[bytes, list[list[bytes]]]] = [
    (b"*1\r\n$4\r\nPING\r\n", [[b"PING"]]),
    (b"*2\r\n$3\r\nGET\r\n$0\r\n\r\n", [[b"GET", b""]]),
    (b"*2\r\n$4\r\nECHO\r\n$4\r\n\r\n\x00\xff\r\n", [[b"ECHO", b"\r\n\x00\xff"]]),
    (b"*0\r\n*-1\r\n\r\n\n*1\r\n$1\r\na\r\n", [[b"a"]]),
    (b"*-9223372036854775808\r\nPING\r\n", [[b"PING"]]),
    # Redis looks at neither the byte after a header's CR nor the two after an argument.
    (b"*1\rX$4\rXPINGXX", [[b"PING"]]),
    (b"PING\r\nPING\n", [[b"PING"], [b"PING"]]),
    (b"  SET\tk  v \r\n", [[b"SET", b"k", b"v"]]),
    (b"a\rb\x0bc\x0c d\r\r\n", [[b"a", b"b\x0bc\x0c", b"d"]]),
    (b"\x0b\x0ca\r\n", [[b"a"]]),
    (rb'SET k "a b\n\r\t\b\a\x41\xZZ\q\"\\"' + b"\r\n", [[b"SET", b"k", b'a b\n\r\t\b\aAxZZq"\\']]),
    (rb"SET k 'a b\n\'\"'" + b"\r\n", [[b"SET", b"k", rb"a b\n'\""]]),
    (b"pre\"mid\" 'x'\r\n", [[b"premid", b"x"]]),
    (b"a \"\" ''\r\n", [[b"a", b"", b""]]),
    (b'"a"\x0bb\r\n', [[b"a", b"b"]]),
    (b"\xc3\xa9 \x80\r\n", [[b"\xc3\xa9", b"\x80"]]),
    (b"x" * 65_536 + b"\n", [[b"x" * 65_536]]),
]

#: Request → what Redis 7 answers behind ``-ERR``.
BAD: list[tuple[bytes, str]] = [
    (b"*a\r\n", "Protocol error: invalid multibulk length"),
    (b"*\r\n", "Protocol error: invalid multibulk length"),
    (b"*+1\r\n", "Protocol error: invalid multibulk length"),
    (b"*01\r\n", "Protocol error: invalid multibulk length"),
    (b"*-0\r\n", "Protocol error: invalid multibulk length"),
    (b"* 1\r\n", "Protocol error: invalid multibulk length"),
    (b"*1_0\r\n", "Protocol error: invalid multibulk length"),
    (b"*2147483648\r\n", "Protocol error: invalid multibulk length"),
    (b"*9223372036854775808\r\n", "Protocol error: invalid multibulk length"),
    (b"*18446744073709551617\r\n", "Protocol error: invalid multibulk length"),
    (b"*-9223372036854775809\r\n", "Protocol error: invalid multibulk length"),
    (b"*000000000000000000001\r\n", "Protocol error: invalid multibulk length"),
    (b"*\xb2\r\n", "Protocol error: invalid multibulk length"),
    (b"*1\r\nx3\r\n", "Protocol error: expected '$', got 'x'"),
    (b"*1\r\n\xff3\r\n", "Protocol error: expected '$', got '\xff'"),
    (b"*1\r\n\r\n", "Protocol error: expected '$', got ' '"),
    (b"*1\r\n\nx\r\n", "Protocol error: expected '$', got ' '"),
    (b"*1\r\n*1\r\n", "Protocol error: expected '$', got '*'"),
    (b"*1\r\n$-1\r\n", "Protocol error: invalid bulk length"),
    (b"*1\r\n$a\r\n", "Protocol error: invalid bulk length"),
    (b"*1\r\n$\r\n", "Protocol error: invalid bulk length"),
    (b"*1\r\n$+3\r\n", "Protocol error: invalid bulk length"),
    (b"*1\r\n$03\r\n", "Protocol error: invalid bulk length"),
    (b"*1\r\n$536870913\r\n", "Protocol error: invalid bulk length"),
    (b"*1\r\n$99999999999999999999\r\n", "Protocol error: invalid bulk length"),
    (b'GET "a\r\n', "Protocol error: unbalanced quotes in request"),
    (b'GET "a"b\r\n', "Protocol error: unbalanced quotes in request"),
    (b"GET 'a\\'\r\n", "Protocol error: unbalanced quotes in request"),
    (b"GET 'a'b\r\n", "Protocol error: unbalanced quotes in request"),
    (b'GET "a\\\r\n', "Protocol error: unbalanced quotes in request"),
    (b"x" * 65_537, "Protocol error: too big inline request"),
    (b"a\x00b\r\n" + b"x" * 65_537, "Protocol error: too big inline request"),
    (b"*" + b"1" * 65_537, "Protocol error: too big mbulk count string"),
    (b"*1\x00\r\n" + b"x" * 65_537, "Protocol error: too big mbulk count string"),
    (b"*1\r\n$" + b"1" * 65_537, "Protocol error: too big bulk count string"),
]

#: Sent to a client that must authenticate first.
UNAUTHENTICATED: list[tuple[bytes, str]] = [
    (b"*11\r\n", "Protocol error: unauthenticated multibulk length"),
    (b"*1\r\n$16385\r\n", "Protocol error: unauthenticated bulk length"),
]


def ids(table: list[tuple[bytes, Any]]) -> list[str]:
    return [ascii(stream[:24])[2:-1] for stream, _ in table]


@backends
@pytest.mark.parametrize(("stream", "expected"), GOOD, ids=ids(GOOD))
def test_good_requests(backend: Any, stream: bytes, expected: list[list[bytes]]) -> None:
    wanted = ([exact(request) for request in expected], None, len(stream), 0)
    assert requests(backend, [stream]) == wanted
    assert requests(backend, one_by_one(stream)) == wanted
    assert requests(backend, [stream + b"*1\r\n$3\r\nab"])[0] == wanted[0]


@backends
@pytest.mark.parametrize(("stream", "text"), BAD, ids=ids(BAD))
def test_protocol_errors(backend: Any, stream: bytes, text: str) -> None:
    before = b"*1\r\n$4\r\nPING\r\n"
    wanted = ([exact([b"PING"])], text, len(before), 0)
    assert requests(backend, [before + stream]) == wanted
    assert requests(backend, one_by_one(before + stream)) == wanted


@backends
@pytest.mark.parametrize(("stream", "text"), UNAUTHENTICATED, ids=ids(UNAUTHENTICATED))
def test_limits_before_authentication(backend: Any, stream: bytes, text: str) -> None:
    assert requests(backend, [stream], authenticated=False)[1] == text
    assert requests(backend, [stream], authenticated=True)[1] is None
    decoder = backend.RequestDecoder(authenticated=False)
    decoder.authenticated = True
    decoder.feed(stream)
    assert decoder.read() is None


@backends
@pytest.mark.parametrize(("stream", "text"), BAD, ids=ids(BAD))
def test_error_texts_are_those_of_redis(
    backend: Any, stream: bytes, text: str, redis_server: Any
) -> None:
    assert ask_redis(redis_server, stream) == b"-ERR " + text.encode("latin-1") + b"\r\n"
    assert requests(backend, [stream])[1] == text


@pytest.mark.parametrize(("stream", "text"), UNAUTHENTICATED, ids=ids(UNAUTHENTICATED))
def test_error_texts_before_authentication_are_those_of_redis(
    stream: bytes, text: str, redis_factory: Any
) -> None:
    server = redis_factory("--requirepass", "secret")
    assert ask_redis(server, stream) == b"-ERR " + text.encode("latin-1") + b"\r\n"


#: Single inline lines: neither arrays nor several at once.
INLINE_ECHOES = [line for line, _ in GOOD if line[:1] not in b"*x" and line.count(b"\n") == 1]


@backends
@pytest.mark.parametrize("line", INLINE_ECHOES, ids=[ascii(line)[2:-1] for line in INLINE_ECHOES])
def test_inline_words_are_those_of_redis(backend: Any, line: bytes, redis_server: Any) -> None:
    # EVAL returns its arguments as it got them, so Redis itself shows how it split the line.
    assert ask_redis(redis_server, b"EVAL 'return ARGV' 0 " + line) == backend.encode_reply(
        [word for request in requests(backend, [b"x " + line])[0] for _, word in request[1][1:]], 2
    )


@backends
@pytest.mark.parametrize("line", INLINE_ECHOES, ids=[ascii(line)[2:-1] for line in INLINE_ECHOES])
def test_one_line_is_split_as_in_the_stream(backend: Any, line: bytes) -> None:
    words = backend.split_inline(b"x " + line)
    [request] = requests(backend, [b"x " + line])[0]
    assert words == [word for _, word in request[1]]


@backends
def test_one_line_ends_at_nul_and_wants_balanced_quotes(backend: Any) -> None:
    assert backend.split_inline(b'GET "a b"\0 c') == [b"GET", b"a b"]
    assert backend.split_inline(b"") == []
    assert backend.split_inline(b'GET "a') is None
    assert backend.split_inline(b"GET 'a'b") is None


def ask_redis(server: Any, stream: bytes) -> bytes:
    """All that Redis answers until it closes or has nothing more to say."""
    with socket.create_connection((server.host, server.port), timeout=5) as client:
        # A refused client is closed with bytes unread, so the reset may overtake a long request.
        try:
            for start in range(0, len(stream), 4096):
                client.sendall(stream[start : start + 4096])
            client.shutdown(socket.SHUT_WR)
        except OSError:
            pass
        answer = b""
        try:
            while piece := client.recv(65_536):
                answer += piece
        except ConnectionResetError:
            pass
        return answer


# ------------------------------------------------------------------------------------ behaviour


@backends
def test_an_error_is_final_and_forgets_the_bytes(backend: Any) -> None:
    decoder = backend.RequestDecoder()
    decoder.feed(b"PING\r\n*x\r\nPING\r\n")
    assert decoder.read() == [b"PING"]
    for _ in range(3):
        with pytest.raises(RespError, match=r"^Protocol error: invalid multibulk length$"):
            decoder.read()
        decoder.feed(b"PING\r\n")
    assert (decoder.consumed, decoder.pending) == (6, 0)


@backends
def test_consumed_and_pending(backend: Any) -> None:
    decoder = backend.RequestDecoder()
    decoder.feed(b"\r\nPING\r\n*2\r\n$4\r\nECHO\r\n$2\r\nh")
    assert (decoder.consumed, decoder.pending) == (0, 27)
    assert decoder.read() == [b"PING"]
    assert (decoder.consumed, decoder.pending) == (8, 19)
    assert decoder.read() is None
    assert (decoder.consumed, decoder.pending) == (8, 19)
    decoder.feed(b"i\r\n")
    assert decoder.read() == [b"ECHO", b"hi"]
    assert (decoder.consumed, decoder.pending) == (30, 0)


@backends
@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_the_fed_buffer_may_be_reused(backend: Any, kind: Any) -> None:
    buffer = bytearray(b"*1\r\n$4\r\nPI")
    decoder = backend.RequestDecoder()
    decoder.feed(kind(buffer))
    buffer[:] = b"?" * len(buffer)
    decoder.feed(kind(bytearray(b"NG\r\n")))
    assert decoder.read() == [b"PING"]


@backends
@pytest.mark.parametrize("thing", ["text", 5, None, [1]])
def test_only_bytes_can_be_fed(backend: Any, thing: Any) -> None:
    with pytest.raises(TypeError, match="bytes-like"):
        backend.RequestDecoder().feed(thing)


@backends
def test_own_limits(backend: Any) -> None:
    assert requests(backend, [b"*4\r\n"], max_arguments=3)[1] == (
        "Protocol error: invalid multibulk length"
    )
    assert requests(backend, [b"*1\r\n$9\r\n"], max_bulk_bytes=8)[1] == (
        "Protocol error: invalid bulk length"
    )
    request = b"*2\r\n$4\r\nECHO\r\n$8\r\n12345678\r\n"
    assert requests(backend, [request] * 9, max_request_bytes=len(request))[1] is None
    assert requests(backend, [request], max_request_bytes=len(request) - 1)[1] == (
        "Protocol error: too big request"
    )
    line = b"x" * 40 + b"\r\n"
    assert requests(backend, [line], max_inline_bytes=41)[1] is None
    assert requests(backend, [line], max_inline_bytes=40)[1] == (
        "Protocol error: too big inline request"
    )
    with pytest.raises(ValueError, match="max_inline_bytes must be at least 32, not 31"):
        backend.RequestDecoder(max_inline_bytes=31)


@backends
def test_nothing_is_scanned_twice(backend: Any) -> None:
    """A line in 50 000 pieces: the pure decoder's mark shows how far it has looked for the end.

    The compiled one keeps its mark to itself; there, looking again would cost 10⁹ steps here.
    """
    decoder = backend.RequestDecoder(max_inline_bytes=1 << 20)
    decoder.feed(b"x")
    for _ in range(50_000):
        decoder.feed(b"x")
        assert decoder.read() is None
    if hasattr(decoder, "_scan"):
        assert decoder._scan - decoder._pos == 50_001
    decoder.feed(b"\n")
    assert decoder.read() == [b"x" * 50_001]


@backends
def test_a_long_stream_keeps_no_memory(backend: Any) -> None:
    decoder = backend.RequestDecoder()
    request = backend.encode_command([b"SET", b"k", b"v" * 1000])
    stream = request * 700
    read = 0
    for start in range(0, len(stream), 1777):
        decoder.feed(stream[start : start + 1777])
        while (got := decoder.read()) is not None:
            assert got == [b"SET", b"k", b"v" * 1000]
            read += 1
        assert decoder.pending <= len(request)
    assert (read, decoder.consumed) == (700, len(stream))


# ------------------------------------------------------------------------- random, both backends

WORDS = [
    b"*",
    b"$",
    b"-",
    b"0",
    b"1",
    b"2",
    b"3",
    b"11",
    b"\r\n",
    b"\r",
    b"\n",
    b"\x00",
    b'"',
    b"'",
]
WORDS += [b"\\", b"x41", b"a", b" ", b"*1\r\n", b"$1\r\n", b"$3\r\nabc\r\n", b"*2\r\n", b"PING\r\n"]
noise = st.lists(st.sampled_from(WORDS) | st.binary(max_size=3), max_size=25).map(b"".join)
cuts = st.lists(st.integers(0, 1 << 16), max_size=6)
LIMITS = {"max_inline_bytes": 32, "max_bulk_bytes": 40, "max_arguments": 5}


@given(noise, cuts)
@example(b"*1\r\n$2\r\nab\r\n" * 3, [5, 17])
@example(b"\x00" + b"\n" * 40, [3])
def test_random_streams(stream: bytes, places: list[int]) -> None:
    outcomes = [
        requests(backend, pieces, **limits)
        for limits in ({}, LIMITS)
        for backend in available()
        for pieces in ([stream], one_by_one(stream), cut(stream, places))
    ]
    half = len(outcomes) // 2
    assert all(outcome == outcomes[0] for outcome in outcomes[:half])
    assert all(outcome == outcomes[half] for outcome in outcomes[half:])


@given(st.lists(st.lists(st.binary(max_size=40), min_size=1, max_size=6), max_size=6), cuts)
def test_what_is_encoded_is_decoded(commands: list[list[bytes]], places: list[int]) -> None:
    for backend in available():
        stream = b"".join(map(backend.encode_command, commands))
        wanted = ([exact(command) for command in commands], None, len(stream), 0)
        assert requests(backend, [stream]) == wanted
        assert requests(backend, cut(stream, places)) == wanted


@given(st.text(alphabet="ab '\"\\xn4\t\x0b\x0c\r\0é", max_size=30).map(str.encode))
def test_random_inline_lines(line: bytes) -> None:
    outcomes = [requests(backend, [line + b"\r\n"]) for backend in available()]
    assert all(outcome == outcomes[0] for outcome in outcomes)


@backends
def test_every_cut_of_a_mixed_stream(backend: Any) -> None:
    stream = b"*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$3\r\na\r\n\r\nGET 'k'\r\n*1\r\n$4\r\nPING\r\n"
    wanted = requests(backend, [stream])
    assert wanted[0] == [exact(r) for r in ([b"SET", b"k", b"a\r\n"], [b"GET", b"k"], [b"PING"])]
    for first in range(len(stream)):
        for second in range(first, len(stream)):
            assert requests(backend, cut(stream, [first, second])) == wanted


def test_random_malformed_requests_small_fuzz() -> None:
    """The fuzz target's mutations, seeded and small."""
    from resp_mutations import mutate

    rng = random.Random(20_261_121)
    seeds = [stream[:300] for stream, _ in GOOD] + [stream[:300] for stream, _ in BAD]
    for _ in range(1500):
        stream = mutate(rng, rng.choice(seeds))
        pieces = cut(stream, [rng.randrange(1 << 16) for _ in range(3)])
        outcomes = [requests(b, p, **LIMITS) for b in available() for p in ([stream], pieces)]
        assert all(outcome == outcomes[0] for outcome in outcomes), stream


def test_limit_matches_redis() -> None:
    assert MAX_INLINE_BYTES == 65_536


@backends
def test_big_arguments_in_pieces_of_every_kind(backend: Any) -> None:
    """Buffers that grow, move and are given back, with borrowed and copied pieces mixed."""
    rng = random.Random(7)
    commands = [[b"SET", b"k", rng.randbytes(size)] for size in (3_000_000, 5, 70_000, 0, 4096, 1)]
    stream = b"".join(map(backend.encode_command, commands * 2))
    decoder = backend.RequestDecoder()
    got, start = [], 0
    while start < len(stream):
        piece = stream[start : start + rng.choice((1, 17, 4096, 65_536, 300_000))]
        decoder.feed(rng.choice((bytes, bytearray, memoryview))(piece))
        start += len(piece)
        while (command := decoder.read()) is not None:
            got.append(command)
    assert got == commands * 2
    assert (decoder.consumed, decoder.pending) == (len(stream), 0)


def test_the_public_module_runs_the_chosen_backend() -> None:
    from nexus._speedups import BACKEND
    from nexus.wire import resp

    suffix = "_c" if BACKEND == "compiled" else "_py"
    for exported in (resp.RequestDecoder, resp.ReplyDecoder):
        assert exported.__module__ == f"nexus._speedups._resp{suffix}"
    decoder = resp.ReplyDecoder()
    decoder.feed(resp.encode_reply(resp.Map([b"a", 1])) + resp.encode_command(["x"]))
    assert decoder.read() == [b"a", 1]
    assert decoder.read() == [b"x"]
    assert decoder.read() is resp.INCOMPLETE
