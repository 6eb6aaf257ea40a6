"""The retry budget, of the running backend; see ``_budget_py``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nexus._speedups import BACKEND

if TYPE_CHECKING or BACKEND == "pure":
    from nexus.policy._budget_py import RetryBudget
else:
    from nexus.policy._budget_c import RetryBudget

__all__ = ["RetryBudget"]
