"""The proof of `make prove-staleness`, small; and that its checker notices what it must."""

from __future__ import annotations

import asyncio
import random
from math import inf
from pathlib import Path

import pytest

from proofs.registers import EARLY, LATE, Judge, Register, Write
from proofs.report import Result
from proofs.sabotage import STALE
from proofs.staleness import Options, _Client, _World, prove

pytestmark = pytest.mark.evidence

BACKENDS = {"c": "compiled", "py": "pure"}


def run(directory: Path, options: Options) -> Result:
    return asyncio.run(prove(options, directory))


@pytest.fixture
def _servers(redis_factory: object) -> None:
    """Only for its verdict on a machine without redis-server."""


@pytest.mark.usefixtures("_servers")
def test_no_read_is_too_old(backend: str, tmp_path: Path):
    matrix = ((0, 1), (10, 2))
    result = run(tmp_path, Options(12_000, 1, matrix, clients=24, backend=BACKENDS[backend]))
    assert result.passed, [one["samples"] for one in result.numbers["runs"]]
    for one in result.numbers["runs"]:
        assert one["backend"] == BACKENDS[backend]
        assert one["reads"] + one["writes"] >= 6_000
        assert one["writes"] > 500
        # Of every kind of operation there was some (flushes are rare).
        assert len(one["operations"]) >= 15


@pytest.mark.once
@pytest.mark.usefixtures("_servers")
@pytest.mark.parametrize("sabotage", sorted(STALE))
def test_the_checker_notices_what_the_relay_does(sabotage: str, tmp_path: Path):
    options = Options(8_000, 3, ((0, 1),), clients=24, sabotage=sabotage, faults=False)
    result = run(tmp_path, options)
    assert not result.passed
    assert result.numbers["violations"] >= 1


def test_sabotage_does_what_it_says():
    unpushed = STALE["unpushed"](random.Random(1), 1.0)
    push = b">2\r\n$10\r\ninvalidate\r\n*1\r\n$2\r\nr1\r\n"
    everything = b">2\r\n$10\r\ninvalidate\r\n_\r\n"
    assert unpushed(b"+OK\r\n" + push + b"$1\r\na\r\n" + everything) == b"+OK\r\n$1\r\na\r\n"
    outdated = STALE["outdated"](random.Random(1), 1.0)
    assert outdated(b"$8\r\nr1=00001\r\n") == b"$8\r\nr1=00001\r\n"


def test_a_flush_is_known_to_registers_that_make_room_and_to_their_successors():
    world = _World(Judge(0.0), random.Random(1), wanted=1)
    client = _Client(world, 0, ("", 0), direct=True)
    world.began[0] = 1.0  # a batch that may read the old one is on its way
    old, other = world.registers[0][3], world.registers[0][4]
    world.renew(0, 3)
    flush = client._flush(2.0)
    while flush.kind != "FLUSHALL":
        flush = client._flush(2.0)
    assert {old, world.registers[0][3]} <= {register for register, _ in flush.effects}
    world.renew(0, 4)
    assert world.registers[0][4] is other  # it might be emptied by what was sent before it was


# -- the judge, on made-up histories


def written(register: Register, value: bytes | None, start: float, end: float) -> Write:
    write = register.begin(value, start)
    write.done(end)
    return write


def verdict(
    judge: Judge,
    register: Register,
    value: bytes | None,
    start: float,
    end: float,
    floor: Write | None = None,
) -> str | None:
    return judge.read(register, value, start, end, floor)[0]


def test_a_value_may_be_read_until_it_is_certainly_overwritten():
    register, judge = Register(b"r"), Judge(0.010)
    written(register, b"1", 1.0, 1.1)
    written(register, b"2", 2.0, 2.1)
    assert verdict(judge, register, b"1", 1.5, 1.6) is None
    assert verdict(judge, register, b"1", 2.05, 2.2) is None  # 2 may not have run yet
    assert verdict(judge, register, b"1", 2.109, 2.2) is None  # within the bound
    assert "before the bound" in str(verdict(judge, register, b"1", 2.111, 2.2))
    assert verdict(judge, register, b"2", 2.05, 2.06) is None
    assert "future" in str(verdict(judge, register, b"2", 1.5, 1.6))
    assert "never written" in str(verdict(judge, register, b"3", 2.5, 2.6))
    assert judge.oldest == pytest.approx(0.009)


def test_of_overlapping_writes_nobody_knows_which_is_last():
    register, judge = Register(b"r"), Judge(0.0)
    written(register, b"1", 1.0, 2.0)
    written(register, b"2", 1.5, 2.5)
    assert verdict(judge, register, b"1", 5.0, 5.1) is None
    assert verdict(judge, register, b"2", 6.0, 6.1) is None
    written(register, b"3", 7.0, 7.1)
    assert verdict(judge, register, b"1", 8.0, 8.1) is not None
    assert verdict(judge, register, b"2", 8.0, 8.1) is not None


def test_what_one_read_has_seen_binds_the_others():
    register, judge = Register(b"r"), Judge(0.0)
    written(register, b"1", 1.0, 1.1)
    register.begin(b"2", 2.0)  # never answered
    assert verdict(judge, register, b"1", 3.0, 3.1) is None
    assert verdict(judge, register, b"2", 4.0, 4.1) is None
    assert verdict(judge, register, b"1", 4.05, 4.2) is None  # at the same time
    assert verdict(judge, register, b"1", 4.2, 4.3) is not None


def test_nothing_is_read_past_its_expiry_however_much_staleness_is_allowed():
    register, judge = Register(b"r"), Judge(10.0)
    write = register.begin(b"1", 1.0, ttl=0.5)
    write.done(1.1)
    assert verdict(judge, register, b"1", 1.6, 1.61) is None
    assert "expired" in str(verdict(judge, register, b"1", 1.6 + LATE + 0.001, 1.7))
    # One that was seen had been written by then.
    seen = register.begin(b"2", 2.0, ttl=0.5)
    assert verdict(judge, register, b"2", 2.01, 2.02) is None
    seen.done(2.1)
    assert verdict(judge, register, b"2", 2.52, 2.53) is None
    assert "expired" in str(verdict(judge, register, b"2", 2.52 + LATE + 0.001, 2.6))


def test_nil_is_the_value_of_nothing_of_a_delete_and_of_an_expiry():
    register, judge = Register(b"r"), Judge(0.0)
    assert verdict(judge, register, None, 0.5, 0.6) is None
    write = register.begin(b"1", 1.0, ttl=0.5)
    write.done(1.1)
    assert verdict(judge, register, None, 1.2, 1.3) is not None
    assert verdict(judge, register, None, 1.5 - EARLY, 1.5) is None
    written(register, b"2", 2.0, 2.1)
    assert verdict(judge, register, None, 2.2, 2.3) is not None
    written(register, None, 3.0, 3.1)
    assert verdict(judge, register, None, 3.2, 3.3) is None
    assert verdict(judge, register, b"2", 3.2, 3.3) is not None


def test_a_connection_reads_its_own_writes_and_never_goes_back():
    register, judge = Register(b"r"), Judge(100.0)
    written(register, b"1", 1.0, 1.1)
    own = written(register, b"2", 2.0, 2.1)
    assert verdict(judge, register, b"1", 2.2, 2.3) is None  # somebody else's, within the bound
    assert "connection" in str(verdict(judge, register, b"1", 2.2, 2.3, own))
    wrong, floor = judge.read(register, b"2", 2.2, 2.3, None)
    assert (wrong, floor) == (None, own)
    assert "connection" in str(verdict(judge, register, b"1", 2.4, 2.5, floor))
    # An expiry that was set later is another write of the same value.
    write = register.begin(b"2", 3.0, ttl=0.1)
    write.done(3.05)
    assert verdict(judge, register, b"2", 3.5, 3.6, own) is None
    assert verdict(judge, register, b"2", 3.5, 3.6, write) is not None
    assert verdict(judge, register, None, 3.5, 3.6, write) is None


def test_dead_writes_are_forgotten_and_still_wrong():
    register, judge = Register(b"r"), Judge(0.0)
    for n in range(100):
        written(register, b"%d" % n, float(n), n + 0.5)
    assert register.crowded
    register.prune(90.2)
    assert [w.value for w in register.writes] == [b"%d" % n for n in range(89, 100)]
    assert not register.crowded
    assert verdict(judge, register, b"5", 200.0, 201.0) is not None
    assert verdict(judge, register, b"99", 200.0, 201.0) is None


def test_a_write_that_did_nothing_leaves_no_trace():
    register, judge = Register(b"r"), Judge(0.0)
    written(register, b"1", 1.0, 1.1)
    register.undo(register.begin(b"2", 2.0))
    assert verdict(judge, register, b"2", 3.0, 3.1) is not None
    assert register.writes[-1].answered < inf
