"""Upstreams from a real name server on loopback: found, followed, kept when it is away."""

from __future__ import annotations

import contextlib
import http.server
import json
import socket
import socketserver
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import dns.message
import dns.rcode
import dns.rrset
import pytest
from gateway_process import GatewayProcess
from gateway_upstream import Upstream


class NameServer:
    """Answers from ``records``: (name, type) → texts; ``None`` is SERVFAIL."""

    def __init__(self) -> None:
        self.records: dict[tuple[str, str], list[str] | None] = {}
        outer = self

        class Handler(socketserver.BaseRequestHandler):
            def handle(self) -> None:
                data, sock = self.request
                query = dns.message.from_wire(data)
                reply = dns.message.make_response(query)
                question = query.question[0]
                kind = question.rdtype.name
                found = outer.records.get((question.name.to_text(), kind), [])
                if found is None:
                    reply.set_rcode(dns.rcode.SERVFAIL)
                elif found:
                    reply.answer.append(dns.rrset.from_text(question.name, 1, "IN", kind, *found))
                else:
                    reply.set_rcode(dns.rcode.NXDOMAIN)
                sock.sendto(reply.to_wire(), self.client_address)

        self.server = socketserver.UDPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.server.server_address[1]}"


@pytest.fixture
def names() -> Iterator[NameServer]:
    server = NameServer()
    yield server
    server.server.shutdown()
    server.server.server_close()


def served(gateway: GatewayProcess, count: int = 8) -> Counter[str]:
    return Counter(
        gateway.request("/api/json").value("x-upstream") or "nobody" for _ in range(count)
    )


def until(condition: Callable[[], Any], seconds: float = 30.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.1)


def test_names_are_upstreams(
    start_gateway: Callable[..., GatewayProcess],
    names: NameServer,
    upstream_a: Upstream,
    upstream_b: Upstream,
) -> None:
    services = ("_api._tcp.shop.test.", "SRV")
    names.records["one.shop.test.", "A"] = ["127.0.0.1"]
    names.records[services] = [f"1 5 {upstream_b.port} localhost.", "2 5 9 spare.shop.test."]
    gateway = start_gateway(
        [upstream_a.url],
        workers=2,
        discovery={
            "nameservers": [names.address],
            "dns_interval_seconds": 1,
            "dns_timeout_seconds": 1,
            "dns": [{"name": "_api._tcp.shop.test", "type": "SRV"}],
        },
    )
    assert served(gateway).keys() == {"a", "b"}
    assert 'nexus_discovery_last_success_timestamp_seconds{source="dns:' in gateway.metrics()
    # It moves: drained, and away.
    names.records[services] = [f"1 5 {upstream_a.port} localhost."]
    until(lambda: served(gateway).keys() == {"a"})
    names.records[services] = [f"1 5 {upstream_b.port} localhost."]
    until(lambda: served(gateway).keys() == {"a", "b"})
    # Troubles of the name server change nothing.
    for trouble in (None, [], ["0 0 0 ."]):
        names.records[services] = trouble
        warnings = gateway.output().count("cannot be resolved")
        until(lambda: gateway.output().count("cannot be resolved") > warnings)  # noqa: B023
        assert served(gateway).keys() == {"a", "b"}


class Named(http.server.BaseHTTPRequestHandler):
    """Tells on which address it was reached."""

    def do_GET(self) -> None:
        address = str(self.server.server_address[0])
        self.send_response(200)
        self.send_header("X-Upstream", address)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Nowhere."""


class Server6(http.server.ThreadingHTTPServer):
    address_family = socket.AF_INET6


@contextlib.contextmanager
def one_port(*hosts: str) -> Iterator[int]:
    """A port on which a server of its own answers at each of these addresses."""
    port = 0
    with contextlib.ExitStack() as stack:
        for host in hosts:
            kind = Server6 if ":" in host else http.server.ThreadingHTTPServer
            server = stack.enter_context(kind((host, port), Named))
            stack.callback(server.shutdown)
            threading.Thread(target=server.serve_forever, daemon=True).start()
            port = server.server_address[1]
        yield port


@pytest.mark.parametrize("workers", [1, 2])
def test_addresses_of_names_are_upstreams(
    start_gateway: Callable[..., GatewayProcess], names: NameServer, workers: int
) -> None:
    with one_port("127.0.0.2", "127.0.0.3", "::1") as port:
        four, six = ("app.test.", "A"), ("app.test.", "AAAA")
        names.records[four] = ["127.0.0.2"]
        names.records[six] = ["::1"]
        gateway = start_gateway(
            ["http://127.0.0.1:1"],  # the file's own group, which the route does not use
            workers=workers,
            routes=[{"path": "/api/*", "upstream": "named"}],
            discovery={
                "nameservers": [names.address],
                "dns_interval_seconds": 1,
                "dns": [
                    {"name": "app.test", "port": port, "group": "named"},
                    {"name": "app.test", "port": port, "group": "named", "type": "AAAA"},
                ],
            },
        )
        urls = {f"http://127.0.0.2:{port}", f"http://[::1]:{port}"}
        shown = json.loads(gateway.request("/lb-stats").body)["servers"]
        assert {one["url"] for one in shown} - {"http://127.0.0.1:1"} == urls
        assert served(gateway).keys() == {"127.0.0.2", "::1"}
        # Another record, and one kind of address gone wrong: that keeps its last good one.
        names.records[four] = ["127.0.0.3", "127.0.0.2"]
        names.records[six] = None
        until(lambda: served(gateway, 16).keys() == {"127.0.0.2", "127.0.0.3", "::1"}, 20)
        names.records[four] = ["127.0.0.3"]
        until(lambda: served(gateway, 16).keys() == {"127.0.0.3", "::1"}, 20)
        assert '"dns_type":"AAAA"' in gateway.output()
        assert '"dns_type":"A"' not in gateway.output()


def test_a_changed_file_is_seen_at_once(
    start_gateway: Callable[..., GatewayProcess], upstream_a: Upstream, upstream_b: Upstream
) -> None:
    gateway = start_gateway([upstream_a.url], services_poll_seconds=600)
    assert served(gateway, 3) == {"a": 3}
    time.sleep(1.2)
    gateway.write_services([upstream_b.url])
    start = time.monotonic()
    until(lambda: served(gateway, 2) == {"b": 2}, 4)
    assert time.monotonic() - start < 3
    assert 'nexus_discovery_last_success_timestamp_seconds{source="file"}' in gateway.metrics()
