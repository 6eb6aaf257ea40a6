"""Rules of a policy, of the running backend; see ``_rules_py``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nexus._speedups import BACKEND

if TYPE_CHECKING or BACKEND == "pure":
    from nexus.policy._rules_py import ALWAYS, HOT, NEVER, Matcher, Rule
else:
    from nexus.policy._rules_c import ALWAYS, HOT, NEVER, Matcher, Rule

__all__ = ["ALWAYS", "HOT", "NEVER", "Matcher", "Rule"]
