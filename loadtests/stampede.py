"""A stampede on one key: it expires every two seconds, and everybody wants it.

    locust -f loadtests/stampede.py --config loadtests/stampede.conf

Needs a rule with leases for ``stampede:*``, as in ``loadtests/policy.yaml``. The users are
cache-aside clients; the load of a value takes 100 ms and is counted: one for each expiry is the
objective, and every further one an error. All users must be in one locust process, which sees all
loads.
"""

from __future__ import annotations

import time
from typing import Any

import gevent
import redis
from locust import between, task
from locust.exception import StopUser

from loadtests.checked import check_at_the_end
from loadtests.loads import Loads
from loadtests.objectives import Objective
from loadtests.redisuser import RedisUser

GET, LOAD = "GET (stampede)", "loader call"

KEY = "stampede:product"
#: How long a value lives, and how long the "database" takes.
TTL_SECONDS, LOAD_SECONDS = 2.0, 0.1

check_at_the_end(
    [
        Objective(GET, p99_ms=LOAD_SECONDS * 1000 + 250, min_requests=100),
        Objective(LOAD, p99_ms=LOAD_SECONDS * 1000 + 250, min_requests=3),
    ]
)

_LOADS = Loads(TTL_SECONDS)


class Stampeder(RedisUser):
    """Wants the key a few times a second, and loads it when it is told that it is not there."""

    wait_time = between(0.2, 0.4)
    measures = (GET, LOAD)

    def on_start(self) -> None:
        super().on_start()
        command: Any = self.redis.execute_command
        try:
            leased = b"lease" in command("NEXUS", "EXPLAIN", "GET", KEY)
        except redis.ResponseError:
            return  # Redis itself: for comparison
        if not leased:
            raise StopUser(f"no rule with leases for {KEY}: see loadtests/policy.yaml")

    @task
    def want(self) -> None:
        if self.timed("GET", GET, lambda: self.redis.get(KEY), lambda _: None) is None:
            self._load()

    def _load(self) -> None:
        fault = _LOADS.begin(time.monotonic())

        def load() -> bool:
            gevent.sleep(LOAD_SECONDS)
            _LOADS.write(time.monotonic())
            return bool(self.redis.set(KEY, "the product", px=int(TTL_SECONDS * 1000)))

        self.timed("LOAD", LOAD, load, lambda done: fault if done else "SET was refused")
