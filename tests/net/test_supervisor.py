"""The process machinery with a toy service: start, restart, reload, drain, refuse."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support.servers import free_port, wait_until

from nexus.errors import ListenError
from nexus.net.listeners import bind_group

TOY = Path(__file__).with_name("toy_service.py")
ROOT = TOY.parents[2]


class Toy:
    def __init__(
        self, directory: Path, *arguments: str, settings: str = "", **environ: str
    ) -> None:
        self.port, self.admin_port = free_port(), free_port()
        self.config = directory / f"toy-{self.port}.yaml"
        self.config.write_text(settings)
        self.log = directory / f"toy-{self.port}.log"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [
                    *(sys.executable, str(TOY), "--config", str(self.config)),
                    *("--port", str(self.port), "--admin-port", str(self.admin_port)),
                    *arguments,
                ],
                cwd=ROOT,
                env={**os.environ, "PYTHONPATH": str(ROOT), **environ},
                stdout=log,
                stderr=log,
            )

    def logged(self, text: str) -> bool:
        return text in self.log.read_text()

    def ready(self) -> Toy:
        wait_until(lambda: self.process.poll() is not None or self.logged(" ready on "), 60)
        assert self.process.poll() is None, self.log.read_text()
        return self

    def ask(self, line: bytes = b"hi\n") -> tuple[int, int, str]:
        with socket.create_connection(("127.0.0.1", self.port), 5) as sock:
            sock.sendall(line)
            sock.settimeout(10)
            index, pid, greeting = sock.makefile().readline().split()
        return int(index), int(pid), greeting

    def admin(self, path: str) -> tuple[int, object]:
        url = f"http://127.0.0.1:{self.admin_port}{path}"
        try:
            with urllib.request.urlopen(url, timeout=5) as reply:
                return reply.status, json.loads(reply.read())
        except urllib.error.HTTPError as error:
            return error.code, json.loads(error.read())

    def workers(self) -> set[int]:
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text()
        return {int(pid) for pid in children.split()}

    def end(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait(5)


@pytest.fixture
def toy(tmp_path: Path) -> Iterator[Callable[..., Toy]]:
    started: list[Toy] = []

    def start(*arguments: str, **more: str) -> Toy:
        started.append(Toy(tmp_path, *arguments, **more))
        return started[-1]

    yield start
    for one in started:
        one.end()


def gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"
    except FileNotFoundError:
        return True


def test_serves_reports_and_stops(toy):
    service = toy("--greeting", "hallo").ready()
    index, pid, greeting = service.ask()
    assert (index, greeting) == (0, "hallo")
    assert service.workers() == {pid}
    assert service.admin("/ready")[0] == 200
    status, health = service.admin("/health")
    assert status == 200
    assert health["status"] == "toy-ok"
    service.process.send_signal(signal.SIGTERM)
    assert service.process.wait(10) == 0
    assert gone(pid)


def test_all_workers_serve_the_one_port(toy):
    service = toy("--workers", "3").ready()
    seen: set[int] = set()
    deadline = time.monotonic() + 10
    while len(seen) < 3 and time.monotonic() < deadline:
        seen.add(service.ask()[0])
    assert seen == {0, 1, 2}


def test_a_dead_worker_is_replaced_on_its_slot(toy):
    service = toy("--workers", "2").ready()
    before = service.workers()
    with socket.create_connection(("127.0.0.1", service.port), 5) as sock:
        sock.sendall(b"die\n")
        assert sock.recv(10) == b""
    wait_until(lambda: len(service.workers() - before) == 1, what="a replacement")
    wait_until(lambda: service.admin("/ready")[0] == 200)
    assert service.logged("died (signal SIGKILL)")
    assert service.process.poll() is None
    for _ in range(8):
        service.ask()


def test_a_worker_that_cannot_start_ends_the_service(toy):
    service = toy("--workers", "2", TOY_FAIL_START="1")
    assert service.process.wait(15) == 1
    assert service.logged("told to fail")


def test_a_busy_port_is_refused_by_name(toy):
    with socket.socket() as busy:
        busy.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        busy.bind(("127.0.0.1", 0))
        busy.listen()
        port = busy.getsockname()[1]
        service = toy("--port", str(port))
        assert service.process.wait(10) == 1
    text = service.log.read_text()
    assert (
        f"nexus toy: 127.0.0.1:{port} is already in use; choose another with "
        "--port or NEXUS_TOY_PORT" in text
    )
    assert "Traceback" not in text


def test_drain_finishes_open_work(toy):
    service = toy(settings="slow_seconds: 1").ready()
    with socket.create_connection(("127.0.0.1", service.port), 5) as sock:
        sock.sendall(b"hi\n")
        time.sleep(0.3)
        service.process.send_signal(signal.SIGTERM)
        sock.settimeout(10)
        assert sock.makefile().readline().endswith("hello\n")
    assert service.process.wait(10) == 0


def test_nobody_is_queued_for_a_service_that_ends(toy):
    service = toy("--workers", "2", settings="slow_seconds: 2").ready()
    with socket.create_connection(("127.0.0.1", service.port), 5) as sock:
        sock.sendall(b"hi\n")
        time.sleep(0.2)
        service.process.send_signal(signal.SIGTERM)

        def refused() -> bool:
            try:
                socket.create_connection(("127.0.0.1", service.port), 1).close()
            except ConnectionRefusedError:
                return True
            return False

        wait_until(refused, seconds=1.5, what="a refusal")
        sock.settimeout(10)
        assert sock.makefile().readline().endswith("hello\n")
    assert service.process.wait(10) == 0


def test_not_ready_while_the_grace_period_runs(toy):
    service = toy(settings="drain_grace_seconds: 3").ready()
    service.process.send_signal(signal.SIGTERM)
    wait_until(lambda: service.admin("/ready")[0] == 503, seconds=2.5)
    assert service.ask()[2] == "hello"
    assert service.process.wait(10) == 0


def test_reload_applies_new_settings_without_a_restart(toy):
    service = toy("--workers", "2", settings="greeting: one").ready()
    pids = service.workers()
    service.config.write_text("greeting: two\nworkers: 7")
    service.process.send_signal(signal.SIGHUP)
    wait_until(lambda: {service.ask()[2] for _ in range(6)} == {"two"})
    assert service.workers() == pids
    # The flag says two workers before and after: nothing to warn about.
    assert not service.logged("a reload cannot change")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("greting: two", "unknown setting; did you mean 'greeting'?"),
        ("greeting: [", "line 1"),
        ("greeting: ''", "the greeting is empty"),
        ("greeting: refused", "this greeting is refused"),
        ("greeting: 2024-13-45", "not YAML"),
    ],
)
def test_a_broken_reload_keeps_the_last_good_settings(toy, text, said):
    service = toy(settings="greeting: one").ready()
    service.config.write_text(text)
    service.process.send_signal(signal.SIGHUP)
    wait_until(lambda: service.logged(said))
    assert service.ask()[2] == "one"


def test_a_reload_says_what_only_a_restart_can_change(toy):
    service = toy(settings="greeting: one").ready()
    service.config.write_text("greeting: two\nworkers: 7")
    service.process.send_signal(signal.SIGHUP)
    wait_until(lambda: service.logged("a reload cannot change workers: restart for that"))
    wait_until(lambda: service.ask()[2] == "two")
    assert len(service.workers()) == 1


def test_workers_end_with_a_supervisor_that_is_killed(toy):
    service = toy("--workers", "2").ready()
    workers = service.workers()
    service.process.kill()
    service.process.wait(5)
    wait_until(lambda: all(gone(pid) for pid in workers), what="the end of the workers")


def test_a_second_interrupt_ends_at_once(toy):
    service = toy(settings="slow_seconds: 30\ndrain_seconds: 60").ready()
    with socket.create_connection(("127.0.0.1", service.port), 5) as sock:
        sock.sendall(b"hi\n")
        time.sleep(0.2)
        service.process.send_signal(signal.SIGINT)
        wait_until(lambda: service.logged("stopping"))
        service.process.send_signal(signal.SIGINT)
        assert service.process.wait(5) == 0


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["--check"], 0, "greeting: hello"),
        (["--greeting", "", "--check"], 2, "nexus toy: greeting: the greeting is empty"),
        (["--workers", "0"], 2, "command line: workers: expected an integer >= 1, got 0"),
        (["--config", "none.yaml"], 2, "none.yaml: cannot be read: No such file or directory"),
        (["--version"], 0, "kernels, Python 3."),
    ],
)
def test_command_line(arguments, code, said):
    done = subprocess.run(
        [sys.executable, str(TOY), *arguments],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == code, done.stderr
    assert said in done.stdout + done.stderr
    assert "Traceback" not in done.stderr


def test_the_port_is_never_let_go_of_between_the_workers_sockets() -> None:
    group = bind_group("127.0.0.1", 0, 3, setting="--port")
    try:
        assert len({sock.getsockname() for sock in group}) == 1
        with pytest.raises(ListenError, match="already in use; choose another with --port"):
            bind_group("127.0.0.1", group[0].getsockname()[1], 1, setting="--port")
        clients = [socket.create_connection(group[0].getsockname()) for _ in range(90)]
        taken = []
        for sock in group:
            count = 0
            with contextlib.suppress(BlockingIOError):
                while True:
                    sock.accept()[0].close()
                    count += 1
            taken.append(count)
        assert sum(taken) == 90
        assert min(taken) > 0, "the kernel spreads connections over the group"
    finally:
        for sock in (*group, *clients):
            sock.close()


def test_two_colons_take_both_families() -> None:
    [sock] = bind_group("::", 0, 1, setting="--port")
    port = sock.getsockname()[1]
    for host in ("127.0.0.1", "::1"):
        socket.create_connection((host, port), 5).close()
    sock.close()
