"""File descriptors: every connection is one, and what may be open at once is limited."""

from __future__ import annotations

import contextlib
import logging
import resource
from typing import Final

__all__ = ["raise_descriptor_limit", "warn_if_short"]

log = logging.getLogger("nexus.descriptors")

#: Of a process that serves nobody: listeners, event loop, logs, sinks, shared memory.
_OWN: Final = 64


def raise_descriptor_limit() -> None:
    """Take what the hard limit allows."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def warn_if_short(connections: int, setting: str) -> bool:
    """Say so if ``setting`` promises more ``connections`` than can be open; whether it does.

    They would not be refused with an answer, but wait unaccepted until a descriptor is free.
    """
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if limit == resource.RLIM_INFINITY or connections + _OWN <= limit:
        return False
    log.warning(
        "%s allows %d connections, but this process may open only %d descriptors: "
        "raise the limit (ulimit -n, LimitNOFILE) or lower the setting",
        setting,
        connections,
        limit,
    )
    return True
