"""The first real request through each path of the running system.

A system is up when somebody was served, not when its processes exist: a token is fetched, a
request goes through the gateway to an upstream, a value goes through the cacheproxy to Redis, the
broker acknowledges an event of the gateway, and the consumer handles events.
"""

from __future__ import annotations

import asyncio
import json
import secrets
from typing import Any, Final

import aiohttp
import redis.asyncio
from prometheus_client.parser import text_string_to_metric_families
from redis.exceptions import RedisError

from nexus import clock
from nexus.errors import NexusError

__all__ = [
    "Counter",
    "FirstRequestError",
    "fetch_token",
    "new_marker",
    "request_products",
    "round_trip",
]

#: Seconds for one request; everything is on this machine and idle.
REQUEST_SECONDS: Final = 10.0

#: Seconds between two looks at a counter.
POLL_SECONDS: Final = 0.1

#: Its last value is gone after this many seconds: the Redis may be the user's own.
KEY_SECONDS: Final = 60


class FirstRequestError(NexusError):
    """A path does not work although its parts are healthy."""


def new_marker() -> str:
    """A word by which one request is found again in the logs."""
    return f"first-{secrets.token_hex(6)}"


async def fetch_token(
    session: aiohttp.ClientSession, gateway: str, client_id: str, secret: str
) -> str:
    """A bearer token from ``POST /auth/token``."""
    url = f"{gateway}/auth/token"
    body = {"client_id": client_id, "client_secret": secret}
    answer = await _json(session, "POST", url, json=body)
    token = answer.get("access_token")
    if not isinstance(token, str) or token.count(".") != 2:
        raise FirstRequestError(f"POST {url} answered without a token: {answer}")
    return token


async def request_products(
    session: aiohttp.ClientSession, gateway: str, token: str, marker: str, *, enveloped: bool
) -> str:
    """``GET /api/products`` as a client would; the name of the upstream that answered.

    Without a ``token`` none is sent; ``enveloped`` says in which form the answer must come.
    """
    url = f"{gateway}/api/products?marker={marker}"
    headers = {"X-Correlation-Id": marker}
    if token:
        headers["Authorization"] = f"Bearer {token}"
    answer = await _json(session, "GET", url, headers=headers)
    try:
        data = answer["data"] if enveloped else answer
        server, products = data["server"], data["products"]
        right = not enveloped or answer["_meta"]["gateway"] == "nexus"
    except (KeyError, TypeError):
        right = False
    if not right or not products:
        raise FirstRequestError(f"GET {url} answered something else than products: {answer}")
    return str(server)


async def round_trip(proxy_url: str, redis_url: str, marker: str) -> None:
    """SET and GET through the cacheproxy, and the same value read from Redis itself.

    Of a key under the reserved prefix ``nexus:``, so that no key of the user is overwritten.
    """
    key = f"nexus:up:{marker}"
    options: dict[str, Any] = {
        "socket_timeout": REQUEST_SECONDS,
        "socket_connect_timeout": REQUEST_SECONDS,
        "decode_responses": True,
    }
    proxy = redis.asyncio.Redis.from_url(proxy_url, **options)
    direct = redis.asyncio.Redis.from_url(redis_url, **options)
    try:
        await proxy.set(key, marker, ex=KEY_SECONDS)
        through = await proxy.get(key)
        behind = await direct.get(key)
    except (RedisError, OSError) as error:
        raise FirstRequestError(f"SET and GET through {proxy_url} failed: {error}") from None
    finally:
        await proxy.aclose()
        await direct.aclose()
    if through != marker or behind != marker:
        raise FirstRequestError(
            f"GET through {proxy_url} gave {through!r}, Redis itself {behind!r}; both should give "
            f"{marker!r}"
        )


class Counter:
    """A counter of a service, all its series together, as its ``/metrics`` shows it."""

    def __init__(self, session: aiohttp.ClientSession, url: str, name: str) -> None:
        self.name: Final = name
        self._session: Final = session
        self._url: Final = url
        self._before = 0.0

    async def look(self) -> None:
        """Remember its value; :meth:`rises` compares with that."""
        self._before = await self._read()

    async def rises(self, seconds: float, what: str) -> None:
        """Wait until it is above what :meth:`look` saw; ``what`` did not happen otherwise."""
        try:
            async with asyncio.timeout(seconds):
                while await self._read() <= self._before:  # noqa: ASYNC110  (it is not ours to notify)
                    await asyncio.sleep(POLL_SECONDS)
        except TimeoutError:
            raise FirstRequestError(
                f"{what} within {seconds:g} s ({self.name} of {self._url} stays at "
                f"{self._before:g})"
            ) from None

    async def _read(self) -> float:
        text = await _text(self._session, "GET", self._url)
        return sum(
            sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
            if sample.name == self.name
        )


async def _json(
    session: aiohttp.ClientSession, method: str, url: str, **options: Any
) -> dict[str, Any]:
    text = await _text(session, method, url, **options)
    try:
        answer = json.loads(text)
    except ValueError as error:
        raise FirstRequestError(f"{method} {url} answered no JSON: {error}") from None
    if not isinstance(answer, dict):
        raise FirstRequestError(f"{method} {url} answered no JSON object: {text[:500]}")
    return answer


async def _text(session: aiohttp.ClientSession, method: str, url: str, **options: Any) -> str:
    """The body of a 200. A limit of the user's own may be tighter than our few requests: then it
    is asked again when the answer says so."""
    deadline = clock.monotonic() + REQUEST_SECONDS
    timeout = aiohttp.ClientTimeout(total=REQUEST_SECONDS)
    while True:
        try:
            async with session.request(method, url, timeout=timeout, **options) as response:
                text = await response.text()
        except (aiohttp.ClientError, TimeoutError, ValueError) as error:
            reason = str(error) or type(error).__name__
            raise FirstRequestError(f"{method} {url} failed: {reason}") from None
        if response.status == 200:
            return text
        again = response.headers.get("Retry-After", "")
        wait = int(again) if again.isdecimal() else REQUEST_SECONDS
        if response.status != 429 or clock.monotonic() + wait > deadline:
            raise FirstRequestError(f"{method} {url} answered {response.status}: {text[:500]}")
        await asyncio.sleep(wait)
