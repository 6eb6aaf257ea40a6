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

from locust import between, task

from loadtests.checked import check_at_the_end
from loadtests.objectives import Objective
from loadtests.redisuser import RedisUser
from loadtests.zipf import Zipf

GET, SET = "GET (Zipf)", "SET (Zipf)"

#: Keys and skew; 64-byte values are what the benchmarks use too.
KEYS, EXPONENT, VALUE_BYTES, TTL_SECONDS = 10_000, 1.1, 64, 60

check_at_the_end([Objective(GET, p99_ms=50, min_requests=100), Objective(SET, p99_ms=50)])


class Reader(RedisUser):
    """Reads 95 of 100 times; a miss is filled, as an application would."""

    wait_time = between(0.005, 0.02)
    measures = (GET, SET)

    def on_start(self) -> None:
        super().on_start()
        self._zipf = Zipf(KEYS, EXPONENT, random.Random(os.urandom(8)))

    @task(95)
    def read(self) -> None:
        key = self._key()
        value = self.timed("GET", GET, lambda: self.redis.get(key), _belongs_to(key))
        if value is None:
            self._write(key)

    @task(5)
    def write(self) -> None:
        self._write(self._key())

    def _key(self) -> str:
        return f"load:{self._zipf.draw()}"

    def _write(self, key: str) -> None:
        value = f"{key}|{time.time_ns()}".ljust(VALUE_BYTES, ".")
        self.timed("SET", SET, lambda: self.redis.set(key, value, ex=TTL_SECONDS), _is_done)


def _belongs_to(key: str) -> Callable[[object], str | None]:
    prefix = f"{key}|".encode()

    def wrong(value: object) -> str | None:
        if value is None or (isinstance(value, bytes) and value.startswith(prefix)):
            return None
        return f"GET {key} answered {value!r}"

    return wrong


def _is_done(value: object) -> str | None:
    return None if value else f"SET answered {value!r}"
