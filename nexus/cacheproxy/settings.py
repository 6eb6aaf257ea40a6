"""Settings of the cacheproxy; every key is described here and rendered in docs/configuration.md."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from nexus.net.settings import ListenTlsSettings, Port, RedisSettings, ServiceSettings
from nexus.settings import Settings

__all__ = [
    "CacheproxySettings",
    "ClientLimitSettings",
    "NearCacheSettings",
    "ShadowSettings",
    "SingleflightSettings",
    "TagSettings",
    "TracingSettings",
]


class NearCacheSettings(Settings, frozen=True):
    """Values kept in the proxy; in force only where a rule of the policy says so."""

    enabled: Annotated[bool, Meta(description="keep values at all")] = True
    max_bytes: Annotated[
        int, Meta(ge=0, description="memory for values and their overhead, over all workers")
    ] = 67_108_864
    max_staleness_ms: Annotated[
        int,
        Meta(
            ge=0,
            le=10_000,
            description="a hit shows a value that was Redis's no longer ago than this; 0: "
            "linearizable, a hit waits for Redis's word that nothing has changed",
        ),
    ] = 10
    max_entry_ttl_seconds: Annotated[
        float, Meta(gt=0, le=86_400, description="longest life of any value in the near-cache")
    ] = 300.0
    hot_threshold: Annotated[
        int, Meta(ge=1, description="reads in the window that make a key hot")
    ] = 10
    hot_window_seconds: Annotated[float, Meta(gt=0, le=3600, description="that window")] = 10.0


class SingleflightSettings(Settings, frozen=True):
    """Concurrent reads of one key are one read at Redis; where a rule of the policy fits."""

    enabled: Annotated[bool, Meta(description="share replies")] = True


class ShadowSettings(Settings, frozen=True):
    """Proof in production: hits compared with what Redis has."""

    compare_ratio: Annotated[
        float, Meta(ge=0, le=1, description="part of the hits that is compared; 0: none")
    ] = 0.0


class TagSettings(Settings, frozen=True):
    """Groups of keys that are invalidated together."""

    atomic_max_members: Annotated[
        int,
        Meta(
            ge=1,
            le=100_000,
            description="keys that one script deletes at once; above, they are deleted in pieces, "
            "because a script over 100 000 keys stalls Redis for 40 ms",
        ),
    ] = 5000


class TracingSettings(Settings, frozen=True):
    """Spans of sampled commands, sent to a collector over OTLP/HTTP."""

    enabled: Annotated[bool, Meta(description="record and send spans")] = False
    otlp_endpoint: Annotated[str, Meta(description="OTLP over HTTP, without /v1/traces")] = (
        "http://127.0.0.1:4318"
    )
    sample_ratio: Annotated[float, Meta(ge=0, le=1, description="share of the commands")] = 0.001
    service_name: Annotated[str, Meta(description="`service.name` of the spans")] = (
        "nexus-cacheproxy"
    )
    record_keys: Annotated[
        bool,
        Meta(description="tell the keys, in `db.query.text`; values and other arguments never"),
    ] = False


class ClientLimitSettings(Settings, frozen=True):
    """What one client may cost."""

    max_clients: Annotated[int, Meta(ge=1, description="client connections, over all workers")] = (
        10_000
    )
    output_bytes: Annotated[
        int, Meta(ge=65_536, description="unread output after which a client is closed")
    ] = 268_435_456
    idle_timeout_seconds: Annotated[
        float, Meta(ge=0, description="idle clients are closed; 0: never")
    ] = 0.0
    max_dedicated: Annotated[
        int,
        Meta(
            ge=1,
            description="connections to Redis that serve one client each (transactions, blocking "
            "commands, subscriptions, …), over all workers; keep it below Redis's `maxclients`",
        ),
    ] = 5000
    bulk_bytes: Annotated[int, Meta(ge=1024, le=536_870_912, description="one argument")] = (
        536_870_912
    )


class CacheproxySettings(ServiceSettings, frozen=True):
    """``python -m nexus.cacheproxy``."""

    port: Annotated[Port, Meta(description="port to listen on; 0: a free one")] = 6380
    admin_port: Annotated[Port, Meta(description="port of the admin listener; 0: a free one")] = (
        6390
    )
    redis: RedisSettings = RedisSettings(url="redis://127.0.0.1:6379")
    tls: ListenTlsSettings = ListenTlsSettings()
    policy_file: Annotated[
        str,
        Meta(
            description="rules of the near-cache (docs/policy.md), read again when it changes; "
            "empty: none, every command passes through unchanged"
        ),
    ] = ""
    near_cache: NearCacheSettings = NearCacheSettings()
    singleflight: SingleflightSettings = SingleflightSettings()
    shadow: ShadowSettings = ShadowSettings()
    tags: TagSettings = TagSettings()
    tracing: TracingSettings = TracingSettings()
    limits: ClientLimitSettings = ClientLimitSettings()
