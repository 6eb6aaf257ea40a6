"""The first real request through each path of the running system.

A system is up when somebody was served, not when its processes exist: a token is fetched, a
request goes through the gateway to an upstream, a value goes through the cacheproxy to Redis, and
the consumer is seen to have handled the event of that very request.
"""

from __future__ import annotations

import asyncio
import secrets
from typing import TYPE_CHECKING, Any, Final

import aiohttp
import redis.asyncio
from redis.exceptions import RedisError

from nexus.errors import NexusError

if TYPE_CHECKING:
    from nexus.demo.process import Child

__all__ = [
    "FirstRequestError",
    "expect_event",
    "fetch_token",
    "new_marker",
    "request_products",
    "round_trip",
]

#: Seconds for one request; everything is on this machine and idle.
REQUEST_SECONDS: Final = 10.0


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
    session: aiohttp.ClientSession, gateway: str, token: str, marker: str
) -> str:
    """``GET /api/products`` as a client would; the name of the upstream that answered."""
    url = f"{gateway}/api/products?marker={marker}"
    headers = {"Authorization": f"Bearer {token}", "X-Correlation-Id": marker}
    answer = await _json(session, "GET", url, headers=headers)
    try:
        server, products = answer["data"]["server"], answer["data"]["products"]
        enveloped = answer["_meta"]["gateway"] == "nexus"
    except (KeyError, TypeError):
        enveloped = products = False
    if not enveloped or not products:
        raise FirstRequestError(f"GET {url} answered something else than products: {answer}")
    return str(server)


async def round_trip(proxy_url: str, redis_url: str, marker: str) -> None:
    """SET and GET through the cacheproxy, and the same value read from Redis itself."""
    options: dict[str, Any] = {
        "socket_timeout": REQUEST_SECONDS,
        "socket_connect_timeout": REQUEST_SECONDS,
        "decode_responses": True,
    }
    proxy = redis.asyncio.Redis.from_url(proxy_url, **options)
    direct = redis.asyncio.Redis.from_url(redis_url, **options)
    try:
        await proxy.set("demo:first", marker, ex=60)
        through = await proxy.get("demo:first")
        behind = await direct.get("demo:first")
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


async def expect_event(consumer: Child, marker: str, seconds: float) -> None:
    """Wait until the consumer has written a line about the request that carried ``marker``."""
    try:
        async with asyncio.timeout(seconds):
            await consumer.says(marker)
    except TimeoutError:
        raise FirstRequestError(
            f"the consumer did not report the event of the first request within {seconds:g} s "
            f"(looked for {marker} in its log)"
        ) from None


async def _json(
    session: aiohttp.ClientSession, method: str, url: str, **options: Any
) -> dict[str, Any]:
    timeout = aiohttp.ClientTimeout(total=REQUEST_SECONDS)
    try:
        async with session.request(method, url, timeout=timeout, **options) as response:
            text = await response.text()
            if response.status != 200:
                raise FirstRequestError(f"{method} {url} answered {response.status}: {text[:500]}")
            answer = await response.json()
    except (aiohttp.ClientError, TimeoutError, ValueError) as error:
        reason = str(error) or type(error).__name__
        raise FirstRequestError(f"{method} {url} failed: {reason}") from None
    if not isinstance(answer, dict):
        raise FirstRequestError(f"{method} {url} answered no JSON object: {text[:500]}")
    return answer
