"""Settings of authentication: tokens of our own, of others, and how long they live."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta

from nexus.net.settings import DialTlsSettings
from nexus.settings import Secret, Settings

__all__ = ["AuthSettings", "ClientSettings", "ProviderSettings", "RefreshSettings"]

Algorithm = Literal[
    "RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA"
]


class ClientSettings(Settings, frozen=True):
    """A client that may ask for tokens."""

    client_id: Annotated[str, Meta(min_length=1, max_length=128, description="name")]
    client_secret: Annotated[
        Secret,
        Meta(
            min_length=8,
            description="as text, or hashed: `scrypt:…` and `sha256:…` of `nexus hash-secret`",
        ),
    ]
    roles: Annotated[tuple[str, ...], Meta(description="put into its tokens")] = ()
    scopes: Annotated[
        tuple[str, ...], Meta(description="put into its tokens, or what it asks for of them")
    ] = ()
    may_revoke: Annotated[
        bool,
        Meta(description="may end all tokens of other clients and subjects, at `/auth/revoke`"),
    ] = False


class ProviderSettings(Settings, frozen=True):
    """Somebody else whose tokens are accepted, by public key."""

    issuer: Annotated[str, Meta(min_length=1, description="exactly the `iss` of its tokens")]
    audiences: Annotated[
        tuple[str, ...],
        Meta(description="one of them must be in `aud`; none: whoever a token was made for"),
    ]
    algorithms: Annotated[
        tuple[Algorithm, ...],
        Meta(min_length=1, description="what it signs with; nothing else is accepted"),
    ] = ("RS256", "ES256", "EdDSA")
    jwks_url: Annotated[str, Meta(description="where its key set is")] = ""
    keys_file: Annotated[
        str, Meta(description="instead of `jwks_url`: a key set (JSON), or public keys (PEM)")
    ] = ""
    refresh_seconds: Annotated[
        float, Meta(ge=1, le=86_400, description="how often the key set is fetched again")
    ] = 300.0
    unknown_key_seconds: Annotated[
        float,
        Meta(ge=1, le=3600, description="least time between fetches for keys nobody knows"),
    ] = 10.0
    max_stale_seconds: Annotated[
        float,
        Meta(ge=1, le=2_592_000, description="how long the last keys hold while it is away"),
    ] = 86_400.0
    tls: DialTlsSettings = DialTlsSettings()
    client_claim: Annotated[
        str, Meta(min_length=1, description="what becomes the client id; `a.b` is b in a")
    ] = "client_id"
    roles_claim: Annotated[str, Meta(min_length=1, description="list, or text with spaces")] = (
        "roles"
    )
    scopes_claim: Annotated[str, Meta(min_length=1, description="list, or text with spaces")] = (
        "scope"
    )


class RefreshSettings(Settings, frozen=True):
    """Refresh tokens: one use each, kept in Redis; a second use ends all that came of the first."""

    enabled: Annotated[bool, Meta(description="give them at `/auth/token`")] = False
    ttl_seconds: Annotated[
        int,
        Meta(ge=60, le=31_536_000, description="from the secret to the end, however often renewed"),
    ] = 1_209_600
    cookie: Annotated[
        str,
        Meta(
            pattern=r"^[A-Za-z0-9_-]*$",
            description="name of an HttpOnly, Secure, SameSite=Strict cookie that carries it "
            "instead of the JSON; none: JSON",
        ),
    ] = ""


class AuthSettings(Settings, frozen=True):
    """Bearer tokens: JWT, our own with HS256, those of `providers` by public key."""

    enabled: Annotated[bool, Meta(description="demand a token on proxied requests")] = True
    jwt_secret: Annotated[
        Secret,
        Meta(
            description="at least 32 bytes; required when enabled, unless there are `providers`: "
            "then only theirs are accepted"
        ),
    ] = ""
    previous_jwt_secrets: Annotated[
        tuple[Secret, ...],
        Meta(max_length=4, description="still accepted, until the tokens signed with them ended"),
    ] = ()
    token_ttl_seconds: Annotated[
        int, Meta(ge=1, le=2_592_000, description="life of an issued token")
    ] = 3600
    issuer: Annotated[str, Meta(description="`iss` of our tokens, demanded of them too")] = ""
    audience: Annotated[str, Meta(description="`aud` of our tokens, demanded of them too")] = ""
    leeway_seconds: Annotated[
        int, Meta(ge=0, le=300, description="clock skew allowed on exp and nbf")
    ] = 0
    clients: Annotated[
        tuple[ClientSettings, ...],
        Meta(
            description="who may ask /auth/token for a token; tokens of others are refused, also "
            "those from before a reload removed their client. None: every token signed with "
            "`jwt_secret` is accepted"
        ),
    ] = ()
    providers: Annotated[
        tuple[ProviderSettings, ...], Meta(max_length=16, description="whose tokens count besides")
    ] = ()
    refresh: RefreshSettings = RefreshSettings()
    token_cache_entries: Annotated[int, Meta(ge=0, description="verified tokens kept")] = 10_000
