"""Upstreams from a real name server on loopback: found, followed, kept when it is away."""

from __future__ import annotations

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


def until(condition: Callable[[], Any], seconds: float = 8.0) -> None:
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
