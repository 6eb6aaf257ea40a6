"""`nexus up` over stand-ins for the services: order, refusals, deaths; nothing is left behind."""

from __future__ import annotations

import json
import os
import re
import signal
import socket

import pytest
import yaml
from support.requirements import missing
from support.running import alive
from support.servers import redis_executable

from nexus.demo.up import _write_private

# Stand-ins have no kernels.
pytestmark = pytest.mark.once


@pytest.fixture(autouse=True)
def _a_redis():
    if redis_executable() is None:
        missing("no redis-server here")


PARTS = ["redis", "kafka", "upstream-a", "upstream-b", "cacheproxy", "consumer", "gateway"]
UP = "every path answered"


def test_once_comes_up_prints_and_ends_as_often_as_one_likes(start):
    for _ in range(2):
        up = start("--once", standins=True)
        assert up.ends() == 0, up.output
        assert UP in up.output
        for line in ("'Authorization: Bearer a.b.c'", "SET foo bar", "nothing is persisted"):
            assert line in up.output
        assert "\x1b" not in up.output
        # Services stop before what they stand on.
        ends = re.findall(r"│ (\w+) ends$", up.output, re.MULTILINE)
        assert ends == ["gateway", "consumer", "cacheproxy", "upstream", "upstream", "kafka"]


def test_ctrl_c_stops_everything(start):
    up = start(standins=True)
    up.wait_for("Ctrl-C stops everything")
    pids = up.children()
    assert len(pids) == len(PARTS)
    up.process.send_signal(signal.SIGINT)
    assert up.ends() == 0, up.output
    assert alive(pids) == []


def test_a_signal_while_starting_stops_everything(start):
    up = start(standins=True, STANDIN_FAULT="gateway:unready")
    up.wait_for("starting cacheproxy")
    pids = up.children()
    up.process.send_signal(signal.SIGINT)
    assert up.ends() == 130, up.output
    assert alive(pids) == []
    assert "Traceback" not in up.output


def test_a_child_that_ignores_sigterm_is_killed(start):
    up = start("--stop-seconds", "0.5", standins=True, STANDIN_FAULT="gateway:deaf")
    up.wait_for("Ctrl-C stops everything")
    pids = up.children()
    up.process.send_signal(signal.SIGTERM)
    assert up.ends() == 0, up.output
    assert "gateway did not stop in time and was killed" in up.output
    assert alive(pids) == []


def test_a_second_signal_does_not_wait(start):
    up = start("--stop-seconds", "60", standins=True, STANDIN_FAULT="gateway:deaf")
    up.wait_for("Ctrl-C stops everything")
    pids = up.children()
    up.process.send_signal(signal.SIGINT)
    up.wait_for("stopping")
    up.process.send_signal(signal.SIGINT)
    assert up.ends(20) == 0, up.output
    assert alive(pids) == []


def test_two_signals_while_a_part_does_not_answer_end_at_once(start):
    """The readiness check that is cancelled must not be taken for one that failed."""
    up = start("--start-seconds", "60", standins=True, STANDIN_FAULT="gateway:hanging")
    up.wait_for("starting cacheproxy")
    pids = up.children()
    up.process.send_signal(signal.SIGINT)
    up.process.send_signal(signal.SIGINT)
    assert up.ends(10) == 130, up.output
    assert alive(pids) == []
    assert "Traceback" not in up.output


def test_being_killed_outright_leaves_nothing_either(start):
    up = start(standins=True)
    up.wait_for("Ctrl-C stops everything")
    pids = up.children()
    up.process.kill()
    up.ends()
    for _ in range(250):
        if not alive(pids):
            break
        signal.sigtimedwait([], 0.02)
    assert alive(pids) == []


def test_a_child_that_dies_is_named_and_all_is_stopped(start):
    up = start(standins=True)
    up.wait_for("Ctrl-C stops everything")
    pids = up.children()
    os.kill(up.child("upstream"), signal.SIGKILL)
    assert up.ends() == 1, up.output
    assert "nexus up: upstream-a was killed by SIGKILL" in up.output
    assert alive(pids) == []


@pytest.mark.parametrize("role", ["kafka", "gateway"])
def test_a_child_that_cannot_start_is_named_with_its_last_lines(start, role):
    up = start(standins=True, STANDIN_FAULT=f"{role}:exit")
    assert up.ends() == 1, up.output
    assert f"nexus up: {role} exited with code 9; its last lines:" in up.output
    assert f"  {role} has its reasons" in up.output
    assert UP not in up.output


def test_a_child_that_is_never_healthy_is_named_with_its_answer(start):
    up = start("--start-seconds", "2", standins=True, STANDIN_FAULT="cacheproxy:unready")
    assert up.ends() == 1, up.output
    assert "nexus up: cacheproxy was not healthy within 2 s: GET http://" in up.output
    assert "/ready answers 503: so it is" in up.output


def test_a_path_that_does_not_work_is_no_success(start):
    up = start(standins=True, STANDIN_FAULT="gateway:broken")
    assert up.ends() == 1, up.output
    assert "/api/products?marker=" in up.output
    assert "answered something else than products" in up.output
    assert UP not in up.output


@pytest.mark.parametrize(
    ("role", "reason"),
    [
        ("gateway", "Kafka did not acknowledge an event of the gateway within"),
        ("consumer", "the consumer did not handle an event within"),
    ],
)
def test_an_event_that_does_not_arrive_is_no_success(start, role, reason):
    up = start(standins=True, STANDIN_FAULT=f"{role}:mute", STANDIN_EVENT_SECONDS="0.5")
    assert up.ends() == 1, up.output
    assert f"nexus up: {reason}" in up.output
    assert UP not in up.output


def test_what_is_asked_and_printed_follows_the_gateways_settings(start):
    settings = {
        "auth": {"enabled": False, "token_ttl_seconds": 3600},
        "envelope": {"enabled": False},
        "kafka": {"enabled": False},
        "rate_limit": {"enabled": False, "capacity": 10},
    }
    up = start("--once", standins=True, STANDIN_SETTINGS=json.dumps(settings))
    assert up.ends() == 0, up.output
    table = up.output[up.output.index(UP) :]
    for absent in ("Authorization", "token is good", "/auth/token", "JWT secret"):
        assert absent not in table
    assert not re.search(r"\b429\b", table)  # a port may hold the digits
    assert re.search(r"^  tokens +not asked for", table, re.MULTILINE)
    assert "the gateway sends no events" in table
    assert re.search(r"^    curl -s http://127.0.0.1:\d+/api/products$", table, re.MULTILINE)


def test_the_table_says_how_long_a_token_lives_and_what_a_bucket_holds(start):
    settings = {
        "auth": {"enabled": True, "token_ttl_seconds": 300},
        "rate_limit": {"enabled": True, "capacity": 3},
    }
    up = start("--once", standins=True, STANDIN_SETTINGS=json.dumps(settings))
    assert up.ends() == 0, up.output
    assert "the token is good for 5 minutes" in up.output
    assert "5 at once: the bucket holds 3" in up.output
    assert "products?n=[1-5]'" in up.output
    assert re.search(r"^ +on every address +reachable from other machines", up.output, re.MULTILINE)


def test_no_key_of_the_users_redis_is_touched(start, redis_factory):
    server = redis_factory()
    up = start(standins=True, NEXUS_REDIS_URL=server.url)
    up.wait_for("Ctrl-C stops everything")
    with socket.create_connection((server.host, server.port), 5) as sock:
        sock.sendall(b"KEYS *\r\n")
        keys = re.findall(rb"^[^*$].*$", sock.recv(4096), re.MULTILINE)
    assert all(key.startswith(b"nexus:") for key in keys)


def test_a_busy_port_is_refused_before_anything_starts(start):
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        sock.listen(1)
        port = sock.getsockname()[1]
        up = start("--cacheproxy-port", str(port), standins=True)
        assert up.ends() == 1
    assert len(up.output.splitlines()) == 1
    assert up.output.startswith(f"nexus up: port {port} is in use by ")
    assert "--cacheproxy-port N" in up.output


def test_a_named_redis_is_used_and_left_alone(start, redis_server):
    up = start("--once", standins=True, NEXUS_REDIS_URL=redis_server.url)
    assert up.ends() == 0, up.output
    assert "redis  " not in up.output
    assert f"{redis_server.url}" in up.output
    with socket.create_connection((redis_server.host, redis_server.port), 5) as sock:
        sock.sendall(b"PING\r\n")
        assert sock.recv(16) == b"+PONG\r\n"


def test_a_named_redis_that_is_down_is_refused(start):
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
    up = start(standins=True, NEXUS_REDIS_URL=f"redis://:hush@127.0.0.1:{port}")
    assert up.ends() == 1
    assert f"Redis at redis://:********@127.0.0.1:{port} does not answer" in up.output
    assert "hush" not in up.output


def test_a_second_one_in_the_same_place_is_refused(start):
    first = start(standins=True)
    first.wait_for("Ctrl-C stops everything")
    second = start(standins=True)
    assert second.ends() == 1
    assert f"another nexus up (pid {first.process.pid}) uses" in second.output
    assert "--state-dir" in second.output
    assert first.process.poll() is None


def test_a_wrong_url_names_the_variable_that_was_set(start):
    up = start(NEXUS_REDIS_URL="localhost")
    assert up.ends() == 2
    assert "environment variable NEXUS_REDIS_URL: redis_url: expected redis://" in up.output
    assert "regex" not in up.output


def test_a_wrong_flag_or_variable_exits_2(start):
    assert start("--gatewy-port", "1").ends() == 2
    up = start(NEXUS_UP_GATEWAY_PORT="many")
    assert up.ends() == 2
    assert "NEXUS_UP_GATEWAY_PORT: gateway_port: expected an integer" in up.output


def test_secrets_are_in_no_file_and_known_ones_are_used(start, tmp_path):
    secret = "of-the-user-and-long-enough-for-hs256"
    up = start("--once", standins=True, NEXUS_CLIENT_SECRET=secret, NEXUS_JWT_SECRET=secret * 2)
    assert up.ends() == 0, up.output
    assert "from NEXUS_JWT_SECRET" in up.output
    assert secret not in up.output  # neither: who set it knows it
    assert "NEXUS_CLIENT_SECRET" in up.output
    run = tmp_path / ".nexus" / "run"
    for file in run.glob("*.yaml"):
        assert secret not in file.read_text()
        assert file.stat().st_mode & 0o077 == 0
    gateway = yaml.safe_load((run / "gateway.yaml").read_text())
    assert gateway["auth"]["jwt_secret"] == "${NEXUS_JWT_SECRET}"


def test_a_file_of_an_earlier_run_that_others_may_read_is_replaced(tmp_path):
    file = tmp_path / "gateway.yaml"
    file.write_text("old")
    file.chmod(0o644)
    with file.open() as others:
        _write_private(file, "new")
        assert others.read() == "old"
    assert file.read_text() == "new"
    assert file.stat().st_mode & 0o777 == 0o600


def test_a_terminal_that_is_no_utf_8_is_served_with_escapes(start):
    up = start("--once", standins=True, PYTHONIOENCODING="latin-1")
    assert up.ends() == 0, up.output
    assert UP in up.output
    assert "\\u2502" in up.output
