"""Tokens of others: key sets, algorithms, rotation, a provider that goes away."""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jwt
import pytest
from gateway_process import GatewayProcess, Response
from gateway_upstream import Upstream
from jwks_server import JwksServer, SigningKey
from support.servers import wait_until

from nexus.errors import ConfigError
from nexus.gateway.auth import Authenticator, AuthError, check_settings
from nexus.gateway.keys import KeySet
from nexus.gateway.providers import Provider, Providers
from nexus.gateway.settings_auth import AuthSettings, ProviderSettings
from nexus.observability.registry import Registry
from nexus.settings import decode

SECRET = "0123456789abcdef0123456789abcdef"
ISSUER = "https://id.example"
START = dict[str, Any]


@pytest.fixture(scope="module")
def keys() -> dict[str, SigningKey]:
    return {name: SigningKey(name, f"k-{name}") for name in ("RS256", "ES256", "EdDSA")}


@pytest.fixture
def jwks(keys: dict[str, SigningKey]) -> Iterator[JwksServer]:
    server = JwksServer(list(keys.values()))
    yield server
    server.stop()


def provider(**changed: Any) -> dict[str, Any]:
    return {"issuer": ISSUER, "audiences": ["nexus"], "jwks_url": "http://127.0.0.1:1/"} | changed


def authenticator(keys: list[SigningKey], secret: str = SECRET, **changed: Any) -> Authenticator:
    settings = decode(
        AuthSettings, {"jwt_secret": secret, "providers": [provider(**changed)]}, source="t"
    )
    known = Provider(settings.providers[0])
    if keys:
        document = json.dumps({"keys": [key.jwk() for key in keys]}).encode()
        known.take(KeySet.parse(document))
    return Authenticator(settings, providers={ISSUER: known})


def bearer(key: SigningKey, **claims: Any) -> bytes:
    full = {"iss": ISSUER, "aud": "nexus", "client_id": "c"} | claims
    return f"Bearer {key.token(**{k: v for k, v in full.items() if v is not None})}".encode()


def reason(auth: Authenticator, field: bytes) -> str:
    with pytest.raises(AuthError) as caught:
        auth.verify(field, time.time())
    return caught.value.reason


# ------------------------------------------------------------------------------------- one worker


@pytest.mark.parametrize("algorithm", ["RS256", "ES256", "EdDSA"])
def test_each_kind_of_key(keys: dict[str, SigningKey], algorithm: str) -> None:
    auth = authenticator(list(keys.values()))
    field = bearer(keys[algorithm], sub="s", roles=["a", "b"], scope="x:read y")
    for _ in range(2):
        identity = auth.verify(field, time.time())
        assert (identity.client_id, identity.subject, identity.issuer) == ("c", "s", ISSUER)
        assert identity.roles == {"a", "b"}
        assert identity.scopes == {"x:read", "y"}
        assert identity.fields == (
            b"x-auth-client: c\r\nx-auth-subject: s\r\nx-auth-issuer: https://id.example\r\n"
            b"x-auth-roles: a,b\r\nx-auth-scopes: x:read y\r\n"
        )


def test_what_is_refused(keys: dict[str, SigningKey]) -> None:
    key = keys["RS256"]
    auth = authenticator(list(keys.values()))
    other = SigningKey("ES256", "k-ES256")
    assert reason(auth, bearer(key, aud="other")) == "bad_audience"
    assert reason(auth, bearer(key, aud=None)) == "missing_claim"
    assert reason(auth, bearer(key, iss="https://evil.example")) == "bad_issuer"
    assert reason(auth, bearer(key, iss=None)) == "bad_issuer"
    assert reason(auth, bearer(key, exp=int(time.time()) - 1)) == "expired"
    assert reason(auth, bearer(key, client_id=None)) == "missing_claim"
    assert reason(auth, bearer(key, client_id="a\nb")) == "bad_claim"
    assert reason(auth, bearer(key, roles=["admin,root"])) == "bad_claim"
    assert reason(auth, bearer(key, roles=["a\r\nx-auth-roles: root"])) == "bad_claim"
    assert reason(auth, bearer(key, roles={"a": 1})) == "bad_claim"
    assert reason(auth, bearer(key, scope="\ud800")) == "malformed_token"
    assert reason(auth, bearer(other)) == "bad_signature"
    only_rsa = authenticator(list(keys.values()), algorithms=["RS256"])
    assert reason(only_rsa, bearer(keys["ES256"])) == "bad_algorithm"


def test_a_public_key_is_no_secret(keys: dict[str, SigningKey]) -> None:
    """RFC 8725 §2.1: HS256 with the public key as the secret, and no signature at all."""
    import base64
    import hashlib
    import hmac

    def encoded(data: bytes) -> bytes:
        return base64.urlsafe_b64encode(data).rstrip(b"=")

    key = keys["RS256"]
    claims = {"iss": ISSUER, "aud": "nexus", "client_id": "c", "exp": int(time.time()) + 60}
    for algorithm in ("HS256", "HS512", "none", "RS256"):
        head = json.dumps({"alg": algorithm, "typ": "JWT", "kid": key.kid}).encode()
        signed = encoded(head) + b"." + encoded(json.dumps(claims).encode())
        digest = hmac.new(key.pem(), signed, hashlib.sha256).digest()
        for signature in (encoded(digest), b""):
            for secret in (SECRET, ""):
                auth = authenticator(list(keys.values()), secret)
                found = reason(auth, b"Bearer " + signed + b"." + signature)
                assert found in ("bad_signature", "bad_algorithm", "malformed_token"), algorithm
    # Our own secret signs for us, not for a provider.
    forged = jwt.encode(claims, SECRET, algorithm="HS256")
    assert reason(authenticator(list(keys.values()), ""), b"Bearer " + forged.encode()) == (
        "bad_algorithm"
    )


def test_keys_that_a_token_brings_along_are_not_believed(keys: dict[str, SigningKey]) -> None:
    mine = SigningKey("ES256", "k-ES256")
    claims = {"iss": ISSUER, "aud": "nexus", "client_id": "c", "exp": int(time.time()) + 60}
    headers = {"kid": "k-ES256", "jwk": mine.jwk(), "jku": "http://127.0.0.1:1/"}
    token = jwt.encode(claims, mine.private, algorithm="ES256", headers=headers)
    auth = authenticator(list(keys.values()))
    assert reason(auth, b"Bearer " + token.encode()) == "bad_signature"
    critical = jwt.encode(claims, keys["ES256"].private, "ES256", headers={"crit": ["x"], "x": 1})
    assert reason(auth, b"Bearer " + critical.encode()) == "malformed_token"


def test_claims_from_where_the_provider_has_them(keys: dict[str, SigningKey]) -> None:
    auth = authenticator(
        list(keys.values()),
        client_claim="azp",
        roles_claim="realm_access.roles",
        scopes_claim="scp",
        audiences=[],
    )
    field = bearer(
        keys["ES256"], aud=["x"], azp="app", realm_access={"roles": ["r"]}, scp=["s", "t"]
    )
    identity = auth.verify(field, time.time())
    assert (identity.client_id, identity.roles, identity.scopes) == ("app", {"r"}, {"s", "t"})


def test_without_kid_each_fitting_key_is_tried(keys: dict[str, SigningKey]) -> None:
    plain = SigningKey("ES256", None)
    auth = authenticator([keys["ES256"], keys["RS256"], plain])
    assert auth.verify(bearer(plain), time.time()).client_id == "c"


def test_no_keys_yet_is_not_the_clients_fault(keys: dict[str, SigningKey]) -> None:
    auth = authenticator([])
    with pytest.raises(AuthError) as caught:
        auth.verify(bearer(keys["ES256"]), time.time())
    assert (caught.value.status, caught.value.reason) == (503, "keys_unavailable")
    assert caught.value.fields == b"Retry-After: 1\r\n"


def test_key_sets(keys: dict[str, SigningKey]) -> None:
    ec = keys["ES256"].jwk()
    private = json.loads(jwt.algorithms.ECAlgorithm.to_jwk(keys["ES256"].private))
    document = {
        "keys": [
            {"kty": "oct", "k": "c2VjcmV0", "kid": "s"},
            {**ec, "use": "enc"},
            {**ec, "alg": "RS256"},
            {"kty": "EC", "crv": "P-999"},
            "text",
            {**private, "kid": "p"},
        ]
    }
    found = KeySet.parse(json.dumps(document).encode())
    assert [key.kid for key in found.keys] == ["p"]
    assert not hasattr(found.keys[0].public, "private_numbers")
    assert len(found.passed_over) == 5
    assert found.find("p", "ES256") == list(found.keys)
    assert found.find("p", "RS256") == found.find("q", "ES256") == []
    pem = keys["RS256"].pem() + keys["EdDSA"].pem()
    assert [min(k.algorithms) for k in KeySet.parse(pem).keys] == ["PS256", "EdDSA"]
    for wrong in (b"", b"[]", b'{"keys": 1}', b'{"keys": []}', b"[" * 5000, b"\xff"):
        with pytest.raises(ValueError, match="expected"):
            KeySet.parse(wrong)


@pytest.mark.parametrize(
    ("changed", "path", "said"),
    [
        ({"keys_file": "x"}, "auth.providers[0]", "either"),
        ({"jwks_url": ""}, "auth.providers[0]", "either"),
        ({"jwks_url": "ftp://x/"}, "auth.providers[0].jwks_url", "https"),
        ({"jwks_url": "https://u:p@x/"}, "auth.providers[0].jwks_url", "user information"),
        ({"jwks_url": "", "keys_file": "/nowhere"}, "auth.providers[0].keys_file", "cannot be"),
    ],
)
def test_settings_that_cannot_be(changed: dict[str, Any], path: str, said: str) -> None:
    settings = decode(AuthSettings, {"providers": [provider(**changed)]}, source="t")
    with pytest.raises(ConfigError, match=said) as caught:
        check_settings(settings)
    assert caught.value.path == path
    assert "u:p" not in str(caught.value)


def test_a_key_is_no_secret_in_the_configuration_either(keys: dict[str, SigningKey]) -> None:
    with pytest.raises(ConfigError, match="key file"):
        check_settings(AuthSettings(jwt_secret=keys["RS256"].pem().decode()))


async def test_fetches_renew_and_fail_softly(keys: dict[str, SigningKey], jwks: JwksServer) -> None:
    metrics = Registry(workers=1).open(0)
    providers = Providers(metrics, random.Random(1))
    settings = decode(
        ProviderSettings, provider(jwks_url=jwks.url, refresh_seconds=3600), source="t"
    )
    [known] = providers.apply([settings]).values()
    await providers.ready(5)
    assert known.current is not None
    assert len(known.current.keys) == 3
    # Unchanged settings keep the keys; nonsense asks for new ones once.
    assert providers.apply([settings])[ISSUER] is known
    before = jwks.asked
    for _ in range(50):
        known.want()
        await asyncio.sleep(0.002)
    assert jwks.asked - before == 1
    for status, document in ((500, b""), (302, b""), (200, b"{}"), (200, b"x" * (1 << 21))):
        jwks.status, jwks.document = status, document
        known._asked_at = float("-inf")
        before = jwks.asked
        known.want()
        while jwks.asked == before:
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.05)
        assert known.current is not None
        assert len(known.current.keys) == 3
    assert (
        metrics.counter("nexus_auth_key_fetches_total", issuer=ISSUER, result="failed").value >= 4
    )
    known.fetched_at -= settings.max_stale_seconds + 1
    assert known.current is None
    await providers.close()


# ----------------------------------------------------------------------------------- the gateway

Start = Callable[..., GatewayProcess]


def ask(
    gateway: GatewayProcess, key: SigningKey, path: str = "/api/echo", **claims: Any
) -> Response:
    field = f"Authorization: {bearer(key, **claims).decode()}"
    return gateway.request(path, "GET", None, field)


def served_again(gateway: GatewayProcess, before: set[str], children: Path) -> bool:
    now = set(children.read_text().split())
    try:
        ready = gateway.request("/ready").json["status"] == "ready"
    except (OSError, EOFError):
        return False
    return ready and len(now) == 2 and not now & before


def test_a_running_gateway_follows_its_provider(
    start_gateway: Start, upstream_a: Upstream, keys: dict[str, SigningKey], jwks: JwksServer
) -> None:
    settings = provider(jwks_url=jwks.url, unknown_key_seconds=1)
    gateway = start_gateway(
        [upstream_a.url],
        workers=2,
        auth={"enabled": True, "providers": [settings]},
        routes=[
            {"path": "/api/*"},
            {"path": "/admin/*", "auth": {"roles": ["admin"]}},
            {"path": "/write/*", "auth": {"scopes": ["x:write", "x:read"]}},
            {"path": "/open/*", "auth": {"enabled": False}},
        ],
    )
    key = keys["ES256"]
    answered = ask(gateway, key, roles=["user"], scope="x:read")
    assert answered.status == 200
    lines = answered.body.decode().lower().split("\r\n")
    assert [line for line in lines if line.startswith("x-auth-")] == [
        "x-auth-client: c",
        f"x-auth-issuer: {ISSUER}",
        "x-auth-roles: user",
        "x-auth-scopes: x:read",
    ]
    # Known is not allowed: 403, not 401 (RFC 6750 §3.1).
    refused = ask(gateway, key, "/admin/echo", roles=["user"])
    assert (refused.status, refused.json["reason"]) == (403, "insufficient_role")
    assert 'error="insufficient_scope"' in (refused.value("www-authenticate") or "")
    assert ask(gateway, key, "/admin/echo", roles=["x", "admin"]).status == 200
    refused = ask(gateway, key, "/write/echo", scope="x:read")
    assert (refused.status, refused.json["reason"]) == (403, "insufficient_scope")
    assert 'scope="x:read x:write"' in (refused.value("www-authenticate") or "")
    assert ask(gateway, key, "/write/echo", scope="x:read x:write z").status == 200
    missing = gateway.request("/admin/echo")
    assert (missing.status, missing.value("www-authenticate")) == (401, 'Bearer realm="nexus"')
    assert gateway.request("/open/echo").status == 200
    assert gateway.request("/auth/token", "POST", b"{}").status == 404  # no secret of our own
    # Rotation: the new key's first token makes each worker look again.
    new = SigningKey("ES256", "new")
    jwks.serve([new])

    def accepted(signer: SigningKey) -> bool:
        # Enough for both workers to be among those asked.
        return {ask(gateway, signer).status for _ in range(14)} == {200}

    # The first request with it waits for the keys, also one with a body, and is answered well.
    assert accepted(new)
    wait_until(lambda: accepted(new), 8, "the new key")
    wait_until(lambda: {ask(gateway, key, n=1).status for _ in range(14)} == {401}, 4, "the old")
    newest = SigningKey("EdDSA", "newest")
    jwks.serve([new, newest])
    time.sleep(1.1)  # unknown_key_seconds
    field = f"Authorization: {bearer(newest).decode()}"
    reply = gateway.request("/api/echo", "POST", b"body" * 5000, field)
    assert reply.status == 200
    assert reply.body.endswith(b"|" + b"body" * 5000)
    # The provider goes away: what is known holds, also for a worker that begins now.
    jwks.stop()
    children = Path(f"/proc/{gateway.process.pid}/task/{gateway.process.pid}/children")
    before = set(children.read_text().split())
    for pid in before:
        os.kill(int(pid), signal.SIGKILL)
    wait_until(lambda: served_again(gateway, before, children), 8, "new workers")
    assert accepted(new)
    time.sleep(1.1)
    begun = time.monotonic()
    assert ask(gateway, keys["RS256"]).json["reason"] == "unknown_key"  # after one vain attempt
    assert time.monotonic() - begun < 5
    assert accepted(new)


def test_a_gateway_without_its_provider_serves_the_rest(
    start_gateway: Start, upstream_a: Upstream, keys: dict[str, SigningKey], tmp_path: Path
) -> None:
    gateway = start_gateway(
        [upstream_a.url],
        auth={"enabled": True, "jwt_secret": SECRET, "providers": [provider()]},
    )
    away = ask(gateway, keys["RS256"])
    assert (away.status, away.json["reason"]) == (503, "keys_unavailable")
    assert away.value("retry-after") == "1"
    own = jwt.encode({"client_id": "c", "exp": time.time() + 60}, SECRET, algorithm="HS256")
    assert gateway.request("/api/json", "GET", None, f"Authorization: Bearer {own}").status == 200
    # A reload with the keys in a file mends it.
    file = tmp_path / "keys.pem"
    file.write_bytes(keys["RS256"].pem())
    auth = {"enabled": True, "providers": [provider(jwks_url="", keys_file=str(file))]}
    gateway.write_config(gateway.config | {"auth": auth})
    gateway.process.send_signal(1)
    wait_until(lambda: ask(gateway, keys["RS256"]).status == 200, 8, "the reload")
