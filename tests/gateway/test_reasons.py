"""Every reason code that the gateway gives is in the table that documents it."""

from __future__ import annotations

import ast
from pathlib import Path

import nexus.gateway
from nexus._speedups.http1_table import REASONS as PARSER_REASONS
from nexus.gateway.reasons import REASONS

PACKAGE = Path(nexus.gateway.__file__).parent

#: Functions that are given a reason, and which of their arguments it is.
GIVEN = {
    "reject": 1,
    "_give_up": 1,
    "_refusal": 1,
    "HttpError": 1,
    "cancel": 1,
    "break_off": 0,
    "AuthError": 0,
    "_failed": -1,
    "_lost": -1,
    "on_connect_failed": 0,
}


def reasons_in(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.Call):
            continue
        name = getattr(node.func, "attr", getattr(node.func, "id", ""))
        if name not in GIVEN or not node.args:
            continue
        try:
            argument = node.args[GIVEN[name]]
        except IndexError:
            continue
        for part in ast.walk(argument):
            if isinstance(part, ast.Constant) and isinstance(part.value, str) and part.value:
                found.add(part.value)
    return found


def test_every_reason_is_in_the_table():
    used = set().union(*(reasons_in(path) for path in PACKAGE.glob("*.py")))
    assert len(used) > 20, "the search finds nothing any more"
    # "closed", "reset" and the f-string's "upstream_" are parts of upstream_closed and so on.
    unknown = used - set(REASONS) - set(PARSER_REASONS) - {"closed", "reset", "upstream_"}
    assert not unknown, f"add to nexus/gateway/reasons.py: {sorted(unknown)}"


def test_no_reason_is_documented_that_nobody_gives():
    text = "".join(
        path.read_text(encoding="utf-8")
        for path in PACKAGE.glob("*.py")
        if path.name != "reasons.py"
    )
    dead = [
        reason
        for reason in REASONS
        if f'"{reason}"' not in text and reason not in ("upstream_closed", "upstream_reset")
    ]
    assert not dead
