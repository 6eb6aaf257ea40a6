"""The hot kernels, each compiled by Cython and each with a pure-Python twin.

One decision for the whole process, made here, at the first import: either every kernel runs
compiled or every kernel runs in pure Python, so that two workers over the same shared memory can
never disagree on a table's layout.

``NEXUS_NO_EXTENSIONS=1``       pure Python, even where the extensions are built
``NEXUS_REQUIRE_EXTENSIONS=1``  refuse to start without all of them

Facade modules (``nexus._speedups.resp``, …) re-export the chosen implementation; nothing else in
Nexus imports an ``_x_py`` or ``_x_c`` module directly, except the parity tests and benchmarks. A
facade reads::

    if TYPE_CHECKING or BACKEND == "pure":
        from nexus._speedups._resp_py import Decoder
    else:
        from nexus._speedups._resp_c import Decoder
"""

from __future__ import annotations

import os
from typing import Final, Literal

from nexus.errors import BackendError

__all__ = ["BACKEND", "COMPILED_MODULES", "MISSING"]

#: Every module that exists in two backends, by the name of its compiled side.
COMPILED_MODULES: Final[tuple[str, ...]] = (
    "nexus._speedups._buckets_c",
    "nexus._speedups._counters_c",
    "nexus._speedups._http1_c",
    "nexus._speedups._nearcache_c",
    "nexus._speedups._resp_c",
    "nexus._speedups._respencode_c",
    "nexus._speedups._respscan_c",
    "nexus._speedups._wrr_c",
    "nexus.cacheproxy._client_c",
    "nexus.cacheproxy._core_c",
    "nexus.cacheproxy._link_c",
    "nexus.cacheproxy._near_c",
    "nexus.cacheproxy._tracking_c",
    "nexus.gateway._attempts_c",
    "nexus.gateway._completed_c",
    "nexus.gateway._compose_c",
    "nexus.gateway._core_c",
    "nexus.gateway._envelope_c",
    "nexus.gateway._exchange_c",
    "nexus.gateway._limits_c",
    "nexus.gateway._outlet_c",
    "nexus.gateway._phases_c",
    "nexus.gateway._pool_c",
    "nexus.gateway._ports_c",
    "nexus.gateway._request_c",
    "nexus.gateway._routes_c",
    "nexus.gateway._session_c",
    "nexus.gateway._traces_c",
    "nexus.gateway._upstream_c",
    "nexus.gateway._wheel_c",
    "nexus.observability._accessline_c",
    "nexus.observability._record_c",
    "nexus.observability._recorder_c",
    "nexus.observability._spans_c",
    "nexus.policy._balance_c",
    "nexus.policy._breaker_c",
    "nexus.policy._budget_c",
    "nexus.policy._rules_c",
    "nexus.tracing._call_c",
    "nexus.tracing._kernel_c",
)


def _flag(name: str) -> bool:
    return os.environ.get(name, "") not in ("", "0")


def _choose() -> tuple[Literal["compiled", "pure"], tuple[str, ...]]:
    if _flag("NEXUS_NO_EXTENSIONS"):
        if _flag("NEXUS_REQUIRE_EXTENSIONS"):
            raise BackendError("NEXUS_NO_EXTENSIONS and NEXUS_REQUIRE_EXTENSIONS are both set")
        return "pure", ()
    # Only looked for here: a compiled session imports its settings and kernels, and those import
    # this module, so importing it now would be a cycle.
    missing = [name for name in COMPILED_MODULES if not _built(name)]
    if missing and _flag("NEXUS_REQUIRE_EXTENSIONS"):
        raise BackendError(
            "NEXUS_REQUIRE_EXTENSIONS is set, but these compiled modules are missing: "
            + ", ".join(missing)
            + " (build them: pip install -e . with a C compiler)"
        )
    return ("pure", tuple(missing)) if missing else ("compiled", ())


def _built(name: str) -> bool:
    from importlib.machinery import EXTENSION_SUFFIXES
    from pathlib import Path

    root = Path(__file__).resolve().parents[2]
    base = root.joinpath(*name.split("."))
    return any(base.with_name(base.name + suffix).exists() for suffix in EXTENSION_SUFFIXES)


_choice = _choose()

#: Which backend runs in this process.
BACKEND: Final = _choice[0]

#: The compiled modules that are not built here and so kept the backend from being "compiled".
MISSING: Final = _choice[1]
