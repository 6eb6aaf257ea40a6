"""What a proof found, for people and for machines."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import uvloop

from nexus import __version__
from proofs.rig import RigError

__all__ = ["RESULTS", "Result", "conclude", "parser_of", "save"]

RESULTS: Final = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Result:
    """``numbers`` is JSON; ``summary`` is one line."""

    proof: str
    passed: bool
    summary: str
    seed: int | None = None
    numbers: dict[str, Any] = field(default_factory=dict)


def save(result: Result, directory: Path | None) -> int:
    """Print, and keep the record if there is a ``directory``; returns the exit code."""
    now = datetime.now(UTC)
    record = {
        "proof": result.proof,
        "date": now.isoformat(timespec="seconds"),
        "nexus": __version__,
        "seed": result.seed,
        "passed": result.passed,
        **result.numbers,
    }
    text = json.dumps(record, indent=2)
    print(text)
    verdict = "holds" if result.passed else "FAILS"
    print(f"proof {result.proof} {verdict}: {result.summary}")
    if directory is not None:
        directory.mkdir(parents=True, exist_ok=True)
        stamp = now.strftime("%Y%m%d-%H%M%S")
        (directory / f"{result.proof}-{stamp}.json").write_text(text + "\n")
        table = directory / f"{result.proof}.md"
        if not table.exists():
            table.write_text("| date (UTC) | nexus | seed | verdict | |\n|---|---|---|---|---|\n")
        seed = "" if result.seed is None else str(result.seed)
        with table.open("a") as lines:
            lines.write(
                f"| {now:%Y-%m-%d %H:%M} | {__version__} | {seed} | {verdict} | "
                f"{result.summary} |\n"
            )
    return 0 if result.passed else 1


def parser_of(proof: str, about: str | None) -> argparse.ArgumentParser:
    """With what every proof of the cacheproxy understands: ``--backend``, ``--results``."""
    parser = argparse.ArgumentParser(
        prog=f"python -m proofs.{proof}",
        description=about,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--backend", choices=("compiled", "pure"), default="compiled")
    parser.add_argument("--results", type=Path, default=None, help="directory for the record")
    return parser


def conclude(prove: Callable[[Path], Coroutine[Any, Any, Result]], results: Path | None) -> int:
    """Run it in a directory of its own, print and keep what it found.

    Exit code: 0 it holds, 1 it does not, 2 there is no verdict.
    """
    with tempfile.TemporaryDirectory(prefix="nexus-proof-") as name:
        try:
            result = uvloop.run(prove(Path(name)))
        except RigError as error:
            print(f"no verdict: {error}", file=sys.stderr)
            return 2
    return save(result, results)
