"""TLS towards clients: redis-py over it, client certificates, renewal without a restart."""

from __future__ import annotations

import contextlib
import signal
import ssl
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from .proxy import ROOT, Proxy, eventually

Start = Callable[..., Proxy]
PREFIX = "NEXUS_CACHEPROXY_TLS__"


def _certificate(folder: Path, name: str) -> tuple[str, str]:
    """A self-signed certificate and its key."""
    key, certificate = folder / f"{name}.key", folder / f"{name}.pem"
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"),
            *("-nodes", "-days", "2", "-keyout", str(key), "-out", str(certificate)),
            *("-subj", f"/CN={name}", "-addext", "subjectAltName=IP:127.0.0.1"),
        ],
        check=True,
        capture_output=True,
    )
    return str(certificate), str(key)


@pytest.fixture
def start(proxy_factory: Start, redis_server: object, tmp_path: Path) -> Callable[..., Proxy]:
    """Starts a proxy whose certificate is in ``tmp_path/live.*``."""

    def run(**tls: str) -> Proxy:
        certificate, key = _certificate(tmp_path, "live")
        files = {"CERT_FILE": certificate, "KEY_FILE": key} | tls
        environ = {PREFIX + name: value for name, value in files.items()}
        return proxy_factory(redis_server.url, **environ)  # type: ignore[attr-defined]

    return run


def _client(proxy: Proxy, authority: str, **options: object) -> redis.Redis:
    options = {"ssl_cert_reqs": "required", "ssl_check_hostname": False} | options
    return proxy.client(ssl=True, ssl_ca_certs=authority, **options)


def test_redis_py_over_tls(start: Callable[..., Proxy], tmp_path: Path) -> None:
    proxy = start()
    with _client(proxy, str(tmp_path / "live.pem")) as client:
        assert client.set("tls", b"x" * 300_000)  # streamed on a dedicated connection
        assert client.get("tls") == b"x" * 300_000
        with client.pipeline(transaction=True) as pipe:
            pipe.set("a", 1).incr("a").get("a")
            assert pipe.execute() == [True, 2, b"2"]
        with client.pipeline(transaction=False) as pipe:
            for index in range(500):
                pipe.set(f"k{index}", index)
            assert all(pipe.execute())
        assert client.blpop(["none"], timeout=0.05) is None
        with client.pubsub() as pubsub:
            pubsub.subscribe("news")
            assert eventually(lambda: pubsub.get_message(timeout=0.5) is not None)
            client.publish("news", "hello")
            assert eventually(
                lambda: (pubsub.get_message(timeout=0.5) or {}).get("data") == b"hello"
            )
    with _client(proxy, str(tmp_path / "live.pem"), protocol=3) as client:
        assert client.get("a") == b"2"


def test_plain_text_is_no_tls(start: Callable[..., Proxy]) -> None:
    proxy = start()
    with proxy.raw() as raw:
        raw.send("PING")
        with contextlib.suppress(ConnectionResetError):
            assert b"PONG" not in raw.rest()


def test_client_certificates(start: Callable[..., Proxy], tmp_path: Path) -> None:
    trusted, key = _certificate(tmp_path, "trusted")
    other, other_key = _certificate(tmp_path, "other")
    proxy = start(CLIENT_CA_FILE=trusted)
    live = str(tmp_path / "live.pem")
    with _client(proxy, live, ssl_certfile=trusted, ssl_keyfile=key) as client:
        assert client.ping()
    once = Retry(NoBackoff(), 0)
    for options in ({}, {"ssl_certfile": other, "ssl_keyfile": other_key}):
        client = _client(proxy, live, retry=once, **options)
        with client, pytest.raises(redis.ConnectionError):
            client.ping()


def test_sighup_takes_the_new_certificate(start: Callable[..., Proxy], tmp_path: Path) -> None:
    proxy = start()
    live = tmp_path / "live.pem"
    before = ssl.get_server_certificate((proxy.host, proxy.port))
    with _client(proxy, str(live)) as client:
        assert client.set("renewed", 1)
        live.write_text("no certificate")
        proxy.process.send_signal(signal.SIGHUP)
        assert eventually(lambda: "keeping the last good" in proxy.log)
        assert ssl.get_server_certificate((proxy.host, proxy.port)) == before
        _certificate(tmp_path, "live")
        proxy.process.send_signal(signal.SIGHUP)
        assert eventually(
            lambda: ssl.get_server_certificate((proxy.host, proxy.port)) == live.read_text()
        )
        assert client.get("renewed") == b"1"  # on the connection of before
    with _client(proxy, str(live)) as client:
        assert client.get("renewed") == b"1"


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({"CERT_FILE": "/nowhere.pem"}, "tls.cert_file: cannot be used"),
        ({"KEY_FILE": "/nowhere.key"}, "tls.key_file: needs tls.cert_file"),
        ({"CLIENT_CA_FILE": "/nowhere.pem"}, "tls.client_ca_file: needs tls.cert_file"),
    ],
)
def test_check_names_the_bad_file(files: dict[str, str], words: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "nexus.cacheproxy", "--check"],
        cwd=ROOT,
        env={PREFIX + name: value for name, value in files.items()} | {"PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == 2
    assert words in done.stderr
