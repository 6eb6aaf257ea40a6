"""What every record says of itself, and how records are written."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from nexus._speedups import BACKEND

__all__ = ["RESULTS", "about", "dumped", "rounded", "taken_on"]

#: Where the results of record are committed.
RESULTS: Final = Path(__file__).with_name("results")


def about() -> dict[str, Any]:
    """When, on what machine, by what Python."""
    return {
        "taken": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": f"{platform.machine()}, {os.cpu_count()} CPUs, Linux {platform.release()}",
        "load_average": round(os.getloadavg()[2], 2),
        "python": f"{platform.python_version()} ({BACKEND} kernels)",
    }


def taken_on(document: Mapping[str, Any]) -> str:
    """The same as half a sentence."""
    return (
        f"{document['taken'][:10]}, {document['machine']}, load average "
        f"{document['load_average']}, Python {document['python']}"
    )


def rounded(value: object) -> object:
    """Floats with five digits, everything else as it is."""
    return float(f"{value:.5g}") if isinstance(value, float) else value


def dumped(document: Mapping[str, Any]) -> str:
    """JSON with a line for each key, and for each item of a list: diffs that can be read."""

    def value(item: object) -> str:
        if not isinstance(item, list):
            return json.dumps(item, ensure_ascii=False)
        inner = ",\n".join(f"  {json.dumps(part, ensure_ascii=False)}" for part in item)
        return f"[\n{inner}\n ]" if item else "[]"

    body = ",\n".join(f" {json.dumps(key)}: {value(item)}" for key, item in document.items())
    return f"{{\n{body}\n}}\n"
