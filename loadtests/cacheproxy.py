"""Clients of the cacheproxy: cache-aside reads over a Zipf distribution, with a few writes.

    locust -f loadtests/cacheproxy.py --config loadtests/cacheproxy.conf

A value names its key, so a reply that was handed to the wrong client is seen and counts as an
error.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable
from typing import ClassVar, TypeVar

import redis
from locust import User, between, task

from loadtests.checked import check_at_the_end
from loadtests.objectives import Objective
from loadtests.zipf import Zipf

GET, SET = "GET (Zipf)", "SET (Zipf)"

#: Keys and skew; 64-byte values are what the benchmarks use too.
KEYS, EXPONENT, VALUE_BYTES, TTL_SECONDS = 10_000, 1.1, 64, 60

check_at_the_end([Objective(GET, p99_ms=50, min_requests=100), Objective(SET, p99_ms=50)])

T = TypeVar("T")


class Reader(User):
    """Reads 95 of 100 times; a miss is filled, as an application would."""

    host = "redis://127.0.0.1:6380"
    wait_time = between(0.005, 0.02)
    measures: ClassVar[tuple[str, ...]] = (GET, SET)

    def on_start(self) -> None:
        self._redis = redis.Redis.from_url(self.host, socket_timeout=5)
        self._zipf = Zipf(KEYS, EXPONENT, random.Random(os.urandom(8)))

    def on_stop(self) -> None:
        self._redis.close()

    @task(95)
    def read(self) -> None:
        key = self._key()
        value = self._timed("GET", GET, lambda: self._redis.get(key), _belongs_to(key))
        if value is None:
            self._write(key)

    @task(5)
    def write(self) -> None:
        self._write(self._key())

    def _key(self) -> str:
        return f"load:{self._zipf.draw()}"

    def _write(self, key: str) -> None:
        value = f"{key}|{time.time_ns()}".ljust(VALUE_BYTES, ".")
        self._timed("SET", SET, lambda: self._redis.set(key, value, ex=TTL_SECONDS), bool)

    def _timed(
        self,
        kind: str,
        name: str,
        call: Callable[[], T],
        expected: Callable[[T], bool],
    ) -> T | None:
        start = time.perf_counter()
        value: T | None = None
        error: Exception | None = None
        try:
            value = call()
            if not expected(value):
                error = AssertionError(f"{kind} answered {value!r}")
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


def _belongs_to(key: str) -> Callable[[bytes | None], bool]:
    prefix = f"{key}|".encode()
    return lambda value: value is None or value.startswith(prefix)
