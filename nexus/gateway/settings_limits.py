"""Settings of rate limits beside the address limit, and of networks that are let in or kept out."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta

from nexus.settings import Settings

__all__ = ["ClusterLimitSettings", "LimitRuleSettings", "NetworkSettings"]


class LimitRuleSettings(Settings, frozen=True, omit_defaults=True):
    """One more token bucket per key; checked after authentication."""

    name: Annotated[
        str,
        Meta(
            pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$",
            description="in header fields, metrics and shared buckets: limits of one name share "
            "their buckets",
        ),
    ]
    capacity: Annotated[int, Meta(ge=1, le=1_000_000, description="burst, in requests")]
    refill_per_second: Annotated[
        float, Meta(gt=0, le=1_000_000, description="sustained requests per second")
    ]
    key: Annotated[
        tuple[str, ...],
        Meta(
            description="`address` (IPv6 by /64), `client`, `route`, `header:<name>`; several: "
            "each combination. A request without the client or header counts by address"
        ),
    ] = ("client",)
    shadow: Annotated[
        bool,
        Meta(description="only count: requests above it pass, marked `x-ratelimit-shadow: <name>`"),
    ] = False
    scope: Annotated[
        Literal["gateway", "cluster"],
        Meta(description="`gateway`: exact over its workers; `cluster`: one bucket in Redis"),
    ] = "gateway"
    lease: Annotated[
        int,
        Meta(
            ge=1,
            le=10_000,
            description="cluster: tokens that a worker takes at once. 1: every request asks "
            "Redis; n: at most n - 1 per worker are admitted later than Redis gave them out",
        ),
    ] = 1
    lease_ms: Annotated[
        int,
        Meta(ge=1, le=60_000, description="cluster: life of leased tokens; unused ones are lost"),
    ] = 1000
    on_redis_failure: Annotated[
        Literal["open", "closed", "local"],
        Meta(description="cluster: admit all, refuse all (503), or count as with scope `gateway`"),
    ] = "local"


class ClusterLimitSettings(Settings, frozen=True):
    """How limits of scope `cluster` use Redis."""

    timeout_ms: Annotated[
        int, Meta(ge=1, le=10_000, description="wait for Redis before `on_redis_failure` decides")
    ] = 100
    retry_ms: Annotated[
        int, Meta(ge=10, le=60_000, description="after a failure Redis is left alone for so long")
    ] = 500


class NetworkSettings(Settings, frozen=True):
    """Clients by network (CIDR); decided before any limit. The longest match wins."""

    allow: Annotated[
        tuple[str, ...],
        Meta(description="if any are named, clients of no other network are served (403)"),
    ] = ()
    deny: Annotated[tuple[str, ...], Meta(description="clients of these are refused (403)")] = ()
