"""Starts `nexus up` for a test, and ends all of it afterwards."""

from __future__ import annotations

import contextlib
import os
import signal
from pathlib import Path

import pytest
from support.running import Up

STANDINS = Path(__file__).with_name("standins.py")


@pytest.fixture
def start(tmp_path):
    """``start(*arguments, standins=False, **environment) -> Up``; all is gone at the end."""
    running = []

    def run(*arguments, standins=False, **environ):
        command = [str(STANDINS), "up"] if standins else ["-m", "nexus", "up"]
        up = Up(command, arguments, tmp_path, environ)
        running.append(up)
        return up

    yield run
    for up in running:
        if up.process.poll() is None:
            left = up.children()
            up.process.kill()
            for pid in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        up.process.wait(10)
        up._reader.join(10)
        up.process.stdout.close()
