"""The near-cache's table: what it answers, what drops it, its budget; both backends alike."""

from __future__ import annotations

import random
from types import ModuleType
from typing import Any

import pytest
from kernel_sides import both, sides

from nexus._speedups import _respscan_py
from nexus._speedups.nearcache import (
    BUSY,
    CHANGED,
    COMMITTED,
    FLUSH,
    FULL,
    HIT,
    LATE,
    MISS,
    PENDING,
    READ,
    TOO_BIG,
    UNKNOWN,
    WRITE,
)
from nexus.errors import RespError

SIDES = sides("nearcache")
GET, MSET, DEL = 1, 2, 3


def encode(*arguments: bytes) -> bytes:
    return b"*%d\r\n" % len(arguments) + region(*arguments)


def region(*arguments: bytes) -> bytes:
    return b"".join(b"$%d\r\n%b\r\n" % (len(a), a) for a in arguments)


def commands(module: ModuleType) -> Any:
    """A command table of the same backend: the compiled kernels pass pointers."""
    if module.__name__.endswith("_py"):
        table = _respscan_py.CommandTable
    else:
        from nexus._speedups import _respscan_c

        table = _respscan_c.CommandTable
    return table(
        {b"get": 1, b"mset": 1, b"del": 1},
        2,
        {},
        {b"get": (1, 1, 1, 1), b"mset": (3, 1, -1, 2), b"del": (3, 1, -1, 1)},
    )


class Table:
    """A table with times and offsets filled in."""

    def __init__(self, module: ModuleType, max_bytes: int = 1 << 20, buffer: int = 4096) -> None:
        self.module = module
        self.commands = commands(module)
        self.table = module.NearTable(max_bytes, buffer, 7)

    def probe(self, key: bytes, now: float = 1.0, space: int = 4, **more: Any) -> int:
        data = bytearray(b"xx" + region(key) + b"yy")
        options: dict[str, Any] = {"fresh": 1.0, "floor": 0.5, "received": 9, "reading": False}
        options |= more
        return self.table.probe(space, GET, data, 2, len(data) - 2, now, *options.values())

    def put(
        self, key: bytes, reply: bytes = b"+OK\r\n", space: int = 4, expiry: float = 9.0,
        seq: int = 0,
    ) -> int:  # fmt: skip
        token = self.table.begin(space, GET, region(key))
        return self.table.commit(space, GET, region(key), token, reply, expiry, seq)

    def note(self, notes: Any, kind: int, seq: int, name: bytes, *arguments: bytes) -> int:
        data = bytearray(encode(name, *arguments))
        begin = data.index(b"\r\n", data.index(b"$")) + 2 + len(name) + 2
        return self.table.note(
            notes, kind, seq, self.commands, self.commands.number(name), 1 + len(arguments), data,
            begin, len(data),
        )  # fmt: skip

    def answer(self) -> bytes:
        found = bytes(self.table.buffer[: self.table.used])
        self.table.used = 0
        return found


@pytest.mark.parametrize("module", SIDES)
def test_a_reply_is_found_by_the_bytes_of_its_request(module: ModuleType) -> None:
    t = Table(module)
    assert t.probe(b"k") == MISS
    assert t.put(b"k", b"$1\r\na\r\n") == COMMITTED
    assert t.put(b"k", b"$1\r\nb\r\n", space=5) == COMMITTED
    assert (t.probe(b"k"), t.probe(b"k"), t.probe(b"k", space=5)) == (HIT, HIT, HIT)
    assert t.answer() == b"$1\r\na\r\n$1\r\na\r\n$1\r\nb\r\n"
    assert t.probe(b"K") == MISS
    assert t.table.facts(4, GET, region(b"k"))[1:] == (b"$1\r\na\r\n", 9.0, 2)


@pytest.mark.parametrize("module", SIDES)
def test_expiry_fences_and_the_callers_own_reads(module: ModuleType) -> None:
    t = Table(module)
    t.put(b"k", seq=5)
    assert t.probe(b"k", fresh=0.4) == LATE  # the fence is older than asked for
    assert t.probe(b"k", reading=True, received=4) == BUSY
    assert t.probe(b"k", reading=True, received=5) == HIT
    assert t.probe(b"k", now=8.999) == HIT
    assert t.probe(b"k", now=9.0) == MISS  # expired: gone
    assert (t.table.entries, t.table.bytes, t.table.expired) == (0, 0, 1)


@pytest.mark.parametrize("module", SIDES)
def test_a_full_buffer_is_to_be_emptied(module: ModuleType) -> None:
    t = Table(module, buffer=20)
    t.put(b"k", b"$6\r\nabcdef\r\n")
    assert (t.probe(b"k"), t.probe(b"k")) == (HIT, FULL)
    assert t.answer() == b"$6\r\nabcdef\r\n"
    assert t.probe(b"k") == HIT
    assert t.put(b"big", b"$19\r\n" + b"x" * 19 + b"\r\n") == TOO_BIG
    assert t.probe(b"big") == MISS


@pytest.mark.parametrize("module", SIDES)
def test_a_fill_is_overtaken(module: ModuleType) -> None:
    t = Table(module)
    request = region(b"k")
    token = t.table.begin(4, GET, request)
    assert t.probe(b"k") == PENDING
    assert t.table.alive(4, GET, request, token)
    assert t.table.drop(b"k") == 1
    assert not t.table.alive(4, GET, request, token)
    assert t.table.commit(4, GET, request, token, b"+OK\r\n", 9.0, 0) == CHANGED
    again = t.table.begin(4, GET, request)
    assert again != token
    t.table.abandon(4, GET, request, token)  # not its own
    assert t.probe(b"k") == PENDING
    t.table.close(4, GET, request, again)
    assert t.probe(b"k") == MISS
    assert t.table.alive(4, GET, request, again)
    t.table.abandon(4, GET, request, again)
    assert (t.table.pending, t.table.bytes) == (0, 0)
    with pytest.raises(RespError):
        t.table.begin(4, GET, b"$9\r\nshort\r\n")


@pytest.mark.parametrize("module", SIDES)
def test_writes_drop_when_sent_and_when_answered(module: ModuleType) -> None:
    t = Table(module)
    notes = module.Notes()
    for key in (b"a", b"b", b"c"):
        t.put(key)
    assert t.note(notes, WRITE, 7, b"mset", b"a", b"1", b"b", b"2") == 2
    assert (t.probe(b"a"), t.probe(b"b"), t.probe(b"c")) == (MISS, MISS, HIT)
    t.put(b"a")
    assert t.table.answered(notes, 6, 2.0) == (0, 0)
    assert t.probe(b"a") == HIT
    assert t.table.answered(notes, 7, 2.0) == (0, 1)
    assert t.probe(b"a") == MISS
    assert len(notes) == 0


@pytest.mark.parametrize("module", SIDES)
def test_reads_elsewhere_ask_for_a_later_fence(module: ModuleType) -> None:
    t = Table(module)
    notes = module.Notes()
    t.put(b"a")
    request = region(b"p")
    token = t.table.begin(4, GET, request)
    assert t.note(notes, READ, 1, b"del", b"a", b"p") == 1  # kept
    assert t.probe(b"a") == HIT
    assert t.table.answered(notes, 1, 3.0) == (0, 0)
    assert t.probe(b"a", fresh=2.9) == LATE
    assert t.table.ripe == 3.0
    assert t.probe(b"a", fresh=3.0) == HIT
    assert t.table.commit(4, GET, request, token, b"+p\r\n", 9.0, 0) == COMMITTED
    assert t.probe(b"p", fresh=2.9) == LATE  # what was pending heard of it, too


@pytest.mark.parametrize("module", SIDES)
def test_unknown_and_flushing_commands(module: ModuleType) -> None:
    t = Table(module)
    notes = module.Notes()
    t.put(b"a")
    assert t.note(notes, UNKNOWN, 1, b"del", b"a") == 0
    assert t.note(notes, FLUSH, 2, b"del", b"a") == 1
    t.put(b"b")
    assert t.table.answered(notes, 1, 1.0) == (1, 0)
    assert t.probe(b"b") == HIT
    assert t.table.answered(notes, 2, 1.0) == (0, 1)


@pytest.mark.parametrize("module", SIDES)
def test_pushes(module: ModuleType) -> None:
    t = Table(module)
    push = b">2\r\n$10\r\ninvalidate\r\n"
    t.put(b"a")
    t.put(b"a", space=7)
    t.put(b"b")
    assert t.table.invalidate(push + b"*1\r\n$1\r\na\r\n") == 2
    assert (t.probe(b"a"), t.probe(b"a", space=7), t.probe(b"b")) == (MISS, MISS, HIT)
    assert t.table.invalidate(push + b"_\r\n") == 1
    assert t.table.invalidate(b">2\r\n$7\r\nmessage\r\n*1\r\n$1\r\nb\r\n") == -1
    t.put(b"a")
    assert t.table.invalidate(push + b"*1\r\n$9\r\na\r\n") == 1  # drop on doubt


@pytest.mark.parametrize("module", SIDES)
def test_a_source_goes_with_its_entries(module: ModuleType) -> None:
    t = Table(module)
    for space in (4, 5, 6):
        t.put(b"a", space=space)
    t.table.begin(5, GET, region(b"p"))
    assert t.table.clear(2) == 3
    assert (t.table.entries, t.table.pending) == (1, 0)
    assert t.table.clear(-1) == 1
    assert t.table.bytes == 0


@pytest.mark.parametrize("module", SIDES)
def test_the_budget_and_what_sieve_keeps(module: ModuleType) -> None:
    t = Table(module, max_bytes=4000)
    for number in range(10):
        t.put(b"hot:%d" % number)
    for number in range(10):
        assert t.probe(b"hot:%d" % number) == HIT
        t.answer()
    for number in range(1000):
        t.put(b"scan:%d" % number)
        if number % 5 == 0:
            for hot in range(10):
                t.probe(b"hot:%d" % hot)
                t.answer()
    assert t.table.bytes <= 4000
    assert t.table.evictions == 1010 - t.table.entries
    assert [t.probe(b"hot:%d" % number) for number in range(10)] == [HIT] * 10
    assert t.put(b"huge", b"x" * 501) == TOO_BIG  # an eighth of the budget


@pytest.mark.parametrize("module", SIDES)
def test_what_was_hit_is_told_once(module: ModuleType) -> None:
    t = Table(module)
    t.put(b"a")
    t.put(b"b", expiry=2.0)
    t.put(b"c")
    t.probe(b"a")
    t.probe(b"a")
    assert t.table.touched(10, 1.0) == [(4, b"a", 2)]
    assert t.table.touched(10, 3.0) == []  # b is removed
    assert (t.table.entries, t.table.expired) == (2, 1)


@pytest.mark.parametrize("module", SIDES)
def test_offsets_are_checked(module: ModuleType) -> None:
    t = Table(module)
    for begin, stop in ((-1, 1), (2, 1), (0, 4)):
        with pytest.raises(ValueError, match="is not within 3 bytes"):
            t.table.probe(4, GET, bytearray(3), begin, stop, 1.0, 1.0, 0.5, 0, False)
        with pytest.raises(ValueError, match="is not within 3 bytes"):
            t.table.note(module.Notes(), WRITE, 1, t.commands, DEL, 2, bytearray(3), begin, stop)
    for bad in (b"", b"$", b"$1\r\n", b"$9\r\nab\r\n", b"+OK\r\n", b"$x\r\na\r\n"):
        with pytest.raises(RespError):
            t.table.note(
                module.Notes(), WRITE, 1, t.commands, t.commands.number(b"del"), 2,
                bytearray(bad), 0, len(bad),
            )  # fmt: skip


def _step(t: Table, notes: Any, tokens: dict[bytes, int], rng: random.Random, seq: int) -> Any:
    key = b"k%d" % rng.randrange(30)
    space = rng.choice((2, 3, 4))
    now = seq / 50
    match rng.randrange(9):
        case 0 | 1 | 2:
            found = t.probe(
                key, now, space, fresh=now - rng.random(), floor=now - 0.7, received=seq,
                reading=rng.random() < 0.2,
            )  # fmt: skip
            return found, t.answer()
        case 3:
            tokens[key] = t.table.begin(space, GET, region(key))
            return tokens[key]
        case 4:
            reply = b"$%d\r\n" % seq * rng.randrange(1, 9)
            expiry = now + rng.random() * 5
            token = tokens.get(key, 0)
            return t.table.commit(space, GET, region(key), token, reply, expiry, seq)
        case 5:
            kind = rng.choice(
                (READ, WRITE, WRITE, UNKNOWN, FLUSH) if seq % 7 == 0 else (READ, WRITE)
            )
            return t.note(notes, kind, seq, b"del", key, b"k1")
        case 6:
            return t.table.answered(notes, seq - rng.randrange(5), now)
        case 7:
            return t.table.drop(key)
        case _:
            return t.table.touched(rng.randrange(9), now)


def test_both_sides_do_the_same():
    python, compiled = both("nearcache")
    for seed in range(20):
        results = []
        for module in (python, compiled):
            t = Table(module, max_bytes=3000)
            notes, tokens, rng = module.Notes(), {}, random.Random(seed)
            trace = [_step(t, notes, tokens, rng, seq) for seq in range(1, 3000)]
            numbers = (t.table.bytes, t.table.entries, t.table.pending, t.table.evictions)
            results.append((trace, numbers, t.table.expired, len(notes)))
        assert results[0] == results[1], seed


@pytest.mark.parametrize("module", SIDES)
def test_the_index_grows(module: ModuleType) -> None:
    t = Table(module, max_bytes=1 << 24)
    for number in range(5000):
        assert t.put(b"k%d" % number, b":%d\r\n" % number) == COMMITTED
    for number in range(5000):
        assert t.probe(b"k%d" % number) == HIT
        assert t.answer() == b":%d\r\n" % number
    assert t.table.clear(-1) == 5000


@pytest.mark.parametrize("module", SIDES)
def test_reads_in_the_window(module: ModuleType) -> None:
    rate = module.Rate(10.0)
    data = bytearray(b"xkeyx")
    assert [rate.touch(data, 1, 4, 100.0 + n) for n in range(9)] == list(range(1, 10))
    assert rate.touch(bytearray(b"other"), 0, 5, 109.0) == 1
    assert rate.touch(bytearray(), 0, 0, 109.0) == 1
    assert rate.touch(data, 1, 4, 112.0) == 1 + int(9 * 0.8)  # four fifths of the last window
    assert rate.touch(data, 1, 4, 200.0) == 1
    assert [rate.touch(data, 1, 4, 201.0) for _ in range(400)][-1] == 255
    with pytest.raises(ValueError, match="is not within 5 bytes"):
        rate.touch(data, 2, 6, 1.0)


@pytest.mark.parametrize("module", SIDES)
def test_a_hot_key_is_found_among_more_keys_than_there_are_counters(module: ModuleType) -> None:
    rate = module.Rate(10.0, 1024)
    for number in range(4096):
        rate.touch(bytearray(b"cold:%04d" % number), 0, 9, 1.0)
    counts = [rate.touch(bytearray(b"hot"), 0, 3, 1.0) for _ in range(30)]
    assert all(count >= reads for reads, count in enumerate(counts, 1))


@pytest.mark.parametrize("module", SIDES)
def test_many_keys_of_one_read_do_not_look_hot(module: ModuleType) -> None:
    rate = module.Rate(10.0)
    seen = [
        rate.touch(bytearray(b"key:%d" % number), 0, 10, 1.0) for number in range(100_000, 300_000)
    ]
    assert sum(count >= 10 for count in seen) == 0
