"""The two backends of the kernel by name."""

from __future__ import annotations

import importlib
import os
from types import ModuleType

import pytest


def kernel(backend: str) -> ModuleType:
    """The named backend; without a build the compiled one is skipped, or fails when required."""
    try:
        return importlib.import_module(f"nexus._speedups._http1_{backend}")
    except ModuleNotFoundError:
        if os.environ.get("NEXUS_REQUIRE_EXTENSIONS", "") not in ("", "0"):
            raise
        pytest.skip("the compiled HTTP/1.1 kernel is not built")
