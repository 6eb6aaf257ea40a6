"""Processes under measurement: started, read from /proc, ended by pid."""

from __future__ import annotations

import os
import random
import signal
import socket
import subprocess
import time
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path

__all__ = ["Process", "ProcessError", "free_ports"]

_TICKS = os.sysconf("SC_CLK_TCK")
#: Seconds between SIGTERM and SIGKILL.
_PATIENCE = 10.0
#: Lowest port that is given out: above those that services are known by.
_LOWEST = 12_000
#: Of another seed in every process: several look for ports at once.
_random = random.SystemRandom()
_given: deque[int] = deque(maxlen=1000)


class ProcessError(Exception):
    """A process did not start or ended by itself; the message holds the end of its log."""


def free_ports(count: int) -> list[int]:
    """Ports that nothing listens on now, all different, and none that was given before.

    Below the range from which the kernel takes the ports of outgoing connections: one of those may
    be taken between the answer and the server's start.
    """
    found: list[int] = []
    while len(found) < count:
        port = _random.randrange(_LOWEST, _lowest_outgoing())
        if port in _given:
            continue
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        _given.append(port)
        found.append(port)
    return found


def _lowest_outgoing() -> int:
    try:
        text = Path("/proc/sys/net/ipv4/ip_local_port_range").read_text()
    except OSError:
        return 32_768
    return max(int(text.split()[0]), _LOWEST + 10_000)


def _stat(pid: int) -> list[str] | None:
    """Fields of /proc/PID/stat behind the command's name; the first is the state."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None


class Process:
    """One service with all its child processes. ``with Process(…) as p:`` ends it at the end."""

    def __init__(self, name: str, command: Sequence[str], directory: Path) -> None:
        self.name = name
        self._log = directory / f"{name}.log"
        with self._log.open("wb") as log:
            self._main = subprocess.Popen(
                command, cwd=directory, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )

    def __enter__(self) -> Process:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def wait_for(self, answers: Callable[[], bool], seconds: float = 120.0) -> None:
        """Return when the service answers; raise :class:`ProcessError` when it does not."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if self._main.poll() is not None:
                raise ProcessError(f"{self.name} ended by itself: {self._last_words()}")
            try:
                if answers():
                    return
            except OSError:
                pass
            time.sleep(0.05)
        raise ProcessError(f"{self.name} does not answer after {seconds:g} s: {self._last_words()}")

    def pids(self) -> list[int]:
        """The process and all its descendants."""
        children: dict[int, list[int]] = {}
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit() and (stat := _stat(int(entry.name))) is not None:
                children.setdefault(int(stat[1]), []).append(int(entry.name))
        found = [self._main.pid]
        for pid in found:
            found.extend(children.get(pid, []))
        return found

    def cpu_seconds(self, pids: Sequence[int] | None = None) -> float:
        """User and system time of all threads that are alive, of all processes or of ``pids``.

        To the nanosecond from ``schedstat``, so that runs of half a second can be compared; to the
        kernel's tick (10 ms) where it keeps none.
        """
        return sum(_cpu_seconds(pid) for pid in pids or self.pids())

    def memory_mib(self) -> float:
        """Proportional set size: what all processes hold, shared pages counted once."""
        return sum(_pss_kib(pid) for pid in self.pids()) / 1024

    def stop(self) -> None:
        """SIGTERM, patience, SIGKILL; children that outlive their parent are killed, too."""
        pids = self.pids()
        if self._main.poll() is None:
            self._main.send_signal(signal.SIGTERM)
            try:
                self._main.wait(_PATIENCE)
            except subprocess.TimeoutExpired:
                self._main.kill()
                self._main.wait()
        for pid in pids[1:]:
            stat = _stat(pid)
            # Only what is still ours: an orphan is adopted by init, a reused pid has a parent.
            if stat is not None and stat[0] != "Z" and stat[1] in ("1", str(os.getpid())):
                os.kill(pid, signal.SIGKILL)

    def _last_words(self) -> str:
        lines = self._log.read_text(errors="replace").strip().splitlines()
        return " | ".join(lines[-5:]) or "(nothing logged)"


def _cpu_seconds(pid: int) -> float:
    try:
        tasks = [
            int((task / "schedstat").read_text().split()[0])
            for task in Path(f"/proc/{pid}/task").iterdir()
        ]
    except OSError:
        tasks = []
    if any(tasks):
        return sum(tasks) / 1e9
    stat = _stat(pid)
    return (int(stat[11]) + int(stat[12])) / _TICKS if stat else 0.0


def _pss_kib(pid: int) -> int:
    try:
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1])
    except OSError:
        pass
    return 0
