"""Every kernel test runs on both backends, under the ids ``[py]`` and ``[c]``."""

from __future__ import annotations

from types import ModuleType

import pytest
from http1_backends import kernel


@pytest.fixture(params=["py", "c"])
def http1(request: pytest.FixtureRequest) -> ModuleType:
    return kernel(request.param)
