"""Both implementations of a kernel as pytest parameters with the ids ``[py]`` and ``[c]``."""

from __future__ import annotations

import importlib
import os
from importlib.util import find_spec
from types import ModuleType
from typing import Any

import pytest


def sides(kernel: str) -> list[Any]:
    """``sides("wrr")`` → ``_wrr_py`` and ``_wrr_c``; a missing ``_wrr_c`` fails where compiled
    kernels are required and is skipped elsewhere."""
    base = f"nexus._speedups._{kernel}"
    made = [pytest.param(importlib.import_module(f"{base}_py"), id="py")]
    if find_spec(f"{base}_c") is not None:
        made.append(pytest.param(importlib.import_module(f"{base}_c"), id="c"))
    elif os.environ.get("NEXUS_REQUIRE_EXTENSIONS", "") not in ("", "0"):
        raise pytest.UsageError(f"{base}_c is required and was not built")
    else:
        made.append(pytest.param(None, id="c", marks=pytest.mark.skip(reason="not built")))
    return made


def both(kernel: str) -> tuple[ModuleType, ModuleType]:
    """The two sides, for tests that compare them; skips where one is missing."""
    base = f"nexus._speedups._{kernel}"
    if find_spec(f"{base}_c") is None:
        pytest.skip(f"{base}_c is not built")
    return importlib.import_module(f"{base}_py"), importlib.import_module(f"{base}_c")
