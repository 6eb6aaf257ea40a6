"""The policy file of a running proxy: checked, shown, read again, switched."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis

from .proxy import Proxy, encode, eventually

FIRST = """\
policies:
  - match: GET
    keys: "product:secret:*"
    enabled: false
  - match: GET
    keys: "product:*"
    ttl: 60
    tags: ["products", "product-{1}"]
"""
SECOND = "policies:\n  - match: GET\n    ttl: 5\n"
BROKEN = "policies:\n  - match: GET\n    ttl: soon\n"


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("policy") / "policy.yaml"
    path.write_text(FIRST)
    return path


@pytest.fixture(scope="module")
def ruled(backend: str, redis_server: object, policy: Path) -> Iterator[Proxy]:
    """Two workers under ``policy``."""
    policy.write_text(FIRST)
    url = redis_server.url  # type: ignore[attr-defined]
    proxy = Proxy(url, "--policy", str(policy), "--workers", "2", backend=backend)
    yield proxy
    proxy.stop()


def shown(proxy: Proxy, *args: str) -> list[str]:
    with proxy.raw() as raw:
        reply = raw.ask("NEXUS", "POLICY", *args).decode()
    return reply.split("\r\n")[1:-2] if reply.startswith("$") else [reply]


def in_both_workers(proxy: Proxy, condition: Callable[[list[str]], bool], *args: str) -> bool:
    """Whether sixteen connections, spread over the workers, all see it so."""
    return eventually(lambda: all(condition(shown(proxy, *args)) for _ in range(16)))


def test_it_shows_the_rules_and_what_applies_to_a_key_and_why(ruled: Proxy):
    lines = shown(ruled)
    assert "state:on" in lines
    assert "rule 1: GET product:secret:* enabled=false near_cache=hot" in lines
    assert "rule 2: GET product:* ttl=60 near_cache=hot tags=products,product-{1}" in lines
    assert shown(ruled, "GET", "product:7")[0] == (
        "GET: rule 2 is the first that fits (product:*): "
        "ttl=60 near_cache=hot tags=products,product-{1}"
    )
    assert "written by SET it joins the tags: products product-7" in shown(ruled, "product:7")
    assert "enabled=false" in shown(ruled, "get", "product:secret:1")[0]
    assert "none of its rules fits" in shown(ruled, "other")[0]
    assert "no rule names it" in shown(ruled, "HGET", "x")[0]
    stats = ruled.stats()
    assert (stats["policy"], stats["policy_rules"]) == ("on", "2")


def test_a_changed_file_comes_into_force_and_a_broken_one_does_not(ruled: Proxy, policy: Path):
    policy.write_text(SECOND)
    assert in_both_workers(ruled, lambda lines: "rule 1: GET * ttl=5 near_cache=hot" in lines)
    policy.write_text(BROKEN)
    wrong = f"{policy}:3: policies[0].ttl: expected a number or nothing, got 'soon'"
    assert in_both_workers(ruled, lambda lines: f"error:{wrong}" in lines)
    assert "rule 1: GET * ttl=5 near_cache=hot" in shown(ruled)
    assert ruled.stats()["policy_error"] == wrong
    assert eventually(lambda: wrong in ruled.log)
    # A worker that starts now serves what the others serve.
    before = int(ruled.stats()["pid"])
    os.kill(before, signal.SIGKILL)
    assert in_both_workers(ruled, lambda lines: "rule 1: GET * ttl=5 near_cache=hot" in lines)
    policy.unlink()
    assert in_both_workers(ruled, lambda lines: any("cannot be read" in line for line in lines))
    policy.write_text(FIRST)
    assert in_both_workers(ruled, lambda lines: "error:" in lines and len(lines) == 8)


def test_it_is_switched_off_and_on_in_all_workers(ruled: Proxy):
    with ruled.raw() as raw:
        assert raw.ask("NEXUS", "POLICY", "off") == b"+OK\r\n"
    assert in_both_workers(ruled, lambda lines: lines[0] == "state:off")
    assert ruled.stats()["policy"] == "off"
    assert shown(ruled, "GET", "product:7")[0].startswith("the policy is off")
    with ruled.raw() as raw:
        assert raw.ask("NEXUS", "POLICY", "ON") == b"+OK\r\n"
    assert in_both_workers(ruled, lambda lines: lines[0] == "state:on")


def test_only_an_administrator_switches_it_and_sees_others_keys(ruled: Proxy, redis_server: object):
    with redis.Redis.from_url(redis_server.url, protocol=2) as direct:  # type: ignore[attr-defined]
        direct.execute_command("ACL", "SETUSER", "app", "on", ">pw", "~*", "+@all", "-@admin")
        try:
            with ruled.raw() as raw:
                assert raw.ask("AUTH", "app", "pw") == b"+OK\r\n"
                raw.write(
                    encode("SET", "a", 1)
                    + encode("NEXUS", "POLICY", "OFF")
                    + encode("NEXUS", "HOTKEYS")
                    + encode("GET", "a")
                )
                replies = raw.replies(4)
                assert [replies[0], replies[3]] == [b"+OK\r\n", b"$1\r\n1\r\n"]
                assert all(reply.startswith(b"-NOPERM this user") for reply in replies[1:3])
                assert raw.ask("NEXUS", "POLICY").count(b"state:on") == 1
        finally:
            direct.execute_command("ACL", "DELUSER", "app")


def test_nor_does_who_has_not_logged_in(
    proxy_factory: Callable[..., Proxy], redis_factory: Callable[..., Any], policy: Path
):
    policy.write_text(FIRST)
    server = redis_factory("--requirepass", "secret")
    proxy = proxy_factory(server.url, "--policy", str(policy))
    with proxy.raw() as raw:
        for command in (("POLICY", "OFF"), ("HOTKEYS",), ("INVALIDATE", "t")):
            assert raw.ask("NEXUS", *command).startswith(b"-NOAUTH"), command
        assert raw.ask("AUTH", "secret") == b"+OK\r\n"
        assert raw.ask("NEXUS", "HOTKEYS").startswith(b"$")
        assert raw.ask("NEXUS", "POLICY", "OFF") == b"+OK\r\n"


def test_sighup_reads_it_and_refuses_a_broken_one(ruled: Proxy, policy: Path):
    policy.write_text(BROKEN)
    ruled.process.send_signal(signal.SIGHUP)
    assert eventually(lambda: "policies[0].ttl" in ruled.log)
    policy.write_text(FIRST)
    ruled.process.send_signal(signal.SIGHUP)
    assert in_both_workers(ruled, lambda lines: "error:" in lines)


def test_without_a_policy_there_is_nothing_to_switch(proxy: Proxy):
    assert shown(proxy) == ["state:none"]
    with proxy.raw() as raw:
        assert raw.ask("NEXUS", "POLICY", "OFF").startswith(b"-ERR there is no policy")
        assert raw.ask("NEXUS", "POLICY", "k").startswith(b"-ERR there is no policy")
        wrong = raw.ask("NEXUS", "POLICY", "a", "b", "c")
        assert wrong.startswith(b"-ERR wrong number of arguments; expected NEXUS POLICY")


@pytest.mark.parametrize("command", ["nexus check", "cacheproxy --check", "cacheproxy"])
def test_a_broken_policy_is_told_before_anything_runs(tmp_path: Path, command: str):
    path = tmp_path / "policy.yaml"
    path.write_text(BROKEN)
    words = {
        "nexus check": ["nexus", "check", str(path)],
        "cacheproxy --check": ["nexus.cacheproxy", "--policy", str(path), "--check"],
        "cacheproxy": ["nexus.cacheproxy", "--policy", str(path), "--port", "0"],
    }[command]
    done = subprocess.run(
        [sys.executable, "-m", *words], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 2
    assert f"{path}:3: policies[0].ttl: expected a number" in done.stderr


def test_nexus_check_prints_the_rules_of_a_good_one(tmp_path: Path):
    path = tmp_path / "any.yaml"
    path.write_text(FIRST)
    done = subprocess.run(
        [sys.executable, "-m", "nexus", "check", str(path)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[1].startswith("rule 2: GET product:* ttl=60")
