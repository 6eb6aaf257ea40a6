"""Reference pages rendered from the tables and structs that the code itself runs on.

Layer 6: may import everything, is imported by nobody but ``scripts/generate-docs`` and its test.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from nexus.reference import commands, configuration, errors, metrics, policy

__all__ = ["PAGES"]

#: File name under ``docs/`` → what renders it.
PAGES: Final[dict[str, Callable[[], str]]] = {
    "commands.md": commands.render,
    "configuration.md": configuration.render,
    "errors.md": errors.render,
    "metrics.md": metrics.render,
    "policy.md": policy.render,
}
