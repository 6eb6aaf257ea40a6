"""Settings of how upstreams are chosen, checked, left out and kept from being flooded."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta, field

from nexus.settings import Settings

__all__ = [
    "BalancerSettings",
    "BulkheadLimits",
    "BulkheadSettings",
    "HealthCheckSettings",
    "OutlierSettings",
]

_Percent = Annotated[int, Meta(ge=0, le=100)]


class BalancerSettings(Settings, frozen=True):
    """How an upstream is chosen."""

    algorithm: Annotated[
        Literal["round-robin", "least-conn", "weighted", "weighted-smooth", "p2c"],
        Meta(
            description="`weighted`: 2:1 gives a, a, b; `weighted-smooth`: the same shares, "
            "interleaved; `p2c`: the less loaded of two random ones"
        ),
    ] = "round-robin"
    slow_start_seconds: Annotated[
        float,
        Meta(
            ge=0,
            le=3600,
            description="an upstream that was added or has recovered gets its share bit by bit "
            "over so long; 0: at once",
        ),
    ] = 0.0
    panic_threshold_percentage: Annotated[
        _Percent,
        Meta(
            description="while fewer of a group are healthy, all of it is used; never one whose "
            "breaker is open. 0: never, and with none healthy the answer is 503"
        ),
    ] = 0


class OutlierSettings(Settings, frozen=True):
    """Passive ejection: upstreams whose replies are bad are left out for a while."""

    enabled: Annotated[bool, Meta(description="eject upstreams by what they answer")] = False
    consecutive_5xx: Annotated[
        int, Meta(ge=0, description="failures in a row, any 5xx or no response; 0: not counted")
    ] = 5
    consecutive_gateway_failures: Annotated[
        int, Meta(ge=0, description="no response, 502, 503 or 504 in a row; 0: not counted")
    ] = 5
    base_ejection_seconds: Annotated[
        float, Meta(gt=0, le=86_400, description="first ejection; each further one doubles it")
    ] = 30.0
    max_ejection_seconds: Annotated[
        float, Meta(gt=0, le=86_400, description="longest ejection")
    ] = 300.0
    max_ejection_percentage: Annotated[
        _Percent,
        Meta(description="of a group that may be out at once; one always may, the last one never"),
    ] = 50
    success_rate_deviations: Annotated[
        float,
        Meta(
            ge=0,
            le=10,
            description="eject also whose success rate is so many standard deviations below the "
            "group's mean; needs `breaker.enabled`, whose counts it uses. 0: off",
        ),
    ] = 0.0
    success_rate_requests: Annotated[
        int, Meta(ge=1, description="requests in the breaker's window before a rate counts")
    ] = 100
    success_rate_upstreams: Annotated[
        int, Meta(ge=2, description="upstreams with so many requests before rates are compared")
    ] = 5


class HealthCheckSettings(Settings, frozen=True):
    """Active checks: one worker of the gateway asks each upstream now and then."""

    enabled: Annotated[bool, Meta(description="ask upstreams whether they are well")] = False
    path: Annotated[
        str, Meta(pattern=r"^/[!-~]*$", description="asked with GET, behind the upstream's path")
    ] = "/health"
    interval_seconds: Annotated[
        float, Meta(ge=0.05, le=3600, description="between two checks of one upstream, ±20 %")
    ] = 5.0
    timeout_seconds: Annotated[
        float, Meta(gt=0, le=60, description="for connection and response head")
    ] = 2.0
    healthy_threshold: Annotated[
        int, Meta(ge=1, le=100, description="good checks in a row until it is used again")
    ] = 2
    unhealthy_threshold: Annotated[
        int, Meta(ge=1, le=100, description="bad checks in a row until it is left out")
    ] = 3
    statuses: Annotated[
        tuple[str, ...], Meta(description="good replies: `200`, or a range `200-399`")
    ] = ("200-299",)


class BulkheadLimits(Settings, frozen=True):
    """Requests of one upstream group at once; what is absent is as in `bulkhead`."""

    max_concurrent: Annotated[Annotated[int, Meta(ge=0)] | None, Meta(description="0: any")] = None
    queue_size: Annotated[
        Annotated[int, Meta(ge=0)] | None, Meta(description="requests that may wait")
    ] = None
    wait_ms: Annotated[
        Annotated[int, Meta(ge=0, le=600_000)] | None, Meta(description="longest wait")
    ] = None


class BulkheadSettings(Settings, frozen=True):
    """A slow upstream group keeps no more than its share of the gateway busy."""

    max_concurrent: Annotated[
        int,
        Meta(
            ge=0,
            description="requests of one group at once, from the first attempt to the end of the "
            "response, over all workers; 0: any number",
        ),
    ] = 0
    queue_size: Annotated[
        int, Meta(ge=0, description="requests that may wait for a place, over all workers")
    ] = 100
    wait_ms: Annotated[
        int, Meta(ge=0, le=600_000, description="longest wait, then 503 `bulkhead_full`")
    ] = 1000
    groups: Annotated[dict[str, BulkheadLimits], Meta(description="group → its own numbers")] = (
        field(default_factory=dict)
    )
