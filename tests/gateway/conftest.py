"""Gateways and upstreams that tests share; a test that changes one starts its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from gateway_process import BACKENDS, GatewayProcess, check_backend
from gateway_upstream import Upstream
from recording_upstream import RecordingUpstream


@pytest.fixture(scope="session")
def upstream_a() -> Iterator[Upstream]:
    upstream = Upstream("a").start()
    yield upstream
    upstream.stop()


@pytest.fixture(scope="session")
def upstream_b() -> Iterator[Upstream]:
    upstream = Upstream("b").start()
    yield upstream
    upstream.stop()


@pytest.fixture
def recording_upstream() -> Iterator[RecordingUpstream]:
    """One that writes down all that it is sent, of which nothing may be malformed."""
    upstream = RecordingUpstream().start()
    yield upstream
    upstream.stop()
    assert upstream.errors == []


@pytest.fixture(scope="session", params=BACKENDS)
def gateway(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    upstream_a: Upstream,
    upstream_b: Upstream,
) -> Iterator[GatewayProcess]:
    """No limits, no authentication, no breaker: the data plane alone, in front of a and b."""
    check_backend(request.param)
    directory = tmp_path_factory.mktemp(f"gateway-{request.param}")
    process = GatewayProcess(directory, request.param, [upstream_a.url, upstream_b.url]).start()
    yield process
    assert process.stop() == 0, process.output()
    assert "Traceback" not in process.output(), process.output()


@pytest.fixture(params=BACKENDS)
def start_gateway(
    request: pytest.FixtureRequest, tmp_path: Path
) -> Iterator[Callable[..., GatewayProcess]]:
    """Starts gateways of the test's own."""
    check_backend(request.param)
    started: list[GatewayProcess] = []

    def start(
        upstreams: list[str], environ: dict[str, str] | None = None, **overrides: Any
    ) -> GatewayProcess:
        directory = tmp_path / str(len(started))
        directory.mkdir()
        environ = dict(environ or {})
        if started:  # gateways agree on what they share, not on how they hash
            environ.setdefault("PYTHONHASHSEED", "2")
        process = GatewayProcess(directory, request.param, upstreams, overrides, environ)
        started.append(process.start())
        return process

    yield start
    for process in started:
        process.stop()
        assert "Traceback" not in process.output(), process.output()
