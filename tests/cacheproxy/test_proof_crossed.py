"""The proof of `make prove-crossed`, small; and that its checker notices what it must."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path

import pytest

from proofs.crossed import Options, prove
from proofs.operations import Get, IncrBy, Key, Owner, Set, World
from proofs.report import Result, save
from proofs.sabotage import SABOTAGE

pytestmark = pytest.mark.evidence

BACKENDS = {"c": "compiled", "py": "pure"}


def run(directory: Path, options: Options) -> Result:
    return asyncio.run(prove(options, directory))


@pytest.fixture(autouse=True)
def _servers(redis_factory: object) -> None:
    """Only for its verdict on a machine without redis-server."""


@pytest.mark.parametrize("seed", [1])
def test_no_reply_is_crossed_whatever_happens(backend: str, seed: int, tmp_path: Path):
    options = Options(8_000, seed, faults=True, connections=32, backend=BACKENDS[backend])
    result = run(tmp_path, options)
    assert result.passed, result.numbers["samples"]
    numbers = result.numbers
    assert numbers["backend"] == BACKENDS[backend]
    assert numbers["verified"] >= 8_000
    # It was no walk in the park: every kind of fault, and each of the three ways to fail.
    assert len(numbers["faults"]) == 11
    assert numbers["mid_reply_cuts"]
    assert set(numbers["refused"]) == {"NEXUSDOWN", "LOADING", "closed"}


def test_without_faults_nothing_is_refused(backend: str, tmp_path: Path):
    result = run(tmp_path, Options(8_000, 2, connections=32, backend=BACKENDS[backend]))
    assert result.passed, result.numbers["samples"]
    assert result.numbers["refused"] == {}


@pytest.mark.once
@pytest.mark.parametrize("kind", sorted(SABOTAGE))
def test_the_checker_notices(kind: str, tmp_path: Path):
    result = run(tmp_path, Options(50_000, 3, connections=16, sabotage=kind, batch_seconds=3))
    assert not result.passed
    assert result.numbers["violations"] >= 1


def test_sabotage_does_what_it_says():
    data = b"+OK\r\n$1\r\na\r\n$1\r\nb\r\n:1\r\n"
    assert SABOTAGE["swap"](data) == b"+OK\r\n$1\r\nb\r\n$1\r\na\r\n:1\r\n"
    assert SABOTAGE["drop"](data) == b"+OK\r\n$1\r\nb\r\n:1\r\n"
    assert SABOTAGE["double"](data) == b"+OK\r\n$1\r\na\r\n$1\r\na\r\n$1\r\nb\r\n:1\r\n"
    alike = b"$1\r\na\r\n$1\r\na\r\n$1\r\nb"
    assert all(change(alike) == alike for change in SABOTAGE.values())


# -- what the checker believes of a key


def test_a_written_value_is_expected_until_redis_is_killed():
    world = World(faults=True)
    key = Key(world, b"k", 0)
    write = Set(world, key, b"k=1")
    assert write.accept(b"OK") is None
    assert Get(world, key).accept(b"k=1") is None
    assert Get(world, key).accept(b"k=0") is not None
    assert Get(world, key).accept(None) is not None
    world.epoch += 1
    assert Get(world, key).accept(b"k=0") is not None
    assert Get(world, key).accept(None) is None
    assert Get(world, key).accept(b"k=1") is not None  # it does not come back


def test_what_may_have_run_is_uncertain_and_what_was_not_sent_is_not():
    world = World(faults=True)
    key = Key(world, b"k", 0)
    Set(world, key, b"k=1").accept(b"OK")
    Set(world, key, b"k=2").failed(may_have_run=False)
    assert Get(world, key).accept(b"k=2") is not None
    Set(world, key, b"k=3").failed(may_have_run=True)
    assert Get(world, key).accept(b"k=3") is None
    assert Get(world, key).accept(b"other=1") is not None


def test_increments_are_never_anybody_elses():
    world = World(faults=True)
    owner = Owner(world, 1, random.Random(1))
    (first,) = owner._incr()
    assert isinstance(first, IncrBy)
    assert first.accept(first.by + 1) is not None
    assert first.accept(first.by) is None
    (second,) = owner._incr()
    assert second.accept(first.by) is not None
    world.epoch += 1
    (third,) = owner._incr()
    assert third.accept(third.by) is None  # began again after the kill


def test_uncertain_keys_are_replaced_between_batches():
    world = World(faults=True)
    owner = Owner(world, 1, random.Random(1))
    before = list(owner._keys)
    before[3].certain = False
    owner.renew()
    assert [a is b for a, b in zip(before, owner._keys, strict=True)].count(False) == 1
    assert owner._keys[3].name != before[3].name


def test_the_record(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert save(Result("crossed", True, "fine", 7, {"verified": 3}), tmp_path) == 0
    assert save(Result("crossed", False, "bad", 8), tmp_path) == 1
    lines = (tmp_path / "crossed.md").read_text().splitlines()
    assert len(lines) == 4
    assert "| 7 | holds | fine |" in lines[2]
    assert "| 8 | FAILS | bad |" in lines[3]
    assert len(list(tmp_path.glob("crossed-*.json"))) >= 1
    assert "proof crossed FAILS: bad" in capsys.readouterr().out
