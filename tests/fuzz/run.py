"""``make fuzz``: every target for so many seconds, from its seeds and from what was kept before.

    python tests/fuzz/run.py [--seconds 60] [--keep] [target ...]

What it finds grows in ``build/fuzz/<target>`` from run to run; ``--keep`` adds it to
``tests/fuzz/corpus``, which the suite goes through on both backends.
Exit 1: an invariant is broken; the input lies in ``build/fuzz``, the command is told.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

from harness import CORPUS, HERE, ROOT, read_corpus, write_corpus

TARGETS = ("http1", "resp", "respscan")
#: Longest input: a head of the tight limits many times over, and short enough to be cut everywhere.
MAX_BYTES = 1024


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=int, default=60, help="for each target")
    parser.add_argument("--keep", action="store_true", help="write the corpus of the suite anew")
    parser.add_argument("targets", nargs="*", metavar="target", help=f"of {', '.join(TARGETS)}")
    given = parser.parse_args()
    if unknown := set(given.targets) - set(TARGETS):
        parser.error(f"no target {', '.join(sorted(unknown))}")
    return max([fuzz(name, given.seconds, given.keep) for name in given.targets or TARGETS])


def fuzz(name: str, seconds: int, keep: bool) -> int:
    """Search, and perhaps keep; 1 where something was found."""
    script = [sys.executable, str(HERE / f"fuzz_{name}.py")]
    work = ROOT / "build" / "fuzz" / name
    work.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="nexus-fuzz-") as text:
        seeds = Path(text)
        subprocess.run([*script, "--seeds", text], check=True)
        _unpack(name, seeds)
        options = [f"-max_total_time={seconds}", f"-max_len={MAX_BYTES}", "-timeout=20"]
        options += [
            f"-artifact_prefix={work.parent}/{name}-",
            "-print_final_stats=1",
            "-verbosity=1",
        ]
        done = subprocess.run([*script, *options, str(work), text], check=False)
        if done.returncode:
            print(f"make fuzz: {name}: an invariant is broken; repeat it with")
            print(f"  {' '.join(script)} {work.parent}/{name}-crash-…")
            return 1
        if keep:
            kept = {file.read_bytes() for file in work.iterdir()} | set(read_corpus(name))
            write_corpus(name, kept - {file.read_bytes() for file in seeds.glob("seed-*")})
            print(f"make fuzz: {name}: {len(read_corpus(name))} inputs in {CORPUS / name}.txt")
    return 0


def _unpack(name: str, directory: Path) -> None:
    for i, data in enumerate(read_corpus(name)):
        (directory / f"kept-{i}").write_bytes(data)


if __name__ == "__main__":
    sys.exit(main())
