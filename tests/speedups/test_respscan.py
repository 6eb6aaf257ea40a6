"""Boundary scanners: against specified answers, each other, every split, and hiredis."""

from __future__ import annotations

import importlib
import os
from types import ModuleType

import hiredis
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nexus._speedups import _respscan_py
from nexus.errors import RespError

try:
    _respscan_c: ModuleType | None = importlib.import_module("nexus._speedups._respscan_c")
except ImportError:
    if os.environ.get("NEXUS_REQUIRE_EXTENSIONS", "0") not in ("", "0"):
        raise
    _respscan_c = None

NEEDS_C = pytest.mark.skipif(_respscan_c is None, reason="not compiled here")
BACKENDS = [
    pytest.param(_respscan_py, id="py"),
    pytest.param(_respscan_c, id="c", marks=NEEDS_C),
]
MORE, COMMAND, BIG, INLINE, ERROR = range(5)
PLAIN, OTHER, UNKNOWN = 1, 2, 4


def scanner(backend: ModuleType, big: int = 65_536, bulk: int = 536_870_912) -> object:
    table = backend.CommandTable({b"GET": PLAIN, b"set": PLAIN, b"multi": OTHER}, UNKNOWN)
    return backend.CommandScanner(table, bulk, big)


def encode(*args: bytes) -> bytes:
    return b"*%d\r\n" % len(args) + b"".join(b"$%d\r\n%b\r\n" % (len(a), a) for a in args)


def walk(backend: ModuleType, data: bytes, sizes: list[int], big: int = 65_536) -> list[object]:
    """Feed ``data`` in pieces, as a session does; everything observable, in order."""
    scan = scanner(backend, big)
    held = bytearray()
    seen: list[object] = []
    base = 0
    while True:
        size = sizes.pop(0) if sizes else len(data)
        held += data[:size]
        data = data[size:]
        start = 0
        while True:
            verdict = scan.scan(held, start, len(held), PLAIN)
            if scan.run_count:
                seen.append(("run", scan.run_count, base + scan.run_end))
            start = scan.run_end
            if verdict in (COMMAND, INLINE):
                seen.append((verdict, scan.kind, base + start, base + scan.command_end))
                start = scan.command_end
                continue
            break
        if verdict == BIG:
            seen.append((BIG, scan.kind, base + start))
            return seen
        if verdict == ERROR:
            seen.append((ERROR, scan.error, base + start))
            return seen
        base += start
        del held[:start]
        if not data:
            seen.append((MORE, len(held)))
            return seen


def merged(seen: list[object]) -> list[object]:
    """Runs that only the splits cut apart, joined."""
    out: list[object] = []
    for item in seen:
        if item[0] == "run" and out and out[-1][0] == "run":
            out[-1] = ("run", out[-1][1] + item[1], item[2])
        else:
            out.append(item)
    return out


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("step", [1, 2, 7, 10_000])
def test_runs_stop_at_what_is_not_plain(backend: ModuleType, step: int) -> None:
    parts = [encode(b"GET", b"k"), encode(b"SeT", b"k", b"\r\n$5"), encode(b"multi")]
    parts += [encode(b"nosuch", b""), b"PING x\r\n", encode(b"get"), b"*2\r\n$3\r\nGE"]
    data = b"".join(parts)
    ends = [sum(map(len, parts[: i + 1])) for i in range(len(parts))]
    assert merged(walk(backend, data, [step] * len(data))) == [
        ("run", 2, ends[1]),
        (COMMAND, OTHER, ends[1], ends[2]),
        (COMMAND, UNKNOWN, ends[2], ends[3]),
        (INLINE, UNKNOWN, ends[3], ends[4]),
        ("run", 1, ends[5]),
        (MORE, len(parts[6])),
    ]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("data", "error"),
    [
        (b"*x\r\n", "invalid multibulk length"),
        (b"*01\r\n", "invalid multibulk length"),
        (b"*+1\r\n", "invalid multibulk length"),
        (b"*1_0\r\n", "invalid multibulk length"),
        (b"*2147483648\r\n", "invalid multibulk length"),
        (b"*\r\n", "invalid multibulk length"),
        (b"*1\r\n:1\r\n", "expected '$', got ':'"),
        (b"*1\r\n\r\n", "expected '$', got ' '"),
        (b"*1\r\n$-1\r\n", "invalid bulk length"),
        (b"*1\r\n$536870913\r\n", "invalid bulk length"),
        (b"*1\r\n$99999999999999999999999\r\n", "invalid bulk length"),
        # Numbers that are 1 in 64 bits.
        (b"*18446744073709551617\r\n", "invalid multibulk length"),
        (b"*1\r\n$18446744073709551617\r\n", "invalid bulk length"),
        (b"*9223372036854775808\r\n", "invalid multibulk length"),
        (b"*" + b"1" * 65_537, "too big mbulk count string"),
        (b"*1\r\n$" + b"1" * 65_537, "too big bulk count string"),
        (b"a" * 65_537, "too big inline request"),
    ],
    ids=lambda value: repr(value[:14]),
)
def test_errors_are_those_of_redis(backend: ModuleType, data: bytes, error: str) -> None:
    good = encode(b"GET", b"k")
    big = 10_000_000  # else the long ones are streamed first
    for sizes in ([len(data) + len(good)], [9, 30_000, 30_000]):
        seen = merged(walk(backend, good + data, list(sizes), big))
        assert seen == [("run", 1, len(good)), (ERROR, f"Protocol error: {error}", len(good))]


@pytest.mark.parametrize("backend", BACKENDS)
def test_empty_requests_are_read_over(backend: ModuleType) -> None:
    empty = b"*0\r\n*-1\r\n"
    data = empty + encode(b"GET", b"k") + empty
    for sizes in ([], [1] * len(data)):
        seen = walk(backend, data, list(sizes))
        assert [item[:2] for item in seen] == [("run", 1), (MORE, 0)]


@pytest.mark.parametrize("backend", BACKENDS)
def test_lines_end_at_the_first_cr_as_in_redis(backend: ModuleType) -> None:
    assert walk(backend, b"*2\rX$3\r\nGETxx$1\r\nk..", []) == [("run", 1, 20), (MORE, 0)]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("step", [1, 3, 64, 100_000])
def test_big_commands_stream_to_their_end(backend: ModuleType, step: int) -> None:
    command = encode(b"SET", b"k", b"v" * 300, b"", b"PX")
    behind = encode(b"GET", b"k")
    scan = scanner(backend, big=100)
    held = bytearray(command[:60])
    assert scan.scan(held, 0, 60, PLAIN) == BIG
    assert scan.kind == PLAIN
    rest = command[60:] + behind
    passed = 0
    while True:
        stop = scan.stream(held, 0, len(held))
        assert stop >= 0
        passed += stop
        del held[:stop]
        if not scan.streaming:
            break
        held += rest[:step]
        rest = rest[step:]
    assert passed == len(command)
    held += rest
    assert scan.scan(held, 0, len(held), PLAIN) == MORE
    assert (scan.run_count, scan.run_end) == (1, len(behind))


@pytest.mark.parametrize("backend", BACKENDS)
def test_ranges_are_checked(backend: ModuleType) -> None:
    scan = scanner(backend)
    replies = backend.ReplyScanner()
    for start, end in ((0, 4), (-1, 2), (2, 1)):
        with pytest.raises(ValueError, match="is not within 3 bytes"):
            scan.scan(bytearray(b"abc"), start, end, PLAIN)
        with pytest.raises(ValueError, match="is not within 3 bytes"):
            replies.scan(bytearray(b"abc"), start, end, 1)
        with pytest.raises(ValueError, match="is not within 3 bytes"):
            backend.arguments(bytearray(b"abc"), start, end)
    with pytest.raises(ValueError, match="no command is being streamed"):
        scan.stream(bytearray(b"abc"), 0, 3)


@pytest.mark.parametrize("backend", BACKENDS)
def test_table(backend: ModuleType) -> None:
    table = backend.CommandTable({b"Get": 1, b"x" * 32: 2}, 4)
    assert [table.lookup(n) for n in (b"gEt", b"X" * 32, b"ge", b"gett", b"", b"y" * 99)] == [
        *(1, 2, 4, 4, 4, 4)
    ]
    for bad in ({b"": 1}, {b"x" * 33: 1}, {b"a": 3}, {b"a": 0}):
        with pytest.raises(ValueError, match=r"command name|power of two"):
            backend.CommandTable(bad, 4)


@pytest.mark.parametrize("backend", BACKENDS)
def test_groups_and_counts(backend: ModuleType) -> None:
    table = backend.CommandTable({b"get": 1, b"set": 1, b"multi": 2}, 4, {b"GET": 3, b"set": 31})
    assert [table.group(n) for n in (b"gEt", b"SET", b"multi", b"none")] == [3, 31, 0, 0]
    scan = backend.CommandScanner(table, 1 << 20, 65_536)
    scan.row = 1
    data = bytearray(encode(b"GET", b"k") * 5 + encode(b"SET", b"k", b"v") + encode(b"MULTI"))
    # In two pieces, cut within the name of the first: nothing is counted twice.
    assert scan.scan(data, 0, 10, 1) == MORE
    assert scan.scan(data, 0, len(data), 1) == COMMAND
    assert scan.group == 0  # MULTI, which stopped the scan, is not counted
    expected = [0] * 32
    expected[3], expected[31] = 5, 1
    assert table.counts(1) == expected
    assert table.counts(0) == [0] * 32
    table.count(1, 3)
    table.count(0, 0, 7)
    assert (table.counts(1)[3], table.counts(0)[0]) == (6, 7)
    for row, group in ((8, 0), (-1, 0), (0, 32), (0, -1)):
        with pytest.raises(IndexError, match=f"row {row} or group {group} is out of range"):
            table.count(row, group)
    with pytest.raises(IndexError, match="row 8 is out of range"):
        table.counts(8)
    with pytest.raises(ValueError, match="group 32 of b'a' is not from 0 to 31"):
        backend.CommandTable({b"a": 1}, 4, {b"a": 32})


READ, WRITE = 1, 3
UNWATCHED = 1 << 31


@pytest.mark.parametrize("backend", BACKENDS)
def test_reads_of_keys_that_nobody_watches_are_passed_over(backend: ModuleType) -> None:
    effects = {
        b"get": (READ, 1, 1, 1),
        b"exists": (READ, 1, -1, 1),
        b"hget": (READ, 1, 1, 1),
        b"set": (WRITE, 1, 1, 1),
    }
    names = dict.fromkeys([*effects, b"ping"], PLAIN) | {b"multi": OTHER}
    table = backend.CommandTable(names, UNKNOWN, effects=effects)
    scan = backend.CommandScanner(table, 1 << 20, 65_536)

    def stops(data: bytes) -> list[int]:
        """Runs between the commands that stop the scan with all of ``PLAIN`` but the unwatched."""
        held, start, runs = bytearray(data), 0, []
        while True:
            verdict = scan.scan(held, start, len(held), PLAIN | UNWATCHED)
            runs.append(scan.run_count)
            if verdict != COMMAND:
                assert (verdict, scan.run_end) == (MORE, len(held))
                return runs
            start = scan.command_end

    reads = encode(b"GET", b"other") + encode(b"hget", b"", b"user:1") + encode(b"EXISTS", b"use")
    assert stops(reads) == [0, 0, 0, 0]  # every key is watched
    table.watch(READ, [b"user:", b"item:7", b"user:vip:"])
    assert stops(reads) == [3]
    # A watched key; two keys; another effect; none; another class; too few arguments.
    for command in (
        *(encode(b"GET", b"user:1"), encode(b"GET", b"item:7"), encode(b"GET", b"item:70")),
        *(encode(b"EXISTS", b"a", b"b"), encode(b"SET", b"a", b"b"), encode(b"PING", b"a")),
        *(encode(b"MULTI", b"a"), encode(b"NONE", b"a"), encode(b"GET")),
    ):
        assert stops(reads + command + reads * 2) == [3, 6], command
    data = bytearray(reads)
    assert [scan.scan(data, 0, len(data), mask) for mask in (0, UNWATCHED)] == [COMMAND] * 2
    table.watch(READ, [])
    assert stops(reads + encode(b"GET", b"user:1")) == [4]
    table.watch(READ, None)
    assert stops(reads) == [0, 0, 0, 0]


@pytest.mark.parametrize("backend", BACKENDS)
@given(st.sets(st.binary(min_size=1, max_size=4)), st.binary(max_size=8))
def test_a_key_is_watched_by_any_of_the_prefixes(
    backend: ModuleType, prefixes: set[bytes], key: bytes
) -> None:
    table = backend.CommandTable({}, UNKNOWN)
    table.watch(READ, prefixes)
    for tried in (key, *prefixes, *(prefix + key for prefix in prefixes)):
        assert table.watched(tried) == any(tried.startswith(prefix) for prefix in prefixes)


@pytest.mark.parametrize("backend", BACKENDS)
def test_arguments(backend: ModuleType) -> None:
    data = bytearray(b"xx" + encode(b"a", b"", b"\r\n") + b"yy")
    assert backend.arguments(data, 2, len(data) - 2) == [b"a", b"", b"\r\n"]
    for bad in (b"", b"*1\r\n", b"*1\r\n$1\r\na", encode(b"a") + b"x", b"$1\r\na\r\n"):
        with pytest.raises(RespError):
            backend.arguments(bytearray(bad), 0, len(bad))


PIECES = st.one_of(
    st.lists(st.binary(max_size=30), min_size=1, max_size=4).map(lambda a: encode(*a)),
    st.sampled_from([encode(b"GET", b"k"), encode(b"multi"), b"*0\r\n", b"*-1\r\n", b"PING\r\n"]),
    st.sampled_from(
        [b"\r\n", b"*", b"$3\r\n", b"*1\r\n$", b"*2\r\n$3\r\nget\r\n", b"*1\r\n$200\r\n"]
    ),
    st.binary(max_size=12),
)


@NEEDS_C
@given(pieces=st.lists(PIECES, max_size=8), cuts=st.lists(st.integers(1, 40), max_size=60))
def test_command_scanners_agree_on_anything(pieces: list[bytes], cuts: list[int]) -> None:
    data = b"".join(pieces)
    whole = walk(_respscan_py, data, [], 100)
    assert _respscan_c is not None
    assert walk(_respscan_c, data, [], 100) == whole
    assert walk(_respscan_c, data, list(cuts), 100) == walk(_respscan_py, data, list(cuts), 100)


# -- replies


def stretches(backend: ModuleType, data: bytes, sizes: list[int], want: int) -> list[object]:
    scan = backend.ReplyScanner()
    seen: list[object] = []
    position = 0
    while position < len(data):
        size = sizes.pop(0) if sizes else len(data)
        chunk = bytearray(data[position : position + size])
        at = 0
        while at < len(chunk):
            try:
                stop = scan.scan(chunk, at, len(chunk), want)
            except RespError as error:
                seen.append(str(error))
                return seen
            seen.append((position + stop, scan.done, scan.push, scan.partial))
            at = stop
        position += len(chunk)
    return seen


def ends(backend: ModuleType, data: bytes, sizes: list[int]) -> list[object]:
    """Where replies and pushes end, however the stretches were cut."""
    return [s[:3] for s in stretches(backend, data, sizes, 1) if isinstance(s, str) or not s[3]]


REPLIES = [
    b"+OK\r\n",
    b"-ERR x\r\n",
    b":-12\r\n",
    b"$-1\r\n",
    b"$0\r\n\r\n",
    b"$5\r\n\r\n$3\n\r\n",
    b"*0\r\n",
    b"*-1\r\n",
    b"*2\r\n*1\r\n*0\r\n$1\r\na\r\n",
    b"_\r\n",
    b"#t\r\n",
    b",-inf\r\n",
    b"(123456789012345678901234567890\r\n",
    b"!5\r\nERR x\r\n",
    b"=6\r\ntxt:ab\r\n",
    b"%2\r\n+a\r\n%1\r\n:1\r\n:2\r\n+b\r\n*0\r\n",
    b"~2\r\n:1\r\n:2\r\n",
    b"|1\r\n+ttl\r\n:5\r\n$1\r\nx\r\n",
    b"*2\r\n|1\r\n+a\r\n+b\r\n:1\r\n:2\r\n",
]
PUSH = b">2\r\n+invalidate\r\n*1\r\n$1\r\nk\r\n"


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("step", [1, 2, 5, 100_000])
def test_reply_boundaries(backend: ModuleType, step: int) -> None:
    parts = [*REPLIES[:9], PUSH, *REPLIES[9:], PUSH, PUSH, REPLIES[0]]
    data = b"".join(parts)
    expected = []
    at = 0
    for part in parts:
        at += len(part)
        expected.append((at, 0 if part is PUSH else 1, part is PUSH))
    assert ends(backend, data, [step] * len(data)) == expected


@pytest.mark.parametrize("backend", BACKENDS)
def test_several_replies_in_one_stretch(backend: ModuleType) -> None:
    data = b"".join(REPLIES)
    assert stretches(backend, data, [], 100) == [(len(data), len(REPLIES), False, False)]
    first = len(REPLIES[0]) + len(REPLIES[1])
    assert stretches(backend, data, [], 2)[0] == (first, 2, False, False)
    assert stretches(backend, REPLIES[0] + PUSH, [], 9)[0] == (5, 1, False, False)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("data", "error"),
    [
        (b"?", "unknown reply type byte 0x3f"),
        (b"*1\r\n\r\n", "unknown reply type byte 0x0d"),
        (b"$x", "reply length is not a number"),
        (b"$\r", "reply length is not a number"),
        (b"$--1\r\n", "reply length is not a number"),
        (b"$?\r\n", "reply length is not a number"),
        (b"$1\rx", "reply length is not followed by CRLF"),
        (b"$-2\r\n", "reply length is out of bounds"),
        (b"*99999999999999\r\n", "reply length is out of bounds"),
    ],
)
def test_nonsense_from_upstream(backend: ModuleType, data: bytes, error: str) -> None:
    for sizes in ([], [1] * len(data)):
        assert stretches(backend, data, sizes, 1)[-1] == f"Protocol error: {error}"


@NEEDS_C
@given(
    pieces=st.lists(
        st.one_of(st.sampled_from([*REPLIES, PUSH]), st.binary(max_size=9)), max_size=9
    ),
    cuts=st.lists(st.integers(1, 30), max_size=40),
    want=st.integers(1, 3),
)
def test_reply_scanners_agree_on_anything(pieces: list[bytes], cuts: list[int], want: int) -> None:
    data = b"".join(pieces)
    assert _respscan_c is not None
    assert stretches(_respscan_c, data, list(cuts), want) == stretches(
        _respscan_py, data, list(cuts), want
    )


RESP2 = st.recursive(
    st.one_of(
        st.binary(max_size=20).map(lambda b: b"$%d\r\n%b\r\n" % (len(b), b)),
        st.integers(-9, 9).map(lambda n: b":%d\r\n" % n),
        st.sampled_from([b"+OK\r\n", b"-ERR e\r\n", b"$-1\r\n", b"*-1\r\n"]),
    ),
    lambda inner: st.lists(inner, max_size=4).map(lambda v: b"*%d\r\n" % len(v) + b"".join(v)),
    max_leaves=12,
)


@pytest.mark.parametrize("backend", BACKENDS)
@given(
    values=st.lists(RESP2, min_size=1, max_size=6), cuts=st.lists(st.integers(1, 9), max_size=99)
)
def test_replies_end_where_hiredis_ends_them(
    backend: ModuleType, values: list[bytes], cuts: list[int]
) -> None:
    data = b"".join(values)
    found = [end for end, done, _ in ends(backend, data, list(cuts)) if done]
    reader = hiredis.Reader()
    expected = []
    for index in range(len(data)):
        reader.feed(data[index : index + 1])
        if reader.gets(False) is not False:
            expected.append(index + 1)
    assert found == expected
