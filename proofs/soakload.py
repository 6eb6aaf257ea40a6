"""Clients of a soak: HTTP through the gateway, RESP through the cacheproxy, at a steady pace.

Every reply is checked, not only its status: a key's value names the key, an echo returns what was
sent.
"""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections import Counter
from typing import Final

import aiohttp

from loadtests.zipf import Zipf
from proofs.client import ClosedError, Connection
from proofs.soakrig import SECRET

__all__ = ["Tally", "http_client", "redis_client"]

_KEYS: Final = 2000
#: Seconds for one reply; above the gateway's own total timeout.
_PATIENCE: Final = 40.0
#: Errors kept with their time, for each kind; the rest is only counted.
_KEPT: Final = 10_000


class Tally:
    """What the clients saw: operations, and errors with when they began and ended."""

    def __init__(self) -> None:
        self.operations: Counter[str] = Counter()
        self.errors: list[tuple[float, float, str, str]] = []
        self.uncounted = 0

    def error(self, began: float, kind: str, what: str) -> None:
        """``began`` and now, on the monotonic clock."""
        if len(self.errors) < _KEPT:
            self.errors.append((began, time.monotonic(), kind, what))
        else:
            self.uncounted += 1


async def http_client(port: int, rate: float, seed: int, tally: Tally, stop: asyncio.Event) -> None:
    """GETs, and every tenth request a POST that must come back as it was sent."""
    rng = random.Random(seed)
    base = f"http://127.0.0.1:{port}"
    timeout = aiohttp.ClientTimeout(total=_PATIENCE)
    async with aiohttp.ClientSession(timeout=timeout) as session:
        token = await _token(session, base)
        headers = {"Authorization": f"Bearer {token}"}
        while not stop.is_set():
            await asyncio.sleep(rng.expovariate(rate))
            began = time.monotonic()
            try:
                if rng.random() < 0.1:
                    problem = await _post(session, base, headers, rng)
                else:
                    problem = await _get(session, base, headers)
            except (aiohttp.ClientError, TimeoutError, ValueError, KeyError) as error:
                problem = f"{type(error).__name__}: {error}"
            tally.operations["http"] += 1
            if problem:
                tally.error(began, "http", problem)


async def _token(session: aiohttp.ClientSession, base: str) -> str:
    body = {"client_id": "soak", "client_secret": SECRET}
    async with session.post(f"{base}/auth/token", json=body) as reply:
        reply.raise_for_status()
        return str((await reply.json())["access_token"])


async def _get(session: aiohttp.ClientSession, base: str, headers: dict[str, str]) -> str:
    async with session.get(f"{base}/api/products", headers=headers) as reply:
        text = await reply.text()
    if reply.status != 200:
        return f"{reply.status} {_reason(text)}"
    document = json.loads(text)
    if reply.headers["x-request-id"] != document["_meta"]["requestId"]:
        return "a response of another request"
    return ""


async def _post(
    session: aiohttp.ClientSession, base: str, headers: dict[str, str], rng: random.Random
) -> str:
    marker = rng.randbytes(rng.choice((16, 2000, 60_000))).hex()
    async with session.post(f"{base}/api/echo", headers=headers, data=marker) as reply:
        text = await reply.text()
    if reply.status != 200:
        return f"{reply.status} {_reason(text)}"
    return "" if marker in text else "an echo of something else"


def _reason(text: str) -> str:
    try:
        return str(json.loads(text).get("reason", ""))
    except ValueError:
        return text[:60]


async def redis_client(
    port: int, rate: float, seed: int, tally: Tally, stop: asyncio.Event
) -> None:
    """Zipf reads, every tenth operation a write, sometimes a transaction or a blocking pop."""
    rng = random.Random(seed)
    zipf = Zipf(_KEYS, 1.1, rng)
    connection: Connection | None = None
    while not stop.is_set():
        await asyncio.sleep(rng.expovariate(rate))
        began = time.monotonic()
        try:
            async with asyncio.timeout(_PATIENCE):
                if connection is None:
                    connection = await Connection.open("127.0.0.1", port)
                problem = await _operation(connection, b"soak:%d" % zipf.draw(), rng)
        except (OSError, ClosedError, TimeoutError) as error:
            problem = f"{type(error).__name__}: {error}"
            if connection is not None:
                connection.close()
                connection = None
        tally.operations["redis"] += 1
        if problem:
            tally.error(began, "redis", problem)
    if connection is not None:
        connection.close()


async def _operation(connection: Connection, key: bytes, rng: random.Random) -> str:
    draw = rng.random()
    if draw < 0.88:
        value = await connection.ask(b"GET", key)
    elif draw < 0.97:
        size = rng.choice((0, 60, 4000))
        reply = await connection.ask(b"SET", key, key + b"|" + b"x" * size, b"EX", b"30")
        return "" if reply == b"OK" else _unexpected(reply)
    elif draw < 0.995:
        for command in ((b"MULTI",), (b"INCR", b"n:" + key), (b"GET", key)):
            reply = await connection.ask(*command)
            if isinstance(reply, Exception):
                return _unexpected(reply)
        result = await connection.ask(b"EXEC")
        if not isinstance(result, list) or len(result) != 2:
            return _unexpected(result)
        value = result[1]
    else:
        value = await connection.ask(b"BLPOP", b"nobody:" + key, b"0.05")
        return "" if value is None else _unexpected(value)
    if value is None or (isinstance(value, bytes) and value.startswith(key + b"|")):
        return ""
    return _unexpected(value)


def _unexpected(reply: object) -> str:
    return f"unexpected: {str(reply)[:80]}"
