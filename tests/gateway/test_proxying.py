"""What an upstream sees of a request, and what a client sees of a response."""

from __future__ import annotations

import gzip
import json
import re
import time

import pytest
from gateway_process import Client, GatewayProcess, Response
from gateway_upstream import JSON, Seen, Upstream


def last_seen(path: str, *upstreams: Upstream) -> Seen:
    found = [seen for up in upstreams for seen in up.seen if seen.path == path]
    assert found, f"{path} reached no upstream"
    return found[-1]


def enveloped(response: Response) -> object:
    document = response.json
    assert set(document) == {"data", "_meta"}
    assert document["_meta"]["requestId"] == response.value("x-request-id")
    assert document["_meta"]["gateway"] == "nexus"
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", document["_meta"]["timestamp"])
    return document["data"]


def test_request_fields(
    gateway: GatewayProcess, upstream_a: Upstream, upstream_b: Upstream
) -> None:
    response = gateway.request(
        "/api/echo?q=1&fields",
        "GET",
        None,
        "Authorization: Bearer t",
        "X-Request-Id: theirs",
        "X-Internal-Secret: s",
        "X-Admin-Override: 1",
        "X-Forwarded-For: 6.6.6.6",
        "X-Forwarded-Host: evil",
        "X-Real-IP: 6.6.6.6",
        "Forwarded: for=6.6.6.6",
        "X_Forwarded_For: 6.6.6.6",
        "Connection: X-Hop",
        "X-Hop: 1",
        "TE: trailers",
        "X-Stays: a",
        "X-Stays: b",
        "traceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
    )
    assert response.status == 200
    seen = last_seen("/echo?q=1&fields", upstream_a, upstream_b)
    assert seen.line == b"GET /echo?q=1&fields HTTP/1.1"
    assert seen.values("host") == [
        f"127.0.0.1:{(upstream_a if seen in upstream_a.seen else upstream_b).port}"
    ]
    assert seen.values("authorization") == ["Bearer t"]
    assert seen.values("x-stays") == ["a", "b"]
    assert seen.values("x-forwarded-for") == ["127.0.0.1"]
    assert seen.values("x-forwarded-host") == ["shop.example"]
    assert seen.values("x-forwarded-proto") == ["http"]
    assert seen.values("via") == ["1.1 nexus"]
    assert len(seen.values("x-gateway-version")) == 1
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT.*Z", seen.values("x-gateway-timestamp")[0])
    assert seen.values("traceparent") == ["00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"]
    [request_id] = seen.values("x-request-id")
    assert re.fullmatch(r"nexus-\d{13}-[0-9a-f]{12}", request_id)
    assert response.value("x-request-id") == request_id
    gone = (
        "x-internal-secret x-admin-override x-real-ip forwarded x_forwarded_for x-hop te connection"
    )
    for name in gone.split():
        assert seen.values(name) == [], name


@pytest.mark.parametrize(
    ("path", "target"),
    [
        ("/api", "/"),
        ("/api/", "/"),
        ("/api/echo", "/echo"),
        ("/api//echo", "/echo"),
        ("/api/x/../echo", "/echo"),
        ("/./api/echo", "/echo"),
        ("/api/%65cho", "/echo"),
        ("/api/echo?a=/../b", "/echo?a=/../b"),
    ],
)
def test_one_path_is_matched_and_forwarded(
    gateway: GatewayProcess, upstream_a: Upstream, upstream_b: Upstream, path: str, target: str
) -> None:
    assert gateway.request(path).status == 200
    assert last_seen(target, upstream_a, upstream_b)


@pytest.mark.parametrize(
    "path", ["/", "/apix/echo", "/api/../echo", "/xapi", "/health/x", "/API/echo"]
)
def test_other_paths_are_404(gateway: GatewayProcess, path: str) -> None:
    response = gateway.request(path)
    assert response.status == 404
    assert response.json["reason"] == "no_route"
    assert response.json["error"] == "Not Found"


def test_json_is_enveloped_around_its_bytes(gateway: GatewayProcess) -> None:
    response = gateway.request("/api/json")
    assert enveloped(response) == json.loads(JSON)
    assert response.body.startswith(b'{"data":' + JSON + b',"_meta":')
    assert int(response.value("content-length") or 0) == len(response.body)
    assert response.value("etag") == 'W/"v1"'
    assert response.values("set-cookie") == ["a=1", "b=2"]
    for name in ("accept-ranges", "content-digest", "x-hop", "keep-alive", "connection"):
        assert response.values(name) == [], name
    assert response.value("via") == "1.1 nexus"


@pytest.mark.parametrize(
    ("path", "data"),
    [
        ("/api/chunked", [1, 2, 3]),
        ("/api/chunked-at-once", []),
        ("/api/until-close", [1, 2]),
        ("/api/slow-json", [1, 2]),
        ("/api/utf8", json.loads(JSON)),
        ("/api/status/404", {"code": 404}),
        ("/api/status/500", {"code": 500}),
    ],
)
def test_enveloped_however_it_is_framed(gateway: GatewayProcess, path: str, data: object) -> None:
    response = gateway.request(path)
    assert response.complete
    assert enveloped(response) == data


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/api/latin1", JSON),
        ("/api/problem", JSON),
        ("/api/ndjson", JSON),
        ("/api/text", b"plain text"),
        ("/api/empty", b""),
        ("/api/no-transform", JSON),
        ("/api/gzip", gzip.compress(JSON, mtime=0)),
        ("/api/206", b"{"),
        ("/api/204", b""),
        ("/api/304", b""),
        ("/api/chunked-empty", b""),
    ],
)
def test_passed_untouched(gateway: GatewayProcess, path: str, body: bytes) -> None:
    response = gateway.request(path)
    assert response.complete
    if "gzip" in path:
        assert gzip.decompress(response.body) == JSON
    else:
        assert response.body == body
    if path == "/api/304":
        assert response.value("etag") == '"v1"'


def test_head(gateway: GatewayProcess) -> None:
    response = gateway.request("/api/head", "HEAD")
    assert response.status == 200
    assert response.value("content-length") is None, "that of the envelope is not known"
    assert gateway.request("/api/head-text", "HEAD").value("content-length") == "20"
    client = gateway.client()
    client.send(
        b"HEAD /api/head HTTP/1.1\r\nHost: a\r\n\r\nGET /api/text HTTP/1.1\r\nHost: a\r\n\r\n"
    )
    assert client.read("HEAD").status == 200
    assert client.read().body == b"plain text"


def test_location(gateway: GatewayProcess) -> None:
    assert gateway.request("/api/redirect").value("location") == "/api/elsewhere?x=1"
    assert gateway.request("/api/redirect-far").value("location") == "https://example.com/x"
    assert gateway.request("/api/redirect-net").value("location") == "//example.com/x"


@pytest.mark.parametrize("size", [1, 1000, 70_000, 3_000_000])
def test_request_bodies(gateway: GatewayProcess, size: int) -> None:
    body = bytes(i % 251 for i in range(1000)) * (size // 1000) + b"x" * (size % 1000)
    response = gateway.request("/api/echo", "POST", body)
    assert response.status == 200
    assert response.body.partition(b"\r\n\r\n|")[2] == body


def test_chunked_request_body_without_extensions_and_trailers(
    gateway: GatewayProcess, upstream_a: Upstream, upstream_b: Upstream
) -> None:
    client = gateway.client()
    client.send(b"POST /api/echo?chunked HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: Chunked\r\n\r\n")
    for part in (
        b"5;ext=1\r\nhel",
        b"lo\r\n1\r\n \r\n5\r\nworld\r\n0\r\nX-",
        b"Trailer: y\r\n\r\n",
    ):
        client.send(part)
        time.sleep(0.02)
    response = client.read()
    assert response.body.endswith(b"|hello world")
    seen = last_seen("/echo?chunked", upstream_a, upstream_b)
    assert seen.values("transfer-encoding") == ["chunked"]
    assert seen.values("content-length") == []
    assert b"ext" not in response.body.split(b"|")[0].split(b"\r\n", 1)[1].replace(b"x-", b"")


def test_pipelined_requests_are_answered_in_order(gateway: GatewayProcess) -> None:
    client = gateway.client()
    paths = ["/api/chunked", "/api/text", "/health", "/api/json", "/nowhere", "/api/text"]
    client.send(b"".join(f"GET {p} HTTP/1.1\r\nHost: a\r\n\r\n".encode() for p in paths))
    responses = [client.read() for _ in paths]
    assert [r.status for r in responses] == [200, 200, 200, 200, 404, 200]
    assert enveloped(responses[0]) == [1, 2, 3]
    assert responses[2].json["status"] == "gateway-ok"
    assert len({r.value("x-request-id") for r in responses}) == len(paths)


def test_pipelined_bodies(gateway: GatewayProcess) -> None:
    client = gateway.client()
    one = b"POST /api/echo HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\none"
    two = b"POST /api/echo HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\ntwo\r\n0\r\n\r\n"  # noqa: E501
    for byte in one + two + one:
        client.send(bytes([byte]))
    for expected in (b"one", b"two", b"one"):
        assert client.read().body.endswith(b"|" + expected)


@pytest.mark.parametrize(
    ("version", "connection", "kept"),
    [("1.1", "", True), ("1.1", "close", False), ("1.0", "", False), ("1.0", "keep-alive", True)],
)
def test_keep_alive(gateway: GatewayProcess, version: str, connection: str, kept: bool) -> None:
    client = gateway.client()
    field = f"Connection: {connection}\r\n" if connection else ""
    client.send(f"GET /api/text HTTP/{version}\r\nHost: a\r\n{field}\r\n".encode())
    response = client.read()
    assert response.body == b"plain text"
    assert response.value("connection") == {("1.1", True): None, ("1.0", True): "keep-alive"}.get(
        (version, kept), "close"
    )
    assert client.closed(0.3) is not kept


def test_http10_client_gets_an_unframed_stream(gateway: GatewayProcess) -> None:
    client = gateway.client()
    client.send(b"GET /api/chunked HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")
    response = client.read()
    assert response.value("transfer-encoding") is None
    assert response.value("connection") == "close"
    assert response.json["data"] == [1, 2, 3]


def test_expect_100_continue_is_relayed(gateway: GatewayProcess) -> None:
    client = gateway.client()
    client.send(
        b"POST /api/continue HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\nExpect: 100-continue\r\n\r\n"  # noqa: E501
    )
    assert client.read_head() == b"HTTP/1.1 100 Continue"
    client.send(b"body")
    assert client.read().body == b"body"


def test_100_is_not_sent_to_a_client_that_did_not_ask(gateway: GatewayProcess) -> None:
    client = gateway.client()
    client.send(b"POST /api/continue HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\nbody")
    assert client.read_head().startswith(b"HTTP/1.1 200")


def test_early_hints_pass(gateway: GatewayProcess) -> None:
    client = gateway.client()
    client.send(b"GET /api/hints HTTP/1.1\r\nHost: a\r\n\r\n")
    head = client.read_head()
    assert head.startswith(b"HTTP/1.1 103")
    assert b"Link: </a>" in head
    assert client.read().body == b"ok"
    client = gateway.client()
    client.send(b"GET /api/hints HTTP/1.0\r\nHost: a\r\n\r\n")
    assert client.read_head().startswith(b"HTTP/1.1 200")


def test_websocket_passes_through(gateway: GatewayProcess) -> None:
    client = gateway.client()
    client.send(
        b"GET /api/ws HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
        b"Sec-WebSocket-Key: k\r\nSec-WebSocket-Version: 13\r\n\r\n"
    )
    response = client.read()
    assert response.status == 101
    assert response.value("upgrade") == "websocket"
    assert response.value("sec-websocket-accept") == "x"
    while client.buffer != b"hello":
        assert client.more()
    client.buffer = b""
    for word in (b"abc", b"\x81\x00def"):
        client.send(word)
        while len(client.buffer) < len(word):
            assert client.more()
        assert client.buffer == word.upper()
        client.buffer = b""
    client.send(b"bye")
    assert client.closed()


def test_events_arrive_as_they_are_sent(gateway: GatewayProcess) -> None:
    client = gateway.client()
    client.send(b"GET /api/sse HTTP/1.1\r\nHost: a\r\n\r\n")
    client.read_head()
    arrivals = []
    for i in range(3):
        while f"data: {i}\n\n".encode() not in client.buffer:
            assert client.more()
        arrivals.append(time.monotonic())
    assert arrivals[1] - arrivals[0] > 0.1
    assert arrivals[2] - arrivals[1] > 0.1


def test_connections_are_reused(
    gateway: GatewayProcess, upstream_a: Upstream, upstream_b: Upstream
) -> None:
    before = upstream_a.connections + upstream_b.connections
    client = gateway.client()
    for _ in range(30):
        client.send(b"GET /api/text HTTP/1.1\r\nHost: a\r\n\r\n")
        assert client.read().status == 200
    assert upstream_a.connections + upstream_b.connections - before <= 2


def test_upstreams_that_close_their_connections_are_no_error(gateway: GatewayProcess) -> None:
    client = gateway.client()
    for _ in range(40):
        client.send(b"GET /api/close-after HTTP/1.1\r\nHost: a\r\n\r\n")
        assert client.read().body == b"bye"


def test_round_robin(gateway: GatewayProcess) -> None:
    client = gateway.client()
    names = []
    for _ in range(6):
        client.send(b"GET /api/json HTTP/1.1\r\nHost: a\r\n\r\n")
        names.append(client.read().value("x-upstream"))
    assert names[:2] in (["a", "b"], ["b", "a"])
    assert names[:2] * 3 == names


def test_large_response_streams_through(gateway: GatewayProcess) -> None:
    client = gateway.client()
    client.send(b"GET /api/big/50000000 HTTP/1.1\r\nHost: a\r\n\r\n")
    head = client.read_head()
    assert b"Content-Length: 50000000" in head
    got = len(client.buffer)
    while got < 50_000_000:
        data = client.sock.recv(1 << 20)
        assert data
        got += len(data)
    assert got == 50_000_000


def test_slow_reader_stops_the_upstream_and_not_the_gateway(gateway: GatewayProcess) -> None:
    client = Client(gateway.port)
    client.send(b"GET /api/big/300000000 HTTP/1.1\r\nHost: a\r\n\r\n")
    client.read_head()
    time.sleep(0.3)
    before = rss(gateway)
    time.sleep(0.7)
    assert rss(gateway) - before < 20_000_000, "an unread response is not collected"
    assert gateway.request("/api/text").status == 200
    client.close()


def test_large_upload_streams_through(gateway: GatewayProcess) -> None:
    size = 10_000_000
    client = gateway.client()
    client.send(f"POST /api/discard HTTP/1.1\r\nHost: a\r\nContent-Length: {size}\r\n\r\n".encode())
    block = bytes(100_000)
    for _ in range(size // len(block)):
        client.send(block)
    assert client.read().body == str(size).encode()


def rss(gateway: GatewayProcess) -> int:
    """Bytes of the largest process of the gateway (its worker)."""
    import psutil

    process = psutil.Process(gateway.process.pid)
    return max(p.memory_info().rss for p in process.children(recursive=True))
