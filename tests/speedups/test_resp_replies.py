"""Replies: specified answers, hiredis where it defines them, every cut, both backends alike."""

from __future__ import annotations

import math
import random
import socket
from typing import Any

import hiredis
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from resp_backends import BACKENDS, available, cut, exact, one_by_one, replies
from resp_mutations import mutate

from nexus._speedups.resp_values import (
    INCOMPLETE,
    MAX_DEPTH,
    Attributed,
    BigNumber,
    BulkError,
    Map,
    Push,
    Set,
    SimpleError,
    SimpleString,
    VerbatimString,
)
from nexus.errors import RespError

backends = pytest.mark.parametrize("backend", BACKENDS)

S, E = SimpleString, SimpleError

#: (stream, value, whether ``encode_reply`` gives the same bytes back)
GOOD: list[tuple[bytes, Any, bool]] = [
    (b"+OK\r\n", S(b"OK"), True),
    (b"+\r\n", S(b""), True),
    (b"+a\x00b\xff\r\n", S(b"a\x00b\xff"), True),
    (b"-ERR no\r\n", E(b"ERR no"), True),
    (b":0\r\n", 0, True),
    (b":-1\r\n", -1, True),
    (b":9223372036854775807\r\n", 2**63 - 1, True),
    (b":-9223372036854775808\r\n", -(2**63), True),
    (b"$0\r\n\r\n", b"", True),
    (b"$5\r\n\r\n\x00\xff+\r\n", b"\r\n\x00\xff+", True),
    (b"$-1\r\n", None, False),
    (b"*-1\r\n", None, False),
    (b"_\r\n", None, True),
    (b"*0\r\n", [], True),
    (b"*3\r\n:1\r\n*1\r\n$1\r\na\r\n*0\r\n", [1, [b"a"], []], True),
    (b"#t\r\n", True, True),
    (b"#f\r\n", False, True),
    (b",1.5\r\n", 1.5, True),
    (b",10\r\n", 10.0, False),
    (b",3.\r\n", 3.0, False),
    (b",-0\r\n", -0.0, False),
    (b",1E+3\r\n", 1000.0, False),
    (b",1.5e-7\r\n", 1.5e-7, False),
    (b",0.10000000000000001\r\n", 0.1, False),
    (b",1e400\r\n", math.inf, False),
    (b",inf\r\n", math.inf, True),
    (b",-inf\r\n", -math.inf, True),
    (b",nan\r\n", math.nan, True),
    (b",-nan\r\n", math.nan, False),
    (b"(123456789012345678901234567890\r\n", BigNumber(b"123456789012345678901234567890"), True),
    (b"(-007\r\n", BigNumber(b"-007"), True),
    (b"!8\r\nERR a\r\nb\r\n", BulkError(b"ERR a\r\nb"), True),
    (b"=8\r\ntxt:a\r\nb\r\n", VerbatimString(b"txt:a\r\nb"), True),
    (b"=4\r\nmkd:\r\n", VerbatimString(b"mkd:"), True),
    (b"%2\r\n+a\r\n:1\r\n*1\r\n:2\r\n_\r\n", Map([S(b"a"), 1, [2], None]), True),
    (b"%0\r\n", Map(), True),
    (b"~2\r\n:1\r\n:1\r\n", Set([1, 1]), True),
    (b">2\r\n$7\r\nmessage\r\n:1\r\n", Push([b"message", 1]), True),
    (b"|1\r\n+ttl\r\n:9\r\n$1\r\nv\r\n", Attributed(b"v", Map([S(b"ttl"), 9])), True),
    (
        b"|0\r\n*1\r\n|1\r\n:1\r\n:2\r\n:3\r\n",
        Attributed([Attributed(3, Map([1, 2]))], Map()),
        True,
    ),
    (b"*1\r\n*1\r\n*1\r\n*1\r\n*1\r\n*1\r\n*1\r\n*1\r\n*1\r\n:1\r\n", [[[[[[[[[1]]]]]]]]], True),
]

COUNT = "a count from {} to {} (streamed aggregates are not supported)"
LENGTH = "a length from {} to 536870912 (streamed strings are not supported)"

#: (stream, byte of the error behind its start, what was expected, what is shown)
BAD: list[tuple[bytes, int, str, bytes]] = [
    (b"?", 0, "a RESP type", b"?"),
    (b"\r\n", 0, "a RESP type", b"\r"),
    (b"\x00", 0, "a RESP type", b"\x00"),
    (b";4\r\n", 0, "a RESP type", b";"),
    (b".\r\n", 0, "a RESP type", b"."),
    (b"+a\rb", 0, "CR LF at the end of the line", b"+a\rb"),
    (b"+a\nb\r\n", 0, "a line without LF inside", b"+a\nb"),
    (b"-a\n\r\n", 0, "a line without LF inside", b"-a\n"),
    (b":\r\n", 0, "an integer of 64 bits", b":"),
    (b":-\r\n", 0, "an integer of 64 bits", b":-"),
    (b":+1\r\n", 0, "an integer of 64 bits", b":+1"),
    (b":+1_0\r\n", 0, "an integer of 64 bits", b":+1_0"),
    (b":1_0\r\n", 0, "an integer of 64 bits", b":1_0"),
    (b":01\r\n", 0, "an integer of 64 bits", b":01"),
    (b":-0\r\n", 0, "an integer of 64 bits", b":-0"),
    (b": 1\r\n", 0, "an integer of 64 bits", b": 1"),
    (b":1 \r\n", 0, "an integer of 64 bits", b":1 "),
    (b":9223372036854775808\r\n", 0, "an integer of 64 bits", b":9223372036854775808"),
    (b":-9223372036854775809\r\n", 0, "an integer of 64 bits", b":-9223372036854775809"),
    (b":18446744073709551616\r\n", 0, "an integer of 64 bits", b":18446744073709551616"),
    (b":1" + b"0" * 40 + b"\r\n", 0, "an integer of 64 bits", b":1" + b"0" * 40),
    (b"_x\r\n", 0, "a null without content", b"_x"),
    (b"#\r\n", 0, "#t or #f", b"#"),
    (b"#true\r\n", 0, "#t or #f", b"#true"),
    (b"#T\r\n", 0, "#t or #f", b"#T"),
    (b",\r\n", 0, "a double", b","),
    (b",.5\r\n", 0, "a double", b",.5"),
    (b",+1\r\n", 0, "a double", b",+1"),
    (b",1e\r\n", 0, "a double", b",1e"),
    (b",1_0\r\n", 0, "a double", b",1_0"),
    (b",0x10\r\n", 0, "a double", b",0x10"),
    (b",Infinity\r\n", 0, "a double", b",Infinity"),
    (b",INF\r\n", 0, "a double", b",INF"),
    (b", 1\r\n", 0, "a double", b", 1"),
    (b",1\n\r\n", 0, "a double", b",1\n"),
    (b"(\r\n", 0, "a big number", b"("),
    (b"(-\r\n", 0, "a big number", b"(-"),
    (b"(1.0\r\n", 0, "a big number", b"(1.0"),
    (b"(1\n\r\n", 0, "a big number", b"(1\n"),
    (b"$-2\r\n", 0, LENGTH.format(-1), b"$-2"),
    (b"$?\r\n", 0, LENGTH.format(-1), b"$?"),
    (b"$536870913\r\n", 0, LENGTH.format(-1), b"$536870913"),
    (b"!-1\r\n", 0, LENGTH.format(0), b"!-1"),
    (b"=3\r\ntxt\r\n", 0, LENGTH.format(4), b"=3"),
    (b"=4\r\ntext\r\n", 4, "three letters and a colon", b"text"),
    (b"$1\r\nabc", 4, "CR LF behind a bulk string", b"bc"),
    (b"$1\r\na\rb", 4, "CR LF behind a bulk string", b"\rb"),
    (b"*-2\r\n", 0, COUNT.format(-1, 1 << 24), b"*-2"),
    (b"*?\r\n", 0, COUNT.format(-1, 1 << 24), b"*?"),
    (b"*16777217\r\n", 0, COUNT.format(-1, 1 << 24), b"*16777217"),
    (b"%-1\r\n", 0, COUNT.format(0, 1 << 23), b"%-1"),
    (b"%8388609\r\n", 0, COUNT.format(0, 1 << 23), b"%8388609"),
    (b"~-1\r\n", 0, COUNT.format(0, 1 << 24), b"~-1"),
    (b">?\r\n", 0, COUNT.format(0, 1 << 24), b">?"),
    (b"|-1\r\n", 0, COUNT.format(0, 1 << 23), b"|-1"),
    (b"*1\r\n>1\r\n", 4, "a push at the top level only", b">1"),
    (b"|0\r\n>1\r\n", 4, "a push at the top level only", b">1"),
    (b"*1\r\n" * 129, 512, "at most 128 levels", b"*1"),
    (b"*1\r\n" * 128 + b"*0\r\n", 512, "at most 128 levels", b"*0"),
    (b"%1\r\n:1\r\n*2\r\n:1\r\n$x\r\n", 16, LENGTH.format(-1), b"$x"),
]


@backends
@pytest.mark.parametrize(("stream", "value", "same"), GOOD, ids=[ascii(g[0])[2:-1] for g in GOOD])
def test_good_replies(backend: Any, stream: bytes, value: Any, same: bool) -> None:
    wanted = ([exact(value)], None, len(stream), 0)
    assert replies(backend, [stream]) == wanted
    assert replies(backend, one_by_one(stream)) == wanted
    encoded = backend.encode_reply(value)
    assert (encoded == stream) is same
    assert replies(backend, [encoded])[0] == wanted[0]


@backends
@pytest.mark.parametrize(
    ("stream", "at", "expected", "shown"), BAD, ids=[ascii(b[0][:24])[2:-1] for b in BAD]
)
def test_protocol_errors(backend: Any, stream: bytes, at: int, expected: str, shown: bytes) -> None:
    before = b"+OK\r\n"
    shown = shown[:32] + b"..." if len(shown) > 32 else shown
    text = f"Protocol error in reply at byte {5 + at}: expected {expected}, got {shown!r}"
    # A bulk string's errors stand where its content begins or ends.
    outcomes = [
        replies(backend, pieces) for pieces in ([before + stream], one_by_one(before + stream))
    ]
    assert outcomes[0] == outcomes[1]
    messages, error, consumed, pending = outcomes[0]
    assert (messages, consumed, pending) == ([exact(S(b"OK"))], 5, 0)
    assert error == text


@backends
def test_lines_are_bounded(backend: Any) -> None:
    assert replies(backend, [b"+" + b"x" * 39 + b"\r\n"], max_line_bytes=40)[1] is None
    for pieces in ([b"+" + b"x" * 40 + b"\r\n"], one_by_one(b"+" + b"x" * 40)):
        error = replies(backend, pieces, max_line_bytes=40)[1]
        assert error == (
            "Protocol error in reply at byte 0: expected a line of at most 40 bytes, "
            f"got {b'+' + b'x' * 31 + b'...'!r}"
        )
    with pytest.raises(ValueError, match="max_line_bytes must be at least 32, not 0"):
        backend.ReplyDecoder(max_line_bytes=0)


@backends
def test_own_limits(backend: Any) -> None:
    assert replies(backend, [b"*4\r\n"], max_elements=4)[1] is None
    assert "count from -1 to 4 " in str(replies(backend, [b"*5\r\n"], max_elements=4)[1])
    assert "count from 0 to 2 " in str(replies(backend, [b"%3\r\n"], max_elements=4)[1])
    assert "length from -1 to 8 " in str(replies(backend, [b"$9\r\n"], max_bulk_bytes=8)[1])
    assert replies(backend, [b"*1\r\n:1\r\n"], max_depth=1)[0] == [exact([1])]
    assert "at most 1 levels" in str(replies(backend, [b"*1\r\n*0\r\n"], max_depth=1)[1])
    assert "at most 0 levels" in str(replies(backend, [b"*0\r\n"], max_depth=0)[1])


@backends
def test_an_error_is_final(backend: Any) -> None:
    decoder = backend.ReplyDecoder()
    decoder.feed(b"*2\r\n:1\r\n:x\r\n")
    for _ in range(2):
        with pytest.raises(RespError, match=r"byte 8: expected an integer of 64 bits, got b':x'$"):
            decoder.read()
        decoder.feed(b":1\r\n")
    assert (decoder.consumed, decoder.pending) == (0, 0)


@backends
def test_the_announced_size_reserves_nothing(backend: Any) -> None:
    import tracemalloc

    decoder = backend.ReplyDecoder()
    tracemalloc.start()
    try:
        decoder.feed(b"*16777216\r\n*16777216\r\n$536870912\r\n")
        assert decoder.read() is INCOMPLETE
        assert tracemalloc.get_traced_memory()[1] < 100_000
    finally:
        tracemalloc.stop()


# ------------------------------------------------------------------------------------ hiredis


def plain(value: Any) -> Any:
    """Our value as hiredis shows it."""
    if isinstance(value, VerbatimString):
        return value.text
    if isinstance(value, SimpleError):
        return ("error", bytes(value).decode("utf-8", "replace"))
    if isinstance(value, bytes):
        return bytes(value)
    if isinstance(value, float):
        return repr(value)
    if isinstance(value, Map):
        return {plain(key): plain(item) for key, item in value.pairs()}
    if isinstance(value, list):
        return [plain(item) for item in value]
    return value


def shown_by_hiredis(value: Any) -> Any:
    if isinstance(value, Exception):
        return ("error", str(value))
    if isinstance(value, float):
        return repr(value)
    if isinstance(value, dict):
        return {shown_by_hiredis(key): shown_by_hiredis(item) for key, item in value.items()}
    if isinstance(value, list):
        return [shown_by_hiredis(item) for item in value]
    return value


#: hiredis 3 knows no bulk errors, swallows attributes as replies, refuses doubles beyond the range
#: of a C double, and cannot build a map with an array as key.
UNDEFINED = (b"!", b"|", b",1e400", b"%2\r\n+a")
DEFINED = [stream for stream, _, _ in GOOD if not stream.startswith(UNDEFINED)]
DEFINED += [b"%2\r\n+a\r\n:1\r\n:2\r\n*1\r\n_\r\n"]


@backends
@pytest.mark.parametrize("stream", DEFINED, ids=[ascii(stream)[2:-1] for stream in DEFINED])
def test_hiredis_agrees(backend: Any, stream: bytes) -> None:
    decoder = backend.ReplyDecoder()
    decoder.feed(stream)
    reader = hiredis.Reader()
    reader.feed(stream)
    assert shown_by_hiredis(reader.gets()) == plain(decoder.read())


numbers = st.integers(-(2**63), 2**63 - 1)
line = st.binary(max_size=12).map(lambda b: b.replace(b"\r", b"").replace(b"\n", b""))
scalars = st.one_of(
    st.none(),
    st.booleans(),
    numbers,
    st.floats(),
    st.binary(max_size=30),
    line.map(SimpleString),
    line.map(SimpleError),
    st.binary(max_size=12).map(BulkError),
    st.integers().map(lambda n: BigNumber(b"%d" % n)),
    st.binary(max_size=12).map(lambda b: VerbatimString(b"txt:" + b)),
)


def _aggregates(children: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    maps = st.lists(st.tuples(children, children), max_size=3).map(
        lambda pairs: Map(item for pair in pairs for item in pair)
    )
    lists = st.lists(children, max_size=4)
    return st.one_of(lists, lists.map(Set), maps, st.builds(Attributed, children, maps))


values = st.recursive(scalars, _aggregates, max_leaves=12)
tops = values | st.lists(values, max_size=4).map(Push)
cuts = st.lists(st.integers(0, 1 << 16), max_size=6)


@given(st.lists(tops, max_size=4), cuts)
def test_round_trip(sent: list[Any], places: list[int]) -> None:
    streams = [b"".join(map(backend.encode_reply, sent)) for backend in available()]
    assert all(stream == streams[0] for stream in streams)
    wanted = ([exact(value) for value in sent], None, len(streams[0]), 0)
    for backend in available():
        assert replies(backend, [streams[0]]) == wanted
        assert replies(backend, cut(streams[0], places)) == wanted
        assert replies(backend, one_by_one(streams[0])) == wanted


@given(st.recursive(st.none() | numbers | st.binary(max_size=9), lambda c: st.lists(c, max_size=4)))
def test_hiredis_agrees_on_random_resp2(value: Any) -> None:
    for backend in available():
        reader = hiredis.Reader()
        reader.feed(backend.encode_reply(value, 2))
        assert reader.gets() == value


WORDS = [b"+", b"-", b":", b"$", b"*", b"_", b"#", b",", b"(", b"!", b"=", b"%", b"~", b">", b"|"]
WORDS += [b"\r\n", b"\r", b"\n", b"0", b"1", b"2", b"3", b"-1", b"OK\r\n", b"1\r\n", b"2\r\n", b"?"]
WORDS += [b":1\r\n", b"$1\r\na\r\n", b"t\r\n", b"1.5\r\n", b"5\r\ntxt:a\r\n", b"\x00", b"inf\r\n"]
noise = st.lists(st.sampled_from(WORDS) | st.binary(max_size=3), max_size=25).map(b"".join)
LIMITS = {"max_line_bytes": 32, "max_bulk_bytes": 8, "max_elements": 4, "max_depth": 2}


@given(noise, cuts)
@example(b"*2\r\n:1\r\n:2\r\n:3\r\n", [4, 9])
def test_random_streams(stream: bytes, places: list[int]) -> None:
    outcomes = [
        replies(backend, pieces, **limits)
        for limits in ({}, LIMITS)
        for backend in available()
        for pieces in ([stream], one_by_one(stream), cut(stream, places))
    ]
    half = len(outcomes) // 2
    assert all(outcome == outcomes[0] for outcome in outcomes[:half])
    assert all(outcome == outcomes[half] for outcome in outcomes[half:])


def test_random_malformed_replies_small_fuzz() -> None:
    rng = random.Random(20_261_121)
    seeds = [g[0] for g in GOOD] + [b[0] for b in BAD]
    for _ in range(1500):
        stream = mutate(rng, rng.choice(seeds))
        pieces = cut(stream, [rng.randrange(1 << 16) for _ in range(3)])
        outcomes = [replies(b, p, **LIMITS) for b in available() for p in ([stream], pieces)]
        assert all(outcome == outcomes[0] for outcome in outcomes), stream


@backends
def test_every_cut_of_a_nested_reply(backend: Any) -> None:
    stream = b"|1\r\n+a\r\n:1\r\n*2\r\n$3\r\na\r\n\r\n%1\r\n,1.5\r\n=5\r\ntxt:x\r\n+OK\r\n"
    wanted = replies(backend, [stream])
    assert wanted[1:] == (None, len(stream), 0)
    for first in range(len(stream)):
        for second in range(first, len(stream)):
            assert replies(backend, cut(stream, [first, second])) == wanted


# --------------------------------------------------------------------------------- a real Redis


@backends
def test_a_real_redis_in_resp3(backend: Any, redis_server: Any) -> None:
    """Commands of ours answered by Redis: each type that ``DEBUG PROTOCOL`` can send."""
    commands: list[tuple[list[bytes | str | int], Any]] = [
        (["DEBUG", "PROTOCOL", "string"], b"Hello World"),
        (["DEBUG", "PROTOCOL", "integer"], 12345),
        (["DEBUG", "PROTOCOL", "double"], 3.141),
        (["DEBUG", "PROTOCOL", "null"], None),
        (["DEBUG", "PROTOCOL", "array"], [0, 1, 2]),
        (["DEBUG", "PROTOCOL", "set"], Set([0, 1, 2])),
        (["DEBUG", "PROTOCOL", "map"], Map([0, False, 1, True, 2, False])),
        (
            ["DEBUG", "PROTOCOL", "attrib"],
            Attributed(
                b"Some real reply following the attribute",
                Map([b"key-popularity", [b"key:123", 90]]),
            ),
        ),
        (["DEBUG", "PROTOCOL", "bignum"], BigNumber(b"1234567999999999999999999999999999999")),
        (["DEBUG", "PROTOCOL", "verbatim"], VerbatimString(b"txt:This is a verbatim\nstring")),
        (["DEBUG", "PROTOCOL", "true"], True),
        (["DEBUG", "PROTOCOL", "false"], False),
        (["ECHO", b"\r\n\x00\xff"], b"\r\n\x00\xff"),
        (["PING"], SimpleString(b"PONG")),
    ]
    decoder = backend.ReplyDecoder()
    got = []
    with socket.create_connection((redis_server.host, redis_server.port), timeout=5) as client:
        client.sendall(
            backend.encode_command(["HELLO", 3])
            + b"".join(backend.encode_command(command) for command, _ in commands)
        )
        while len(got) <= len(commands):
            decoder.feed(client.recv(7))
            while (value := decoder.read()) is not INCOMPLETE:
                got.append(value)
    assert isinstance(got[0], Map)
    assert dict(got[0].pairs())[b"proto"] == 3
    assert [exact(value) for value in got[1:]] == [exact(value) for _, value in commands]


# ----------------------------------------------------------------------------------- encoding

DOWNGRADED: list[tuple[Any, bytes]] = [
    (None, b"$-1\r\n"),
    (True, b":1\r\n"),
    (False, b":0\r\n"),
    (1.5, b"$3\r\n1.5\r\n"),
    (math.inf, b"$3\r\ninf\r\n"),
    (BigNumber(b"12"), b"$2\r\n12\r\n"),
    (VerbatimString(b"txt:ab"), b"$2\r\nab\r\n"),
    (BulkError(b"ERR a\r\nb"), b"-ERR a  b\r\n"),
    (Map([b"a", 1]), b"*2\r\n$1\r\na\r\n:1\r\n"),
    (Set([1]), b"*1\r\n:1\r\n"),
    (Push([1]), b"*1\r\n:1\r\n"),
    (Attributed([Attributed(1, Map([2, 3]))], Map([4, 5])), b"*1\r\n:1\r\n"),
]


@backends
@pytest.mark.parametrize(("value", "wire"), DOWNGRADED, ids=[repr(d[0]) for d in DOWNGRADED])
def test_resp2_gets_what_redis_would_send(backend: Any, value: Any, wire: bytes) -> None:
    assert backend.encode_reply(value, 2) == wire


class _OtherBytes(bytes):
    pass


class _OtherList(list[Any]):
    pass


REFUSED: list[tuple[Any, type[Exception], str]] = [
    (SimpleString(b"a\nb"), ValueError, "a simple string or error cannot hold CR or LF"),
    (SimpleError(b"a\rb"), ValueError, "a simple string or error cannot hold CR or LF"),
    (BigNumber(b"1e5"), ValueError, "a big number must be decimal digits"),
    (BigNumber(b""), ValueError, "a big number must be decimal digits"),
    (VerbatimString(b"txt"), ValueError, "a verbatim string must begin with three letters"),
    (2**63, ValueError, "an integer must fit in 64 bits"),
    (-(2**63) - 1, ValueError, "an integer must fit in 64 bits"),
    (Map([1]), ValueError, "a map needs a value for every key"),
    (Attributed(1, Map([1])), ValueError, "a map needs a value for every key"),
    ([Push([])], ValueError, "a push can only be sent at the top level"),
    ("text", TypeError, "not a RESP value: str"),
    ((1,), TypeError, "not a RESP value: tuple"),
    ({1: 2}, TypeError, "not a RESP value: dict"),
    (bytearray(b"x"), TypeError, "not a RESP value: bytearray"),
    (_OtherBytes(b"x"), TypeError, "not a RESP value: _OtherBytes"),
    (_OtherList([1]), TypeError, "not a RESP value: _OtherList"),
]


@backends
@pytest.mark.parametrize(("value", "error", "text"), REFUSED, ids=[repr(r[0]) for r in REFUSED])
def test_what_is_no_value_is_refused(
    backend: Any, value: Any, error: type[Exception], text: str
) -> None:
    with pytest.raises(error, match=text):
        backend.encode_reply(value)


@backends
def test_depth_is_bounded_when_encoding(backend: Any) -> None:
    deep: Any = 1
    for _ in range(MAX_DEPTH):
        deep = [deep]
    assert replies(backend, [backend.encode_reply(deep)])[0] == [exact(deep)]
    with pytest.raises(ValueError, match="a value may nest at most 128 levels"):
        backend.encode_reply([deep])
    endless: list[Any] = []
    endless.append(endless)
    with pytest.raises(ValueError, match="a value may nest at most 128 levels"):
        backend.encode_reply(endless)


@backends
def test_protocol_must_be_known(backend: Any) -> None:
    with pytest.raises(ValueError, match="protocol must be 2 or 3, not 4"):
        backend.encode_reply(1, 4)


@backends
def test_commands(backend: Any) -> None:
    arguments = ["SET", "é", b"\r\n", bytearray(b"a"), memoryview(b"bc"), 0, -5, 2**70, b"x" * 999]
    mine = backend.encode_command(arguments)
    assert mine.startswith(
        b"*9\r\n$3\r\nSET\r\n$2\r\n\xc3\xa9\r\n$2\r\n\r\n\r\n$1\r\na\r\n$2\r\nbc\r\n"
    )
    as_bytes = [b"SET", "é".encode(), b"\r\n", b"a", b"bc", b"0", b"-5", b"%d" % 2**70, b"x" * 999]
    assert mine == hiredis.pack_command(tuple(as_bytes))
    with pytest.raises(ValueError, match="a command needs at least one argument"):
        backend.encode_command([])
    for wrong in (None, True, 1.5, [b"x"]):
        with pytest.raises(TypeError, match="a command's argument must be bytes, str or int, not "):
            backend.encode_command([b"SET", wrong])
    with pytest.raises(UnicodeEncodeError):
        backend.encode_command(["\ud800"])


def test_values_show_what_they_are() -> None:
    assert repr(SimpleString(b"OK")) == "SimpleString(b'OK')"
    assert repr(Map([1, None])) == "Map([1, None])"
    assert SimpleError(b"MOVED 1 a:1").code == b"MOVED"
    verbatim = VerbatimString(b"mkd:# x")
    assert (verbatim.format, verbatim.text) == (b"mkd", b"# x")
    assert int(BigNumber(b"-12")) == -12
