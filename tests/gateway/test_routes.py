"""Which route a request gets: the table against a naive reading of the rules, on both backends."""

from __future__ import annotations

import importlib
import itertools
from types import ModuleType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as settings_of
from hypothesis import strategies as st
from msgspec.structs import replace

from nexus.errors import ConfigError
from nexus.gateway import endpoints, routetable
from nexus.gateway.patterns import Conditions, PathPattern, check_host
from nexus.gateway.settings import GatewaySettings
from nexus.settings import decode


def settings(routes: list[dict[str, Any]], **more: Any) -> GatewaySettings:
    return decode(GatewaySettings, {"routes": routes, **more}, source="test.yaml")


def build(routes: list[dict[str, Any]], **more: Any) -> Any:
    return routetable.build_router(settings(routes, **more), [])


@pytest.fixture(params=["py", "c"], autouse=True)
def backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    _use(request.param, monkeypatch)
    return str(request.param)


def _module(backend: str, name: str) -> ModuleType:
    try:
        return importlib.import_module(f"{name}_{backend}")
    except ModuleNotFoundError:
        pytest.skip(f"{name} is not compiled")


def _use(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    routes = _module(backend, "nexus.gateway._routes")
    for name in ("Node", "Route", "Router", "PROXIED_METHODS"):
        monkeypatch.setattr(routetable, name, getattr(routes, name))
    monkeypatch.setattr(endpoints, "Route", routes.Route)
    global RequestHead
    RequestHead = _module(backend, "nexus._speedups._http1").RequestHead


def head(method: str, target: str, host: str = "h", *fields: str) -> Any:
    parsed = RequestHead(32768, 8192, 100)
    lines = [f"{method} {target} HTTP/1.1", f"Host: {host}", *fields, "", ""]
    data = "\r\n".join(lines).encode()
    assert parsed.parse(data, 0, len(data)) == len(data)
    return parsed


def find(router: Any, method: str, target: str, host: str = "h", *fields: str) -> int | None:
    """The number of the route; -1 where it does not take the method."""
    asked = head(method, target, host, *fields)
    route = router.match(asked)
    if route is None:
        return None
    return int(route.index) if method.encode() in route.methods else -1


# ------------------------------------------------------------------------------------- by example


def test_the_default_route_is_the_contract() -> None:
    router = routetable.build_router(GatewaySettings(), [])
    for path in ("/api", "/api/", "/api/x", "/api/x/y/"):
        assert find(router, "GET", path) == 0
    for path in ("/", "/apix", "/Api/x", "/ap"):
        assert find(router, "GET", path) is None
    [route] = router.routes
    assert (route.template, route.prefix, route.group) == ("/api/*", b"/api", "default")
    assert find(router, "TRACE", "/api/x") == -1


def test_the_most_specific_path_wins() -> None:
    paths = ["/*", "/a/*", "/a/{x}", "/a/b", "/a/{x}/c", "/a/b/*", "/a/{x}/*", "/a/", "/"]
    router = build([{"path": path} for path in paths])
    wanted = {
        "/": "/",
        "/x": "/*",
        "/a": "/a/*",
        "/a/": "/a/",
        "/a/b": "/a/b",
        "/a/x": "/a/{x}",
        "/a/b/": "/a/b/*",
        "/a/b/c": "/a/b/*",
        "/a/x/c": "/a/{x}/c",
        "/a/x/d": "/a/{x}/*",
        "/a/x/c/d": "/a/{x}/*",
        "/b/c/d": "/*",
    }
    assert {path: paths[find(router, "GET", path) or 0] for path in wanted} == wanted


def test_the_normalised_path_is_matched() -> None:
    router = build([{"path": "/caf%c3%a9/*"}, {"path": "/a~b"}])
    assert find(router, "GET", "/caf%C3%A9/x") == 0
    assert find(router, "GET", "/x/..//caf%c3%a9") == 0
    assert find(router, "GET", "/a%7Eb") == 1


def test_hosts() -> None:
    hosts = [["Api.Example"], ["*.example"], ["*.b.example"], [], ["[::1]"]]
    router = build([{"path": "/*", "hosts": names} for names in hosts])
    for host, expected in {
        "api.example": 0,
        "API.EXAMPLE:8080": 0,
        "api.example.": 0,
        "x.example": 1,
        "a.b.example": 2,
        "b.example": 1,
        "example": 3,
        "xexample": 3,
        "[::1]:3000": 4,
        "[::1]": 4,
    }.items():
        assert find(router, "GET", "/", host) == expected, host
    assert router.routes[0].template == "Api.Example/*"


def test_a_host_without_the_path_falls_back_to_all_hosts() -> None:
    router = build([{"path": "/a", "hosts": ["h"]}, {"path": "/b"}])
    assert find(router, "GET", "/b", "h") == 1
    assert find(router, "GET", "/a", "other") is None


def test_methods_and_allow() -> None:
    router = build(
        [
            {"path": "/a", "methods": ["GET"]},
            {"path": "/a", "methods": ["POST", "PURGE"]},
            {"path": "/a", "methods": ["DELETE"], "headers": {"x-admin": "1"}},
            {"path": "/{any}", "methods": ["PUT"]},
            {"path": "/b"},
        ]
    )
    assert [find(router, m, "/a") for m in ("GET", "HEAD", "POST", "PURGE", "PUT")] == [
        0, 0, 1, 1, 3,
    ]  # fmt: skip
    assert find(router, "PATCH", "/a") == -1
    assert router.allow == b"GET, HEAD, POST, PURGE, PUT"
    assert find(router, "PATCH", "/a", "h", "X-Admin: 1") == -1
    assert router.allow == b"DELETE, GET, HEAD, POST, PURGE, PUT"
    assert find(router, "GET", "/nothing/here") is None
    assert router.allow == b""


def test_conditions() -> None:
    router = build(
        [
            {"path": "/a", "headers": {"X-Version": "2"}},
            {"path": "/a", "headers": {"X-Version": "2", "x-beta": "*"}},
            {"path": "/a", "headers": {"X-Version": "3"}},
            {"path": "/a", "query": {"v": "x y"}, "headers": {"x-version": "4"}},
            {"path": "/a"},
        ]
    )
    assert find(router, "GET", "/a") == 4
    assert find(router, "GET", "/a", "h", "x-version: 2") == 0
    assert find(router, "GET", "/a", "h", "x-version: 2", "X-Beta:") == 1
    assert find(router, "GET", "/a", "h", "x-version: 2", "x-version: 2") == 4
    assert find(router, "GET", "/a", "h", "x-version: 3") == 2
    assert find(router, "GET", "/a?v=x+y", "h", "x-version: 4") == 3
    assert find(router, "GET", "/a?q&v=x%20y", "h", "x-version: 4") == 3
    # The upstream may take either of two values: neither decides.
    assert find(router, "GET", "/a?v=x+y&v=z", "h", "x-version: 4") == 4


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ({"path": "/a/{x}"}, {"path": "/a/{y}"}),
        ({"path": "/a/*"}, {"path": "/a/*", "name": "b"}),
        ({"path": "/a", "methods": ["GET"]}, {"path": "/a", "methods": ["HEAD"]}),
        ({"path": "/a", "hosts": ["x", "y"]}, {"path": "/a", "hosts": ["Y", "z"]}),
        ({"path": "/a", "headers": {"a": "1"}}, {"path": "/a", "headers": {"b": "1"}}),
        ({"path": "/a", "headers": {"a": "1"}}, {"path": "/a", "headers": {"A": "*"}}),
        ({"path": "/a", "headers": {"a": "1"}}, {"path": "/a", "query": {"a": "2"}}),
        ({"path": "/%7E"}, {"path": "/~"}),
    ],
)
def test_routes_that_nobody_could_tell_apart(first: Any, second: Any) -> None:
    with pytest.raises(ConfigError, match=r"^routes\[1\]: .*routes\[0\].*which is meant"):
        build([first, second])


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ({"path": "/a/{x}"}, {"path": "/a/*"}),
        ({"path": "/a", "methods": ["GET"]}, {"path": "/a", "methods": ["POST"]}),
        ({"path": "/a", "methods": ["GET"]}, {"path": "/a"}),
        ({"path": "/a", "hosts": ["x"]}, {"path": "/a", "hosts": ["*.x"]}),
        ({"path": "/a", "headers": {"a": "1"}}, {"path": "/a", "headers": {"a": "2"}}),
        ({"path": "/a", "query": {"a": "1"}}, {"path": "/a", "query": {"a": "2"}}),
    ],
)
def test_routes_that_can_be_told_apart(first: Any, second: Any) -> None:
    assert len(build([first, second]).routes) == 2


def rules(side: str, headers: dict[str, Any], path: str) -> dict[str, Any]:
    return {"path": path, side: {"headers": headers}}


@pytest.mark.parametrize(
    ("route", "path", "said"),
    [
        ({"path": "a"}, "path", "begins with /"),
        ({"path": "/a/*/b"}, "path", "last segment"),
        ({"path": "/a*"}, "path", "last segment"),
        ({"path": "/a//b"}, "path", "empty segment"),
        ({"path": "/a/../b"}, "path", "no . or .."),
        ({"path": "/{a}/{a}"}, "path", "twice"),
        ({"path": "/x{a}"}, "path", "whole segment"),
        ({"path": "/é"}, "path", "percent-encoded"),
        ({"path": "/a%2Fb"}, "path", "percent-encoded"),
        ({"path": "/a?b"}, "path", "percent-encoded"),
        ({"path": "/a", "hosts": ["a:80"]}, "hosts[0]", "without port"),
        ({"path": "/a", "hosts": ["a", "b.*"]}, "hosts[1]", "without port"),
        ({"path": "/a", "methods": ["get"]}, "methods[0]", "expected GET"),
        ({"path": "/a", "methods": ["TRACE"]}, "methods[0]", "never"),
        ({"path": "/a", "methods": ["A B"]}, "methods[0]", "name"),
        ({"path": "/a", "headers": {"a b": "1"}}, "headers", "header name"),
        ({"path": "/a", "headers": {"host": "1"}}, "headers", "hosts"),
        ({"path": "/a", "headers": {"a": "1\n"}}, "headers", "control"),
        ({"path": "/a", "query": {"": "1"}}, "headers", "query parameter"),
        ({"path": "/a", "rewrite": "/b/{x}"}, "rewrite", "no parameter {x}"),
        ({"path": "/a", "rewrite": "/b/*"}, "rewrite", "no rest"),
        ({"path": "/a", "rewrite": "b"}, "rewrite", "begins with /"),
        ({"path": "/a", "auth": {"roles": ["x"]}}, "auth", "auth.enabled"),
        (rules("request", {"set": {"a": "1\r\nb: 2"}}, "/a"), "request.headers", "control"),
        (rules("request", {"set": {"a\r\n": "1"}}, "/a"), "request.headers", "name"),
        (rules("request", {"add": {"a": "{who}"}}, "/a"), "request.headers", "no placeholder"),
        (rules("request", {"add": {"a": "{"}}, "/a"), "request.headers", "brace"),
        (rules("request", {"remove": ["Content-Length"]}, "/a"), "request.headers", "itself"),
        (rules("request", {"set": {"x_auth_client": "me"}}, "/a"), "request.headers", "itself"),
        (rules("response", {"set": {"a": "{id}"}}, "/{id}"), "response.headers", "no placeholder"),
        ({"path": "/a", "cors": {"origins": ["*"], "credentials": True}}, "cors", "by name"),
        ({"path": "/a", "cors": {"origins": ["https://a/"]}}, "cors", "origin like"),
        ({"path": "/a", "cors": {"origins": ["HTTPS://A"]}}, "cors", "lower case"),
    ],
)  # fmt: skip
def test_what_is_refused_at_load(route: dict[str, Any], path: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said) as caught:
        build([{"path": "/first"}, route], auth={"enabled": False})
    assert caught.value.path == f"routes[1].{path}"


def test_too_many_routes() -> None:
    with pytest.raises(ConfigError, match="at most 1000 routes, got 1001"):
        build([{"path": f"/{i}"} for i in range(1001)])


def test_paths_of_the_gateway_itself_are_reserved() -> None:
    own_routes = endpoints.own_routes
    router = routetable.build_router(settings([{"path": "/*"}]), own_routes())
    asked = head("GET", "/health", "any.host")
    assert router.match(asked).template == "/health"
    with pytest.raises(ConfigError, match="the gateway itself answers /metrics"):
        routetable.build_router(settings([{"path": "/metrics"}]), own_routes())


def test_rewrites() -> None:
    def rewritten(path: str, template: str, asked: str) -> bytes:
        route = build([{"path": path, "rewrite": template}]).routes[0]
        return bytes(route.rewrite(asked.encode()))

    assert rewritten("/shop/*", "/v2/*", "/shop/a/b/") == b"/v2/a/b/"
    assert rewritten("/shop/*", "/v2/*", "/shop") == b"/v2"
    assert rewritten("/shop/*", "/*", "/shop/") == b"/"
    assert rewritten("/shop/*", "/*", "/shop") == b"/"
    assert rewritten("/shop/*", "/fixed", "/shop/a") == b"/fixed"
    assert rewritten("/u/{a}/{b}", "/{b}/x/{a}", "/u/1/%C3%A9") == b"/%C3%A9/x/1"
    assert rewritten("/u/{a}/*", "/v/{a}/*", "/u/1/2/3") == b"/v/1/2/3"
    [route] = build([{"path": "/t/{tenant}/*"}]).routes  # strip_prefix is on
    assert route.rewrite(b"/t/1/a/b") == b"/a/b"
    [route] = build([{"path": "/shop/*", "rewrite": "/v2/*"}]).routes
    assert route.rewrite.back(b"/v2/a") == b"/shop/a"
    assert route.rewrite.back(b"/v2") == b"/shop"
    assert route.rewrite.back(b"/v23") == b""


def test_what_a_route_does_not_say_is_as_for_the_gateway() -> None:
    more = {
        "breaker": {"timeout_ms": 700},
        "timeouts": {"total": 9, "stream_idle": 8},
        "retry": {"max_attempts": 2, "delay_ms": 5},
        "limits": {"body_bytes": 77},
    }
    own = {
        "path": "/own",
        "body_bytes": 0,
        "timeouts": {"response": 0.1, "total": 2, "stream_idle": 3},
        "retry": {"max_attempts": 1, "delay_ms": 0, "idempotency_key": True},
    }
    default, changed = build([{"path": "/"}, own], **more).routes
    second = 1_000_000_000
    assert (default.response_ns, default.total_ns, default.stream_idle_ns) == (
        700_000_000, 9 * second, 8 * second,
    )  # fmt: skip
    assert (changed.response_ns, changed.total_ns, changed.stream_idle_ns) == (
        second // 10, 2 * second, 3 * second,
    )  # fmt: skip
    assert (default.retry_policy.max_attempts, changed.retry_policy.max_attempts) == (2, 1)
    assert (default.body_bytes, changed.body_bytes) == (77, 0)
    assert (default.idempotency_key, changed.idempotency_key) == (False, True)


# ------------------------------------------------------------------------------ against an oracle

_SEGMENTS = st.sampled_from(["a", "b", "{x}", "{y}"])


@st.composite
def route_lists(draw: st.DrawFn) -> list[dict[str, Any]]:
    routes = []
    for _ in range(draw(st.integers(1, 8))):
        pieces = draw(st.lists(_SEGMENTS, max_size=3, unique=True))
        end = draw(st.sampled_from(["", "/*", "/"]))
        routes.append(
            {
                "path": "".join(f"/{piece}" for piece in pieces) + end or "/",
                "hosts": draw(st.lists(st.sampled_from(["h", "*.h", "*.g.h"]), max_size=2)),
                "methods": draw(st.lists(st.sampled_from(["GET", "POST"]), max_size=1)),
                "headers": draw(st.dictionaries(st.sampled_from("pq"), st.sampled_from("12*"))),
                "query": draw(st.dictionaries(st.sampled_from("rs"), st.sampled_from("12*"))),
            }
        )
    return routes


def oracle(
    routes: list[dict[str, Any]], method: str, path: str, host: str, has: dict[str, dict[str, str]]
) -> int | None:
    """The rules as docs/routes.md has them, read one route after the other."""
    found: list[tuple[Any, int]] = []
    wrong = False
    for index, route in enumerate(routes):
        for name in route["hosts"] or [""]:
            if name.startswith("*."):
                if not host.endswith(name[1:]):
                    continue
                host_rank = (1, -len(name))
            elif name:
                if name != host:
                    continue
                host_rank = (0, 0)
            else:
                host_rank = (2, 0)
            if not PathPattern(route["path"]).matches(path.encode()):
                continue
            met = all(
                key in has[kind] and value in ("*", has[kind][key])
                for kind in ("headers", "query")
                for key, value in route[kind].items()
            )
            if not met:
                continue
            named = {"GET", "HEAD"} if "GET" in route["methods"] else set(route["methods"])
            if named and method not in named:
                wrong = True
                continue
            ranks = [
                {"*": 3}.get(piece, 1 if piece.startswith("{") else 0)
                for piece in route["path"][1:].split("/")
            ]
            number = len(route["headers"]) + len(route["query"])
            found.append(((host_rank, ranks, -number, not named), index))
    if found:
        return min(found)[1]
    return -1 if wrong else None


@settings_of(max_examples=60)
@given(routes=route_lists(), data=st.data())
def test_the_table_finds_what_the_rules_say(
    routes: list[dict[str, Any]], data: st.DataObject
) -> None:
    try:
        router = build(routes)
    except ConfigError as error:
        assert "which is meant" in str(error)  # noqa: PT017  (a conflict is a fine outcome)
        return
    for _ in range(10):
        pieces = data.draw(st.lists(st.sampled_from(["a", "b", "c"]), max_size=4))
        path = "/" + "/".join(pieces) + ("/" if pieces and data.draw(st.booleans()) else "")
        host = data.draw(st.sampled_from(["h", "x.h", "g.h", "x.g.h", "other"]))
        method = data.draw(st.sampled_from(["GET", "HEAD", "POST", "PUT"]))
        headers = data.draw(st.dictionaries(st.sampled_from("pq"), st.sampled_from("12")))
        query = data.draw(st.dictionaries(st.sampled_from("rs"), st.sampled_from("12")))
        target = path + ("?" + "&".join(f"{k}={v}" for k, v in query.items()) if query else "")
        found = find(router, method, target, host, *(f"{k}: {v}" for k, v in headers.items()))
        has = {"headers": headers, "query": query}
        assert found == oracle(routes, method, path, host, has)


def test_conflicts_are_exactly_what_the_order_does_not_decide() -> None:
    variants: list[dict[str, Any]] = [
        {"path": path, "methods": methods, "headers": headers}
        for path in ("/a", "/a/*", "/{x}")
        for methods in ([], ["GET"], ["POST"])
        for headers in ({}, {"p": "1"}, {"p": "2"}, {"q": "1"})
    ]
    read = settings(variants)  # once: reading settings is most of the work
    pairs = list(zip(variants, read.routes, strict=True))
    for (first, one), (second, other) in itertools.product(pairs, pairs):
        same_rank = (
            first["path"] == second["path"]
            and len(first["headers"]) == len(second["headers"])
            and bool(first["methods"]) == bool(second["methods"])
        )
        overlap = first["methods"] == second["methods"]
        disjoint = {**first["headers"], **second["headers"]} != first["headers"] and set(
            first["headers"]
        ) == set(second["headers"])
        refused = same_rank and overlap and not disjoint
        try:
            routetable.build_router(replace(read, routes=[one, other]), [])
        except ConfigError:
            assert refused, (first, second)
        else:
            assert not refused, (first, second)


def test_small_parts() -> None:
    assert check_host("*.Example.") == b"*.example"
    assert PathPattern("/a/{b}/*").shape == (b"a", None, b"*")
    assert Conditions({"a": "*"}, {}).excludes(Conditions({"a": "1"}, {})) is False
