"""The build itself: with a compiler, without one, and with one demanded."""

from __future__ import annotations

import fcntl
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from support.requirements import missing, tool

# Each build says itself which kernels it wants.
pytestmark = pytest.mark.once

ROOT = Path(__file__).resolve().parents[2]

#: One small kernel stands for all: the fallback does not depend on which one fails first.
KERNEL = "nexus._speedups._wrr_c"


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A copy of the sources without anything built."""
    copy = tmp_path / "tree"
    shutil.copytree(
        ROOT / "nexus", copy / "nexus", ignore=shutil.ignore_patterns("*.so", "__pycache__")
    )
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy / name)
    return copy


def build(tree: Path, **environ: str) -> subprocess.CompletedProcess[str]:
    clean = {k: v for k, v in os.environ.items() if not k.startswith("NEXUS_")}
    return subprocess.run(
        [sys.executable, "setup.py", "-q", "build_ext", "--inplace"],
        cwd=tree,
        env={**clean, "NEXUS_BUILD_ONLY": KERNEL, **environ},
        capture_output=True,
        text=True,
        check=False,
    )


def version(tree: Path, **environ: str) -> subprocess.CompletedProcess[str]:
    clean = {k: v for k, v in os.environ.items() if not k.startswith("NEXUS_")}
    return subprocess.run(
        [sys.executable, "-m", "nexus", "--version"],
        cwd=tree,
        env={**clean, "PYTHONPATH": str(tree), **environ},
        capture_output=True,
        text=True,
        check=False,
    )


def built(tree: Path) -> list[Path]:
    return list((tree / "nexus").rglob("*.so"))


def test_without_a_compiler_the_build_succeeds_and_says_so(tree):
    done = build(tree, CC="/bin/false")
    assert done.returncode == 0, done.stderr
    assert "falling back to pure Python" in done.stderr
    assert built(tree) == []
    said = version(tree)
    assert said.returncode == 0, said.stderr
    assert "pure kernels" in said.stdout


def test_without_a_compiler_a_demand_for_kernels_fails_loudly(tree):
    assert build(tree, CC="/bin/false", NEXUS_REQUIRE_EXTENSIONS="1").returncode != 0
    said = version(tree, NEXUS_REQUIRE_EXTENSIONS="1")
    assert said.returncode != 0
    assert KERNEL in said.stderr


def test_extensions_can_be_switched_off(tree):
    done = build(tree, NEXUS_NO_EXTENSIONS="1")
    assert done.returncode == 0, done.stderr
    assert built(tree) == []


def test_two_builds_in_one_tree_take_turns(tree):
    (tree / "build").mkdir()
    clean = {k: v for k, v in os.environ.items() if not k.startswith("NEXUS_")}
    with (tree / "build" / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert build(tree, NEXUS_NO_EXTENSIONS="1").returncode == 0, "it builds nothing"
        second = subprocess.Popen(
            [sys.executable, "setup.py", "-q", "build_ext", "--inplace"],
            cwd=tree,
            env={**clean, "NEXUS_BUILD_ONLY": "none of them"},
            stderr=subprocess.PIPE,
            text=True,
        )
        try:
            assert "another build runs in this tree" in second.stderr.readline()
            assert second.poll() is None
            fcntl.flock(lock, fcntl.LOCK_UN)
            assert second.wait(60) == 0
        finally:
            second.kill()
            second.wait()
            second.stderr.close()


def test_with_a_compiler_the_kernel_is_built(tree):
    compiler = shlex.split(os.environ.get("CC", "cc"))
    tool(compiler[0])
    if subprocess.run([*compiler, "--version"], capture_output=True, check=False).returncode:
        missing(f"{compiler[0]} is no C compiler")
    done = build(tree, NEXUS_REQUIRE_EXTENSIONS="1")
    assert done.returncode == 0, done.stderr
    assert [path.name.split(".")[0] for path in built(tree)] == ["_wrr_c"]
