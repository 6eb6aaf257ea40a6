"""``nexus explain`` and the lines of the file that errors name."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import jwt
import pytest
from gateway_process import GatewayProcess
from gateway_upstream import Upstream
from jwks_server import JwksServer, SigningKey

from nexus import cli
from nexus.settings import locate

SECRET = "0123456789abcdef0123456789abcdef"

CONFIG = """\
services_file: {services}
block_list: {{enabled: false}}
auth:
  jwt_secret: {secret}
networks: {{deny: [192.0.2.0/24]}}
routes:
  - path: /api/*
  # the one with everything
  - path: /users/{{id}}/*
    rewrite: /v2/{{id}}/*
    methods: [GET]
    upstream: users
    auth: {{roles: [admin]}}
    request:
      headers: {{set: {{x-user: "{{id}}"}}}}
      query: {{remove: [debug]}}
    timeouts: {{response: 1.5}}
    cors: {{origins: ["https://a.example"]}}
    rate_limits:
      - {{name: users, capacity: 7, refill_per_second: 1}}
"""


@pytest.fixture
def config(tmp_path: Path) -> Path:
    services = tmp_path / "services.json"
    urls = [{"url": "http://127.0.0.1:1"}, {"url": "http://127.0.0.1:2", "group": "users"}]
    services.write_text(json.dumps({"services": urls}))
    file = tmp_path / "gateway.yaml"
    file.write_text(CONFIG.format(services=services, secret=SECRET))
    return file


def run(
    config: Path, capsys: pytest.CaptureFixture[str], *arguments: str
) -> tuple[int, dict[str, str]]:
    """The status, and what is said under which name."""
    code = cli.main(["explain", *arguments, "--config", str(config), "--json"])
    out, err = capsys.readouterr()
    assert code == 0, err
    document = json.loads(out)
    return document["status"], dict(document["lines"])


def bearer(**claims: Any) -> str:
    full = {"client_id": "c", "exp": time.time() + 3600} | claims
    return f"Authorization: Bearer {jwt.encode(full, SECRET, algorithm='HS256')}"


def test_a_request_that_is_passed_on(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, said = run(
        config, capsys, "GET", "/users/7//x/../y?debug=1&a=2", "-H", bearer(roles=["admin"])
    )
    assert status == 0
    assert said["route"] == f"/users/{{id}}/* ({config}:9, routes[1])"
    assert said["matches"] == "path /users/{id}/*; method GET"
    assert said["sent as"] == "GET /v2/7/y?a=2"
    assert said["upstream"] == "group users, round-robin: http://127.0.0.1:2 (weight 1)"
    assert said["1 networks"] == "deny 192.0.2.0/24"
    assert said["3 address limit"] == "10 requests at once, 2 per second"
    assert said["5 authentication"].startswith("the token is good: client c, roles admin")
    assert said["6 limits"] == "users: 7 at once, 1 per second and client"
    assert said["7 authorization"] == "one of the roles admin"
    assert said["request headers"] == "set x-user: {id}"
    assert said["timeouts"].startswith("response head 1.5 s, all attempts 30 s")
    assert said["decision"] == "passed on to the group users"
    # In the order of the phases.
    numbered = [name for name in said if name[0].isdigit()]
    assert numbered == sorted(numbered)
    assert len(numbered) == 8


@pytest.mark.parametrize(
    ("arguments", "status", "decision"),
    [
        (("GET", "/users/7/x"), 401, "401 missing_token"),
        (("GET", "/users/7/x", "-H", bearer(roles=["user"])), 403, "403 insufficient_role"),
        (("GET", "/users/7/x", "-H", bearer(exp=1)), 401, "401 expired"),
        (("POST", "/users/7/x", "-H", bearer()), 405, "405 method_not_allowed"),
        (("GET", "/nowhere", "-H", bearer()), 404, "404 no_route"),
        (("GET", "/api/x", "--ip", "192.0.2.7"), 403, "403 denied_network"),
        (("GET", "/a%00"), 400, "400 bad_path"),
        (("GET", "/api/x", "-H", "X y: 1"), 400, "400 space_before_colon"),
        (("GET", "/api/x", "-H", bearer(), "-H", "Content-Length: 99999999"), 413, "413 body_too"),
        (("GET", "/health"), 0, "answered by the gateway itself, /health"),
        (
            ("OPTIONS", "/users/1/x", "-H", "Origin: https://a.example", "-H",
             "Access-Control-Request-Method: GET"), 204, "204",
        ),
        (
            ("OPTIONS", "/users/1/x", "-H", "Origin: https://b.example", "-H",
             "Access-Control-Request-Method: GET"), 403, "403 cors_origin",
        ),
    ],
)  # fmt: skip
def test_decisions(
    config: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: tuple[str, ...],
    status: int,
    decision: str,
) -> None:
    found, said = run(config, capsys, *arguments)
    assert said["decision"].startswith(decision)
    assert found == status


def test_it_says_what_the_running_gateway_does(
    start_gateway: Any, upstream_a: Upstream, capsys: pytest.CaptureFixture[str]
) -> None:
    auth = {"enabled": True, "jwt_secret": SECRET}
    routes = [
        {"path": "/api/*", "auth": {"enabled": False}},
        {"path": "/admin/*", "auth": {"roles": ["admin"]}, "methods": ["GET"]},
    ]
    gateway: GatewayProcess = start_gateway([upstream_a.url], auth=auth, routes=routes)
    token = bearer(roles=["user"])
    for method, path, *fields in (
        ("GET", "/api/json"),
        ("GET", "/admin/json"),
        ("GET", "/admin/json", token),
        ("GET", "/admin/json", bearer(roles=["admin"])),
        ("POST", "/admin/json", token),
        ("GET", "/x", token),
        ("GET", "/x"),
        ("GET", "/api/../../x"),
    ):
        flags = [flag for field in fields for flag in ("-H", field)]
        status, _ = run(gateway.config_file, capsys, method, path, *flags)
        assert gateway.request(path, method, None, *fields).status == (status or 200), path


def test_a_providers_keys_are_fetched(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    key = SigningKey("ES256", "k")
    jwks = JwksServer([key])
    provider = f"  providers: [{{issuer: i, audiences: [], jwks_url: '{jwks.url}'}}]\nnetworks"
    config.write_text(config.read_text().replace("networks", provider))
    field = f"Authorization: Bearer {key.token(iss='i', client_id='c')}"
    try:
        status, said = run(config, capsys, "GET", "/api/x", "-H", field)
        assert (status, said["decision"]) == (0, "passed on to the group default")
        assert run(config, capsys, "GET", "/api/x")[0] == 401
    finally:
        jwks.stop()
    status, said = run(config, capsys, "GET", "/api/x", "-H", field)
    assert status == 503
    assert "cannot be fetched" in said["keys"]


def test_errors_name_file_and_line(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = config.read_text()
    for old, new, line, path in (
        ("upstream: users", "upstream: nobody", 12, "routes[1].upstream"),
        ("methods: [GET]", "methods: [get]", 11, "routes[1].methods[0]"),
        ("path: /api/*", "path: /health", 7, "routes[0].path"),
        (f"jwt_secret: {SECRET}", "jwt_secret: short", 4, "auth.jwt_secret"),
        ("response: 1.5", "response: fast", 17, "routes[1].timeouts.response"),
        ("origins", "origin", 18, "routes[1].cors.origin"),
    ):
        config.write_text(text.replace(old, new))
        for command in (["check", str(config)], ["explain", "GET", "/", "--config", str(config)]):
            assert cli.main(command) == 2
            assert f"{config}:{line}: {path}: " in capsys.readouterr().err
    config.write_text(text)
    assert cli.main(["check", str(config)]) == 0
    assert SECRET not in capsys.readouterr().out


def test_lines(tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    file.write_text("a:\n  - b: 1\n    c: {d: 2}\n  -\n    b: 3\n")
    assert [locate(file, path) for path in ("a", "a[0]", "a[0].c.d", "a[1].b", "a[9].b", "x")] == [
        1, 2, 3, 5, 1, 0,
    ]  # fmt: skip
    assert locate(tmp_path / "none.yaml", "a") == 0
