"""Who holds the event loop: a thread that looks at the loop's own thread while that is late.

::

    loop     beat ─────── 250 ms ─────── beat ─ ─ ─ late ─ ─ ─ ─ ─ beat: warns, names the culprit
    watchdog      ·    ·    ·    ·    ·    ·    · takes the stack

It wakes ten times a second and reads two numbers; a stack is taken only when a beat is overdue.
Compiled code has no frames, so the culprit is the innermost Python function that led there.
"""

from __future__ import annotations

import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Final

__all__ = ["Culprit", "Watchdog"]

#: Seconds between looks, and how late a beat must be for a stack to be taken: less than the lag
#: that is warned of, so that a stall that long was seen.
LOOK_SECONDS: Final = 0.1
LATE_SECONDS: Final = 0.1

#: Frames of a stack that are kept, innermost first.
MAX_FRAMES: Final = 12


@dataclass(frozen=True, slots=True)
class Culprit:
    """What the loop's thread was doing: ``function (file:line)``, and how it got there."""

    where: str
    stack: tuple[str, ...]


class Watchdog:
    """Watches the thread that calls :meth:`start`."""

    def __init__(self) -> None:
        self._watched = 0
        self._due = 0.0
        self._culprit: Culprit | None = None
        self._stopped = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Begin; from the loop's thread."""
        self._watched = threading.get_ident()
        self._due = time.monotonic() + 3600
        self._stopped.clear()
        self._thread = threading.Thread(target=self._run, name="nexus-watchdog", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End the thread."""
        self._stopped.set()
        if self._thread is not None:
            self._thread.join(1.0)
            self._thread = None

    def expect(self, seconds: float) -> None:
        """The loop is well; its next beat is due in ``seconds``."""
        self._due = time.monotonic() + seconds
        self._culprit = None

    def culprit(self) -> Culprit | None:
        """What was seen since the last :meth:`expect`; ``None``: the loop's thread was not late, or
        it waited for nothing but the operating system."""
        return self._culprit

    def _run(self) -> None:
        while not self._stopped.wait(LOOK_SECONDS):
            if self._culprit is not None or time.monotonic() < self._due + LATE_SECONDS:
                continue
            due = self._due
            frame = sys._current_frames().get(self._watched)  # noqa: SLF001  (there is no other way)
            found = _describe(frame)
            # The loop may have come back while the stack was read: then it is not its stack.
            if found is not None and due == self._due:
                self._culprit = found


def _describe(frame: FrameType | None) -> Culprit | None:
    stack: list[str] = []
    while frame is not None and len(stack) < MAX_FRAMES:
        code = frame.f_code
        if code.co_name in ("run_until_complete", "run_forever", "_run_once", "run_worker"):
            break  # the loop itself
        stack.append(f"{code.co_qualname} ({_short(code.co_filename)}:{frame.f_lineno})")
        frame = frame.f_back
    return Culprit(stack[0], tuple(stack)) if stack else None


def _short(path: str) -> str:
    """The last three parts: enough to find the file, and no path of this machine."""
    return "/".join(Path(path).parts[-3:])
