"""The fixtures themselves: what later tests stand on."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import pytest
import redis
from support.preloaded import Service, start_service
from support.servers import free_port
from support.waiting import eventually


def test_redis_is_real(redis_server):
    with redis.Redis(host=redis_server.host, port=redis_server.port) as client:
        assert client.ping()
        assert client.info("server")["redis_version"]


@pytest.mark.parametrize("fresh", ["", "1"])
def test_a_forked_service_is_as_one_started_by_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fresh: str
) -> None:
    monkeypatch.setenv("NEXUS_TEST_FRESH", fresh)
    monkeypatch.chdir(tmp_path)
    output = Path("output")
    Path("services.json").write_text('{"services": [{"url": "http://127.0.0.1:1", "weight": 1}]}')

    monkeypatch.setenv("NEXUS_GATEWAY_AUTH__ENABLED", "false")
    monkeypatch.setenv("NEXUS_GATEWAY_KAFKA__ENABLED", "false")

    def start(*arguments: str, **environ: str) -> Service:
        with output.open("w") as stream:
            number = stream.fileno()
            service = start_service(
                "nexus.gateway", arguments, os.environ | environ, number, number
            )
        assert isinstance(service, subprocess.Popen) == bool(fresh)
        return service

    checked = start("--check", NEXUS_GATEWAY_DRAIN_SECONDS="7.5")
    assert checked.wait(30) == checked.poll() == 0
    assert "drain_seconds: 7.5" in output.read_text()
    assert start("--config", "nowhere.yaml").wait(30) == 2
    assert "nowhere.yaml" in output.read_text()
    ports = ["--port", str(free_port()), "--admin-port", str(free_port())]
    running = start("--host", "127.0.0.1", *ports)
    assert eventually(lambda: " ready on " in output.read_text())
    assert running.poll() is None
    with pytest.raises(subprocess.TimeoutExpired):
        running.wait(0.01)
    assert Path(f"/proc/{running.pid}/cwd").readlink() == tmp_path
    running.send_signal(signal.SIGINT)
    assert running.wait(30) == 0
    running.kill()  # nothing is there any more
    killed = start("--host", "127.0.0.1", *ports)
    killed.kill()
    assert killed.wait(30) == -signal.SIGKILL
