"""What the fuzz targets share: instrumented imports, corpora in one file each, the command line.

A target is run by ``make fuzz`` (see ``run.py``), or by itself::

    python tests/fuzz/fuzz_http1.py [corpus directory] [libFuzzer options]     # needs atheris
    python tests/fuzz/fuzz_http1.py --random SECONDS                           # needs nothing

The first three bytes of an input choose how the rest is cut into reads.
"""

from __future__ import annotations

import contextlib
import random
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
CORPUS = HERE / "corpus"

try:
    import atheris
except ImportError:
    atheris = None


def instrumented() -> Any:
    """Imports within are instrumented: the pure twins' coverage guides the search, for both."""
    sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "http1"), str(ROOT / "tests" / "speedups")]
    if atheris is None or "--random" in sys.argv or not sys.argv[0].startswith(str(HERE)):
        return contextlib.nullcontext()
    return atheris.instrument_imports(include=["nexus"])


def thorough(data: bytes) -> bool:
    """Whether an input is to be cut after every byte: one in four, else a search takes too long."""
    return bool(data) and data[0] < 64


def read_corpus(name: str) -> list[bytes]:
    """The inputs that were kept of former searches: one a line, with Python's escapes."""
    file = CORPUS / f"{name}.txt"
    lines = file.read_text(encoding="ascii").splitlines() if file.exists() else []
    return [line.encode().decode("unicode_escape").encode("latin-1") for line in lines]


def write_corpus(name: str, inputs: Iterable[bytes]) -> None:
    """The other way; sorted, so that a difference can be read."""
    lines = [one.decode("latin-1").encode("unicode_escape").decode() for one in sorted(set(inputs))]
    (CORPUS / f"{name}.txt").write_text("".join(f"{line}\n" for line in lines), encoding="ascii")


def main(
    check: Callable[[bytes], None],
    seeds: Callable[[], Iterable[bytes]],
    mutate: Callable[[random.Random, bytes], bytes],
) -> None:
    """``seeds`` are whole inputs' streams, ``mutate`` is for the search without atheris."""
    if sys.argv[1:2] == ["--random"]:
        _run_random(check, list(seeds()), mutate, float(sys.argv[2]))
        return
    if sys.argv[1:2] == ["--seeds"]:
        directory = Path(sys.argv[2])
        for i, stream in enumerate(seeds()):
            for first in (0x05, 0xF5):  # with and without every cut
                name = f"seed-{i}-{first:x}"
                (directory / name).write_bytes(bytes((first, 0x21, 0x47)) + stream)
        return
    if atheris is None:
        sys.exit("atheris is not installed: `make fuzz` does that; or use --random SECONDS")
    atheris.Setup(sys.argv, check)
    atheris.Fuzz()


def _run_random(
    check: Callable[[bytes], None],
    seeds: list[bytes],
    mutate: Callable[[random.Random, bytes], bytes],
    seconds: float,
) -> None:
    seed = time.time_ns()
    print(f"seed {seed}")
    rng = random.Random(seed)
    deadline = time.monotonic() + seconds
    count = 0
    while time.monotonic() < deadline:
        stream = (rng.choice(seeds) if count % 2 else b"") + rng.choice(seeds)
        check(rng.randbytes(3) + mutate(rng, stream[:800]))
        count += 1
    print(f"{count} streams, no difference")
