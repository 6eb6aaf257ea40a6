"""Log lines: schema, secrets, exceptions, forging; and an output that nobody reads."""

from __future__ import annotations

import json
import logging
import os
import re
import select
import subprocess
import sys
import time

import pytest

from nexus.errors import ConfigError
from nexus.observability import logs
from nexus.observability.linewriter import LineWriter

log = logging.getLogger("nexus.test")


def read_lines(fd: int, count: int, seconds: float = 10.0) -> list[str]:
    chunks: list[bytes] = []
    missing = count
    end = time.monotonic() + seconds
    while missing > 0 and time.monotonic() < end:
        if select.select([fd], [], [], 0.1)[0]:
            chunks.append(os.read(fd, 65_536))
            missing -= chunks[-1].count(b"\n")
    return b"".join(chunks).decode().splitlines()


def test_a_json_line(log_pipe):
    read, write = log_pipe
    logs.configure("info", "json", "gateway", worker=3, fd=write)
    log.debug("not this one")
    log.warning("upstream %s", "lost", extra={"upstream": "http://u", "trace_id": "ab", "n": 2})
    (line,) = read_lines(read, 1)
    fields = json.loads(line)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", fields.pop("timestamp"))
    assert fields == {
        "level": "warning",
        "logger": "nexus.test",
        "message": "upstream lost",
        "service": "gateway",
        "worker": 3,
        "pid": os.getpid(),
        "upstream": "http://u",
        "trace_id": "ab",
        "n": 2,
    }


def test_an_exception_is_a_field(log_pipe):
    read, write = log_pipe
    logs.configure("info", "json", "gateway", fd=write)
    try:
        raise ValueError("bad password=hunter22")
    except ValueError:
        log.exception("failed")
    fields = json.loads(read_lines(read, 1)[0])
    assert fields["error"]["type"] == "ValueError"
    assert fields["error"]["message"] == "bad password=********"
    assert "test_an_exception_is_a_field" in fields["error"]["stack"]
    assert "hunter22" not in json.dumps(fields)
    assert "worker" not in fields


@pytest.mark.parametrize("style", ["json", "human"])
def test_secrets_never_reach_a_line(log_pipe, style):
    read, write = log_pipe
    logs.configure("debug", style, "gateway", fd=write)
    log.info("header Bearer %s", "hunter22hunter22", extra={"client_secret": "hunter22"})
    log.info("nested", extra={"request": {"headers": {"cookie": "hunter22"}}})
    log.info("object", extra={"value": Careless()})
    lines = read_lines(read, 3)
    assert len(lines) == 3
    assert not [line for line in lines if "hunter22" in line]


class Careless:
    def __repr__(self) -> str:
        return "Careless(password='hunter22')"

    __str__ = __repr__


@pytest.mark.parametrize("style", ["json", "human"])
def test_a_client_cannot_forge_a_line(log_pipe, style):
    read, write = log_pipe
    logs.configure("info", style, "gateway", fd=write)
    log.info("agent %s", "x\n2026 ERROR fake\x1b[2J", extra={"agent": "y\r\nfake"})
    lines = read_lines(read, 1)
    assert len(lines) == 1
    assert "\x1b" not in lines[0]
    assert "\r" not in lines[0]


def test_a_field_cannot_replace_the_schemas(log_pipe):
    read, write = log_pipe
    logs.configure("info", "json", "gateway", fd=write)
    log.info("x", extra={"service": "other", "level": "none"})
    fields = json.loads(read_lines(read, 1)[0])
    assert (fields["service"], fields["level"]) == ("gateway", "info")


def test_a_broken_call_costs_its_line_only(log_pipe):
    read, write = log_pipe
    logs.configure("info", "json", "gateway", fd=write)
    log.info("%d", "not a number")
    log.info("lone surrogate \udcff", extra={"x": "\ud800"})
    log.info("after")
    broken, surrogate, after = map(json.loads, read_lines(read, 3))
    assert broken["message"] == "a log call could not be formatted"
    assert "test_logs.py" in broken["at"]
    assert surrogate["message"] == "lone surrogate \\udcff"
    assert after["message"] == "after"


def test_a_huge_field_is_cut(log_pipe):
    read, write = log_pipe
    logs.configure("info", "json", "gateway", fd=write)
    log.info("m" * 100_000, extra={"f": "f" * 100_000})
    fields = json.loads(read_lines(read, 1)[0])
    assert len(fields["message"]) == len(fields["f"]) == logs.MAX_FIELD_CHARS + 1


def test_the_human_format(log_pipe, monkeypatch):
    read, write = log_pipe
    monkeypatch.delenv("FORCE_COLOR", raising=False)
    logs.configure("info", "human", "gateway", worker=0, fd=write)
    log.error("lost", extra={"upstream": "http://u"})
    (line,) = read_lines(read, 1)
    assert re.fullmatch(r"\d\d:\d\d:\d\d\.\d{3} ERROR gateway/0 lost upstream=http://u", line)
    monkeypatch.setenv("FORCE_COLOR", "1")
    logs.unconfigure()
    logs.configure("info", "human", "gateway", worker=0, fd=write)
    log.error("lost")
    assert "\x1b[31mERROR\x1b[0m" in read_lines(read, 1)[0]
    monkeypatch.setenv("NO_COLOR", "1")
    logs.unconfigure()
    logs.configure("info", "human", "gateway", worker=0, fd=write)
    log.error("lost")
    assert "\x1b" not in read_lines(read, 1)[0]


def test_auto_is_json_off_a_terminal(log_pipe):
    read, write = log_pipe
    logs.configure("info", "auto", "gateway", fd=write)
    log.info("x")
    assert json.loads(read_lines(read, 1)[0])["message"] == "x"


def test_a_pipe_that_nobody_reads_stops_nobody(log_pipe, metrics):
    read, write = log_pipe
    logs.configure("info", "json", "gateway", fd=write)
    logs.count_drops(metrics)
    text = "x" * 4000
    slowest = 0.0
    for _ in range(2000):  # 8 MB into a pipe of 64 KiB and a buffer of 4 MiB
        before = time.perf_counter()
        log.info(text)
        slowest = max(slowest, time.perf_counter() - before)
    dropped = metrics.counter(
        "nexus_log_lines_dropped_total", stream="log", reason="buffer_full"
    ).value
    # A writer that blocked would hang here for ever; a second is a busy machine's scheduling.
    assert slowest < 1.0
    assert 500 < dropped < 2000
    # What was not dropped arrives whole once somebody reads.
    lines = read_lines(read, 2000 - int(dropped))
    assert len(lines) == 2000 - dropped
    assert all(json.loads(line)["message"] == text for line in lines)


def test_the_child_of_a_fork_logs_for_itself(log_pipe, forked):
    read, write = log_pipe
    logs.configure("info", "json", "gateway", fd=write)
    log.info("parent")

    def child():
        logs.configure("info", "json", "gateway", worker=1, fd=write)
        log.info("child")
        logs.flush()

    assert forked(child) == 0
    logs.flush()
    messages = [(json.loads(line)["message"]) for line in read_lines(read, 2)]
    assert sorted(messages) == ["child", "parent"]


def test_a_fork_leaves_the_parents_lines_to_the_parent(forked):
    read, write = os.pipe()
    writer = LineWriter(fd=write)
    writer.write([b"%06d\n" % n for n in range(30_000)])  # 210 kB: the pipe is full, the rest waits

    def child():
        assert writer.flush(0)
        os.close(read)
        other_read, other_write = os.pipe()
        os.dup2(other_write, write)
        writer.write([b"child\n"])
        assert writer.flush(5)
        assert os.read(other_read, 100) == b"child\n"

    assert forked(child) == 0
    data = b""
    while data.count(b"\n") < 30_000:
        data += os.read(read, 65_536)
    assert data.splitlines() == [b"%06d" % n for n in range(30_000)]
    writer.close()
    os.close(read)
    os.close(write)


def test_the_last_lines_are_written_at_exit():
    program = (
        "import logging; from nexus.observability import logs\n"
        "logs.configure('info', 'json', 'gateway')\n"
        "for n in range(500): logging.getLogger('x').info('line', extra={'n': n})\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=30, check=True
    )
    assert [json.loads(line)["n"] for line in done.stderr.splitlines()] == list(range(500))


def test_a_file_is_reopened_after_rotation(tmp_path):
    path = tmp_path / "access.log"
    writer = LineWriter(path=str(path))
    writer.write([b"one\n", b"two\n"])
    assert writer.flush()
    path.rename(tmp_path / "access.log.1")
    writer.write([b"three\n"])
    assert writer.flush()
    writer.reopen()
    writer.write([b"four\n"])
    writer.close()
    assert (tmp_path / "access.log.1").read_bytes() == b"one\ntwo\nthree\n"
    assert path.read_bytes() == b"four\n"
    writer.write([b"five\n"])
    assert writer.dropped == {"buffer_full": 0, "output_error": 0, "closed": 1}


def test_a_file_is_let_go_of_although_nothing_is_written(tmp_path):
    path = tmp_path / "app.log"
    writer = LineWriter(path=str(path))
    for number in (1, 2):  # without a thread, and with one
        path.rename(tmp_path / f"app.log.{number}")
        writer.reopen()
        assert writer.flush()
        assert path.read_bytes() == b""
    path.unlink()
    path.mkdir()
    writer.reopen()
    writer.write([b"kept where it can be\n"])
    writer.close()
    assert writer.dropped == {"buffer_full": 0, "output_error": 0, "closed": 0}


def test_the_application_log_in_a_file(tmp_path):
    path = tmp_path / "app.log"
    logs.configure("info", "auto", "gateway", path=str(path))
    log = logging.getLogger("nexus.test")
    try:
        log.info("one")
        logs.flush()
        path.rename(tmp_path / "app.log.1")
        logs.configure("info", "auto", "gateway", path=str(path))
        assert not path.exists(), "nothing has changed"
        logs.reopen()
        log.info("two")
        with pytest.raises(ConfigError, match=r"log.path: cannot be opened: No such file"):
            logs.configure("info", "auto", "gateway", path=str(tmp_path / "none" / "app.log"))
        log.info("three")
        logs.configure("info", "auto", "gateway", path=str(tmp_path / "other.log"))
        log.info("four")
    finally:
        logs.unconfigure()
    files = ("app.log.1", "app.log", "other.log")
    said = [
        [json.loads(line)["message"] for line in (tmp_path / name).read_text().splitlines()]
        for name in files
    ]
    assert said == [["one"], ["two", "three"], ["four"]]


def test_a_closed_pipe_is_counted():
    read, write = os.pipe()
    os.close(read)
    writer = LineWriter(fd=write)
    writer.write([b"a\n", b"b\n"])
    assert writer.flush()
    assert writer.dropped["output_error"] == 2
    writer.close()
    os.close(write)


def test_closing_gives_up_on_a_stalled_reader():
    read, write = os.pipe()
    writer = LineWriter(fd=write)
    lines = [b"x" * 999 + b"\n"] * 200
    writer.write(lines)
    before = time.monotonic()
    writer.close(0.2)
    assert time.monotonic() - before < 3
    assert writer.dropped["closed"] > 0
    os.close(read)
    time.sleep(0.05)  # the thread sees the broken pipe and ends
    os.close(write)


def test_lines_of_several_processes_stay_whole():
    """Writers that share a pipe write at most PIPE_BUF at once, so that no line is torn."""
    read, write = os.pipe()
    pids = []
    for index in range(2):
        pid = os.fork()
        if pid == 0:
            writer = LineWriter(fd=write)
            writer.write([b"%d" % index * 300 + b"\n"] * 3000)
            writer.close(20)
            os._exit(0)
        pids.append(pid)
    os.close(write)
    time.sleep(
        0.2
    )  # both block on a full pipe, so that what is read lets in now one, now the other
    data = b""
    while chunk := os.read(read, 4096):
        data += chunk
    for pid in pids:
        os.waitpid(pid, 0)
    os.close(read)
    lines = data.splitlines()
    assert len(lines) == 6000
    assert set(lines) == {b"0" * 300, b"1" * 300}
