"""Where commands and replies begin and end: the cacheproxy's inner loop.

The proxy forwards bytes; it never decodes a value. All it must know is boundaries, and of a
command its class::

    client ──► CommandScanner ──► runs of plain commands: one copy, one reference for the run
                             └──► a command that is not plain: its class and its place
    Redis  ──► ReplyScanner   ──► stretches of complete replies: one slice for each client

Both resume where they stopped, at any byte. A scanner belongs to one connection; a
:class:`CommandTable` is shared by all.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from nexus._speedups import BACKEND

if TYPE_CHECKING or BACKEND == "pure":
    from nexus._speedups._respscan_py import (
        CommandScanner,
        CommandTable,
        ReplyScanner,
        arguments,
    )
else:
    from nexus._speedups._respscan_c import (
        CommandScanner,
        CommandTable,
        ReplyScanner,
        arguments,
    )

__all__ = [
    "BIG",
    "COMMAND",
    "ERROR",
    "INLINE",
    "MORE",
    "CommandScanner",
    "CommandTable",
    "ReplyScanner",
    "arguments",
]

#: Verdicts of ``CommandScanner.scan``.
MORE: Final = 0
COMMAND: Final = 1
BIG: Final = 2
INLINE: Final = 3
ERROR: Final = 4
