"""What happens where something is missing that a test needs: the one place that decides.

A skip with its reason; under ``NEXUS_TEST_REQUIRE=all``, as in CI, a failure.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
from typing import Final, NoReturn

import pytest

from nexus._speedups import COMPILED_MODULES

__all__ = ["REQUIRE_ALL", "kernels", "missing", "module", "tool"]

REQUIRE_ALL: Final = os.environ.get("NEXUS_TEST_REQUIRE", "") == "all"


def missing(reason: str) -> NoReturn:
    """Skip, or fail where everything is required."""
    if REQUIRE_ALL:
        pytest.fail(f"required by NEXUS_TEST_REQUIRE=all: {reason}", pytrace=False)
    pytest.skip(reason)


def tool(name: str) -> str:
    """Path of a program on PATH."""
    found = shutil.which(name)
    if found is None:
        missing(f"{name} is not installed")
    return found


def kernels() -> None:
    """The compiled kernels, whether or not this process runs on them."""
    absent = [name for name in COMPILED_MODULES if importlib.util.find_spec(name) is None]
    if absent:
        missing(f"not compiled: {', '.join(absent)}")


def module(name: str) -> None:
    """A Python package that is needed and never imported by name here."""
    if importlib.util.find_spec(name) is None:
        missing(f"the Python package {name} is not installed")
