"""Tags with redis-py: a shop that shows product pages and changes a price.

Start the system (``make run``), then ``.venv/bin/python examples/tags.py [redis://127.0.0.1:6380]``.
"""

from __future__ import annotations

import sys

import redis

from nexus.cacheproxy.client import nexus_tags

client = redis.Redis.from_url(sys.argv[1] if len(sys.argv) > 1 else "redis://127.0.0.1:6380")
tags = nexus_tags(client)
prices = {1: 10, 2: 20}
loaded = []


@tags.cached("shop:product:{number}", seconds=60, tags=["shop:products", "shop:product-{number}"])
def product(number: int) -> dict[str, int]:
    """What takes long: the database."""
    loaded.append(number)
    return {"number": number, "price": prices[number]}


tags.invalidate("shop:products")
assert product(1) == product(1) == {"number": 1, "price": 10}
print(f"product 1 was loaded {loaded.count(1)} time for two calls")

prices[1] = 11
print(f"the price changed: {tags.invalidate('shop:product-1')} key deleted")
assert product(1)["price"] == 11
print("and everybody sees the new one:", product(1))

product(2)
print(f"all products at once: {tags.invalidate('shop:products')} keys deleted")
