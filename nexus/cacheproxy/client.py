"""Tags from an application in one line, with redis-py's own client, asyncio or not.

::

    tags = nexus_tags(redis.Redis(port=6380))
    tags.tag("products", "product:1")
    tags.invalidate("products")

    @tags.cached("product:{0}", seconds=60, tags=["products"])
    def product(number): ...

The client must be connected to a Nexus cacheproxy. With ``redis.asyncio.Redis`` the same methods
are coroutines and ``cached`` takes coroutine functions. Errors are redis-py's; a server that is no
Nexus answers ``unknown command 'NEXUS'``.
"""

from __future__ import annotations

import functools
import inspect
import json
import secrets
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final, TypeVar, cast, overload

import redis
import redis.asyncio

__all__ = ["AsyncTags", "Tags", "nexus_tags"]

F = TypeVar("F", bound=Callable[..., Any])
AF = TypeVar("AF", bound=Callable[..., Awaitable[Any]])

Key = str | bytes


@overload
def nexus_tags(client: redis.Redis) -> Tags: ...
@overload
def nexus_tags(client: redis.asyncio.Redis) -> AsyncTags: ...
def nexus_tags(client: redis.Redis | redis.asyncio.Redis) -> Tags | AsyncTags:
    """Tags over an existing client."""
    if isinstance(client, redis.asyncio.Redis):
        return AsyncTags(client)
    return Tags(client)


class Tags:
    """Over ``redis.Redis``."""

    def __init__(self, client: redis.Redis) -> None:
        self._client: Final = client

    def tag(self, tag: Key, *keys: Key) -> int:
        """Add keys to a tag; how many are new. Tag first, then write: see docs/tags.md."""
        return self._run("NEXUS", "TAG", tag, *keys) if keys else 0

    def untag(self, tag: Key, *keys: Key) -> int:
        """Take keys out of a tag; how many were in it."""
        return self._run("NEXUS", "UNTAG", tag, *keys) if keys else 0

    def invalidate(self, *tags: Key) -> int:
        """Delete all keys of the tags; how many there were. Nobody reads an old value then."""
        return self._run("NEXUS", "INVALIDATE", *tags) if tags else 0

    def _run(self, *words: Key | int) -> int:
        return cast("int", self._client.execute_command(*words))  # type: ignore[no-untyped-call]

    def cached(self, key: str, *, seconds: float, tags: Sequence[str] = ()) -> Callable[[F], F]:
        """Decorator: keep a function's result, as JSON, under ``key``, which joins ``tags``.

        ``{0}``, ``{name}`` in key and tags are the call's arguments. What JSON cannot hold raises
        ``TypeError``. A value whose tag was invalidated while it was being loaded is returned and
        not kept, so an old value never comes back behind an invalidation.
        """

        def decorate(function: F) -> F:
            names = _Names(function, key, tags)
            life = _milliseconds(seconds)

            @functools.wraps(function)
            def wrapper(*args: Any, **kwargs: Any) -> Any:
                name, joined = names.of(args, kwargs)
                found = self._client.get(name)
                if found is not None:
                    return json.loads(cast("bytes", found))
                load = _Load(name, joined)
                for tag in joined:
                    self.tag(tag, *load.members)
                value = function(*args, **kwargs)
                self._run(*load.store(json.dumps(value), life))
                return value

            return cast("F", wrapper)

        return decorate


class AsyncTags:
    """Over ``redis.asyncio.Redis``; see :class:`Tags`."""

    def __init__(self, client: redis.asyncio.Redis) -> None:
        self._client: Final = client

    async def tag(self, tag: Key, *keys: Key) -> int:
        """Add keys to a tag; how many are new."""
        return await self._run("NEXUS", "TAG", tag, *keys) if keys else 0

    async def untag(self, tag: Key, *keys: Key) -> int:
        """Take keys out of a tag; how many were in it."""
        return await self._run("NEXUS", "UNTAG", tag, *keys) if keys else 0

    async def invalidate(self, *tags: Key) -> int:
        """Delete all keys of the tags; how many there were."""
        return await self._run("NEXUS", "INVALIDATE", *tags) if tags else 0

    async def _run(self, *words: Key | int) -> int:
        found = await self._client.execute_command(*words)  # type: ignore[no-untyped-call]
        return cast("int", found)

    def cached(self, key: str, *, seconds: float, tags: Sequence[str] = ()) -> Callable[[AF], AF]:
        """:meth:`Tags.cached` for coroutine functions."""

        def decorate(function: AF) -> AF:
            names = _Names(function, key, tags)
            life = _milliseconds(seconds)

            @functools.wraps(function)
            async def wrapper(*args: Any, **kwargs: Any) -> Any:
                name, joined = names.of(args, kwargs)
                found = await self._client.get(name)
                if found is not None:
                    return json.loads(found)
                load = _Load(name, joined)
                for tag in joined:
                    await self.tag(tag, *load.members)
                value = await function(*args, **kwargs)
                await self._run(*load.store(json.dumps(value), life))
                return value

            return cast("AF", wrapper)

        return decorate


#: KEYS: the key, its tags; ARGV: the load's mark, the value, milliseconds. Kept (1) where every tag
#: still has the mark: an invalidation takes it along, another load has one of its own.
_STORE: Final = """
local kept = 1
for i = 2, #KEYS do
  local set = redis.call('TYPE', KEYS[i]).ok == 'set'
  if redis.call(set and 'SREM' or 'ZREM', KEYS[i], ARGV[1]) == 0 then kept = 0 end
end
if kept == 1 then redis.call('SET', KEYS[1], ARGV[2], 'PX', ARGV[3]) end
return kept
"""


class _Load:
    """One call of the function that is cached."""

    def __init__(self, key: str, tags: Sequence[str]) -> None:
        self._key = key
        self._tags = tags
        self._mark = f"nexus:load:{secrets.token_hex(8)}"

    @property
    def members(self) -> tuple[str, str]:
        """What joins the tags before the load begins."""
        return self._key, self._mark

    def store(self, content: str, milliseconds: int) -> tuple[str | int, ...]:
        """The command that keeps the value."""
        if not self._tags:
            return ("SET", self._key, content, "PX", milliseconds)
        names = [f"tag:{tag}" for tag in self._tags]
        count = 1 + len(names)
        return ("EVAL", _STORE, count, self._key, *names, self._mark, content, milliseconds)


class _Names:
    """Key and tags of a call, by its arguments: the same whether given by position or by name."""

    def __init__(self, function: Callable[..., Any], key: str, tags: Sequence[str]) -> None:
        self._signature = inspect.signature(function)
        self._key = key
        self._tags = tuple(tags)

    def of(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[str, list[str]]:
        bound = self._signature.bind(*args, **kwargs)
        bound.apply_defaults()
        values = tuple(bound.arguments.values())
        return self._key.format(*values, **bound.arguments), [
            tag.format(*values, **bound.arguments) for tag in self._tags
        ]


def _milliseconds(seconds: float) -> int:
    if not seconds > 0:
        raise ValueError(f"seconds must be above 0, got {seconds}")
    return max(1, round(seconds * 1000))
