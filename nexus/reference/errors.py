"""docs/errors.md: every reply that the gateway makes itself, by its reason code."""

from __future__ import annotations

from typing import Final

from nexus._speedups.http1_table import REASONS as PARSER_REASONS
from nexus.gateway.reasons import REASONS as GATEWAY_REASONS

__all__ = ["render"]

_INTRODUCTION: Final = """\
# Replies of the gateway's own

*Written by `make docs` from `nexus/gateway/reasons.py` and `nexus/_speedups/http1_table.py`.*

Every reply that the gateway makes itself is JSON: `{"error": <title of the status>, "message": <for
people>, "reason": <code>}`. The code is also a field of the access log and the label `reason` of
`nexus_rejections_total`. A reply that an upstream made is passed on and has no reason.

A malformed *response* is answered 502 with `upstream_` before the parser's code
(`upstream_bad_length`, …), and neither connection is used again.
"""


def render() -> str:
    """The whole page as Markdown."""
    parts = [_INTRODUCTION]
    for title, reasons in (
        ("Policies and upstreams", GATEWAY_REASONS),
        ("Malformed and refused requests", PARSER_REASONS),
    ):
        parts.append(f"\n## {title}\n\n| reason | status | when |\n|---|---|---|\n")
        for reason, (status, when) in reasons.items():
            parts.append(f"| `{reason}` | {status or 'connection closed'} | {when} |\n")
    return "".join(parts)
