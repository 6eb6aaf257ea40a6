"""The comparison's own parts: reading load generators, summing processes, reporting medians."""

from __future__ import annotations

import json
import re
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import asdict, astuple, replace
from pathlib import Path
from typing import Any

import pytest

from bench import peers
from bench.engine import EngineError, drive, http_replies, resp_replies
from bench.loads import LoadError, LoadResult, WrkLoad, parse_redis, parse_wrk, zipf_mix
from bench.processes import Process, ProcessError, free_ports
from bench.report import Row, disagreements, markdown, medians, ratios, rows_of, write
from bench.scenarios import SCENARIOS

REDIS = """\
Latency by percentile distribution:
0.000% <= 0.071 milliseconds (cumulative count 2)
50.000% <= 0.463 milliseconds (cumulative count 11961)
98.438% <= 0.615 milliseconds (cumulative count 19690)
99.219% <= 0.943 milliseconds (cumulative count 19856)
99.805% <= 1.527 milliseconds (cumulative count 19961)
99.902% <= 1.735 milliseconds (cumulative count 19981)
100.000% <= 1.943 milliseconds (cumulative count 20000)

Cumulative distribution of latencies:
0.025% <= 0.103 milliseconds (cumulative count 5)
100.000% <= 2.007 milliseconds (cumulative count 20000)

Summary:
  throughput summary: 67252.19 requests per second
"""
WRK = """\
Running 1s test @ http://127.0.0.1:8002/api/products
  1 threads and 64 connections
  Thread Stats   Avg      Stdev     Max   +/- Stdev
    Latency     1.14ms  501.02us   9.73ms   90.12%
    Req/Sec    56.00k     4.19k   61.66k    72.73%
  Latency Distribution
     50%  990.00us
     75%    1.30ms
     90%    1.61ms
     99%    2.46ms
  61162 requests in 1.10s, 15.87MB read
Requests/sec:  55524.98
Transfer/sec:     14.41MB
99.9%: 4812 us
"""


def test_redis_benchmark_is_read() -> None:
    assert parse_redis(REDIS, 500) == LoadResult(500, 67252.19, 0.463, 0.943, 1.735)
    for broken in ("", "Could not connect to Redis", REDIS.partition("Summary")[0]):
        with pytest.raises(LoadError, match="no result"):
            parse_redis(broken, 500)


def test_wrk_is_read() -> None:
    assert parse_wrk(WRK) == LoadResult(61162, 55524.98, 0.99, 2.46, 4.812)
    assert parse_wrk(WRK + "  Non-2xx or 3xx responses: 7\n").refused == 7
    for broken in ("", WRK.partition("99.9%")[0]):
        with pytest.raises(LoadError, match="no result"):
            parse_wrk(broken)
    with pytest.raises(LoadError, match="Socket errors: connect 0, read 3"):
        parse_wrk(WRK + "  Socket errors: connect 0, read 3, write 0, timeout 0\n")


def test_wrk_is_told_what_to_send() -> None:
    load = WrkLoad("x", "/", method="POST", body_bytes=9, headers={"A": "b"})
    assert 'wrk.method = "POST"' in load.script()
    assert 'wrk.body = string.rep("x", 9)' in load.script()
    assert 'wrk.headers["A"] = "b"' in load.script()


def row(target: str, rate: float, proxy: float | None, load: str = "GET") -> Row:
    return Row(target, load, rate, 1.0, 2.0, 3.0, proxy, 0.5, 3.0)


def test_medians_keep_the_order_and_join_runs() -> None:
    rows = [row("b", 3, 9.0), row("a", 1, None), row("b", 1, 1.0), row("b", 2, 5.0)]
    assert medians(rows) == [row("b", 2, 5.0), row("a", 1, None)]


ABOUT: dict[str, Any] = {
    "scenario": "redis",
    "title": "A title",
    "reference": "peer",
    "taken": "now",
    "machine": "m",
    "load_average": 0.1,
    "python": "3",
    "rounds": 3,
    "seconds": 1.0,
    "in_turns": 3.0,
    "quick": True,
    "left_out": {"envoy": "no envoy"},
}


def test_results_are_written(tmp_path: Path) -> None:
    rows = [Row("nexus", "GET P=1", 1000.0, 0.5, 1.25, 2.5, 7.5, 2.0, 30.0)]
    rows += [Row("peer", "GET P=1", 1000.0, 0.5, 1.25, 2.5, 10.0, 2.0, 30.0)]
    paths = write(tmp_path, ABOUT, rows)
    assert [path.suffix for path in paths] == [".json", ".md", ".svg"]
    assert {path.stem for path in paths} == {"peers-redis-quick"}
    assert json.loads(paths[0].read_text())["medians"][0]["proxy_us"] == 7.5
    text = paths[1].read_text()
    assert "| nexus | 1,000 | 0.50 | 1.25 | 2.50 | 7.50 | 2.00 | 30.0 | 0.75 (0.75 to" in text
    document = json.loads(paths[0].read_text())
    assert document["medians"][0]["ratio"] == [0.75, 0.75, 0.75]
    assert rows_of(document) == rows
    assert "measures nothing" in text
    assert "Left out: envoy (no envoy)." in text
    assert "<svg" in paths[2].read_text()


def test_ratios_are_taken_within_a_round() -> None:
    # The machine slows down threefold; each ratio to the neighbour is the same.
    rows = [
        replace(r, group=group)
        for group, slow in enumerate((1, 3, 2))
        for r in (row("peer", 1, 10.0 * slow), row("us", 1, 8.0 * slow))
    ]
    assert str(ratios(rows, "peer")["GET", "us"]) == "0.80 (0.80 to 0.80)"
    assert "| us | 1 | 1.00 | 2.00 | 3.00 | 16.00 | 0.50 | 3.0 | 0.80 (0" in markdown(ABOUT, rows)
    # Nothing is compared across groups.
    assert ratios([replace(r, group=n) for n, r in enumerate(rows)], "peer") == {}


def test_one_round_in_which_a_service_cost_double_moves_little() -> None:
    costs = (8.0, 8.0, 16.0, 8.2, 7.8, 8.0, 8.1)
    rows = [
        replace(r, group=group)
        for group, cost in enumerate(costs)
        for r in (row("peer", 1, 10.0), row("us", 1, cost))
    ]
    assert 0.79 < ratios(rows, "peer")["GET", "us"].middle < 0.83


def test_rounds_are_added_to_those_that_are_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    costs = iter((8.0, 9.0, 10.0))

    def compare(*_: object) -> peers.Found:
        cost = next(costs)
        return [replace(row("twemproxy", 1, 10.0), group=0), row("nexus", 1, cost)], {}

    monkeypatch.setattr(peers, "_compare", compare)
    monkeypatch.setattr(peers, "_missing", lambda _: [])
    command = ["redis", "--rounds", "1", "--results", str(tmp_path)]
    assert peers.main([*command, "--more"]) == 0
    assert peers.main([*command, "--more"]) == 0
    document = json.loads((tmp_path / "peers-redis.json").read_text())
    assert document["rounds"] == 2
    assert [(r.group, r.proxy_us) for r in rows_of(document) if r.target == "nexus"] == [
        (0, 8.0),
        (1, 9.0),
    ]
    assert peers.main([*command, "--more", "--seconds", "2"]) == 2
    assert "another seconds, in_turns" in capsys.readouterr().err
    assert json.loads((tmp_path / "peers-redis.json").read_text()) == document
    assert peers.main(command) == 0
    assert json.loads((tmp_path / "peers-redis.json").read_text())["rounds"] == 1


def test_two_runs_agree_or_not() -> None:
    def document(cost: float, scenario: str = "redis") -> dict[str, Any]:
        runs = [list(asdict(row("peer", 1, 10.0)).values()), list(astuple(row("us", 1, cost)))]
        columns = list(asdict(row("us", 1, cost)))
        return ABOUT | {"scenario": scenario, "columns": columns, "runs": runs}

    assert disagreements(document(8.0), document(8.7)) == []
    assert disagreements(document(8.0), document(9.0)) == ["GET, us: 0.80 and 0.90 (+12%)"]
    with pytest.raises(ValueError, match="redis and http"):
        disagreements(document(8.0), document(8.0, "http"))


def test_two_directories_agree_or_not(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, cost in (("one", 8.0), ("other", 8.1), ("third", 12.0)):
        at_a_rate = [
            replace(r, load="9/s", open_loop=True)
            for r in (row("peer", 1, 10.0), row("us", 1, cost))
        ]
        write(tmp_path / name, ABOUT, [row("peer", 1, 10.0), row("us", 1, cost), *at_a_rate])
    one, other, third = (str(tmp_path / name) for name in ("one", "other", "third"))
    assert peers.main(["--agree", one, other]) == 0
    assert peers.main(["--agree", one, third]) == 1
    assert "redis: 1 of 1 ratios of CPU per operation differ" in capsys.readouterr().out
    (tmp_path / "empty").mkdir()
    assert peers.main(["--agree", one, str(tmp_path / "empty")]) == 2


@pytest.mark.parametrize("name", SCENARIOS)
def test_scenarios_are_whole(name: str) -> None:
    scenario = SCENARIOS[name]
    known = {"PORT", "SPARE", "DIR", "CONFIG", "SECRET", "JWKS", *scenario.ports}
    known |= {"KAFKA"} if scenario.kafka else set()
    configs = Path(peers.__file__).with_name("peers")
    for peer in (scenario.backend, *scenario.peers):
        texts = [" ".join(peer.command)]
        texts += [(configs / file).read_text() for file in (peer.config, *peer.extra) if file]
        used = set(re.findall(r"@([A-Z_]+)@", " ".join(texts)))
        assert used <= known
        assert used & {"PORT", *scenario.ports}
    names = [scenario.backend.name, *(peer.name for peer in scenario.peers)]
    assert scenario.reference in names
    assert len(set(names)) == len(names)
    loads = [load.name for load in scenario.loads()]
    assert loads
    assert len(set(loads)) == len(loads)


class SlowServer:
    """Answers PONG to each CRLF line, one connection after another; ``pause`` holds it up once."""

    def __init__(self, reply: bytes = b"+PONG\r\n", pause: float = 0.0) -> None:
        self._reply = reply
        self._pause = pause
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        connection, _ = self._listener.accept()
        answered = 0
        with connection:
            while data := connection.recv(65536):
                for _ in range(data.count(b"\n")):
                    answered += 1
                    if answered == 20:
                        time.sleep(self._pause)
                    connection.sendall(self._reply)

    def close(self) -> None:
        self._listener.close()
        self._thread.join(5)


@pytest.fixture
def stalling() -> Iterator[SlowServer]:
    with closing(SlowServer(pause=0.5)) as server:
        yield server


PING = [(b"PING\r\n", 1)]


def test_an_open_loop_counts_what_waits_behind_a_stall(stalling: SlowServer) -> None:
    outcome = drive(stalling.port, PING, resp_replies, connections=1, operations=120, rate=200.0)
    # 100 requests fell due while it slept for half a second: many waited, not one.
    assert sum(latency > 0.1 for latency in outcome.latencies) > 40
    assert outcome.percentile(100) > 0.4
    assert len(outcome.latencies) == 120


def test_a_closed_loop_does_not(stalling: SlowServer) -> None:
    outcome = drive(stalling.port, PING, resp_replies, connections=1, operations=120)
    assert sum(latency > 0.1 for latency in outcome.latencies) == 1


@pytest.mark.parametrize(
    ("reply", "replies", "problem"),
    [
        (b"-ERR no\r\n", resp_replies, "an error reply: ERR no"),
        (b"+A\r\n+B\r\n", resp_replies, "more replies than requests"),
        (b"HTTP/1.1 503 No\r\nContent-Length: 0\r\n\r\n", http_replies, "not a 200"),
        (b"HTTP/1.1 200 OK\r\nX: y\r\n\r\n", http_replies, "without Content-Length"),
    ],
)
def test_a_bad_reply_ends_the_run(reply: bytes, replies: Any, problem: str) -> None:
    with closing(SlowServer(reply)) as server, pytest.raises(EngineError, match=problem):
        drive(server.port, PING, replies, connections=1, operations=5)


def test_http_replies_are_counted_in_pieces() -> None:
    replies = http_replies()
    whole = b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabc" * 3
    assert sum(replies.feed(whole[i : i + 1]) for i in range(len(whole))) == 3
    assert http_replies().feed(whole) == 3


def test_the_mix_is_skewed_and_writes_its_share() -> None:
    requests = [request for request, _ in zipf_mix(0.05, 5000)]
    writes = sum(b"SET" in request for request in requests)
    assert 0.03 < writes / 5000 < 0.07
    hottest = sum(b"key:000000000000" in request for request in requests)
    assert hottest / 5000 > 0.1


PARENT = "import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', {child!r}]); {rest}"


def test_processes_are_summed_and_ended(tmp_path: Path) -> None:
    child = "while True: pass"
    code = PARENT.format(child=child, rest="time.sleep(60)")
    with Process("service", [sys.executable, "-c", code], tmp_path) as process:
        # The child burns, the parent sleeps: time can only come from the child.
        process.wait_for(lambda: len(process.pids()) == 2 and process.cpu_seconds() > 0.2)
        pids = process.pids()
        assert process.memory_mib() > 1
    deadline = time.monotonic() + 5
    while any(_alive(pid) for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not any(_alive(pid) for pid in pids)


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_a_process_that_ends_says_why(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "raise SystemExit('no such option')"]
    with (
        Process("service", command, tmp_path) as process,
        pytest.raises(ProcessError, match="service ended by itself: no such option"),
    ):
        process.wait_for(lambda: False)


def test_free_ports_are_different() -> None:
    assert len(set(free_ports(20))) == 20


def test_missing_tools_are_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(peers, "which", lambda tool: None if tool == "wrk" else tool)
    assert peers.main(["http", "--quick"]) == 2
    assert "missing: wrk (apt-get install wrk)" in capsys.readouterr().err
