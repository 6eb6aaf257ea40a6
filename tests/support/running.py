"""`nexus up` as a user runs it: a process of its own, in a directory of its own."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
import threading
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


class Up:
    """A running `nexus up`; ``output`` is what it has printed so far, both streams."""

    def __init__(self, command, arguments, cwd, environ):
        clean = {
            name: value
            for name, value in os.environ.items()
            # What a developer has in the shell must not decide what is tested here.
            if not name.startswith("NEXUS_") or name.endswith("_EXTENSIONS")
        }
        self.process = subprocess.Popen(
            [sys.executable, "-u", *command, "--free-ports", *arguments],
            cwd=cwd,
            # The system's certificates take a tenth of a second to load in each of eight
            # processes, and nothing here asks anybody who needs them.
            env={**clean, "PYTHONPATH": str(ROOT), "SSL_CERT_FILE": os.devnull, **environ},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            text=True,
        )
        self.output = ""
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self):
        for line in self.process.stdout:
            self.output += line

    def wait_for(self, text, seconds=60):
        """Until ``text`` was printed."""
        limit = time.monotonic() + seconds
        while text not in self.output:
            assert time.monotonic() < limit, f"no {text!r} in:\n{self.output}"
            assert self.process.poll() is None or text in self.output, self.output
            time.sleep(0.02)

    def children(self):
        """Process ids of all descendants."""
        found, queue = [], [self.process.pid]
        while queue:
            for task in Path(f"/proc/{queue.pop()}/task").glob("*/children"):
                with contextlib.suppress(OSError):
                    pids = [int(pid) for pid in task.read_text().split()]
                    found += pids
                    queue += pids
        return found

    def child(self, *words):
        """Process id of the direct or indirect child whose command line has all ``words``."""
        for pid in self.children():
            with contextlib.suppress(OSError):
                line = Path(f"/proc/{pid}/cmdline").read_bytes().decode().split("\0")
                if all(any(word in argument for argument in line) for word in words):
                    return pid
        raise AssertionError(f"no child {words} in:\n{self.output}")

    def ends(self, seconds=30):
        """Its exit code; fails where it does not end."""
        code = self.process.wait(seconds)
        self._reader.join(10)
        return code

    def port(self, name):
        return int(re.search(rf"^  {name}\s+\S*?127\.0\.0\.1:(\d+)", self.output, re.MULTILINE)[1])


def alive(pids):
    """Those of ``pids`` that still run; a zombie does not."""
    found = []
    for pid in pids:
        with contextlib.suppress(OSError):
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
            if state not in ("Z", "X"):
                found.append(pid)
    return found
