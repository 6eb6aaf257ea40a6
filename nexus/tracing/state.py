"""The process's one tracing state, which all decorated callables share."""

from __future__ import annotations

from typing import Final

from nexus.tracing.kernel import State

__all__ = ["STATE"]

#: Off until :func:`nexus.tracing.enable`.
STATE: Final = State()
