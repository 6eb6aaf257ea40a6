"""Turns: who works when, and whose the CPU time is."""

from __future__ import annotations

import signal
import socket
import sys
import time
from contextlib import closing
from pathlib import Path

import pytest

from bench.engine import Crowd, EngineError, resp_replies
from bench.loads import LoadError
from bench.processes import Process
from bench.turns import TURN, Contender, CrowdClient, Share, StoppedClient, TurnsError, in_turns

#: Counts as fast as it can until it is interrupted, then says how far it came and at what CPU time.
COUNTING = """
import signal
import time
signal.signal(signal.SIGINT, signal.default_int_handler)  # in a background job it is ignored
count = 0
try:
    while True:
        count += 1
except KeyboardInterrupt:
    print(count, time.process_time())
"""
#: Three steps of 60 ms of CPU each.
ENDING = """
import time
while time.process_time() < 0.18:
    pass
print("done")
"""


class Slow:
    """A client with one turn, of half a second."""

    def __enter__(self) -> Slow:
        return self

    def __exit__(self, *_: object) -> None: ...

    def turn(self) -> bool:
        time.sleep(0.5)
        return False

    def result(self) -> tuple[int, int]:
        return 1, 0


def one_line(output: str) -> tuple[int, int]:
    count, _, seconds = output.strip().partition(" ")
    return int(count), int(float(seconds) * 1000)


def counting(seconds: float) -> StoppedClient:
    return StoppedClient([sys.executable, "-c", COUNTING], one_line, seconds)


class Busy:
    """Stands for a service's processes: seconds of CPU time, and how many it takes unasked."""

    def __init__(self, idle: float = 0.0) -> None:
        self.used = 0.0
        self.idle = idle
        self.begun = time.perf_counter()

    def pids(self) -> list[int]:
        return [1]

    def cpu_seconds(self, pids: list[int]) -> float:
        assert pids == [1]
        return self.used + self.idle * (time.perf_counter() - self.begun)


class Worked:
    """A client of this process, each of whose turns costs every service a second."""

    def __init__(self, name: str, turns: int, log: list[str], *services: Busy) -> None:
        self.name = name
        self.left = turns
        self.log = log
        self.services = services
        self.open = False

    def __enter__(self) -> Worked:
        self.open = True
        return self

    def __exit__(self, *_: object) -> None:
        self.open = False

    def turn(self) -> bool:
        self.log.append(self.name)
        for service in self.services:
            service.used += 1
        self.left -= 1
        return self.left > 0

    def result(self) -> tuple[int, int]:
        return 10 * (self.left == 0), 1


def test_turns_alternate_there_and_back_until_the_last_is_done() -> None:
    log: list[str] = []
    proxy, backend = Busy(), Busy()
    clients = {
        "a": Worked("a", 3, log, proxy, backend),
        "b": Worked("b", 1, log, backend),
        "c": Worked("c", 2, log, backend),
    }
    shares = in_turns(
        {
            "a": Contender(clients["a"], proxy, backend),  # type: ignore[arg-type]
            "b": Contender(clients["b"], None, backend),  # type: ignore[arg-type]
            "c": Contender(clients["c"], None, backend),  # type: ignore[arg-type]
        }
    )
    assert log == ["a", "b", "c", "c", "a", "a"]
    assert not any(client.open for client in clients.values())
    assert shares["a"].proxy_us == pytest.approx(3e5)
    assert shares["a"].backend_us == pytest.approx(3e5)
    assert shares["b"].proxy_us is None
    assert shares["b"].backend_us == pytest.approx(1e5)
    assert (shares["c"].operations, shares["c"].refused) == (10, 1)


def test_what_a_service_does_unasked_between_its_turns_is_taken_off() -> None:
    log: list[str] = []
    proxy, backend = Busy(idle=0.5), Busy()
    contenders = {
        "own": Contender(Worked("own", 1, log, proxy), proxy, backend),  # type: ignore[arg-type]
        "other": Contender(Slow(), None, backend),  # type: ignore[arg-type]
    }
    assert in_turns(contenders)["own"].proxy_us == pytest.approx(1e5, rel=0.05)


def test_a_client_that_did_nothing_is_an_error() -> None:
    client = Worked("a", 1, [])
    client.left = 2  # it never ends, so it has no result
    client.turn = lambda: False  # type: ignore[method-assign]
    with pytest.raises(TurnsError, match="a: no reply in all its turns"):
        in_turns({"a": Contender(client, None, Busy())})  # type: ignore[arg-type]


def test_a_stopped_client_works_only_in_its_turns() -> None:
    with counting(20 * TURN) as client:
        for _ in range(19):
            assert client.turn()
        time.sleep(2.0)
        assert not client.turn()
        _, milliseconds = client.result()
    assert milliseconds < 20 * TURN * 1000 + 500  # far from the time that it was stopped for


def test_a_client_that_ends_by_itself_has_no_more_turns() -> None:
    def read(output: str) -> tuple[int, int]:
        assert output == "done\n"
        return 3, 0

    with StoppedClient([sys.executable, "-c", ENDING], read) as client:
        turns = 1
        while client.turn():
            turns += 1
            assert turns < 100
        assert client.result() == (3, 0)
    assert turns > 1


def test_a_client_that_ended_before_it_was_stopped_is_done() -> None:
    with StoppedClient([sys.executable, "-c", ENDING], lambda _: (1, 0)) as client:
        assert client.turn()
        process = client._process
        assert process is not None
        process.send_signal(signal.SIGCONT)
        process.wait(10)
        assert not client.turn()
        assert client.result() == (1, 0)


def test_what_a_reader_says_is_said() -> None:
    def read(output: str) -> tuple[int, int]:
        raise LoadError(output.strip())

    command = [sys.executable, "-c", "print('no such host')"]
    client = StoppedClient(command, read)
    with pytest.raises(LoadError, match="no such host"):
        in_turns({"x": Contender(client, None, Busy())})  # type: ignore[arg-type]


def test_a_client_that_is_left_is_ended() -> None:
    with counting(100.0) as client:
        assert client.turn()
        process = client._process
        assert process is not None
    assert process.returncode is not None


def test_a_crowd_goes_on_where_it_was(tmp_path: Path) -> None:
    code = (
        "import socket, sys\n"
        "server = socket.create_server(('127.0.0.1', 0))\n"
        "print(server.getsockname()[1], flush=True)\n"
        "peer, _ = server.accept()\n"
        "while data := peer.recv(65536):\n"
        "    peer.sendall(b''.join(b'+' + part + b'\\r\\n' for part in data.split()))\n"
    )
    with Process("server", [sys.executable, "-c", code], tmp_path) as server:
        log = tmp_path / "server.log"
        server.wait_for(lambda: log.read_text().endswith("\n"))
        requests = [(b"A ", 1), (b"B ", 1), (b"C ", 1)]
        crowd = Crowd(int(log.read_text()), requests, resp_replies, connections=1)
        client = CrowdClient(lambda: crowd, operations=5, each=2)
        shares = in_turns({"crowd": Contender(client, None, server)})
        assert isinstance(shares["crowd"], Share)
        assert shares["crowd"].operations == 5
        assert shares["crowd"].backend_us > 0
        assert crowd._sent == 5


def test_a_crowd_that_cannot_connect_leaves_nothing_open() -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as server:
        port = server.getsockname()[1]
    with pytest.raises((OSError, EngineError)):
        Crowd(port, [(b"A", 1)], resp_replies, connections=2)
