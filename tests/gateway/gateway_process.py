"""The real ``python -m nexus.gateway`` on real sockets, and a client that hides nothing."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml
from support.preloaded import start_service
from support.servers import free_port

from nexus._speedups import COMPILED_MODULES, _built

BACKENDS = ["py", "c"]


def check_backend(backend: str) -> None:
    """Skip, or fail where it is required, what is not built."""
    missing = [name for name in COMPILED_MODULES if not _built(name)]
    if backend == "c" and missing:
        if os.environ.get("NEXUS_REQUIRE_EXTENSIONS", "") not in ("", "0"):
            pytest.fail(f"not built: {missing}", pytrace=False)
        pytest.skip(f"not built: {missing}")


CRLF2 = b"\r\n\r\n"


@dataclass
class Response:
    status: int
    head: bytes
    body: bytes
    #: Whether the body was complete by its own framing.
    complete: bool = True

    def values(self, name: str) -> list[str]:
        found = []
        for line in self.head.split(b"\r\n")[1:]:
            key, _, value = line.partition(b":")
            if key.decode("latin-1").lower() == name.lower():
                found.append(value.strip().decode("latin-1"))
        return found

    def value(self, name: str) -> str | None:
        values = self.values(name)
        assert len(values) < 2, f"{name} is repeated: {values}"
        return values[0] if values else None

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Client:
    """A socket that speaks HTTP/1.1 by hand."""

    def __init__(self, port: int, timeout: float = 10) -> None:
        self.sock = socket.create_connection(("127.0.0.1", port), timeout)
        self.buffer = b""

    def send(self, data: bytes) -> None:
        self.sock.sendall(data)

    def more(self) -> bool:
        try:
            data = self.sock.recv(262_144)
        except ConnectionResetError:
            data = b""
        self.buffer += data
        return bool(data)

    def read_head(self) -> bytes:
        while CRLF2 not in self.buffer:
            if not self.more():
                raise EOFError(self.buffer)
        head, _, self.buffer = self.buffer.partition(CRLF2)
        return head

    def read(self, method: str = "GET") -> Response:
        """One final response; 1xx are skipped."""
        while True:
            head = self.read_head()
            status = int(head.split(b" ", 2)[1])
            if status >= 200 or status == 101:
                break
        response = Response(status, head, b"")
        if method == "HEAD" or status in (101, 204, 304):
            return response
        if response.value("transfer-encoding") == "chunked":
            response.body, response.complete = self._chunked()
        elif (length := response.value("content-length")) is not None:
            while len(self.buffer) < int(length) and self.more():
                pass
            response.complete = len(self.buffer) >= int(length)
            response.body, self.buffer = self.buffer[: int(length)], self.buffer[int(length) :]
        else:
            while self.more():
                pass
            response.body, self.buffer = self.buffer, b""
        return response

    def _chunked(self) -> tuple[bytes, bool]:
        body = b""
        while True:
            while b"\r\n" not in self.buffer:
                if not self.more():
                    return body, False
            size_text, _, rest = self.buffer.partition(b"\r\n")
            size = int(size_text, 16)
            while len(rest) < size + 2:
                if not self.more():
                    return body + rest, False
                rest = self.buffer.partition(b"\r\n")[2]
            body += rest[:size]
            assert rest[size : size + 2] == b"\r\n"
            self.buffer = rest[size + 2 :]
            if size == 0:
                return body, True

    def closed(self, within: float = 3.0) -> bool:
        """Whether the gateway closes the connection without another byte."""
        self.sock.settimeout(within)
        try:
            return not self.buffer and not self.more()
        except TimeoutError:
            return False

    def close(self) -> None:
        self.sock.close()


@dataclass
class GatewayProcess:
    """One gateway; ``overrides`` go over defaults that suit tests."""

    directory: Path
    backend: str
    upstreams: list[str]
    overrides: dict[str, Any] = field(default_factory=dict)
    environ: dict[str, str] = field(default_factory=dict)

    def start(self) -> GatewayProcess:
        self.port, self.admin_port = free_port(), free_port()
        self.services = self.directory / "services.json"
        self.write_services(self.upstreams)
        config: dict[str, Any] = {
            "host": "127.0.0.1",
            "port": self.port,
            "admin_port": self.admin_port,
            "services_file": str(self.services),
            "services_poll_seconds": 0.2,
            "drain_seconds": 3,
            "rate_limit": {"enabled": False},
            "auth": {"enabled": False},
            "kafka": {"enabled": False},
            "tracing": {"enabled": False},
            "access_log": {"enabled": False},
            "breaker": {"enabled": False, "timeout_ms": 700},
            # Without a Redis it would only look for one, and load what it takes for that.
            "block_list": {"enabled": "redis" in self.overrides},
            "retry": {"delay_ms": 20},
            "timeouts": {"head": 1, "body_idle": 1, "keep_alive": 2, "connect": 1, "total": 4},
            "log": {"format": "json"},
        }
        self.config_file = self.directory / "gateway.yaml"
        self.write_config(config | self.overrides)
        environ = {k: v for k, v in os.environ.items() if not k.startswith("NEXUS_GATEWAY_")}
        environ |= self.environ
        environ["NEXUS_NO_EXTENSIONS"] = "1" if self.backend == "py" else ""
        if self.backend == "py":
            environ.pop("NEXUS_REQUIRE_EXTENSIONS", None)
        self.log = (self.directory / "gateway.log").open("w+")
        arguments = ["--config", str(self.config_file)]
        log = self.log.fileno()
        self.process = start_service("nexus.gateway", arguments, environ, stdout=log, stderr=log)
        self._wait_ready()
        return self

    def write_config(self, config: dict[str, Any]) -> None:
        self.config = config
        self.config_file.write_text(yaml.safe_dump(config))

    def write_services(self, upstreams: list[str]) -> None:
        services = [{"url": url, "weight": 1} for url in upstreams]
        temporary = self.services.with_suffix(".new")
        temporary.write_text(json.dumps({"services": services}))
        temporary.replace(self.services)

    def _wait_ready(self) -> None:
        # A process that died ends the wait at once; a busy machine may take its time.
        end = time.monotonic() + 90
        while time.monotonic() < end:
            if self.process.poll() is not None:
                break
            try:
                client = Client(self.port, 1)
                client.send(b"GET /ready HTTP/1.1\r\nHost: t\r\n\r\n")
                if client.read().status == 200:
                    client.close()
                    return
            except (OSError, EOFError):
                pass
            time.sleep(0.05)
        self.stop()
        raise AssertionError(f"the gateway did not start:\n{self.output()}")

    def output(self) -> str:
        return (self.directory / "gateway.log").read_text()

    def stop(self) -> int:
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(10)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait(5)
        self.log.close()
        return int(self.process.returncode)

    def client(self, timeout: float = 10) -> Client:
        return Client(self.port, timeout)

    def request(
        self, path: str, method: str = "GET", body: bytes | None = None, *fields: str
    ) -> Response:
        """One request on a connection of its own."""
        client = self.client()
        lines = [f"{method} {path} HTTP/1.1", "Host: shop.example", *fields]
        if body is not None:
            lines.append(f"Content-Length: {len(body)}")
        client.send(("\r\n".join(lines) + "\r\n\r\n").encode("latin-1") + (body or b""))
        try:
            return client.read(method)
        finally:
            client.close()

    def metrics(self) -> str:
        return self.request("/metrics").body.decode()
