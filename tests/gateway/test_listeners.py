"""Where clients connect: TLS, IPv6, a unix socket, behind balancers that send PROXY headers."""

from __future__ import annotations

import os
import signal
import socket
import ssl
import stat
import struct
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from gateway_process import BACKENDS, Client, GatewayProcess, check_backend
from gateway_upstream import Seen, Upstream
from support.certificates import Authority
from support.servers import free_port, wait_until

from nexus.errors import ConfigError, ListenError
from nexus.gateway.app import SPEC
from nexus.net.listeners import Endpoint, bind_endpoint
from nexus.net.run import load_service_settings
from nexus.net.settings import ListenTlsSettings, NamedCertificateSettings
from nexus.net.tls import server_context

REQUEST = b"GET /api/echo HTTP/1.1\r\nHost: shop.example\r\n\r\n"
V2_MAGIC = b"\r\n\r\n\x00\r\nQUIT\n"


@dataclass
class Doors:
    gateway: GatewayProcess
    authority: Authority
    upstream: Upstream
    ports: dict[str, int]
    unix: Path

    def client(self, door: str, *, tls: ssl.SSLContext | None = None, first: bytes = b"") -> Client:
        client = Client(self.ports[door])
        if first:
            client.send(first)
        if tls is not None:
            client.sock = tls.wrap_socket(client.sock, server_hostname="127.0.0.1")
        return client

    def tls(self) -> ssl.SSLContext:
        context = ssl.create_default_context(cafile=str(self.authority.ca_file))
        context.set_alpn_protocols(["h2", "http/1.1"])
        return context

    def echoed(self, client: Client, *fields: str) -> Seen:
        """What the upstream saw of a request on this connection."""
        more = "".join(f"{field}\r\n" for field in fields).encode()
        client.send(REQUEST[:-2] + more + b"\r\n")
        response = client.read()
        assert response.status == 200, response
        return self.upstream.seen[-1]


@pytest.fixture(scope="module", params=BACKENDS)
def doors(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    upstream_a: Upstream,
) -> Iterator[Doors]:
    check_backend(request.param)
    directory = tmp_path_factory.mktemp(f"doors-{request.param}")
    authority = Authority(directory)
    cert_file, key_file = authority.issue("live")
    tls = {"cert_file": str(cert_file), "key_file": str(key_file)}
    names = ("tls", "proxied", "proxied-tls", "strangers", "mutual", "v6")
    ports = {name: free_port() for name in names}
    unix = directory / "gateway.sock"
    trusted = {"enabled": True, "trusted": ["127.0.0.0/8"], "timeout_seconds": 0.3}
    here = {"host": "127.0.0.1"}
    listeners: list[dict[str, Any]] = [
        here | {"port": ports["tls"], "tls": tls},
        here | {"port": ports["proxied"], "proxy_protocol": trusted},
        here | {"port": ports["proxied-tls"], "proxy_protocol": trusted, "tls": tls},
        here
        | {
            "port": ports["strangers"],
            "proxy_protocol": {"enabled": True, "trusted": ["10.0.0.0/8"]},
        },
        here | {"port": ports["mutual"], "tls": tls | {"client_ca_file": str(authority.ca_file)}},
        {"host": "::1", "port": ports["v6"]},
        {"unix": str(unix), "unix_mode": "600"},
    ]
    gateway = GatewayProcess(
        directory,
        request.param,
        [upstream_a.url],
        # An open connection that goes on must not end by its idle time on a busy machine.
        {"listeners": listeners, "workers": 2, "timeouts": {"head": 1, "keep_alive": 60}},
    ).start()
    yield Doors(gateway, authority, upstream_a, ports, unix)
    assert gateway.stop() == 0, gateway.output()
    assert "Traceback" not in gateway.output(), gateway.output()
    assert not unix.exists()


def test_tls_speaks_http_1_1(doors: Doors) -> None:
    client = doors.client("tls", tls=doors.tls())
    assert isinstance(client.sock, ssl.SSLSocket)
    assert client.sock.selected_alpn_protocol() == "http/1.1"
    for _ in range(2):
        assert doors.echoed(client).values("x-forwarded-proto") == ["https"]
    body = os.urandom(300_000)
    head = f"POST /api/echo HTTP/1.1\r\nHost: t\r\nContent-Length: {len(body)}\r\n\r\n".encode()
    client.send(head + body)
    assert client.read().body.endswith(body)
    client.close()


def test_tls_as_curl_and_openssl_see_it(doors: Doors) -> None:
    url = f"https://127.0.0.1:{doors.ports['tls']}/api/json"
    curl = [
        "curl",
        "-sS",
        "-o",
        os.devnull,
        "-w",
        "%{http_code} %{http_version} %{ssl_verify_result}",
    ]
    run = subprocess.run(
        [*curl, "--http2", "--cacert", str(doors.authority.ca_file), url],
        capture_output=True,
        text=True,
        timeout=10,
        check=True,
    )
    assert run.stdout == "200 1.1 0", run
    untrusting = subprocess.run([*curl, url], capture_output=True, timeout=10, check=False)
    assert untrusting.returncode == 60
    for version, works in (("-tls1_1", False), ("-tls1_2", True), ("-tls1_3", True)):
        shaken = subprocess.run(
            ["openssl", "s_client", "-connect", f"127.0.0.1:{doors.ports['tls']}", version],
            input=b"",
            capture_output=True,
            timeout=10,
            check=False,
        )
        assert (shaken.returncode == 0) is works, (version, shaken)


def test_plain_text_at_a_tls_door_and_tls_at_a_plain_one(doors: Doors) -> None:
    client = doors.client("tls")
    client.send(REQUEST)
    while client.more():  # at most an alert
        pass
    assert b"HTTP/" not in client.buffer
    client.close()
    plain = socket.create_connection(("127.0.0.1", doors.gateway.port), 5)
    with pytest.raises(ssl.SSLError):
        doors.tls().wrap_socket(plain, server_hostname="127.0.0.1")
    assert doors.gateway.request("/api/json").status == 200


def test_client_certificates(doors: Doors) -> None:
    context = doors.tls()
    context.load_cert_chain(*doors.authority.issue("client"))
    assert doors.echoed(doors.client("mutual", tls=context)).path == "/echo"
    client = doors.client("mutual", tls=doors.tls())  # TLS 1.3 refuses at the first read
    with pytest.raises((ssl.SSLError, ConnectionError, EOFError)):
        client.read()


def test_ipv6(doors: Doors) -> None:
    client = Client.__new__(Client)
    client.sock = socket.create_connection(("::1", doors.ports["v6"]), 5)
    client.buffer = b""
    assert doors.echoed(client).values("x-forwarded-for") == ["::1"]
    client.close()


def test_unix_socket(doors: Doors) -> None:
    assert stat.S_IMODE(doors.unix.stat().st_mode) == 0o600
    run = subprocess.run(
        ["curl", "-sS", "--unix-socket", str(doors.unix), "http://shop.example/api/echo"],
        capture_output=True,
        timeout=10,
        check=True,
    )
    assert b"x-forwarded-for: unix\r\n" in run.stdout


def header(version: int, source: str, *, tls: bool = False) -> bytes:
    if version == 1:
        family, target = ("TCP6", "::1") if ":" in source else ("TCP4", "127.0.0.1")
        return f"PROXY {family} {source} {target} 1 2\r\n".encode()
    kind = socket.AF_INET6 if ":" in source else socket.AF_INET
    packed = socket.inet_pton(kind, source)
    payload = packed + bytes(len(packed)) + b"\0\1\0\2"
    if tls:
        payload += b"\x20" + struct.pack("!HBI", 5, 1, 0)
    code = 0x21 if kind == socket.AF_INET6 else 0x11
    return V2_MAGIC + struct.pack("!BBH", 0x21, code, len(payload)) + payload


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("source", ["192.0.2.7", "2001:db8::7"])
def test_proxy_header_names_the_client(doors: Doors, version: int, source: str) -> None:
    for door, tls, scheme in (("proxied", None, "http"), ("proxied-tls", doors.tls(), "https")):
        client = doors.client(door, tls=tls, first=header(version, source))
        for _ in range(2):
            seen = doors.echoed(client)
            assert seen.values("x-forwarded-for") == [source]
            assert seen.values("x-forwarded-proto") == [scheme]
        client.close()


def test_proxy_header_may_say_tls_and_may_come_in_pieces(doors: Doors) -> None:
    whole = header(2, "192.0.2.8", tls=True)
    client = doors.client("proxied", first=whole[:9])
    time.sleep(0.05)
    client.send(whole[9:] + REQUEST)
    assert client.read().status == 200
    seen = doors.upstream.seen[-1]
    assert seen.values("x-forwarded-for") == ["192.0.2.8"]
    assert seen.values("x-forwarded-proto") == ["https"]


def refused(doors: Doors) -> float:
    lines = doors.gateway.metrics().splitlines()
    return sum(
        float(x.split()[1]) for x in lines if x.startswith("nexus_proxy_headers_refused_total")
    )


def test_no_header_from_a_trusted_balancer_closes(doors: Doors) -> None:
    before = refused(doors)
    for first in (REQUEST, b"PROXY TCP4 nobody 127.0.0.1 1 2\r\n" + REQUEST, b"PROX"):
        client = doors.client("proxied", first=first)
        assert client.closed(), first
    wait_until(lambda: refused(doors) == before + 3)
    wait_until(lambda: "PROXY header" in doors.gateway.output())


def test_header_from_a_stranger_is_no_header(doors: Doors) -> None:
    client = doors.client("strangers", first=header(1, "192.0.2.9") + REQUEST)
    assert client.read().status == 400
    assert doors.echoed(doors.client("strangers")).values("x-forwarded-for") == ["127.0.0.1"]


def test_renewed_certificate_is_taken_and_a_broken_one_is_not(doors: Doors) -> None:
    def serial() -> str:
        return ssl.get_server_certificate(("127.0.0.1", doors.ports["tls"]))

    before = serial()
    old = doors.client("tls", tls=doors.tls())
    assert doors.echoed(old).path == "/echo"
    live = doors.authority.ca_file.parent / "live.crt"
    live.write_text("no certificate")
    wait_until(lambda: "keeping the last good one" in doors.gateway.output())
    assert serial() == before
    doors.authority.issue("live")
    # Both workers, of which the kernel chooses one for each connection.
    wait_until(lambda: all(serial() == live.read_text() for _ in range(8)))
    assert doors.echoed(old).path == "/echo", "an open connection goes on"


def shown(port: int, name: str | None) -> str:
    """The certificate (PEM) that a client gets who asks for a name, right for it or not."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    with (
        socket.create_connection(("127.0.0.1", port), 10) as sock,
        context.wrap_socket(sock, server_hostname=name) as secured,
    ):
        secured.sendall(b"GET /health HTTP/1.1\r\nHost: any\r\n\r\n")
        assert secured.recv(100).startswith(b"HTTP/1.1 200")
        der = secured.getpeercert(binary_form=True)
        assert der is not None
        return ssl.DER_cert_to_PEM_cert(der)


@pytest.mark.parametrize("workers", [1, 2])
def test_certificates_by_server_name(
    start_gateway: Callable[..., GatewayProcess],
    upstream_a: Upstream,
    tmp_path: Path,
    workers: int,
) -> None:
    authority = Authority(tmp_path)
    hosts = {"shop": ["shop.example"], "tenant": ["*.tenant.example"], "late": ["late.example"]}
    pairs = {name: authority.issue(name, *names) for name, names in hosts.items()}
    default = authority.issue("default", "default.example")

    def named(*which: str) -> list[dict[str, Any]]:
        return [
            {
                "names": hosts[name],
                "cert_file": str(pairs[name][0]),
                "key_file": str(pairs[name][1]),
            }
            for name in which
        ]

    tls = {"cert_file": str(default[0]), "key_file": str(default[1])}
    first = tls | {"certificates": named("shop", "tenant")}
    port = free_port()
    open_ = {"host": "127.0.0.1", "port": port}
    strict = {"host": "127.0.0.1", "port": free_port(), "tls": {"certificates": named("shop")}}
    listeners = [open_ | {"tls": first}, strict]
    gateway = start_gateway([upstream_a.url], listeners=listeners, workers=workers)
    shop, tenant, other = (file.read_text() for file in (pairs["shop"][0], pairs["tenant"][0],
                                                          default[0]))  # fmt: skip
    for name, certificate in (
        ("shop.example", shop),
        ("SHOP.example", shop),
        ("a.tenant.example", tenant),
        ("tenant.example", other),
        ("a.b.tenant.example", other),
        ("late.example", other),
        (None, other),
    ):
        assert shown(port, name) == certificate, name
    assert shown(strict["port"], "shop.example") == shop
    for unknown in ("a.tenant.example", None):
        with pytest.raises((ssl.SSLError, ConnectionError)):
            shown(strict["port"], unknown)
    # One is broken, another renewed at the same time: each for itself.
    pairs["tenant"][0].write_text("no certificate")
    authority.issue("shop", "shop.example")
    renewed = pairs["shop"][0].read_text()
    assert renewed != shop
    wait_until(lambda: all(shown(port, "shop.example") == renewed for _ in range(8)))
    wait_until(lambda: shown(strict["port"], "shop.example") == renewed)
    assert shown(port, "a.tenant.example") == tenant
    assert shown(port, None) == other
    assert "listeners[0].tls.certificates[1].cert_file: cannot be used" in gateway.output()
    authority.issue("tenant", "*.tenant.example")
    tenant = pairs["tenant"][0].read_text()
    wait_until(lambda: all(shown(port, "a.tenant.example") == tenant for _ in range(8)))
    # Another name comes with a reload.
    listeners = [
        open_ | {"tls": tls | {"certificates": named("shop", "late")}},
        strict | {"tls": {"certificates": named("late")}},
    ]
    gateway.write_config(gateway.config | {"listeners": listeners})
    gateway.process.send_signal(signal.SIGHUP)
    late = pairs["late"][0].read_text()
    wait_until(lambda: all(shown(port, "late.example") == late for _ in range(8)))
    wait_until(lambda: shown(strict["port"], "late.example") == late)
    assert shown(port, "a.tenant.example") == other
    assert "Traceback" not in gateway.output(), gateway.output()


def test_tls_of_the_main_address_by_reload(
    start_gateway: Callable[..., GatewayProcess], upstream_a: Upstream, tmp_path: Path
) -> None:
    authority = Authority(tmp_path)
    cert_file, key_file = authority.issue("main")
    # A machine that is busy may take its time until the connection asks for something.
    gateway = start_gateway([upstream_a.url], timeouts={"head": 60, "keep_alive": 60})
    plain = gateway.client()
    tls = {"cert_file": str(cert_file), "key_file": str(key_file)}
    port = gateway.port
    gateway.write_config(gateway.config | {"tls": tls, "workers": 2, "telemetry_entries": 7})
    gateway.process.send_signal(signal.SIGHUP)
    context = ssl.create_default_context(cafile=str(authority.ca_file))

    def served() -> bool:
        try:
            sock = context.wrap_socket(
                socket.create_connection(("127.0.0.1", port), 2), server_hostname="127.0.0.1"
            )
        except OSError:
            return False
        with sock:
            sock.sendall(REQUEST)
            return sock.recv(100).startswith(b"HTTP/1.1 200")

    wait_until(served)
    plain.send(REQUEST)
    assert plain.read().status == 200, "an open connection goes on"
    said = "a reload cannot change workers, telemetry_entries"
    wait_until(lambda: said in gateway.output())


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"tls": {"cert_file": "/nowhere.pem"}}, "tls.cert_file: cannot be used"),
        ({"tls": {"key_file": "/nowhere.pem"}}, "tls.key_file: needs tls.cert_file"),
        (
            {"tls": {"certificates": [{"names": ["a.b"], "cert_file": "/nowhere.pem"}]}},
            "tls.certificates[0].cert_file: cannot be used",
        ),
        (
            {"tls": {"certificates": [{"names": ["a.*.b"], "cert_file": "x"}]}},
            "tls.certificates[0].names[0]: expected a host name, or *. and a host name",
        ),
        ({"tls": {"certificates": [{"names": [], "cert_file": "x"}]}}, "tls.certificates[0].names"),
        ({"listeners": [{"port": 1}]}, "listeners[0]: expected either host and port, or unix"),
        (
            {"listeners": [{"unix": "/tmp/x", "host": "::1"}]},
            "listeners[0]: expected either host and port, or unix",
        ),
        (
            {"listeners": [{"host": "::1", "tls": {"cert_file": "/nowhere.pem"}}]},
            "listeners[0].tls.cert_file: cannot be used",
        ),
        ({"proxy_protocol": {"enabled": True}}, "proxy_protocol.trusted: expected the networks"),
        (
            {"proxy_protocol": {"enabled": True, "trusted": ["10.0.0.300"]}},
            "proxy_protocol.trusted[0]: expected a network like 10.0.0.0/8",
        ),
    ],
)
def test_settings_that_cannot_be(settings: dict[str, Any], said: str, tmp_path: Path) -> None:
    (tmp_path / "services.json").write_text('{"services": [{"url": "http://h:1", "weight": 1}]}')
    file = tmp_path / "gateway.yaml"
    file.write_text(
        yaml.safe_dump(
            {"services_file": str(tmp_path / "services.json"), "auth": {"enabled": False}}
            | settings
        )
    )
    with pytest.raises(ConfigError) as error:
        load_service_settings(SPEC, file)
    assert said in str(error.value)


def test_a_name_has_one_certificate(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    pairs = [authority.issue(name, "a.example") for name in ("one", "two")]
    settings = ListenTlsSettings(
        certificates=tuple(
            NamedCertificateSettings(names=(name,), cert_file=str(cert), key_file=str(key))
            for name, (cert, key) in zip(("a.example", "A.example"), pairs, strict=True)
        )
    )
    with pytest.raises(
        ConfigError, match=r"another certificate has the name 'A\.example'"
    ) as error:
        server_context(settings)
    assert error.value.path == "tls.certificates[1].names[0]"


def test_a_path_that_is_taken(start_gateway: Callable[..., Any], tmp_path: Path) -> None:
    stale = tmp_path / "stale.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(stale))
    first = start_gateway(["http://127.0.0.1:1"], listeners=[{"unix": str(stale)}])
    with pytest.raises(ListenError, match="already in use"):
        bind_endpoint(Endpoint("x", path=str(stale)), 1)
    assert stale.exists()
    assert first.stop() == 0
    stale.write_text("a file")
    with pytest.raises(ListenError, match="is no socket"):
        bind_endpoint(Endpoint("x", path=str(stale)), 1)
    assert stale.read_text() == "a file"
