"""Clients of the gateway: most browse, some burst into their limit, some meet bad upstreams.

    locust -f loadtests/gateway.py --config loadtests/gateway.conf

Every user has a loopback address of its own (127.8.0.1, 127.8.0.2, …), so that each has its own
rate limit, as clients have: the gateway runs with its defaults.
"""

from __future__ import annotations

import ipaddress
import itertools
import os
import random
from typing import Any, ClassVar
from urllib.parse import urlsplit

import requests
from locust import HttpUser, between, constant_pacing, task
from locust.exception import StopUser
from requests.adapters import HTTPAdapter

from loadtests.checked import check_at_the_end
from loadtests.objectives import Objective

PRODUCTS, PRODUCT = "GET /api/products", "GET /api/products/{id}"
BURST, REFUSED = "GET /api/products (burst)", "GET /api/products (429)"
SLOW, FAILING, TOKEN = "GET /api/slow", "GET /api/fail", "POST /auth/token"

#: Milliseconds that the slow path takes at the upstream, and the share of failing answers there:
#: below the breaker's 50 %, so that retries alone must hide them.
SLOW_MS, FAIL_RATIO = 300, 0.2

#: The defaults of the gateway: what a full bucket admits.
CAPACITY = 10

# The bounds are for gateway, upstreams and load generator together on two cores.
check_at_the_end(
    [
        Objective(TOKEN, p99_ms=500, min_requests=1),
        Objective(PRODUCTS, p99_ms=250),
        Objective(PRODUCT, p99_ms=250),
        Objective(BURST, p99_ms=250),
        Objective(REFUSED, p99_ms=250, min_requests=1),
        Objective(SLOW, p99_ms=SLOW_MS + 250),
        # What the retry budget (20 % of active requests, at least 3) does not cover is passed on.
        Objective(FAILING, p99_ms=1500, error_ratio=0.05),
    ]
)

_ADDRESSES = itertools.count(int(ipaddress.IPv4Address("127.8.0.1")))


class _From(HTTPAdapter):
    """Connections that come from one source address."""

    def __init__(self, address: str) -> None:
        self._address = address
        super().__init__()

    def init_poolmanager(self, *arguments: Any, **options: Any) -> None:
        super().init_poolmanager(*arguments, **options, source_address=(self._address, 0))


class Client(HttpUser):
    """Fetches a token of its own, then keeps its connection."""

    abstract = True
    host = os.environ.get("NEXUS_LOAD_GATEWAY", "http://127.0.0.1:3000")
    #: Names of the requests that this kind of user makes; their objectives are checked.
    measures: ClassVar[tuple[str, ...]] = ()

    def on_start(self) -> None:
        self._take_an_address()
        secret = os.environ.get("NEXUS_CLIENT_SECRET", "")
        if not secret:
            raise StopUser("NEXUS_CLIENT_SECRET is not set: `nexus up` must run with the same one")
        body = {
            "client_id": os.environ.get("NEXUS_CLIENT_ID", "gateway-client"),
            "client_secret": secret,
        }
        with self.client.post(
            "/auth/token", json=body, name=TOKEN, catch_response=True
        ) as response:
            if response.status_code != 200:
                response.failure(f"{response.status_code}: {response.text[:200]}")
                raise StopUser
        token = response.json()["access_token"]
        self.client.headers["Authorization"] = f"Bearer {token}"

    def _take_an_address(self) -> None:
        if _is_loopback(urlsplit(self.host).hostname or ""):
            self.client.mount("http://", _From(str(ipaddress.IPv4Address(next(_ADDRESSES)))))

    def fetch(self, path: str, name: str) -> None:
        """GET that must answer 200 with an envelope."""
        with self.client.get(path, name=name, catch_response=True) as response:
            if response.status_code != 200:
                response.failure(f"{response.status_code}: {response.text[:200]}")
            elif not _enveloped(response):
                response.failure(f"no envelope: {response.text[:200]}")


def _enveloped(response: requests.Response) -> bool:
    try:
        answer = response.json()
    except requests.JSONDecodeError:
        return False
    return "data" in answer and answer.get("_meta", {}).get("gateway") == "nexus"


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


class Browser(Client):
    """Looks around below its limit of two requests a second; a 429 here is an error."""

    weight = 6
    wait_time = constant_pacing(0.6)
    measures = (TOKEN, PRODUCTS, PRODUCT)

    @task(3)
    def list_products(self) -> None:
        self.fetch("/api/products", PRODUCTS)

    @task(1)
    def one_product(self) -> None:
        self.fetch(f"/api/products/{random.randint(1, 5)}", PRODUCT)


class Burster(Client):
    """Rests until its bucket is full, then sends twice what it holds."""

    weight = 1
    wait_time = between(6, 8)
    measures = (TOKEN, BURST, REFUSED)

    @task
    def burst(self) -> None:
        admitted = 0
        for _ in range(2 * CAPACITY):
            with self.client.get("/api/products", name=BURST, catch_response=True) as response:
                if response.status_code == 403 and "block" in response.text:
                    # The consumer has seen too many refusals of this address: as it should.
                    response.success()
                    self._take_an_address()
                    return
                if response.status_code == 429:
                    self._judge(response)
                elif response.status_code == 200:
                    admitted += 1
                else:
                    response.failure(f"{response.status_code}: {response.text[:200]}")
        # Half the capacity is far below what a rested bucket admits: fewer is a broken limit.
        if admitted < CAPACITY // 2:
            self.environment.events.request.fire(
                request_type="GET",
                name=BURST,
                response_time=0,
                response_length=0,
                exception=AssertionError(f"a full bucket admitted only {admitted}"),
            )

    def _judge(self, response: Any) -> None:
        retry_after = response.headers.get("Retry-After", "")
        response.request_meta["name"] = REFUSED
        if not retry_after.isdecimal() or int(retry_after) < 1:
            response.failure(f"429 with Retry-After {retry_after!r}")
        elif response.json().get("error") != "Too Many Requests":
            response.failure(f"429 with {response.text[:200]}")
        else:
            response.success()


class Patient(Client):
    """Asks for something that takes its time."""

    weight = 1
    wait_time = constant_pacing(1)
    measures = (TOKEN, SLOW)

    @task
    def slow(self) -> None:
        self.fetch(f"/api/slow?ms={SLOW_MS}", SLOW)


class Unlucky(Client):
    """Meets upstreams that fail now and then, which retries should hide."""

    weight = 1
    wait_time = constant_pacing(1)
    measures = (TOKEN, FAILING)

    @task
    def fail(self) -> None:
        self.fetch(f"/api/fail?status=503&ratio={FAIL_RATIO}", FAILING)
