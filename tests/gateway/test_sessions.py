"""Refresh, revocation, hashed secrets: a running gateway, its workers, and a real Redis."""

from __future__ import annotations

import http.client
import io
import json
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jwt
import psutil
import pytest
import redis
from gateway_process import BACKENDS, GatewayProcess, Response, check_backend
from gateway_upstream import Upstream
from support.servers import RedisServer, redis_executable, wait_until

from nexus.errors import ConfigError
from nexus.gateway import hashcommand
from nexus.gateway.auth import Authenticator, AuthError, Credentials, check_settings
from nexus.gateway.secrethash import HashedSecret, hash_secret
from nexus.gateway.sessions import BadRefreshTokenError, RefreshTokens
from nexus.gateway.settings_auth import AuthSettings, ClientSettings

SECRET = "0123456789abcdef0123456789abcdef"
CLIENT_SECRET = "correct horse battery"

pytestmark = pytest.mark.skipif(redis_executable() is None, reason="no redis-server")


@pytest.fixture(scope="module")
def store() -> Iterator[RedisServer]:
    server = RedisServer()
    yield server
    server.stop()


def auth(**changed: Any) -> dict[str, Any]:
    clients = [
        {
            "client_id": "app",
            "client_secret": hash_secret(CLIENT_SECRET),
            "roles": ["user"],
            "scopes": ["read", "write"],
        },
        {"client_id": "other", "client_secret": CLIENT_SECRET},
        {"client_id": "operator", "client_secret": CLIENT_SECRET, "may_revoke": True},
    ]
    return {
        "enabled": True,
        "jwt_secret": SECRET,
        "clients": clients,
        "refresh": {"enabled": True, "ttl_seconds": 600},
    } | changed


@pytest.fixture(scope="module", params=BACKENDS)
def gateway(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    upstream_a: Upstream,
    store: RedisServer,
) -> Iterator[GatewayProcess]:
    check_backend(request.param)
    overrides = {
        "workers": 2,
        "auth": auth(),
        "redis": {"url": store.url},
        "routes": [{"path": "/api/*"}, {"path": "/w/*", "auth": {"scopes": ["write"]}}],
    }
    directory = tmp_path_factory.mktemp(f"sessions-{request.param}")
    process = GatewayProcess(directory, request.param, [upstream_a.url], overrides).start()
    yield process
    assert process.stop() == 0, process.output()
    assert "Traceback" not in process.output(), process.output()
    for secret in (SECRET, CLIENT_SECRET, "scrypt:"):
        assert secret not in process.output()


def post(gateway: GatewayProcess, path: str, *fields: str, **body: Any) -> Response:
    return gateway.request(path, "POST", json.dumps(body).encode() if body else b"", *fields)


def login(gateway: GatewayProcess, client: str = "app", **more: Any) -> dict[str, Any]:
    reply = post(gateway, "/auth/token", client_id=client, client_secret=CLIENT_SECRET, **more)
    assert reply.status == 200, reply
    assert reply.value("cache-control") == "no-store"
    return dict(reply.json)


def get(gateway: GatewayProcess, token: str, path: str = "/api/json") -> Response:
    return gateway.request(path, "GET", None, f"Authorization: Bearer {token}")


def everywhere(gateway: GatewayProcess, token: str) -> set[int]:
    """Statuses from so many connections that both workers are among those asked."""
    return {get(gateway, token).status for _ in range(12)}


def test_a_session_is_renewed(gateway: GatewayProcess) -> None:
    first = login(gateway, scope="read")
    assert first["scope"] == "read"
    tokens = [first["refresh_token"]]
    for _ in range(3):
        reply = post(gateway, "/auth/refresh", refresh_token=tokens[-1])
        assert reply.status == 200, reply
        assert reply.json["expires_in"] == 3600
        claims = jwt.decode(reply.json["access_token"], options={"verify_signature": False})
        assert (claims["scope"], claims["roles"]) == ("read", ["user"])
        assert get(gateway, reply.json["access_token"]).status == 200
        tokens.append(reply.json["refresh_token"])
    assert len(set(tokens)) == 4
    assert get(gateway, reply.json["access_token"], "/w/json").status == 403
    assert get(gateway, login(gateway)["access_token"], "/w/json").status == 200


def test_the_second_use_ends_the_whole_session(gateway: GatewayProcess) -> None:
    first = login(gateway)
    second = post(gateway, "/auth/refresh", refresh_token=first["refresh_token"]).json
    other = login(gateway)
    assert everywhere(gateway, second["access_token"]) == {200}
    stolen = post(gateway, "/auth/refresh", refresh_token=first["refresh_token"])
    assert (stolen.status, stolen.json["reason"]) == (401, "refresh_reused")
    assert stolen.value("www-authenticate") == 'Bearer realm="nexus"'
    # Nothing that came of it is good any more, on either worker, within a second.
    for token in (first["access_token"], second["access_token"]):
        wait_until(lambda token=token: everywhere(gateway, token) == {401}, 1.0, "the revocation")
        assert get(gateway, token).json["reason"] == "revoked"
    late = post(gateway, "/auth/refresh", refresh_token=second["refresh_token"])
    assert (late.status, late.json["reason"]) == (401, "session_ended")
    assert everywhere(gateway, other["access_token"]) == {200}


def test_nobody_else_can_end_a_session(gateway: GatewayProcess) -> None:
    token = login(gateway)["refresh_token"]
    session, number, mac = token.split(".")
    for forged in (
        f"{session}.0.{mac}",
        f"{session}.{number}.{mac[:-2]}AA",
        f"{session}.{number}",
        "x" * 500,
        "é.1.x",
    ):
        reply = post(gateway, "/auth/refresh", refresh_token=forged)
        assert (reply.status, reply.json["reason"]) == (401, "bad_refresh_token"), forged
    assert post(gateway, "/auth/refresh", refresh_token=token).status == 200


def test_what_refresh_and_revoke_refuse(gateway: GatewayProcess) -> None:
    for path, name in (("/auth/refresh", "refresh_token"), ("/auth/revoke", "token")):
        assert post(gateway, path).json["reason"] == "bad_json"
        assert post(gateway, path, other="1").json["reason"] == "missing_field"
        assert post(gateway, path, **{name: 5}).json["reason"] == "bad_field"
        assert gateway.request(path).status == 405
    assert post(gateway, "/auth/revoke", token="nonsense").status == 200  # RFC 7009 §2.2
    wrong = post(gateway, "/auth/token", client_id="app", client_secret=CLIENT_SECRET, scope="x")
    assert (wrong.status, wrong.json["reason"]) == (400, "bad_scope")


def test_an_access_token_is_revoked_alone(gateway: GatewayProcess) -> None:
    one = login(gateway)
    other = login(gateway)
    assert everywhere(gateway, one["access_token"]) == {200}  # known to both workers
    assert post(gateway, "/auth/revoke", token=one["access_token"]).status == 200
    wait_until(lambda: everywhere(gateway, one["access_token"]) == {401}, 1.0, "the revocation")
    reply = get(gateway, one["access_token"])
    assert reply.json["reason"] == "revoked"
    assert 'error="invalid_token"' in (reply.value("www-authenticate") or "")
    # Another spelling of the signature's last letter is the same token.
    token = one["access_token"]
    letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    at = letters.index(token[-1])
    assert get(gateway, token[:-1] + letters[at ^ 1]).status == 401
    assert everywhere(gateway, other["access_token"]) == {200}
    assert post(gateway, "/auth/refresh", refresh_token=one["refresh_token"]).status == 200


def test_a_connection_that_stays_learns_of_a_revocation(gateway: GatewayProcess) -> None:
    one, other = login(gateway), login(gateway)
    connection = http.client.HTTPConnection("127.0.0.1", gateway.port, timeout=10)

    def status(token: str) -> int:
        connection.request("GET", "/api/json", headers={"Authorization": f"Bearer {token}"})
        reply = connection.getresponse()
        reply.read()
        return reply.status

    tokens = [one["access_token"]] * 3 + [other["access_token"]] * 2 + [one["access_token"]]
    assert [status(token) for token in tokens] == [200] * 6
    assert status(one["access_token"] + "x") == 401
    assert status(one["access_token"]) == 200
    assert post(gateway, "/auth/revoke", token=one["access_token"]).status == 200
    wait_until(lambda: status(one["access_token"]) == 401, 10.0, "the revocation")
    assert status(other["access_token"]) == 200
    connection.close()


def test_a_refresh_token_is_revoked_with_its_session(gateway: GatewayProcess) -> None:
    held = login(gateway)
    assert post(gateway, "/auth/revoke", token=held["refresh_token"]).status == 200
    wait_until(lambda: everywhere(gateway, held["access_token"]) == {401}, 1.0, "the revocation")
    assert post(gateway, "/auth/refresh", refresh_token=held["refresh_token"]).status == 401


def revoke_all(gateway: GatewayProcess, by: str = "app", **fields: Any) -> Response:
    credentials = {"client_id": by, "client_secret": CLIENT_SECRET, "all": True}
    return post(gateway, "/auth/revoke", **credentials | fields)


def end(gateway: GatewayProcess, held: dict[str, Any]) -> None:
    """Wait until neither token of a login is good for anything, on either worker."""
    token = held["access_token"]
    wait_until(lambda: everywhere(gateway, token) == {401}, 5.0, "the revocation")
    assert get(gateway, token).json["reason"] == "revoked"
    late = post(gateway, "/auth/refresh", refresh_token=held["refresh_token"])
    assert (late.status, late.json["reason"]) == (401, "session_ended")


def test_a_client_ends_all_that_it_was_given(gateway: GatewayProcess) -> None:
    held = [login(gateway), login(gateway)]
    renewed = post(gateway, "/auth/refresh", refresh_token=held[1]["refresh_token"]).json
    others = login(gateway, "other")
    for one in (*held, renewed):  # known to both workers
        assert everywhere(gateway, one["access_token"]) == {200}
    assert revoke_all(gateway).status == 200
    end(gateway, held[0])
    # Asked for in the same second, of a worker that knows: good all the same, and stays so.
    fresh = login(gateway)
    end(gateway, renewed)
    assert everywhere(gateway, held[1]["access_token"]) == {401}
    assert everywhere(gateway, fresh["access_token"]) == {200}
    assert post(gateway, "/auth/refresh", refresh_token=fresh["refresh_token"]).status == 200
    assert everywhere(gateway, others["access_token"]) == {200}
    # Once more: what came in between ends too.
    assert revoke_all(gateway).status == 200
    end(gateway, fresh)
    assert everywhere(gateway, others["access_token"]) == {200}


def test_who_may_end_the_tokens_of_others(gateway: GatewayProcess) -> None:
    held = login(gateway, "other")
    refused = revoke_all(gateway, of_client="other")
    assert (refused.status, refused.json["reason"]) == (403, "may_not_revoke")
    # Its own name at a provider is somebody else.
    assert revoke_all(gateway, of_client="app", issuer="https://id").status == 403
    assert revoke_all(gateway, of_subject="app", issuer="https://id").status == 403
    wrong = revoke_all(gateway, "operator", client_secret="wrong", of_client="other")
    assert (wrong.status, wrong.json["reason"]) == (401, "bad_credentials")
    for reason, fields in (
        ("bad_field", {"of_client": 5}),
        ("bad_field", {"of_client": "a", "of_subject": "b", "issuer": "c"}),
        ("missing_field", {"of_subject": "b"}),
        ("missing_field", {"issuer": "c"}),
        ("bad_field", {"client_secret": ""}),
    ):
        reply = revoke_all(gateway, "operator", **fields)
        assert (reply.status, reply.json["reason"]) == (400, reason), fields
    # Credentials alone end nothing: a token that is missing is a mistake.
    assert revoke_all(gateway, "other", all=False).json["reason"] == "missing_field"
    assert everywhere(gateway, held["access_token"]) == {200}
    assert revoke_all(gateway, "operator", of_client="other").status == 200
    end(gateway, held)


def test_the_admin_listener_ends_tokens_on_every_gateway(
    start_gateway: Any, upstream_a: Upstream, store: RedisServer
) -> None:
    gateway = start_gateway([upstream_a.url], auth=auth(), redis={"url": store.url}, workers=2)
    second = start_gateway([upstream_a.url], auth=auth(), redis={"url": store.url})
    held = login(gateway)
    assert get(second, held["access_token"]).status == 200
    url = f"http://127.0.0.1:{second.admin_port}"
    command = [sys.executable, "-m", "nexus", "admin", "--url", url, "revoke", "--client", "app"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
    assert json.loads(done.stdout) == {"revoked": "all:client::app"}
    assert get(second, held["access_token"]).json["reason"] == "revoked"
    end(gateway, held)
    # A worker that starts later knows it from Redis.
    for process in psutil.Process(second.process.pid).children():
        process.kill()
    wait_until(lambda: reached(second, held["access_token"]) == 401, 30, "a new worker")
    assert get(second, login(second)["access_token"]).status == 200
    bad = subprocess.run([*command[:-2], "--subject", "x"], capture_output=True, check=False)
    assert bad.returncode == 1
    assert b"issuer is missing" in bad.stderr


def reached(gateway: GatewayProcess, token: str) -> int:
    """The status, or 0 while nobody answers."""
    try:
        return get(gateway, token).status
    except (OSError, EOFError):
        return 0


def test_wrong_secrets(gateway: GatewayProcess) -> None:
    for client, secret in (("app", "wrong secret"), ("nobody", CLIENT_SECRET)):
        reply = post(gateway, "/auth/token", client_id=client, client_secret=secret)
        assert (reply.status, reply.json["reason"]) == (401, "bad_credentials")


def test_redis_holds_nothing_that_opens_a_door(gateway: GatewayProcess, store: RedisServer) -> None:
    held = login(gateway)
    client = redis.Redis.from_url(store.url, decode_responses=True)
    kept = {key: client.hgetall(key) for key in client.scan_iter("nexus:auth:session:*")}
    session = held["refresh_token"].split(".")[0]
    begun = float(kept[f"nexus:auth:session:{session}"].pop("begun"))
    assert 0 <= time.time() - begun < 60
    assert kept[f"nexus:auth:session:{session}"] == {
        "client": "app",
        "scope": "*",
        "due": "1",
        "everything": "all:client::app",
    }
    assert 0 < client.ttl(f"nexus:auth:session:{session}") <= 600
    client.close()


# --------------------------------------------------------------------------- a gateway of its own


def test_cookie_and_redis_that_comes_and_goes(
    start_gateway: Any, upstream_a: Upstream, tmp_path: Path
) -> None:
    store = RedisServer()
    refresh = {"enabled": True, "cookie": "nexus_refresh"}
    gateway = start_gateway([upstream_a.url], auth=auth(refresh=refresh), redis={"url": store.url})
    try:
        reply = post(gateway, "/auth/token", client_id="app", client_secret=CLIENT_SECRET)
        assert "refresh_token" not in reply.json
        cookie = reply.value("set-cookie") or ""
        assert re.fullmatch(
            r"nexus_refresh=\S+; Path=/auth; Max-Age=1209600; HttpOnly; Secure; SameSite=Strict",
            cookie,
        )
        shown = f"Cookie: a=b; {cookie.split(';')[0]}"
        renewed = post(gateway, "/auth/refresh", shown)
        assert renewed.status == 200
        assert renewed.value("set-cookie") != cookie
        revoked = renewed.json["access_token"]
        assert post(gateway, "/auth/revoke", token=revoked).status == 200
        assert get(gateway, revoked).status == 401
        held = login(gateway)["access_token"]
        # A Redis that has lost everything learns of the revocation again.
        store.kill()
        assert post(gateway, "/auth/refresh", shown).json["reason"] == "sessions_unavailable"
        refused = post(gateway, "/auth/revoke", token=held)
        assert (refused.status, refused.value("retry-after")) == (503, "1")
        assert get(gateway, held).status == 401  # here already
        assert get(gateway, revoked).status == 401
        without = login(gateway)  # an access token is to be had all the same
        assert get(gateway, without["access_token"]).status == 200
        store.start()
        client = redis.Redis.from_url(store.url)
        wait_until(lambda: client.zcard("nexus:auth:denied") == 2, 8, "what was given back")
        client.close()
        # So does a worker that comes up later.
        second = start_gateway(
            [upstream_a.url], auth=auth(refresh=refresh), redis={"url": store.url}
        )
        assert get(second, held).json["reason"] == "revoked"
        assert get(second, revoked).json["reason"] == "revoked"
    finally:
        store.stop()


# -------------------------------------------------------------------------------------- small parts


def test_refresh_tokens_survive_a_new_secret() -> None:
    old, new = RefreshTokens("a" * 32), RefreshTokens("b" * 32, "a" * 32)
    assert new.read(old.make("s", 7)) == ("s", 7)
    assert new.read(new.make("s", 8)) == ("s", 8)
    with pytest.raises(BadRefreshTokenError):
        old.read(new.make("s", 8))


def test_hashes() -> None:
    for scrypt in (True, False):
        text = hash_secret("ünïcödé", scrypt=scrypt)
        found = HashedSecret(text)
        assert found.matches("ünïcödé")
        assert not found.matches("unicode")
        assert found.slow is scrypt
        assert "ü" not in text
    assert hash_secret("a") != hash_secret("a")


@pytest.mark.parametrize(
    "text",
    ["sha256:abc", "scrypt:", "scrypt:30:8:1:AAAAAAAAAAAA:" + "A" * 43, "scrypt:14:8:1:AA:AA"],
)
def test_hashes_that_are_none(text: str) -> None:
    client = ClientSettings(client_id="a", client_secret=text)
    with pytest.raises(ConfigError, match="expected") as caught:
        check_settings(AuthSettings(jwt_secret=SECRET, clients=(client,)))
    assert caught.value.path == "auth.clients[0].client_secret"
    assert text not in str(caught.value)


def test_a_slow_hash_is_computed_once_per_right_secret() -> None:
    clients = (
        ClientSettings(client_id="a", client_secret=hash_secret("long enough")),
        ClientSettings(client_id="b", client_secret=hash_secret("long enough", scrypt=False)),
        ClientSettings(client_id="c", client_secret="long enough"),
    )
    auth = Authenticator(AuthSettings(jwt_secret=SECRET, clients=clients))
    right = {name: Credentials(name, "long enough", None) for name in "abcx"}
    assert {n: auth.is_slow(c) for n, c in right.items()} == {
        "a": True, "b": False, "c": False, "x": True,
    }  # fmt: skip
    assert {n: auth.matches(c) for n, c in right.items()} == {
        "a": True, "b": True, "c": True, "x": False,
    }  # fmt: skip
    assert not auth.is_slow(right["a"])
    assert auth.is_slow(Credentials("a", "wrong", None))
    assert not auth.matches(Credentials("a", "wrong", None))


def test_a_right_that_was_taken_away_is_gone_from_tokens_too() -> None:
    def made(*roles: str) -> Authenticator:
        client = ClientSettings(client_id="a", client_secret="12345678", roles=roles)
        return Authenticator(AuthSettings(jwt_secret=SECRET, clients=(client,)))

    now = time.time()
    token = made("x", "y").grant("a", None, now)[1]["access_token"]
    assert made("y", "z").verify(f"Bearer {token}".encode(), now).roles == {"y"}


def test_issuer_audience_and_earlier_secrets() -> None:
    now = time.time()

    def made(**changed: Any) -> Authenticator:
        client = ClientSettings(client_id="a", client_secret="12345678")
        settings = {"jwt_secret": SECRET, "clients": (client,), "issuer": "i", "audience": "me"}
        return Authenticator(AuthSettings(**settings | changed))

    field = f"Bearer {made().grant('a', None, now)[1]['access_token']}".encode()
    assert made().verify(field, now).client_id == "a"
    later = made(jwt_secret="n" * 32, previous_jwt_secrets=(SECRET,))
    assert later.verify(field, now).client_id == "a"
    for reason, changed in (
        ("bad_issuer", {"issuer": "j"}),
        ("bad_audience", {"audience": "you"}),
        ("bad_audience", {"audience": ""}),
        ("bad_signature", {"jwt_secret": "n" * 32}),
    ):
        with pytest.raises(AuthError) as caught:
            made(**changed).verify(field, now)
        assert caught.value.reason == reason


def test_the_command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("my long secret\n"))
    assert hashcommand.main([]) == 0
    assert HashedSecret(capsys.readouterr().out.strip()).matches("my long secret")
    assert hashcommand.main(["--generate", "--sha256"]) == 0
    secret, text = capsys.readouterr().out.split()
    assert HashedSecret(text).matches(secret)
    monkeypatch.setattr("sys.stdin", io.StringIO("short\n"))
    assert hashcommand.main([]) == 2
    assert "at least 8" in capsys.readouterr().err
