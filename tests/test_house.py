"""The shape of the house: imports point downwards, pure layers stay pure, pages are up to date."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

# It reads sources.
pytestmark = pytest.mark.once

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "nexus"

#: Package or module below ``nexus`` → layer; see ``nexus/__init__.py``.
LAYERS = {
    "_version": 0,
    "errors": 0,
    "clock": 0,
    "redact": 0,
    "settings": 0,
    "_speedups": 0,
    "wire": 1,
    "policy": 2,
    "observability": 3,
    "tracing": 3,
    "net": 4,
    "gateway": 5,
    "cacheproxy": 5,
    "consumer": 5,
    "demo": 5,
    "reference": 6,
    "cli": 6,
    "__main__": 6,
    "__init__": 0,
}
SERVICES = {"gateway", "cacheproxy", "consumer", "demo"}

#: What a layer without I/O may not touch: `now` and randomness are arguments there.
#: (``random.Random`` may be named, as the type of such an argument.)
IMPURE = {"asyncio", "socket", "time", "os", "threading", "uvloop", "aiohttp", "logging"}


def modules() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def part_of(path: Path) -> str:
    relative = path.relative_to(PACKAGE)
    if relative.name == "__main__.py" and len(relative.parts) > 1:
        return "__main__"
    return relative.parts[0].removesuffix(".py")


def imported(path: Path) -> set[str]:
    """Dotted names that a module imports, also inside functions and TYPE_CHECKING blocks."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{path}: relative import"
            names.add(node.module)
            names.update(f"{node.module}.{alias.name}" for alias in node.names)
    return names


@pytest.mark.parametrize("path", modules(), ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_point_downwards(path: Path):
    part = part_of(path)
    assert part in LAYERS, f"{part} has no layer: add it to LAYERS and to nexus/__init__.py"
    for name in imported(path):
        if not name.startswith("nexus."):
            continue
        other = name.split(".")[1]
        if other not in LAYERS:
            continue  # a name out of nexus/__init__.py
        assert LAYERS[other] <= LAYERS[part], f"{path}: {name} is a layer above"
        if part in SERVICES and other in SERVICES:
            assert other == part, f"{path}: services never import each other ({name})"
        if part == "_speedups":
            assert other in ("_speedups", "errors"), f"{path}: kernels import only errors ({name})"


@pytest.mark.parametrize(
    "path",
    [p for p in modules() if part_of(p) in ("wire", "policy")],
    ids=lambda p: str(p.relative_to(ROOT)),
)
def test_pure_layers_do_no_io(path: Path):
    touched = {name.split(".")[0] for name in imported(path)} & IMPURE
    assert not touched, f"{path} imports {touched}"
    drawn = {
        node.attr
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Name)
        and node.value.id == "random"
    }
    assert drawn <= {"Random"}, f"{path} draws from the global generator: {drawn}"


def test_every_compiled_module_is_registered_and_has_a_twin():
    from nexus._speedups import COMPILED_MODULES

    found = {
        ".".join(path.relative_to(ROOT).with_suffix("").parts)
        for pattern in ("*_c.pyx", "*_c.pxd")
        for path in PACKAGE.rglob(pattern)
    }
    assert found == set(COMPILED_MODULES)
    for name in COMPILED_MODULES:
        twin = ROOT / (name.replace(".", "/").removesuffix("_c") + "_py.py")
        assert twin.exists(), f"{name} has no pure-Python side"


def test_reference_pages_are_up_to_date():
    script = ROOT / "scripts" / "generate-docs"
    done = subprocess.run(
        [sys.executable, str(script), "--check"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"run scripts/generate-docs: {done.stdout}{done.stderr}"


def test_every_setting_is_described():
    from nexus.reference.configuration import undescribed

    assert undescribed() == []
