"""`nexus up` with the real services: what a new user sees, by the very commands that it prints."""

from __future__ import annotations

import json
import re
import secrets
import shutil
import signal
import subprocess

import pytest
from support.requirements import missing
from support.running import alive
from support.servers import redis_executable
from support.waiting import eventually

UP = "Ctrl-C stops everything"


@pytest.fixture(autouse=True)
def _everything_needed():
    lacking = [name for name in ("curl", "redis-cli", "bash") if shutil.which(name) is None]
    if redis_executable() is None:
        lacking.append("redis-server")
    if lacking:
        missing(f"not installed: {', '.join(lacking)}")


def printed(up, *words):
    """The printed command that has all ``words``."""
    for line in up.output.splitlines():
        if line.startswith("    ") and all(word in line for word in words):
            return line.strip()
    raise AssertionError(f"no command with {words} in:\n{up.output}")


def run(command):
    done = subprocess.run(
        ["bash", "-c", command], capture_output=True, text=True, timeout=30, check=False
    )
    assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
    return done.stdout


def test_the_printed_commands_do_what_they_say(start):
    up = start()
    up.wait_for(UP, 180)
    pids = up.children()

    answer = json.loads(run(printed(up, "curl", "/api/products")))
    assert answer["data"]["products"]
    assert answer["_meta"]["gateway"] == "nexus"

    fresh = json.loads(run(printed(up, "/auth/token")))
    assert (fresh["token_type"], fresh["expires_in"]) == ("Bearer", 3600)

    assert run(printed(up, "redis-cli", "SET foo bar")).strip() == "OK"
    assert run(printed(up, "redis-cli", "GET foo")).strip() == "bar"

    # Last of those that are limited: a full bucket holds ten, and this asks for twelve.
    codes = run(printed(up, "http_code")).split()
    assert {"200", "429"} <= set(codes)
    assert codes[0] == "200"
    # Whoever repeats that is blocked by the consumer, and finds the way out printed, too.
    unblock = printed(up, "block", "remove")
    status = printed(up, "curl", "/api/products") + " -o /dev/null -w '%{http_code}'"
    run(unblock.replace(" remove ", " add "))
    assert eventually(lambda: run(status) == "403")
    run(unblock)
    assert eventually(lambda: run(status) != "403")

    metrics = run(printed(up, "/metrics"))
    assert re.search(r'nexus_http_requests_total\{[^}]*route="/api/\*"[^}]*\} \d', metrics)
    for name in ("gateway", "cacheproxy", "consumer"):
        url = re.search(rf"^  {name} .*metrics (\S+)$", up.output, re.MULTILINE)[1]
        assert run(f"curl -sf {url}").startswith("# HELP")
        health = json.loads(run(f"curl -sf {url.replace('/metrics', '/health')}"))
        assert "compiled" in str(health) or "pure" in str(health)

    up.process.send_signal(signal.SIGINT)
    assert up.ends() == 0, up.output
    assert alive(pids) == []
    assert "was killed" not in up.output
    assert "Traceback" not in up.output
    # Only our own table may show a token, never a service's log.
    logged = [line for line in up.output.splitlines() if "│" in line]
    assert not any(fresh["access_token"] in line for line in logged)


def test_once_with_two_workers_each(start):
    up = start("--once", "--gateway-workers", "2", "--cacheproxy-workers", "2")
    assert up.ends(180) == 0, up.output
    assert "every path answered" in up.output
    assert up.output.count("2 workers") == 2
    assert "Traceback" not in up.output


@pytest.mark.once
def test_a_service_that_refuses_its_configuration_is_named_with_its_reason(start):
    up = start("--once", NEXUS_GATEWAY_RATE_LIMIT__CAPACITY="none")
    assert up.ends(180) == 1, up.output
    assert "nexus up: gateway refuses its configuration: " in up.output
    assert "rate_limit.capacity" in up.output
    assert "starting" not in up.output  # nothing was begun


@pytest.mark.once
def test_a_short_secret_is_refused_before_anything_starts(start):
    up = start("--once", NEXUS_JWT_SECRET="short")
    assert up.ends(180) == 1, up.output
    [line] = up.output.splitlines()
    assert "auth.jwt_secret: expected a secret of at least 32 bytes" in line
    assert "(here it is the value of NEXUS_JWT_SECRET)" in line


@pytest.mark.once
def test_with_the_users_own_kafka_and_a_silent_consumer(start, kafka_broker):
    """Everything that a first request could be looked for by is switched off, or old."""
    up = start(
        "--once",
        NEXUS_KAFKA=kafka_broker.bootstrap,
        NEXUS_CONSUMER_GROUP=f"up-{secrets.token_hex(4)}",
        NEXUS_CONSUMER_LOG__LEVEL="warning",
        NEXUS_GATEWAY_AUTH__ENABLED="false",
        NEXUS_GATEWAY_ENVELOPE__ENABLED="false",
        NEXUS_GATEWAY_RATE_LIMIT__ENABLED="false",
    )
    assert up.ends(180) == 0, up.output
    assert "every path answered" in up.output
    assert "Bearer" not in up.output


@pytest.mark.once
def test_without_events(start):
    up = start("--once", NEXUS_GATEWAY_KAFKA__ENABLED="false")
    assert up.ends(180) == 0, up.output
    assert "the gateway sends no events" in up.output
