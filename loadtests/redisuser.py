"""What users of the cacheproxy have in common: a redis-py connection, and timed calls on it."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import ClassVar, TypeVar

import redis
from locust import User

__all__ = ["RedisUser"]

T = TypeVar("T")


class RedisUser(User):
    """One connection; a call is one request of locust's statistics."""

    abstract = True
    host = os.environ.get("NEXUS_LOAD_CACHEPROXY", "redis://127.0.0.1:6380")
    #: Names of the requests that this kind of user makes; their objectives are checked.
    measures: ClassVar[tuple[str, ...]] = ()

    def on_start(self) -> None:
        self.redis: redis.Redis = redis.Redis.from_url(self.host, socket_timeout=30)

    def on_stop(self) -> None:
        self.redis.close()

    def timed(
        self, kind: str, name: str, call: Callable[[], T], wrong: Callable[[T], str | None]
    ) -> T | None:
        """``call()``, as a request ``name``; ``wrong`` says what is wrong with its value.

        None where it failed, which is counted.
        """
        start = time.perf_counter()
        value: T | None = None
        error: Exception | None = None
        try:
            value = call()
            if fault := wrong(value):
                error = AssertionError(fault)
        except redis.RedisError as raised:
            error = raised
        self.environment.events.request.fire(
            request_type=kind,
            name=name,
            response_time=(time.perf_counter() - start) * 1000,
            response_length=len(value) if isinstance(value, bytes) else 0,
            exception=error,
        )
        return value
