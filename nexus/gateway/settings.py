"""Settings of the gateway; every key is described here and rendered in docs/configuration.md."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta

from nexus.gateway.settings_auth import AuthSettings
from nexus.gateway.settings_discovery import DiscoverySettings
from nexus.gateway.settings_limits import (
    ClusterLimitSettings,
    LimitRuleSettings,
    NetworkSettings,
)
from nexus.gateway.settings_routes import RouteSettings
from nexus.gateway.settings_upstreams import (
    BalancerSettings,
    BulkheadSettings,
    HealthCheckSettings,
    OutlierSettings,
)
from nexus.net.settings import (
    DialTlsSettings,
    KafkaSettings,
    ListenerSettings,
    ListenTlsSettings,
    Port,
    ProxyProtocolSettings,
    RedisSettings,
    ServiceSettings,
)
from nexus.settings import RESTART, Secret, Settings

__all__ = [
    "AccessLogSettings",
    "AdminSettings",
    "BalancerSettings",
    "BlockListSettings",
    "BreakerSettings",
    "EnvelopeSettings",
    "GatewaySettings",
    "LimitSettings",
    "MetricsSettings",
    "RateLimitSettings",
    "RetrySettings",
    "TimeoutSettings",
    "TracingSettings",
    "UpstreamSettings",
]

Seconds = Annotated[float, Meta(gt=0, le=86_400)]


class BlockListSettings(Settings, frozen=True):
    """Addresses that the consumer or an operator blocked, in Redis."""

    enabled: Annotated[bool, RESTART, Meta(description="refuse blocked addresses (403)")] = True


class RateLimitSettings(Settings, frozen=True):
    """Token bucket per client address."""

    enabled: Annotated[bool, Meta(description="limit requests per client address")] = True
    capacity: Annotated[int, Meta(ge=1, le=1_000_000, description="burst, in requests")] = 10
    refill_per_second: Annotated[
        float, Meta(gt=0, le=1_000_000, description="sustained requests per second")
    ] = 2.0
    max_addresses: Annotated[
        int,
        RESTART,
        Meta(ge=1024, le=16_777_216, description="live buckets kept, over all workers and limits"),
    ] = 131_072
    headers: Annotated[
        Literal["refused", "always"],
        Meta(description="replies that carry `RateLimit` and `RateLimit-Policy`"),
    ] = "refused"


class AdminSettings(Settings, frozen=True):
    """Live state and actions, `/admin/…` on the admin listener."""

    token: Annotated[
        Secret,
        Meta(
            description="wanted as `Authorization: Bearer …`; without one they are only there "
            "while `admin_host` is a loopback address"
        ),
    ] = ""


class BreakerSettings(Settings, frozen=True):
    """Circuit breaker, one per upstream URL."""

    enabled: Annotated[bool, Meta(description="stop sending to an upstream that fails")] = True
    timeout_ms: Annotated[int, Meta(ge=1, description="upstream response head")] = 5000
    error_threshold_percentage: Annotated[
        float, Meta(gt=0, le=100, description="share of failures that opens it")
    ] = 50.0
    reset_timeout_ms: Annotated[int, Meta(ge=1, description="open → one trial request")] = 10_000
    volume_threshold: Annotated[
        int, Meta(ge=1, description="requests in the window before it may open")
    ] = 3


class RetrySettings(Settings, frozen=True):
    """Another attempt, on another upstream where there is one."""

    max_attempts: Annotated[int, Meta(ge=1, le=10, description="the first one included")] = 3
    delay_ms: Annotated[int, Meta(ge=0, le=60_000, description="base of the full-jitter delay")] = (
        200
    )
    budget_ratio: Annotated[
        float, Meta(ge=0, le=1, description="retries as a share of active requests")
    ] = 0.2
    budget_floor: Annotated[int, Meta(ge=0, description="retries always allowed at once")] = 3
    buffer_bytes: Annotated[
        int, Meta(ge=0, le=16_777_216, description="request body kept for a replay")
    ] = 65_536


class EnvelopeSettings(Settings, frozen=True):
    """The JSON envelope around JSON replies."""

    enabled: Annotated[bool, Meta(description="wrap JSON replies as {data, _meta}")] = True


class TracingSettings(Settings, frozen=True):
    """Spans, sent to a collector over OTLP/HTTP."""

    enabled: Annotated[
        bool,
        Meta(description="record and send spans; trace ids are logged and passed on regardless"),
    ] = True
    otlp_endpoint: Annotated[str, Meta(description="OTLP over HTTP, without /v1/traces")] = (
        "http://127.0.0.1:4318"
    )
    sample_ratio: Annotated[
        float, Meta(ge=0, le=1, description="share of new traces; a caller's decision is kept")
    ] = 1.0
    service_name: Annotated[str, Meta(description="`service.name` of the spans")] = "nexus-gateway"
    functions: Annotated[
        tuple[str, ...],
        Meta(
            description="functions of the process whose calls are spans as well: "
            "`package.module:pattern`, also `…:Class.pattern`; not what is compiled"
        ),
    ] = ()


class AccessLogSettings(Settings, frozen=True):
    """One JSON line per request."""

    enabled: Annotated[bool, Meta(description="write it")] = True
    path: Annotated[str, Meta(description="`-` is standard output")] = "-"


class MetricsSettings(Settings, frozen=True):
    """Prometheus metrics of requests."""

    enabled: Annotated[bool, Meta(description="count requests")] = True
    max_address_labels: Annotated[
        int, RESTART, Meta(ge=0, description="distinct `ip` values; the rest count as `other`")
    ] = 100
    slow_ms: Annotated[
        int,
        Meta(ge=1, description="longer answers are bad in `nexus_http_requests_bad_total` (SLO)"),
    ] = 200


class LimitSettings(Settings, frozen=True):
    """What one request may cost."""

    head_bytes: Annotated[int, Meta(ge=1024, le=1_048_576, description="request head → 431")] = (
        32_768
    )
    request_line_bytes: Annotated[
        int, Meta(ge=256, le=65_536, description="request line → 414")
    ] = 8192
    fields: Annotated[int, Meta(ge=8, le=1000, description="header fields → 431")] = 100
    body_bytes: Annotated[int, Meta(ge=0, description="request body; 0: unlimited")] = 10_485_760
    connections: Annotated[int, Meta(ge=1, description="client connections of one worker")] = 20_000


class TimeoutSettings(Settings, frozen=True):
    """Seconds; the upstream's response head is bounded by ``breaker.timeout_ms``."""

    head: Annotated[Seconds, Meta(description="request head → 408")] = 10.0
    body_idle: Annotated[Seconds, Meta(description="silence within a request body → 408")] = 30.0
    keep_alive: Annotated[Seconds, Meta(description="idle client connection → closed")] = 60.0
    connect: Annotated[Seconds, Meta(description="TCP connect to an upstream")] = 3.0
    total: Annotated[
        Seconds, Meta(description="arrival → response head, attempts and queue included → 504")
    ] = 30.0
    stream_idle: Annotated[Seconds, Meta(description="silence within a response body")] = 300.0


class UpstreamSettings(Settings, frozen=True):
    """Connection pools to the upstreams, per worker and upstream."""

    max_connections: Annotated[int, Meta(ge=1, description="open at once")] = 256
    upload_connections: Annotated[
        int,
        Meta(
            ge=0,
            description="of these, held at most by requests whose bodies are still arriving; "
            "0: half of them",
        ),
    ] = 0
    queue_size: Annotated[int, Meta(ge=0, description="requests that may wait for one")] = 1024
    keep_alive_seconds: Annotated[
        Seconds, Meta(description="idle upstream connections are dropped; below the upstream's own")
    ] = 4.0
    tls: DialTlsSettings = DialTlsSettings()


class GatewaySettings(ServiceSettings, frozen=True):
    """``python -m nexus.gateway``."""

    host: Annotated[
        str, RESTART, Meta(description="address to listen on; `::` takes IPv6 and IPv4")
    ] = "0.0.0.0"
    port: Annotated[Port, RESTART, Meta(description="port to listen on; 0: a free one")] = 3000
    admin_port: Annotated[
        Port, RESTART, Meta(description="port of the admin listener; 0: a free one")
    ] = 3900
    tls: ListenTlsSettings = ListenTlsSettings()
    proxy_protocol: ProxyProtocolSettings = ProxyProtocolSettings()
    listeners: Annotated[
        tuple[ListenerSettings, ...],
        RESTART,
        Meta(description="more addresses to listen on; renewed certificate files need no restart"),
    ] = ()
    services_file: Annotated[str, Meta(description="upstream list, re-read every 5 s")] = (
        "services.json"
    )
    services_poll_seconds: Annotated[
        Seconds,
        Meta(description="the services file is re-read so often, and within 1 s of a change"),
    ] = 5.0
    trusted_proxies: Annotated[
        tuple[str, ...],
        Meta(description="networks (or `unix`) whose X-Forwarded-For and -Proto are believed"),
    ] = ()
    underscores_in_headers: Annotated[
        bool, Meta(description="pass header names with `_` instead of dropping them")
    ] = False
    via: Annotated[bool, Meta(description="add `Via: 1.1 nexus`")] = True
    routes: Annotated[
        tuple[RouteSettings, ...],
        Meta(
            description="what is passed on; the most specific one that a request matches. A list "
            "of one's own replaces the default one"
        ),
    ] = (RouteSettings(path="/api/*"),)
    block_list: BlockListSettings = BlockListSettings()
    networks: NetworkSettings = NetworkSettings()
    rate_limit: RateLimitSettings = RateLimitSettings()
    rate_limits: Annotated[
        tuple[LimitRuleSettings, ...],
        Meta(description="limits of all routes, after authentication; of one route: there"),
    ] = ()
    cluster_limits: ClusterLimitSettings = ClusterLimitSettings()
    auth: AuthSettings = AuthSettings()
    discovery: DiscoverySettings = DiscoverySettings()
    admin: AdminSettings = AdminSettings()
    balancer: BalancerSettings = BalancerSettings()
    outliers: OutlierSettings = OutlierSettings()
    health_check: HealthCheckSettings = HealthCheckSettings()
    bulkhead: BulkheadSettings = BulkheadSettings()
    breaker: BreakerSettings = BreakerSettings()
    retry: RetrySettings = RetrySettings()
    envelope: EnvelopeSettings = EnvelopeSettings()
    limits: LimitSettings = LimitSettings()
    timeouts: TimeoutSettings = TimeoutSettings()
    upstream: UpstreamSettings = UpstreamSettings()
    kafka: KafkaSettings = KafkaSettings()
    redis: Annotated[RedisSettings, RESTART] = RedisSettings()
    tracing: TracingSettings = TracingSettings()
    access_log: AccessLogSettings = AccessLogSettings()
    metrics: MetricsSettings = MetricsSettings()
    telemetry_entries: Annotated[
        int, RESTART, Meta(ge=0, le=10_000, description="recent requests shown by /telemetry")
    ] = 100
