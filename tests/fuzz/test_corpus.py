"""What searches have found before (`make fuzz`), on both backends; and a short search at random."""

from __future__ import annotations

import importlib
import random
import sys
from pathlib import Path
from types import ModuleType

import pytest

sys.path.insert(0, str(Path(__file__).parent))
import harness
from run import TARGETS


@pytest.fixture(params=TARGETS)
def target(request: pytest.FixtureRequest) -> ModuleType:
    return importlib.import_module(f"fuzz_{request.param}")


def test_kept_inputs_break_no_invariant(target: ModuleType) -> None:
    inputs = harness.read_corpus(target.__name__.removeprefix("fuzz_"))
    assert len(inputs) > 20, "the corpus is not where it is looked for"
    for data in inputs:
        target.check(data)


def test_random_inputs_break_no_invariant(target: ModuleType) -> None:
    rng = random.Random()
    seeds = list(target.seeds())
    for _ in range(150):
        data = rng.randbytes(3) + target.mutate(rng, rng.choice(seeds)[:400])
        target.check(data)  # what fails shows its bytes


def test_the_invariants_can_fail(target: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """A backend that is off by one is found out by a seed."""
    name = target.__name__.removeprefix("fuzz_")
    if name == "respscan":
        if len(target.SIDES) < 2:
            pytest.skip("one backend alone")
        monkeypatch.setattr(target, "walk", _shifted(target.walk, target.SIDES[1]))
    elif name == "resp":
        if len(target.available()) < 2:
            pytest.skip("one backend alone")
        monkeypatch.setattr(target, "replies", _shifted(target.replies, target.available()[1]))
    else:
        monkeypatch.setattr(target, "rewrite", lambda head: bytes(head.method) + b" /x\n")
    with pytest.raises(AssertionError):
        _check_seeds(target)


def _check_seeds(target: ModuleType) -> None:
    for stream in target.seeds():
        target.check(b"\xf5\x21\x47" + stream)


def _shifted(original, backend):  # type: ignore[no-untyped-def]
    def changed(one, *rest, **named):  # type: ignore[no-untyped-def]
        found = original(one, *rest, **named)
        same = one is backend or getattr(one, "name", one) == getattr(backend, "name", backend)
        return [*found, "and more"] if same else found

    return changed
