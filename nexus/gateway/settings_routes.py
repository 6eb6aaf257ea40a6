"""Settings of one route: what it matches, where it leads, and what applies to it."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta, field

from nexus.gateway.settings_limits import LimitRuleSettings
from nexus.settings import Settings

__all__ = [
    "CorsSettings",
    "HeaderRulesSettings",
    "QueryRulesSettings",
    "RequestTransformSettings",
    "ResponseTransformSettings",
    "RouteAuthSettings",
    "RouteRetrySettings",
    "RouteSettings",
    "RouteTimeoutSettings",
]

_Seconds = Annotated[float, Meta(gt=0, le=86_400)]


class RouteAuthSettings(Settings, frozen=True, omit_defaults=True):
    """Who may use the route."""

    enabled: Annotated[bool, Meta(description="demand a token; false: open to everybody")] = True
    roles: Annotated[
        tuple[str, ...], Meta(description="the token must have at least one of them → else 403")
    ] = ()
    scopes: Annotated[
        tuple[str, ...], Meta(description="the token must have all of them → else 403")
    ] = ()


class RouteTimeoutSettings(Settings, frozen=True, omit_defaults=True):
    """Seconds; what is absent is as in `timeouts` and `breaker`."""

    response: Annotated[
        _Seconds | None, Meta(description="upstream response head; else `breaker.timeout_ms`")
    ] = None
    total: Annotated[_Seconds | None, Meta(description="as `timeouts.total`")] = None
    stream_idle: Annotated[_Seconds | None, Meta(description="as `timeouts.stream_idle`")] = None


class RouteRetrySettings(Settings, frozen=True, omit_defaults=True):
    """Further attempts; what is absent is as in `retry`."""

    max_attempts: Annotated[
        Annotated[int, Meta(ge=1, le=10)] | None,
        Meta(description="the first one included; 1: no retry"),
    ] = None
    delay_ms: Annotated[
        Annotated[int, Meta(ge=0, le=60_000)] | None,
        Meta(description="base of the full-jitter delay"),
    ] = None
    idempotency_key: Annotated[
        bool,
        Meta(description="retry also POST and PATCH where the request has an `Idempotency-Key`"),
    ] = False


class HeaderRulesSettings(Settings, frozen=True, omit_defaults=True):
    """Changes to header fields: first `remove`, then `set` (in place of what was there), `add`."""

    remove: Annotated[tuple[str, ...], Meta(description="names")] = ()
    set: Annotated[
        dict[str, str],
        Meta(description="name → value; `{client_id}`, `{ip}`, `{request_id}`, `{host}`, `{id}` …"),
    ] = field(default_factory=dict)
    add: Annotated[dict[str, str], Meta(description="name → value, beside what is there")] = field(
        default_factory=dict
    )


class QueryRulesSettings(Settings, frozen=True, omit_defaults=True):
    """Changes to the query string: first `remove`, then `set` (in place), then `add`."""

    remove: Annotated[tuple[str, ...], Meta(description="names")] = ()
    set: Annotated[dict[str, str], Meta(description="name → value; placeholders as in headers")] = (
        field(default_factory=dict)
    )
    add: Annotated[dict[str, str], Meta(description="name → value, beside what is there")] = field(
        default_factory=dict
    )


class RequestTransformSettings(Settings, frozen=True, omit_defaults=True):
    """Changes on the way to the upstream."""

    headers: HeaderRulesSettings = HeaderRulesSettings()
    query: QueryRulesSettings = QueryRulesSettings()


class ResponseTransformSettings(Settings, frozen=True, omit_defaults=True):
    """Changes on the way to the client."""

    headers: HeaderRulesSettings = HeaderRulesSettings()


class CorsSettings(Settings, frozen=True, omit_defaults=True):
    """Cross-origin requests of browsers (Fetch standard); off while `origins` is empty."""

    origins: Annotated[
        tuple[str, ...],
        Meta(description="`https://app.example`, `https://*.example`, or `*` for all"),
    ] = ()
    methods: Annotated[
        tuple[str, ...], Meta(description="offered to preflights; none: those of the route")
    ] = ()
    headers: Annotated[
        tuple[str, ...], Meta(description="request headers allowed; `*`: whatever is asked for")
    ] = ("authorization", "content-type")
    expose: Annotated[tuple[str, ...], Meta(description="response headers scripts may read")] = ()
    credentials: Annotated[
        bool, Meta(description="allow cookies and `Authorization`; not with the origin `*`")
    ] = False
    max_age_seconds: Annotated[
        int, Meta(ge=0, le=86_400, description="how long a browser may keep a preflight's answer")
    ] = 600


class RouteSettings(Settings, frozen=True, omit_defaults=True):
    """What is passed on: the most specific route that a request matches."""

    path: Annotated[
        str,
        Meta(description="`/exact`, `/users/{id}` (one segment each) or `/prefix/*` (and below)"),
    ]
    name: Annotated[
        str, Meta(max_length=128, description="in metrics, logs and spans; else hosts and path")
    ] = ""
    hosts: Annotated[
        tuple[str, ...], Meta(description="`api.example`, `*.example` (any depth); none: all")
    ] = ()
    methods: Annotated[
        tuple[str, ...], Meta(description="`GET` includes `HEAD`; none: all but TRACE, CONNECT")
    ] = ()
    headers: Annotated[
        dict[str, str], Meta(description="header → value that a request must have; `*`: any")
    ] = field(default_factory=dict)
    query: Annotated[
        dict[str, str], Meta(description="parameter → value that it must have; `*`: any")
    ] = field(default_factory=dict)
    strip_prefix: Annotated[
        bool, Meta(description="take the part before `/*` off the path that the upstream sees")
    ] = True
    rewrite: Annotated[
        str, Meta(description="path for the upstream instead: `/v2/{id}`, `/v2/*`")
    ] = ""
    upstream: Annotated[str, Meta(description="`group` of the services that it leads to")] = (
        "default"
    )
    rate_limited: Annotated[
        bool, Meta(description="count against the address limit, `rate_limit`")
    ] = True
    rate_limits: Annotated[
        tuple[LimitRuleSettings, ...], Meta(description="limits of the route, beside all others")
    ] = ()
    auth: RouteAuthSettings = RouteAuthSettings()
    timeouts: RouteTimeoutSettings = RouteTimeoutSettings()
    retry: RouteRetrySettings = RouteRetrySettings()
    envelope: Annotated[bool, Meta(description="wrap JSON, where `envelope.enabled`")] = True
    body_bytes: Annotated[
        Annotated[int, Meta(ge=0)] | None,
        Meta(description="request body → 413; else `limits.body_bytes`; 0: unlimited"),
    ] = None
    request: RequestTransformSettings = RequestTransformSettings()
    response: ResponseTransformSettings = ResponseTransformSettings()
    cors: CorsSettings = CorsSettings()
