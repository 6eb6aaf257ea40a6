"""What ``/health`` and ``/ready`` say: values in, values out.

``/health`` answers whether a process serves at all (restart it if not); ``/ready`` whether new
traffic should be sent here (take it out of rotation if not).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from nexus import clock
from nexus._speedups import BACKEND
from nexus._version import __version__

__all__ = ["health_payload", "ready_payload"]


def health_payload(
    service: str, workers: Iterable[tuple[int, str, int]], *, now_ms: int | None = None
) -> dict[str, Any]:
    """``{"status": "<service>-ok", "timestamp", …}``.

    ``workers``: (index, state, pid); ``now_ms``: Unix time, milliseconds (default: the clock).
    """
    return {
        "status": f"{service}-ok",
        "timestamp": clock.iso_utc(clock.wall_ms() if now_ms is None else now_ms),
        "version": __version__,
        "backend": BACKEND,
        "workers": _workers(workers),
    }


def ready_payload(
    service: str,
    ready: bool,
    workers: Iterable[tuple[int, str, int]],
    *,
    reason: str = "",
    now_ms: int | None = None,
) -> dict[str, Any]:
    """``{"status": "ready" | "not-ready", …}``; goes with status 200 or 503.

    ``reason``: what is lacking, where it is not the workers.
    """
    return {
        "status": "ready" if ready else "not-ready",
        **({"reason": reason} if reason else {}),
        "service": service,
        "timestamp": clock.iso_utc(clock.wall_ms() if now_ms is None else now_ms),
        "workers": _workers(workers),
    }


def _workers(workers: Iterable[tuple[int, str, int]]) -> list[dict[str, Any]]:
    return [{"worker": index, "state": state, "pid": pid} for index, state, pid in workers]
