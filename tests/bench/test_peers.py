"""The comparison's own parts: reading load generators, summing processes, reporting medians."""

from __future__ import annotations

import json
import re
import sys
import time
from pathlib import Path

import pytest

from bench import peers
from bench.loads import LoadError, LoadResult, parse_redis, parse_wrk
from bench.processes import Process, ProcessError, free_ports
from bench.report import Row, medians, write

REDIS = """\
"test","rps","avg_latency_ms","min_latency_ms","p50_latency_ms","p95_latency_ms","p99_latency_ms","max_latency_ms"
"GET","67252.19","0.469","0.120","0.463","0.711","0.943","2.311"
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
"""


def test_redis_benchmark_is_read() -> None:
    assert parse_redis(REDIS, 500) == LoadResult(500, 67252.19, 0.463, 0.943)
    for broken in ("", "Could not connect to Redis", REDIS.splitlines()[0]):
        with pytest.raises(LoadError, match="no result"):
            parse_redis(broken, 500)


def test_wrk_is_read() -> None:
    assert parse_wrk(WRK) == LoadResult(61162, 55524.98, 0.99, 2.46)
    with pytest.raises(LoadError, match="no result"):
        parse_wrk("")
    with pytest.raises(LoadError, match="Non-2xx or 3xx responses: 7"):
        parse_wrk(WRK + "  Non-2xx or 3xx responses: 7\n")
    with pytest.raises(LoadError, match="Socket errors: connect 0, read 3"):
        parse_wrk(WRK + "  Socket errors: connect 0, read 3, write 0, timeout 0\n")


def test_medians_keep_the_order_and_join_runs() -> None:
    def row(target: str, rate: float, proxy: float | None) -> Row:
        return Row(target, "GET", rate, 1.0, 2.0, proxy, 0.5, 3.0)

    rows = [row("b", 3, 9.0), row("a", 1, None), row("b", 1, 1.0), row("b", 2, 5.0)]
    assert medians(rows) == [row("b", 2, 5.0), row("a", 1, None)]


def test_results_are_written(tmp_path: Path) -> None:
    about = {"kind": "redis", "taken": "now", "machine": "m", "python": "3", "rounds": 1}
    about |= {"seconds": 1.0, "quick": True, "left_out": {"envoy": "no envoy"}}
    rows = [Row("nexus", "GET P=1", 1000.0, 0.5, 1.25, 7.5, 2.0, 30.0)]
    paths = write(tmp_path, about, rows)
    assert [path.name for path in paths] == ["peers-redis-quick.json", "peers-redis-quick.md"]
    assert json.loads(paths[0].read_text())["medians"][0]["proxy_us"] == 7.5
    text = paths[1].read_text()
    assert "| nexus | 1,000 | 0.50 | 1.25 | 7.50 | 2.00 | 30.0 |" in text
    assert "measures nothing" in text
    assert "Left out: envoy (no envoy)." in text


@pytest.mark.parametrize("kind", ["redis", "http"])
def test_every_placeholder_of_every_configuration_is_known(kind: str) -> None:
    known = {"PORT", "SPARE", "REDIS", "WEB_A", "WEB_B", "DIR", "CONFIG"}
    configs = Path(peers.__file__).with_name("peers")
    for peer in peers._PEERS[kind]:
        texts = [" ".join(peer.command)]
        texts += [(configs / name).read_text() for name in (peer.config, *peer.extra) if name]
        used = set(re.findall(r"@([A-Z_]+)@", " ".join(texts)))
        assert used <= known
        assert "PORT" in used


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
    monkeypatch.setattr(peers, "_which", lambda tool: None if tool == "wrk" else tool)
    assert peers.main(["http", "--quick"]) == 2
    assert "missing: wrk (apt-get install wrk)" in capsys.readouterr().err
