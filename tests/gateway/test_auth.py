"""Tokens: issued as the contract says, verified strictly, remembered within bounds."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import hmac
import json
from typing import Any

import jwt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nexus.errors import ConfigError
from nexus.gateway.auth import Authenticator, AuthError, check_settings
from nexus.gateway.denylist import everything_of
from nexus.gateway.settings_auth import AuthSettings, ClientSettings
from nexus.observability.registry import Registry

KEY = "0123456789abcdef0123456789abcdef"
SECRET = "correct horse battery"
NOW = 1_800_000_000.5


def settings(**changed: Any) -> AuthSettings:
    clients = (
        ClientSettings(client_id="x", client_secret="its-own-secret"),
        ClientSettings(client_id="gateway-client", client_secret=SECRET),
        ClientSettings(client_id="andere", client_secret="ünïcödé-secret"),
    )
    return AuthSettings(**{"jwt_secret": KEY, "clients": clients} | changed)


@pytest.fixture
def auth() -> Authenticator:
    return Authenticator(settings())


def ask(auth: Authenticator, client_id: object, secret: object) -> tuple[int, dict[str, Any]]:
    body = json.dumps({"client_id": client_id, "client_secret": secret}).encode()
    return auth.issue(body, NOW)


def bearer(claims: dict[str, Any], key: str = KEY, algorithm: str = "HS256") -> bytes:
    return b"Bearer " + jwt.encode(claims, key, algorithm=algorithm).encode()


def good(**changed: Any) -> bytes:
    return bearer({"client_id": "x", "exp": NOW + 60} | changed)


def reason(auth: Authenticator, field: bytes | None, now: float = NOW) -> str:
    with pytest.raises(AuthError) as caught:
        auth.verify(field, now)
    assert caught.value.status == 401
    return caught.value.reason


def test_a_token_is_issued_and_accepted_until_it_expires(auth: Authenticator) -> None:
    status, reply = ask(auth, "gateway-client", SECRET)
    assert status == 200
    assert reply.keys() == {"access_token", "token_type", "expires_in"}
    assert (reply["token_type"], reply["expires_in"]) == ("Bearer", 3600)
    claims = jwt.decode(reply["access_token"], options={"verify_signature": False})
    assert len(claims.pop("jti")) == 16
    assert claims == {"client_id": "gateway-client", "iat": 1_800_000_000, "exp": 1_800_003_600}
    field = b"Bearer " + reply["access_token"].encode()
    for _ in range(2):  # computed, then remembered
        assert auth.verify(field, NOW).client_id == "gateway-client"
        assert auth.verify(field, 1_800_003_599.9).client_id == "gateway-client"
    assert reason(auth, field, 1_800_003_600.0) == "expired"
    assert reason(auth, field, 1_800_003_600.0) == "expired"  # and is not remembered any more


def test_the_signature_is_hmac_sha256(auth: Authenticator) -> None:
    token = ask(auth, "gateway-client", SECRET)[1]["access_token"]
    signed, _, signature = token.rpartition(".")
    expected = hmac.new(KEY.encode(), signed.encode(), hashlib.sha256).digest()
    assert base64.urlsafe_b64decode(signature + "=") == expected


@pytest.mark.parametrize(
    ("client_id", "secret", "status"),
    [
        ("andere", "ünïcödé-secret", 200),
        ("gateway-client", "wrong", 401),
        ("gateway-client", SECRET + " ", 401),
        ("andere", SECRET, 401),
        ("nobody", SECRET, 401),
        ("GATEWAY-CLIENT", SECRET, 401),
        ("", SECRET, 400),
        ("gateway-client", "", 400),
        (None, SECRET, 400),
        ("gateway-client", 5, 400),
        (["gateway-client"], SECRET, 400),
    ],
)
def test_credentials(auth: Authenticator, client_id: object, secret: object, status: int) -> None:
    found, reply = ask(auth, client_id, secret)
    assert found == status
    if status != 200:
        assert reply["error"] == {400: "Bad Request", 401: "Unauthorized"}[status]
        assert reply["message"]
        assert SECRET not in str(reply)


def test_the_reply_does_not_tell_which_clients_exist(auth: Authenticator) -> None:
    assert ask(auth, "nobody", "wrong") == ask(auth, "gateway-client", "wrong")


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        (b"", 400, "bad_json"),
        (b"{", 400, "bad_json"),
        (b"[]", 400, "bad_json"),
        (b"null", 400, "bad_json"),
        (b'"text"', 400, "bad_json"),
        (b"client_id=a&client_secret=b", 400, "bad_json"),
        (b'{"client_id": "\xff", "client_secret": "b"}', 400, "bad_json"),
        (b"[" * 5000, 400, "bad_json"),
        (b"{}", 400, "missing_field"),
        (b'{"client_id": "a"}', 400, "missing_field"),
        (b'{"client_secret": "a"}', 400, "missing_field"),
        (b" " * 8193, 413, "body_too_large"),
    ],
)
def test_bodies_that_are_refused(auth: Authenticator, body: bytes, status: int, code: str) -> None:
    found, reply = auth.issue(body, NOW)
    assert (found, reply["reason"]) == (status, code)


@given(body=st.binary(max_size=200))
def test_no_body_breaks_it(body: bytes) -> None:
    status, reply = Authenticator(settings()).issue(body, NOW)
    assert status == 400
    assert json.dumps(reply)


def unsigned(claims: dict[str, Any]) -> bytes:
    return b"Bearer " + jwt.encode(claims, "", algorithm="none").encode()


LONG_KEY = KEY * 2

#: A header that is nested deeper than Python's JSON decoder can follow, within the size limit.
NESTED = b"Bearer " + base64.urlsafe_b64encode(b"[" * 2901).rstrip(b"=") + b".e30.AAAA"


@pytest.mark.parametrize(
    ("field", "expected"),
    [
        (None, "missing_token"),
        (b"", "bad_scheme"),
        (b"Basic Zm9vOmJhcg==", "bad_scheme"),
        (b"Bearer", "malformed_token"),
        (b"Bearer ", "malformed_token"),
        (b"Bearer abc", "malformed_token"),
        (b"Bearer a.b.c", "malformed_token"),
        (b"Bearer a.b.c.d", "malformed_token"),
        (b"Bearer " + b"a" * 9000, "malformed_token"),
        (b"Bearer \xff.\xff.\xff", "malformed_token"),
        (NESTED, "malformed_token"),
        (unsigned({"client_id": "x", "exp": NOW + 60}), "bad_algorithm"),
        (bearer({"client_id": "x", "exp": NOW + 60}, LONG_KEY, "HS512"), "bad_algorithm"),
        (bearer({"client_id": "x", "exp": NOW + 60}, LONG_KEY), "bad_signature"),
        (bearer({"client_id": "x"}), "missing_claim"),
        (bearer({"exp": NOW + 60}), "missing_claim"),
        (good(exp=NOW), "expired"),
        (good(exp=NOW - 1), "expired"),
        (good(exp=0), "expired"),
        (good(exp=-(10**400)), "bad_claim"),
        (good(exp=10**400), "bad_claim"),
        (good(exp=str(int(NOW + 60))), "bad_claim"),
        (good(exp=True), "bad_claim"),
        (good(exp=float("inf")), "bad_claim"),
        (good(exp=float("nan")), "bad_claim"),
        (good(exp=[1]), "bad_claim"),
        (good(nbf=NOW + 1), "not_yet_valid"),
        (good(nbf="soon"), "bad_claim"),
        (good(client_id=""), "bad_claim"),
        (good(client_id=7), "bad_claim"),
        (good(client_id="x\r\nx-auth-roles: admin"), "bad_claim"),
        (good(client_id="x" * 129), "bad_claim"),
        (good(client_id="removed"), "unknown_client"),
        (good(aud="another service"), "bad_audience"),
    ],
)
def test_tokens_that_are_refused(auth: Authenticator, field: bytes | None, expected: str) -> None:
    for _ in range(2):
        assert reason(auth, field) == expected


@pytest.mark.parametrize("scheme", [b"Bearer ", b"bearer ", b"BEARER ", b"Bearer    "])
def test_the_scheme_has_no_case(auth: Authenticator, scheme: bytes) -> None:
    assert auth.verify(scheme + good()[7:], NOW).client_id == "x"


def test_one_token_has_one_spelling() -> None:
    # Python's base64 would skip the "!"; then each token had endless names in the cache.
    auth = Authenticator(settings())
    token = good()
    assert auth.verify(token, NOW).client_id == "x"
    assert reason(auth, token[:-5] + b"!" + token[-5:]) == "malformed_token"
    assert reason(auth, token + b"=") == "malformed_token"
    auth.verify(b"bearer" + token[6:], NOW)
    assert "cached=1>" in repr(auth)


@given(position=st.integers(0, 10**6), replacement=st.integers(0, 255))
def test_a_changed_byte_never_passes(position: int, replacement: int) -> None:
    auth = Authenticator(settings())
    field = good()
    auth.verify(field, NOW)
    token = bytearray(field[7:])
    # The last letter of the signature carries two bits that say nothing.
    at = position % (len(token) - 1)
    if token[at] == replacement:
        return
    token[at] = replacement
    with pytest.raises(AuthError):
        auth.verify(b"Bearer " + bytes(token), NOW)


def test_leeway_on_both_ends() -> None:
    auth = Authenticator(settings(leeway_seconds=30))
    field = good(exp=NOW, nbf=NOW)
    assert auth.verify(field, NOW - 30).client_id == "x"
    assert auth.verify(field, NOW + 29.9).client_id == "x"
    assert reason(auth, field, NOW + 30) == "expired"
    assert reason(auth, good(exp=NOW + 60, nbf=NOW + 31)) == "not_yet_valid"


def test_the_cache_is_bounded_and_drops_the_oldest(monkeypatch: pytest.MonkeyPatch) -> None:
    auth = Authenticator(settings(token_cache_entries=2))
    computed: list[bytes] = []
    decode = jwt.decode

    def counting(token: bytes, *args: Any, **options: Any) -> dict[str, Any]:
        computed.append(token)
        return decode(token, *args, **options)

    monkeypatch.setattr(jwt, "decode", counting)
    a, b, c = (good(n=n) for n in range(3))
    for field in (a, b, a, b, c, b, c, a):
        assert auth.verify(field, NOW).client_id == "x"
    assert computed == [a[7:], b[7:], c[7:], a[7:]]
    assert "cached=2>" in repr(auth)


def test_an_identity_says_whether_it_is_still_remembered() -> None:
    auth = Authenticator(settings(token_cache_entries=2))
    fields = [good(n=n) for n in range(4)]
    first, second, third = (auth.verify(field, NOW) for field in fields[:3])
    assert [i.known_by for i in (first, second, third)] == [None, *fields[1:3]]
    auth.forget(second.revocable)
    assert [i.known_by for i in (second, third)] == [None, fields[2]]
    assert reason(auth, fields[2], NOW + 10**6) == "expired"
    assert third.known_by is None
    last = auth.verify(fields[3], NOW)
    auth.retire()
    assert last.known_by is None
    assert auth.verify(fields[3], NOW).known_by is None


def test_no_cache_at_all() -> None:
    auth = Authenticator(settings(token_cache_entries=0))
    assert auth.verify(good(), NOW).client_id == auth.verify(good(), NOW).client_id == "x"
    assert "cached=0>" in repr(auth)


@pytest.mark.parametrize("error", [RecursionError(), ValueError("Exceeds the limit")])
def test_what_the_decoder_lets_out_is_a_malformed_token(
    auth: Authenticator, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    # PyJWT 2.10 lets a RecursionError out, later versions do not.
    def failing(*_args: Any, **_options: Any) -> dict[str, Any]:
        raise error

    monkeypatch.setattr(jwt, "decode", failing)
    assert reason(auth, good()) == "malformed_token"


def test_without_configured_clients_the_key_alone_decides() -> None:
    auth = Authenticator(settings(clients=()))
    assert auth.verify(good(client_id="issued elsewhere"), NOW).client_id == "issued elsewhere"


def test_look_ups_in_the_cache_are_counted() -> None:
    metrics = Registry(workers=1).open(0)
    auth = Authenticator(settings(), metrics)
    token = good()
    for field in (token, token, token, None, b"Basic eDp5"):
        with contextlib.suppress(AuthError):
            auth.verify(field, NOW)
    assert metrics.counter("nexus_auth_cache_total", result="hit").value == 2
    assert metrics.counter("nexus_auth_cache_total", result="miss").value == 1


def test_challenges() -> None:
    assert AuthError("missing_token", "m").challenge == b'Bearer realm="nexus"'
    assert AuthError("expired", "m").challenge == b'Bearer realm="nexus", error="invalid_token"'


def test_secrets_stay_inside(auth: Authenticator) -> None:
    ask(auth, "gateway-client", SECRET)
    assert SECRET not in repr(auth)
    assert KEY not in repr(auth)
    held = {name: getattr(auth, name) for name in Authenticator.__slots__}
    assert SECRET not in str(held)
    assert SECRET.encode() not in held["_clients"].values()


@pytest.mark.parametrize(("secret", "found"), [("", "nothing"), ("k" * 31, "31 bytes")])
def test_a_short_key_is_refused_with_the_way_to_make_one(secret: str, found: str) -> None:
    with pytest.raises(ConfigError, match=f"at least 32 bytes, got {found}.*openssl rand") as e:
        Authenticator(settings(jwt_secret=secret))
    assert e.value.path == "auth.jwt_secret"
    assert "kkk" not in str(e.value)
    check_settings(settings(jwt_secret=secret, enabled=False))


def test_a_client_given_twice_is_refused() -> None:
    client = ClientSettings(client_id="a", client_secret="12345678")
    with pytest.raises(ConfigError, match=r"auth\.clients\[1\]\.client_id: .*'a' is given twice"):
        check_settings(settings(clients=(client, client)))


class Ended:
    """A denylist on which everything of one somebody was ended."""

    def __init__(self, entry: str, cutoff: float) -> None:
        self.entry, self.at = entry, cutoff

    def __contains__(self, entry: object) -> bool:
        return False

    def cutoff(self, entry: str) -> float:
        return self.at if entry == self.entry else -1.0


@pytest.mark.parametrize(
    ("claims", "passes"),
    [
        ({"iat": NOW - 1}, False),
        ({"iat": NOW}, False),
        ({"iat": NOW + 1}, True),
        ({}, False),  # whoever does not say when counts as before
        ({"iat": -5}, False),
        ({"iat": "soon"}, False),
    ],
)
def test_what_was_issued_before_everything_was_ended(claims: dict[str, Any], passes: bool) -> None:
    token = jwt.encode({"client_id": "shop", "exp": NOW + 99} | claims, KEY, algorithm="HS256")
    field = f"Bearer {token}".encode()
    name = everything_of("client", "shop")
    ended = Ended(name, NOW + 0.5)
    auth = Authenticator(settings(clients=()), denied=ended)
    if passes:
        assert auth.verify(field, NOW + 1).client_id == "shop"
        ended.at = NOW + 2  # once more
        auth.forget([name])
    with pytest.raises(AuthError) as caught:
        auth.verify(field, NOW + 1)
    assert caught.value.reason == "revoked"
    # Of somebody else, or a client of that name at a provider: another one.
    for other in ("shop2", "sho"):
        other_auth = Authenticator(settings(clients=()), denied=Ended(other, NOW + 9))
        assert other_auth.verify(field, NOW + 1).client_id == "shop"
    assert everything_of("client", "shop", "https://id") != name
    assert everything_of("client", "b:c", "a") != everything_of("client", "c", "a:b")
