"""Where the time of a compiled worker goes: samples by the nearest compiled function above them.

::

    perf record -F 999 --call-graph dwarf,8192 -o perf.data -p WORKER_PID -- sleep 5
    perf script -i perf.data --no-demangle | python -m bench.callers

A flat profile names the interpreter's internals and the kernel; what is of use is which of our
functions called for them. Each sample is charged to the innermost frame that Cython made, else to
its own innermost frame.
"""

from __future__ import annotations

import re
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Final

__all__ = ["charge", "main"]

#: ``7f3a1 symbol+0x12 (/path/of/object)``
_FRAME: Final = re.compile(r"[0-9a-f]+ (.+?)(?:\+0x[0-9a-f]+)? \((.*)\)$")
_SHOWN: Final = 40


def _samples(lines: Iterable[str]) -> Iterator[list[str]]:
    """The symbols of each sample, innermost first."""
    frames: list[str] = []
    for line in lines:
        text = line.strip()
        if not text:
            if frames:
                yield frames
            frames = []
        elif match := _FRAME.match(text):
            frames.append(match[1])
    if frames:
        yield frames


def charge(lines: Iterable[str]) -> Counter[str]:
    """Samples by function, of the output of ``perf script``."""
    found: Counter[str] = Counter()
    for frames in _samples(lines):
        found[next((name for name in frames if name.startswith("__pyx_")), frames[0])] += 1
    return found


def main() -> int:
    """Print the table of what comes in on standard input."""
    found = charge(sys.stdin)
    total = found.total()
    for name, samples in found.most_common(_SHOWN):
        print(f"{100 * samples / total:6.2f} %  {name}")
    return 0 if total else 1


if __name__ == "__main__":
    raise SystemExit(main())
