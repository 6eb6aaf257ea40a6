"""Routes, transforms and CORS in a running gateway, in front of real upstreams."""

from __future__ import annotations

import json
import re
import signal
import time
from collections.abc import Iterator
from typing import Any

import pytest
from gateway_process import BACKENDS, GatewayProcess, Response, check_backend
from gateway_upstream import Upstream

ORIGIN = "https://app.example"
#: Not allowed by ``https://*.trusted.example``, nor by anything else.
FOREIGN = [
    "https://trusted.example",
    "https://evil.example",
    "http://a.trusted.example",
    "https://a.trusted.example.evil",
    "https://x/.trusted.example",
    "null",
]

ROUTES: list[dict[str, Any]] = [
    {"path": "/api/*"},
    {"path": "/b/*", "upstream": "b", "envelope": False},
    {"path": "/echo/*", "strip_prefix": False},
    {"path": "/redirect/*", "strip_prefix": False},
    {"path": "/put", "methods": ["PUT"], "rewrite": "/echo", "body_bytes": 4},
    {"path": "/users/{id}/*", "rewrite": "/echo", "request": {
        "headers": {
            "remove": ["X-Gone", "Cookie"],
            "set": {"X-User": "user {id}", "X-Twice": "{method}"},
            "add": {"X-Id": "{request_id}", "x-brace": "{{}}", "X-Twice": "2"},
        },
        "query": {"remove": ["debug"], "set": {"user": "{id}"}, "add": {"a b": "c&d"}},
    }},
    {"path": "/hide/*", "response": {"headers": {
        "remove": ["Set-Cookie"], "set": {"X-Upstream": "hidden"},
        "add": {"Strict-Transport-Security": "max-age=1", "X-Route": "{route}"}}}},
    {"path": "/moved/*", "rewrite": "/*"},
    {"path": "/slow/*", "timeouts": {"response": 0.2}, "retry": {"max_attempts": 1}},
    {"path": "/once/*", "retry": {"max_attempts": 1}},
    {"path": "/cors/*", "cors": {"origins": [ORIGIN, "https://*.trusted.example"],
        "credentials": True, "expose": ["x-request-id"], "headers": ["content-type", "x-own"]}},
    {"path": "/open/*", "cors": {"origins": ["*"], "headers": ["*"]}, "methods": ["GET", "POST"]},
    {"path": "/version", "rewrite": "/json", "headers": {"x-version": "2"}, "upstream": "b"},
    {"path": "/version", "rewrite": "/json"},
    {"path": "/*", "hosts": ["*.tenant.example"], "upstream": "b", "name": "tenants"},
]  # fmt: skip


@pytest.fixture(scope="module", params=BACKENDS)
def routed(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    upstream_a: Upstream,
    upstream_b: Upstream,
) -> Iterator[GatewayProcess]:
    check_backend(request.param)
    directory = tmp_path_factory.mktemp(f"routed-{request.param}")
    services = {
        "services": [
            {"url": upstream_a.url},
            {"url": upstream_b.url, "weight": 1, "group": "b"},
        ]
    }
    overrides = {"routes": ROUTES, "underscores_in_headers": True}
    process = GatewayProcess(directory, request.param, [], overrides)
    process.write_services = lambda _: process.services.write_text(json.dumps(services))  # type: ignore[method-assign]
    process.start()
    yield process
    assert process.stop() == 0, process.output()
    assert "Traceback" not in process.output(), process.output()


def seen(response: Response) -> tuple[str, list[str]]:
    """What ``/echo`` got: the request line and the header lines."""
    assert response.status == 200, response
    line, *fields = response.body.decode("latin-1").split("\r\n\r\n")[0].split("\r\n")
    return line, fields


def test_groups(routed: GatewayProcess) -> None:
    for _ in range(3):
        assert routed.request("/api/json").value("x-upstream") == "a"
        assert routed.request("/b/json").value("x-upstream") == "b"
    assert "_meta" in routed.request("/api/json").json
    assert "_meta" not in routed.request("/b/json").json  # envelope: false
    stats = routed.request("/lb-stats").json["servers"]
    assert [server.get("group") for server in stats] == [None, "b"]


def test_conditions_and_hosts(routed: GatewayProcess) -> None:
    assert routed.request("/version").value("x-upstream") == "a"
    assert routed.request("/version", "GET", None, "X-Version: 2").value("x-upstream") == "b"
    client = routed.client()
    client.send(b"GET /json HTTP/1.1\r\nHost: x.tenant.example:80\r\n\r\n")
    assert client.read().value("x-upstream") == "b"
    client.close()
    assert routed.request("/json").status == 404
    assert 'route="tenants"' in routed.metrics()


def test_404_and_405_over_all_routes_of_a_path(routed: GatewayProcess) -> None:
    missing = routed.request("/nowhere")
    assert (missing.status, missing.json["reason"]) == (404, "no_route")
    wrong = routed.request("/put")
    assert (wrong.status, wrong.json["reason"]) == (405, "method_not_allowed")
    assert wrong.value("allow") == "PUT"
    assert routed.request("/open/json", "DELETE").value("allow") == "GET, HEAD, POST"
    assert routed.request("/health", "POST", b"").value("allow") == "GET, HEAD"


def test_the_prefix_stays_where_it_is_wanted(routed: GatewayProcess) -> None:
    line, _ = seen(routed.request("/echo/x"))
    assert line == "GET /echo/x HTTP/1.1"
    line, _ = seen(routed.request("/b/echo?x=1"))
    assert line == "GET /echo?x=1 HTTP/1.1"


def test_request_transforms(routed: GatewayProcess) -> None:
    line, fields = seen(
        routed.request(
            "/users/7%C3%A9/x?keep=1&debug=2&de%62ug&user=8",
            "GET",
            None,
            *("X-Gone: 1", "Cookie: a=1", "X-User: forged", "X-Kept: 1", "X-Twice: 0"),
        )
    )
    assert line == "GET /echo?keep=1&user=7%25C3%25A9&a%20b=c%26d HTTP/1.1"
    lower = {name.lower(): value for name, _, value in (f.partition(": ") for f in fields)}
    assert lower["x-user"] == "user 7%C3%A9"
    assert lower["x-kept"] == "1"
    assert lower["x-brace"] == "{}"
    assert lower["x-id"] == lower["x-request-id"]
    assert [f for f in fields if f.lower().startswith("x-twice")] == ["x-twice: GET", "x-twice: 2"]
    assert not {"x-gone", "cookie"} & lower.keys()


def test_response_transforms(routed: GatewayProcess) -> None:
    response = routed.request("/hide/json")
    assert response.values("set-cookie") == []
    assert response.value("x-upstream") == "hidden"
    assert response.value("x-route") == "/hide/*"
    assert response.value("strict-transport-security") == "max-age=1"
    assert response.json["data"]
    # Streamed ones too.
    assert routed.request("/hide/chunked").value("x-upstream") == "hidden"


def test_location_finds_back(routed: GatewayProcess) -> None:
    assert routed.request("/api/redirect").value("location") == "/api/elsewhere?x=1"
    assert routed.request("/moved/redirect").value("location") == "/moved/elsewhere?x=1"
    assert routed.request("/redirect/x").value("location") == "/elsewhere?x=1"
    assert routed.request("/moved/redirect-far").value("location") == "https://example.com/x"


def test_limits_of_a_route(routed: GatewayProcess) -> None:
    assert routed.request("/put", "PUT", b"1234").status == 200
    large = routed.request("/put", "PUT", b"12345")
    assert (large.status, large.json["reason"]) == (413, "body_too_large")
    client = routed.client()
    client.send(
        b"PUT /put HTTP/1.1\r\nHost: t\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n12345\r\n0\r\n\r\n"
    )
    assert client.read().status == 413
    client.close()
    begun = time.monotonic()
    assert routed.request("/slow/hang").status == 504
    assert time.monotonic() - begun < 0.65  # the gateway's own is 0.7 s
    assert routed.request("/once/status/503").status == 503


@pytest.mark.parametrize(
    "field",
    [
        "X-Auth-Client: root",
        "x_auth_client: root",
        "X-Auth_Roles: admin",
        "x_internal_secret: 1",
        "X_Forwarded_For: 1.2.3.4",
        "X-Auth-Subject: a",
    ],
)
def test_nobody_forges_what_only_the_gateway_says(routed: GatewayProcess, field: str) -> None:
    _, fields = seen(routed.request("/api/echo", "GET", None, field, "X_Other: 1"))
    names = {each.partition(":")[0].lower() for each in fields}
    assert field.partition(":")[0].lower() not in names
    assert "X_Other: 1" in fields


# ------------------------------------------------------------------------------------------- CORS


def test_cors_of_named_origins(routed: GatewayProcess) -> None:
    response = routed.request("/cors/json", "GET", None, f"Origin: {ORIGIN}")
    assert response.value("access-control-allow-origin") == ORIGIN
    assert response.value("access-control-allow-credentials") == "true"
    assert response.value("access-control-expose-headers") == "x-request-id"
    assert "Origin" in response.values("vary")
    other = routed.request("/cors/json", "GET", None, "Origin: https://evil.example")
    assert (other.status, other.value("access-control-allow-origin")) == (200, None)
    assert "Origin" in other.values("vary")
    assert "Origin" in routed.request("/cors/json").values("vary")
    # Errors can be read by scripts as well.
    missing = routed.request("/cors/status/503", "GET", None, f"Origin: {ORIGIN}")
    assert missing.value("access-control-allow-origin") == ORIGIN


def preflight(
    gateway: GatewayProcess, path: str, origin: str, method: str, *fields: str
) -> Response:
    return gateway.request(
        path,
        "OPTIONS",
        None,
        f"Origin: {origin}",
        f"Access-Control-Request-Method: {method}",
        *fields,
    )


def test_preflights(routed: GatewayProcess) -> None:
    granted = preflight(
        routed, "/cors/x", ORIGIN, "PUT", "Access-Control-Request-Headers: X-Own,content-type"
    )
    assert (granted.status, granted.body) == (204, b"")
    assert granted.value("content-length") is None
    assert granted.value("access-control-allow-origin") == ORIGIN
    assert granted.value("access-control-allow-credentials") == "true"
    assert "PUT" in (granted.value("access-control-allow-methods") or "").split(", ")
    assert granted.value("access-control-allow-headers") == "content-type, x-own"
    assert granted.value("access-control-max-age") == "600"
    assert (granted.value("vary") or "").startswith("Origin")
    sub = preflight(routed, "/cors/x", "https://a.trusted.example", "GET")
    assert sub.value("access-control-allow-origin") == "https://a.trusted.example"
    for origin in FOREIGN:
        refused = preflight(routed, "/cors/x", origin, "GET")
        assert (refused.status, refused.json["reason"]) == (403, "cors_origin"), origin
        assert refused.value("access-control-allow-origin") is None
    headers = preflight(routed, "/cors/x", ORIGIN, "GET", "Access-Control-Request-Headers: x-no")
    assert headers.json["reason"] == "cors_headers"
    assert preflight(routed, "/open/x", ORIGIN, "DELETE").json["reason"] == "cors_method"


def test_cors_for_all_without_credentials(routed: GatewayProcess) -> None:
    asked = "Access-Control-Request-Headers: authorization, x-any"
    granted = preflight(routed, "/open/x", ORIGIN, "POST", asked)
    assert granted.value("access-control-allow-origin") == "*"
    assert granted.value("access-control-allow-headers") == "authorization, x-any"
    assert granted.value("access-control-allow-credentials") is None


def test_options_that_is_no_preflight_is_passed_on(routed: GatewayProcess) -> None:
    line, _ = seen(routed.request("/cors/echo", "OPTIONS", None, f"Origin: {ORIGIN}"))
    assert line.startswith("OPTIONS /echo")
    line, _ = seen(preflight(routed, "/api/echo", ORIGIN, "GET"))  # a route without CORS
    assert line.startswith("OPTIONS /echo")


# ----------------------------------------------------------------------------------------- reload


def test_reload_changes_routes_without_failed_requests(
    start_gateway: Any, upstream_a: Upstream
) -> None:
    gateway = start_gateway([upstream_a.url], workers=2, routes=[{"path": "/api/*"}])
    statuses: list[int] = []

    def asked(path: str) -> int:
        statuses.append(gateway.request("/api/json").status)
        return int(gateway.request(path).status)

    def reload(routes: list[dict[str, Any]], expected: int) -> None:
        gateway.write_config(gateway.config | {"routes": routes})
        gateway.process.send_signal(signal.SIGHUP)
        end = time.monotonic() + 5
        good = 0
        while good < 6:  # both workers, whichever accepts
            good = good + 1 if asked("/new/json") == expected else 0
            assert time.monotonic() < end, gateway.output()

    reload([{"path": "/api/*"}, {"path": "/new/*"}], 200)
    # An invalid one changes nothing, and says which route.
    gateway.write_config(
        gateway.config | {"routes": [{"path": "/api/*"}, {"path": "/api/*", "name": "again"}]}
    )
    gateway.process.send_signal(signal.SIGHUP)
    end = time.monotonic() + 5
    while not re.search(r"keeping the last good one.*routes\[1\]", gateway.output()):
        assert time.monotonic() < end, gateway.output()
        assert asked("/new/json") == 200
    assert asked("/new/json") == 200
    reload([{"path": "/api/*"}], 404)
    assert set(statuses) == {200}
