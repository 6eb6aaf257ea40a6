"""Node's Redis clients, ioredis and node-redis, through the proxy; unchanged, as from npm."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from support.requirements import missing

from .proxy import Proxy

SOURCES = Path(__file__).parent / "node"
ROOT = Path(__file__).resolve().parents[2]
INSTALLED = ROOT / "build" / "node-clients"
#: What a client's script must have passed; "all passed" comes last.
LEAST_CHECKS = 11


def _install() -> Path:
    """`npm ci` of the locked versions; again only where the lock has changed."""
    INSTALLED.mkdir(parents=True, exist_ok=True)
    with (INSTALLED / ".lock").open("w") as guard:
        fcntl.flock(guard, fcntl.LOCK_EX)  # several test runs share one checkout
        stamp = INSTALLED / ".installed"
        lock = (SOURCES / "package-lock.json").read_text()
        if not stamp.exists() or stamp.read_text() != lock:
            for name in ("package.json", "package-lock.json", ".npmrc"):
                shutil.copy(SOURCES / name, INSTALLED / name)
            done = subprocess.run(
                ["npm", "ci", "--no-audit", "--no-fund"],
                cwd=INSTALLED,
                capture_output=True,
                text=True,
                timeout=100,
                check=False,
            )
            if done.returncode:
                missing(f"npm cannot install the clients: {done.stderr.strip()[-400:]}")
            stamp.write_text(lock)
    return INSTALLED


@pytest.fixture(scope="session")
def node_clients() -> Path:
    """The directory with clients.mjs and its node_modules."""
    if shutil.which("node") is None or shutil.which("npm") is None:
        missing("no node and npm on PATH")
    directory = _install()
    shutil.copy(SOURCES / "clients.mjs", directory / "clients.mjs")
    return directory


@pytest.mark.parametrize("client", ["ioredis", "node-redis-resp2", "node-redis-resp3"])
def test_works_unchanged(client: str, node_clients: Path, proxy: Proxy) -> None:
    done = subprocess.run(
        ["node", "clients.mjs", client, proxy.host, str(proxy.port)],
        cwd=node_clients,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={**os.environ, "NODE_OPTIONS": ""},
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.split("\n")
    assert lines[-2] == "all passed"
    assert len(lines) > LEAST_CHECKS


def test_the_script_notices_a_wrong_answer(
    node_clients: Path, redis_factory: Callable[..., object]
) -> None:
    """The same checks against a server where they cannot hold."""
    server = redis_factory("--rename-command", "HGETALL", "")
    done = subprocess.run(
        ["node", "clients.mjs", "ioredis", server.host, str(server.port)],  # type: ignore[attr-defined]
        cwd=node_clients,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr.startswith("hashes: ")


def test_the_lock_names_no_registry() -> None:
    lock = (SOURCES / "package-lock.json").read_text()
    assert '"resolved"' not in lock
    assert '"integrity"' in lock
