"""Settings of the cacheproxy; every key is described here and rendered in docs/configuration.md."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from nexus.net.settings import ListenTlsSettings, Port, RedisSettings, ServiceSettings
from nexus.settings import Settings

__all__ = ["CacheproxySettings", "ClientLimitSettings"]


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
    limits: ClientLimitSettings = ClientLimitSettings()
