"""The proxy in both backends, in front of the real Redis."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

import pytest
import redis

from nexus._speedups import BACKEND
from nexus.errors import BackendError

from .proxy import Proxy

__all__: list[str] = []


def _usable(backend: str) -> str:
    if backend == "c" and BACKEND == "pure":
        if os.environ.get("NEXUS_REQUIRE_EXTENSIONS", "0") not in ("", "0"):
            raise BackendError("the compiled backend is demanded and not built")
        pytest.skip("compiled kernels are not in use here")
    return backend


@pytest.fixture(scope="session", params=["c", "py"])
def backend(request: pytest.FixtureRequest) -> str:
    return _usable(request.param)


@pytest.fixture(scope="session")
def shared_proxy(backend: str, redis_server: object) -> Iterator[Proxy]:
    proxy = Proxy(redis_server.url, backend=backend)  # type: ignore[attr-defined]
    yield proxy
    proxy.stop()


@pytest.fixture
def proxy(shared_proxy: Proxy, redis_server: object) -> Proxy:
    """The session's proxy, in front of an emptied Redis."""
    with redis.Redis.from_url(redis_server.url, protocol=2) as direct:  # type: ignore[attr-defined]
        direct.flushall()
    return shared_proxy


@pytest.fixture
def proxy_factory(backend: str) -> Iterator[Callable[..., Proxy]]:
    """Starts proxies of a test's own: ``proxy_factory(url, *arguments, **environ)``."""
    started: list[Proxy] = []

    def start(url: str, *arguments: str, **environ: str) -> Proxy:
        proxy = Proxy(url, *arguments, backend=backend, **environ)
        started.append(proxy)
        return proxy

    yield start
    for proxy in started:
        proxy.stop()
