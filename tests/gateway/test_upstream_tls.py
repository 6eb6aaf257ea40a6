"""Upstreams behind TLS, always verified, and upstreams on a unix socket."""

from __future__ import annotations

import os
import socketserver
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from gateway_process import GatewayProcess
from gateway_upstream import Upstream
from support.certificates import Authority

Start = Callable[..., GatewayProcess]


def serving(*files: Path, client_ca: Path | None = None) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*files)
    if client_ca is not None:
        context.load_verify_locations(client_ca)
        context.verify_mode = ssl.CERT_REQUIRED
    return context


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("ca"))


@pytest.fixture(scope="module")
def upstreams(
    authority: Authority, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, Upstream]]:
    stranger = Authority(tmp_path_factory.mktemp("stranger"), "stranger")
    found = {
        "good": Upstream("a", tls=serving(*authority.issue("good"))),
        "tls_wrong_name": Upstream("a", tls=serving(*authority.issue("name", "shop.example"))),
        "tls_expired": Upstream("a", tls=serving(*authority.issue("late", days=-1))),
        "tls_untrusted": Upstream("a", tls=serving(*stranger.issue("unknown"))),
        "mutual": Upstream(
            "a", tls=serving(*authority.issue("mutual"), client_ca=authority.ca_file)
        ),
    }
    for upstream in found.values():
        upstream.start()
    yield found
    for upstream in found.values():
        upstream.stop()


def test_verified_upstream(
    start_gateway: Start, authority: Authority, upstreams: dict[str, Upstream]
) -> None:
    good = upstreams["good"]
    tls = {"ca_file": str(authority.ca_file)}
    gateway = start_gateway([good.url], upstream={"tls": tls})
    before = good.connections
    for _ in range(3):
        response = gateway.request("/api/json")
        assert (response.status, response.value("x-upstream")) == (200, "a")
    assert good.seen[-1].values("host") == [f"127.0.0.1:{good.port}"]
    body = os.urandom(2_000_000)
    echoed = gateway.request("/api/echo", "POST", body)
    assert echoed.body.endswith(body)
    assert gateway.request("/api/big/3000000").body == bytes(3_000_000)
    assert good.connections - before <= 2, "connections are reused"
    for reason in ("tls_wrong_name", "tls_expired", "tls_untrusted"):
        gateway.write_services([upstreams[reason].url])
        await_reason(gateway, reason)
        assert not upstreams[reason].seen, "not a byte of the request was sent"


def await_reason(gateway: GatewayProcess, reason: str) -> None:
    """The services file is polled; then the upstream is refused for what is wrong with it."""
    for _ in range(100):
        response = gateway.request("/api/json")
        if response.status == 502 and response.json["reason"] == reason:
            return
        time.sleep(0.02)
    raise AssertionError(f"{response.status} {response.body!r} instead of {reason}")


def test_the_system_does_not_know_a_private_authority(
    start_gateway: Start, upstreams: dict[str, Upstream]
) -> None:
    gateway = start_gateway([upstreams["good"].url])
    assert gateway.request("/api/json").json["reason"] == "tls_untrusted"
    assert 'reason="tls_untrusted"' in gateway.metrics()


def test_certificate_of_our_own(
    start_gateway: Start, authority: Authority, upstreams: dict[str, Upstream]
) -> None:
    cert_file, key_file = authority.issue("gateway")
    tls = {
        "ca_file": str(authority.ca_file),
        "cert_file": str(cert_file),
        "key_file": str(key_file),
    }
    gateway = start_gateway([upstreams["mutual"].url], upstream={"tls": tls})
    assert gateway.request("/api/json").status == 200


class Plain(socketserver.StreamRequestHandler):
    def handle(self) -> None:
        self.request.recv(1000)
        self.wfile.write(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")


def test_plain_text_where_tls_is_expected(start_gateway: Start) -> None:
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Plain) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        gateway = start_gateway([f"https://127.0.0.1:{server.server_address[1]}"])
        response = gateway.request("/api/json")
        server.shutdown()
    assert (response.status, response.json["reason"]) == (502, "tls_error")


def test_name_without_address_and_port_without_server(start_gateway: Start) -> None:
    gateway = start_gateway(["http://no-such-host.invalid:80"])
    response = gateway.request("/api/json")
    assert (response.status, response.json["reason"]) == (502, "name_not_resolved")


def test_upstream_on_a_unix_socket(start_gateway: Start, tmp_path: Path) -> None:
    upstream = Upstream("unix", unix=str(tmp_path / "app.sock")).start()
    gateway = start_gateway([upstream.url])
    for _ in range(2):
        response = gateway.request("/api/json?x=1")
        assert (response.status, response.value("x-upstream")) == (200, "unix")
    assert upstream.seen[-1].line == b"GET /json?x=1 HTTP/1.1"
    assert upstream.seen[-1].values("host") == ["localhost"]
    assert upstream.connections == 1
    assert gateway.request("/lb-stats").json["servers"][0]["url"] == upstream.url
    upstream.stop()
    Path(upstream.unix).unlink()
    gateway.write_services(["unix:///nowhere/app.sock"])
    await_reason(gateway, "connect_refused")
