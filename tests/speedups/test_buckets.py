"""The bucket table against the contract's formula, over processes, and when one is killed."""

from __future__ import annotations

import mmap
import os
import random
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from fractions import Fraction
from types import ModuleType

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kernel_sides import both, sides

SECOND = 1_000_000_000
LIMIT = 1 << 61


@pytest.fixture(scope="module", params=sides("buckets"))
def buckets(request: pytest.FixtureRequest) -> ModuleType:
    return request.param


def make(side: ModuleType, sets: int = 64):
    return side.BucketTable(mmap.mmap(-1, side.BucketTable.size(sets)), sets)


class Formula:
    """``tokens = min(capacity, tokens + Δt·rate)``, in exact fractions."""

    def __init__(self, interval_ns: int, burst: int) -> None:
        self.interval, self.burst = interval_ns, burst
        self.tokens, self.at = Fraction(burst), 0

    def take(self, now: int) -> int:
        grown = self.tokens + Fraction(now - self.at, self.interval)
        self.tokens, self.at = min(Fraction(self.burst), grown), now
        if self.tokens >= 1:
            self.tokens -= 1
            return int(self.tokens)
        return -int((1 - self.tokens) * self.interval)


def test_ten_at_once_then_two_per_second(buckets: ModuleType) -> None:
    table = make(buckets)
    now = 77 * SECOND
    answers = [table.take(5, now, SECOND // 2, 10) for _ in range(12)]
    assert answers == [9, 8, 7, 6, 5, 4, 3, 2, 1, 0, -SECOND // 2, -SECOND // 2]
    assert table.take(5, now + SECOND // 2 - 1, SECOND // 2, 10) == -1
    assert table.take(5, now + SECOND // 2, SECOND // 2, 10) == 0
    assert table.take(5, now + 600 * SECOND, SECOND // 2, 10) == 9
    assert table.evictions == 0


@given(
    interval=st.integers(1, 10**9),
    burst=st.integers(1, 50),
    gaps=st.lists(st.one_of(st.just(0), st.integers(0, 3 * 10**9), st.integers(0, 5)), max_size=60),
    key=st.integers(0, 2**64 - 1),
)
def test_equals_the_formula(
    buckets: ModuleType, interval: int, burst: int, gaps: list[int], key: int
) -> None:
    table, formula = make(buckets), Formula(interval, burst)
    now = 0
    for gap in gaps:
        now += gap
        assert table.take(key, now, interval, burst) == formula.take(now)


@given(data=st.data())
def test_keys_of_one_set_do_not_touch_each_other(buckets: ModuleType, data: st.DataObject) -> None:
    table = make(buckets, 1)
    formulas = {key: Formula(SECOND, 5) for key in range(8)}
    now = SECOND
    for key, gap in data.draw(
        st.lists(st.tuples(st.integers(0, 7), st.integers(0, SECOND)), max_size=80)
    ):
        now += gap
        assert table.take(key, now, SECOND, 5) == formulas[key].take(now)
    assert table.evictions == 0


def test_a_full_set_loses_the_bucket_with_the_least_debt(buckets: ModuleType) -> None:
    table = make(buckets, 1)
    now = 10 * SECOND
    for key in range(1, 9):
        for _ in range(key + 1):
            table.take(key, now, SECOND, 10)
    assert table.take(99, now, SECOND, 10) == 9  # in place of key 1, which had two tokens taken
    assert table.evictions == 1
    assert table.take(8, now, SECOND, 10) == 0  # the most indebted is still known
    assert table.take(1, now, SECOND, 10) == 9  # forgotten, so full; displaces 99, least debt now
    assert table.evictions == 2


def test_a_slot_whose_time_has_passed_is_free(buckets: ModuleType) -> None:
    table = make(buckets, 1)
    for round_ in range(5):
        for key in range(8):
            assert table.take(round_ * 8 + key, SECOND * (round_ + 1), SECOND, 3) == 2
    assert table.evictions == 0


def test_a_refusal_does_not_push_the_time_out(buckets: ModuleType) -> None:
    table = make(buckets)
    table.take(1, 0, SECOND, 1)
    for _ in range(100):
        assert table.take(1, 1, SECOND, 1) == 1 - SECOND
    assert table.take(1, SECOND, SECOND, 1) == 0


@pytest.mark.parametrize(
    "arguments",
    [
        (-1, 1, 1),
        (LIMIT, 1, 1),
        (1 << 70, 1, 1),
        (0, 0, 1),
        (0, -(1 << 70), 1),
        (0, 1, 0),
        (0, LIMIT, 1),
        (0, 2, LIMIT // 2 + 1),
        (0, 1, 1 << 70),
    ],
)
def test_out_of_range(buckets: ModuleType, arguments: tuple[int, int, int]) -> None:
    with pytest.raises(ValueError, match=r"at most 2\*\*61"):
        make(buckets).take(1, *arguments)


def test_the_extremes_do_not_overflow(buckets: ModuleType) -> None:
    table = make(buckets)
    assert table.take(1, LIMIT - 1, LIMIT - 1, 1) == 0
    assert table.take(1, LIMIT - 1, LIMIT - 1, 1) == -(LIMIT - 1)
    assert table.take(1, 0, LIMIT - 1, 1) == -(2 * LIMIT - 2)
    assert table.take(2, LIMIT - 1, 1, LIMIT) == LIMIT - 1


def test_buffers_that_will_not_do(buckets: ModuleType) -> None:
    table = buckets.BucketTable
    with pytest.raises(ValueError, match="a power of two from 1 to 67108864, got 3"):
        table.size(3)
    with pytest.raises(ValueError, match="64 sets need 8256 bytes, the buffer has 4096"):
        table(mmap.mmap(-1, 4096), 64)
    with pytest.raises(ValueError, match="must be writable"):
        table(bytes(table.size(1)), 1)
    area = mmap.mmap(-1, 8192)
    with pytest.raises(ValueError, match="aligned to 64 bytes"):
        table(memoryview(area)[8:], 1)
    area[3] = 1
    with pytest.raises(ValueError, match="not zeroed"):
        table(area, 1)


def test_one_table_is_never_used_by_two_backends() -> None:
    py, c = both("buckets")
    for first, second, name in ((py, c, "pure"), (c, py, "compiled")):
        area = mmap.mmap(-1, 8192)
        first.BucketTable(area, 2)
        with pytest.raises(ValueError, match=rf"a table already \({name} backend, 2 sets\)"):
            second.BucketTable(area, 2)


@given(
    calls=st.lists(
        st.tuples(
            st.integers(-(2**65), 2**65) | st.integers(0, 20),
            st.integers(-1, 10**9) | st.integers(0, 2**63),
            st.integers(-1, 10**8) | st.integers(0, 2**63),
            st.integers(-1, 6) | st.integers(0, 2**63),
        ),
        max_size=60,
    )
)
def test_both_sides_agree(calls: list[tuple[int, int, int, int]]) -> None:
    outcomes: list[list[object]] = []
    for side in both("buckets"):
        table, mine = make(side, 2), []
        for call in calls:
            try:
                mine.append(table.take(*call))
            except ValueError as error:
                mine.append(str(error))
        outcomes.append([*mine, table.evictions])
    assert outcomes[0] == outcomes[1]


@pytest.mark.parametrize("bad", ["1", 1.0, None])
def test_both_sides_refuse_the_same_types(bad: object) -> None:
    for at in range(4):
        texts = []
        for side in both("buckets"):
            arguments: list[object] = [1, 1, 1, 1]
            arguments[at] = bad
            with pytest.raises(TypeError) as caught:
                make(side).take(*arguments)
            texts.append(str(caught.value))
        assert texts[0] == texts[1]


# ---- several processes ----


def run_workers(count: int, work: Callable[[int], int]) -> list[int]:
    """Fork ``count`` children; each answers with one number over a pipe."""
    children = []
    for index in range(count):
        reader, writer = os.pipe()
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                os.write(writer, str(work(index)).encode())
                status = 0
            finally:
                os._exit(status)
        os.close(writer)
        children.append((pid, reader))
    answers = []
    for pid, reader in children:
        with os.fdopen(reader, "rb") as pipe:
            text = pipe.read()
        assert os.waitpid(pid, 0)[1] == 0
        answers.append(int(text))
    return answers


@pytest.mark.parametrize("workers", [2, 4])
def test_processes_together_admit_exactly_the_burst(buckets: ModuleType, workers: int) -> None:
    # Two keys of one set, enough calls that the processes run side by side for milliseconds:
    # a swap that does not compare over-admits thousands here.
    table = make(buckets, 1)
    tries = 30_000 if buckets.__name__.endswith("_c") else 600
    burst = tries * workers * 3 // 4
    arrived = memoryview(mmap.mmap(-1, 4096)).cast("q")

    def work(index: int) -> int:
        arrived[index], deadline = 1, time.monotonic() + 20
        while sum(arrived[:workers]) < workers and time.monotonic() < deadline:
            os.sched_yield()
        return sum(
            (table.take(1, SECOND, SECOND, burst) >= 0)
            + (table.take(2, SECOND, SECOND, burst) >= 0)
            for _ in range(tries)
        )

    assert sum(run_workers(workers, work)) == 2 * burst
    assert table.take(1, SECOND, SECOND, burst) == -SECOND


def test_processes_that_race_for_a_new_key_make_one_bucket(buckets: ModuleType) -> None:
    table = make(buckets, 1)
    rounds, burst = 150, 3
    arrived = memoryview(mmap.mmap(-1, 4096)).cast("q")

    def work(index: int) -> int:
        admitted, deadline = 0, time.monotonic() + 20
        for round_ in range(rounds):
            arrived[index] = round_ + 1
            # Together, as closely as two cores allow; the deadline is for a child that failed.
            while arrived[1 - index] <= round_ and time.monotonic() < deadline:
                os.sched_yield()
            now = (round_ + 1) * 10 * SECOND  # all earlier keys are free again
            admitted += sum(table.take(round_ + 1, now, SECOND, burst) >= 0 for _ in range(burst))
        return admitted

    assert sum(run_workers(2, work)) == rounds * burst


def test_a_killed_process_leaves_the_table_usable_and_strict(buckets: ModuleType) -> None:
    rng = random.Random(7)
    burst = 5
    for _ in range(12):
        table = make(buckets, 1)
        pid = os.fork()
        if pid == 0:
            while True:
                for key in range(8):
                    table.take(key, time.monotonic_ns(), 100_000, burst)
        time.sleep(rng.random() * 0.02)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        later = time.monotonic_ns() + SECOND
        for key in range(8):
            answers = [table.take(key, later, SECOND, burst) >= 0 for _ in range(burst + 1)]
            assert answers == [True] * burst + [False]


def test_pure_take_waits_for_the_holder_of_the_set_until_it_dies() -> None:
    # Preemption within a few instructions is too rare to test by chance, so the lock is held here.
    table = make(sides("buckets")[0].values[0], 2)
    ready, told = os.pipe()
    holder = os.fork()
    if holder == 0:
        table._lock.acquire(0)
        os.write(told, b"x")
        while True:
            time.sleep(60)
    os.read(ready, 1)
    reader, writer = os.pipe()
    taker = os.fork()
    if taker == 0:
        os.write(writer, b"%d;" % table.take(1 << 32, SECOND, SECOND, 5))  # the other set
        os.write(writer, b"%d" % table.take(1, SECOND, SECOND, 5))
        os._exit(0)
    try:
        assert os.read(reader, 2) == b"4;"
        assert select.select([reader], [], [], 0.15)[0] == []
    finally:
        os.kill(holder, signal.SIGKILL)
        os.waitpid(holder, 0)
        assert os.read(reader, 2) == b"4"
        os.waitpid(taker, 0)


# ---- the hash ----


@pytest.mark.parametrize("seed", [0, 1, 2**31])
def test_hash_is_cpython_s_siphash13(buckets: ModuleType, seed: int) -> None:
    if sys.hash_info.algorithm != "siphash13":
        pytest.skip("this Python hashes bytes otherwise")
    data = [b"", b"a", b"1234567", b"12345678", b"2001:db8::/64", bytes(range(256)) * 3]
    script = f"print(*[hash(b) for b in {data[1:]!r}])"
    printed = subprocess.run(
        [sys.executable, "-c", script],
        env={"PYTHONHASHSEED": str(seed)},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    expected = [int(text) % 2**64 for text in printed.split()]
    key = _cpython_key(seed)
    assert [buckets.hash_key(item, key) for item in data[1:]] == expected


def _cpython_key(seed: int) -> int:
    """The 128 bits that ``PYTHONHASHSEED`` stands for (``lcg_urandom`` in CPython)."""
    if seed == 0:
        return 0
    x, key = seed, bytearray()
    for _ in range(16):
        x = (x * 214013 + 2531011) % 2**32
        key.append(x >> 16 & 0xFF)
    return int.from_bytes(key, "little")


@given(data=st.binary(max_size=80), seed=st.integers(-(2**130), 2**130))
def test_hashes_agree(data: bytes, seed: int) -> None:
    py, c = both("buckets")
    value = py.hash_key(data, seed)
    assert value == c.hash_key(data, seed)
    assert 0 <= value < 2**64


@pytest.mark.parametrize("bad", [bytearray(b"x"), "x", memoryview(b"x"), None])
def test_only_bytes_are_hashed(buckets: ModuleType, bad: object) -> None:
    with pytest.raises(TypeError, match=f"expected bytes, got {type(bad).__name__}"):
        buckets.hash_key(bad, 0)


def test_similar_addresses_spread_over_the_sets(buckets: ModuleType) -> None:
    sets, count = 256, 4096
    seen = [0] * sets
    for i in range(count):
        data = b"10.0.%d.%d" % (i >> 8, i & 255)
        seen[buckets.hash_key(data, 0xC0FFEE) >> 32 & sets - 1] += 1
    expected = count / sets
    chi_square = sum((n - expected) ** 2 / expected for n in seen)
    # 255 degrees of freedom: mean 255, standard deviation 22.6; six of them is one in 10**9.
    assert 255 - 6 * 22.6 < chi_square < 255 + 6 * 22.6


def test_every_bit_of_input_and_seed_matters(buckets: ModuleType) -> None:
    data, seed = b"192.168.101.202", 0x0123456789ABCDEF0011223344556677
    base = buckets.hash_key(data, seed)
    number = int.from_bytes(data, "little")
    others = [
        buckets.hash_key((number ^ 1 << bit).to_bytes(len(data), "little"), seed)
        for bit in range(8 * len(data))
    ] + [buckets.hash_key(data, seed ^ 1 << bit) for bit in range(128)]
    assert len({base, *others}) == len(others) + 1
    flipped = sum((base ^ other).bit_count() for other in others) / len(others)
    assert 30 < flipped < 34
