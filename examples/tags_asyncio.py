"""The same with redis.asyncio.

Start the system (``make run``), then
``.venv/bin/python examples/tags_asyncio.py [redis://127.0.0.1:6380]``.
"""

from __future__ import annotations

import asyncio
import sys

import redis.asyncio

from nexus.cacheproxy.client import nexus_tags


async def main(url: str) -> None:
    """Load once, invalidate, load again."""
    async with redis.asyncio.Redis.from_url(url) as client:
        tags = nexus_tags(client)
        loaded = 0

        @tags.cached("shop:basket:{0}", seconds=60, tags=["shop:baskets"])
        async def basket(user: str) -> dict[str, str]:
            nonlocal loaded
            loaded += 1
            await asyncio.sleep(0.01)  # the database
            return {"user": user}

        await tags.invalidate("shop:baskets")
        await basket("ada")
        await basket("ada")
        print(f"two calls, loaded {loaded} time")
        print(f"{await tags.invalidate('shop:baskets')} key deleted")
        await basket("ada")
        print(f"one call more, loaded {loaded} times")


asyncio.run(main(sys.argv[1] if len(sys.argv) > 1 else "redis://127.0.0.1:6380"))
