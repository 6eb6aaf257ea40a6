"""The cacheproxy as a user starts it, and raw sockets to talk to it."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import threading
from collections import deque
from pathlib import Path
from types import TracebackType

import redis
from support.preloaded import start_service
from support.waiting import eventually  # noqa: F401  (the modules here import it with the proxy)

from nexus._speedups.respscan import ReplyScanner

ROOT = Path(__file__).resolve().parents[2]
SECONDS = 20.0


class Proxy:
    """One ``python -m nexus.cacheproxy`` on free ports; ``backend`` is ``c`` or ``py``."""

    def __init__(self, url: str, *arguments: str, backend: str = "c", **environ: str) -> None:
        env = {k: v for k, v in os.environ.items() if not k.startswith("NEXUS_CACHEPROXY_")}
        for name in ("NEXUS_NO_EXTENSIONS", "NEXUS_REQUIRE_EXTENSIONS"):
            env.pop(name, None)
        env["NEXUS_NO_EXTENSIONS" if backend == "py" else "NEXUS_REQUIRE_EXTENSIONS"] = "1"
        self.host = "127.0.0.1"
        self._lines: deque[str] = deque(maxlen=400)
        command = ["--redis", url, "--port", "0", "--admin-port", "0", *arguments]
        said, stderr = os.pipe()
        self._said = os.fdopen(said)
        try:
            self.process = start_service("nexus.cacheproxy", command, env | environ, stderr=stderr)
        except BaseException:
            self._said.close()
            raise
        finally:
            os.close(stderr)
        self._ready = threading.Event()
        self.port = self.admin_port = 0
        threading.Thread(target=self._read, daemon=True).start()
        if not self._ready.wait(3 * SECONDS) or not self.port:
            self.process.kill()
            raise RuntimeError("the cacheproxy did not start:\n" + "\n".join(self._lines))

    def _read(self) -> None:
        with self._said:
            for line in self._said:
                self._lines.append(line.rstrip())
                found = re.search(r"ready on [\d.]+:(\d+), admin on [\d.]+:(\d+)", line)
                if found:
                    self.port, self.admin_port = int(found[1]), int(found[2])
                    self._ready.set()
        self._ready.set()

    @property
    def log(self) -> str:
        return "\n".join(self._lines)

    def client(self, **options: object) -> redis.Redis:
        options = {"protocol": 2, "socket_timeout": SECONDS} | options
        return redis.Redis(host=self.host, port=self.port, **options)  # type: ignore[call-overload]

    def raw(self) -> Raw:
        return Raw(self.host, self.port)

    def stats(self) -> dict[str, str]:
        with self.raw() as raw:
            raw.send("NEXUS", "STATS")
            lines = raw.reply().decode().split("\r\n")
        return dict(line.split(":", 1) for line in lines if ":" in line)

    def stop(self, seconds: float = 10.0) -> int:
        """SIGTERM; the exit code."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.process.kill()
            return self.process.wait(5)


class Raw:
    """A socket that speaks RESP and hands out replies as the bytes they came as."""

    def __init__(self, host: str, port: int) -> None:
        self.sock = socket.create_connection((host, port), SECONDS)
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._data = bytearray()
        self._scanner = ReplyScanner()
        self._seen = 0

    def __enter__(self) -> Raw:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        self.sock.close()

    def send(self, *args: str | bytes | int) -> None:
        self.write(encode(*args))

    def write(self, data: bytes) -> None:
        self.sock.sendall(data)

    def reply(self) -> bytes:
        """The next reply or push; raises ``EOFError`` where the connection ends first."""
        while True:
            if self._seen < len(self._data):
                self._seen = self._scanner.scan(self._data, self._seen, len(self._data), 1)
                if self._scanner.done or (self._scanner.push and not self._scanner.partial):
                    found = bytes(self._data[: self._seen])
                    del self._data[: self._seen]
                    self._seen = 0
                    return found
            chunk = self.sock.recv(1 << 20)
            if not chunk:
                raise EOFError(bytes(self._data))
            self._data += chunk

    def replies(self, count: int) -> list[bytes]:
        return [self.reply() for _ in range(count)]

    def ask(self, *args: str | bytes | int) -> bytes:
        self.send(*args)
        return self.reply()

    def rest(self) -> bytes:
        """Everything until the peer closes."""
        while chunk := self.sock.recv(1 << 20):
            self._data += chunk
        found, self._data = bytes(self._data), bytearray()
        return found

    def silent(self, seconds: float = 0.15) -> bool:
        """Whether nothing arrives for a while."""
        if self._data:
            return False
        self.sock.settimeout(seconds)
        try:
            return not self.sock.recv(1, socket.MSG_PEEK)
        except TimeoutError:
            return True
        finally:
            self.sock.settimeout(SECONDS)


def encode(*args: str | bytes | int) -> bytes:
    parts = [arg if isinstance(arg, bytes) else str(arg).encode() for arg in args]
    body = b"".join(b"$%d\r\n%b\r\n" % (len(part), part) for part in parts)
    return b"*%d\r\n" % len(parts) + body


def clients_of(server_url: str) -> list[dict[str, str]]:
    """``CLIENT LIST`` of the real server, without the asker."""
    with redis.Redis.from_url(server_url, protocol=2, decode_responses=True) as direct:
        own = str(direct.client_id())
        return [c for c in direct.client_list() if c["id"] != own]
