"""Settings that every service has in common."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta

from nexus.settings import Settings

__all__ = ["KafkaSettings", "LogSettings", "Port", "RedisSettings", "ServiceSettings"]

Port = Annotated[int, Meta(ge=0, le=65535)]


class LogSettings(Settings, frozen=True):
    """Application log of a service, on standard error."""

    level: Annotated[
        Literal["debug", "info", "warning", "error"], Meta(description="least severity written")
    ] = "info"
    format: Annotated[
        Literal["json", "human", "auto"],
        Meta(description="`auto`: human on a terminal, JSON lines elsewhere"),
    ] = "auto"


class RedisSettings(Settings, frozen=True):
    """Where Redis is."""

    url: Annotated[
        str,
        Meta(
            pattern=r"^(rediss?|unix)://",
            description="`redis://[user:password@]host:port[/db]`, `rediss://…` or `unix:///path`",
        ),
    ] = "redis://127.0.0.1:6379/0"


class KafkaSettings(Settings, frozen=True):
    """Where Kafka is, and how much the producer may hold in memory."""

    enabled: Annotated[bool, Meta(description="send and read events at all")] = True
    bootstrap_servers: Annotated[str, Meta(description="`host:port`, comma-separated")] = (
        "127.0.0.1:9092"
    )
    compression: Annotated[
        Literal["lz4", "gzip", "none"], Meta(description="of the batches that we send")
    ] = "lz4"
    linger_ms: Annotated[
        int, Meta(ge=0, le=10_000, description="longest wait for a batch to fill, milliseconds")
    ] = 20
    buffer_bytes: Annotated[
        int,
        Meta(
            ge=65_536,
            le=1_073_741_824,
            description="events of one worker that may wait for the broker; more are dropped",
        ),
    ] = 16_777_216


class ServiceSettings(Settings, frozen=True):
    """What every service understands."""

    host: Annotated[str, Meta(description="address to listen on")] = "127.0.0.1"
    port: Annotated[Port, Meta(description="port to listen on; 0 takes a free one")] = 0
    admin_host: Annotated[
        str, Meta(description="address of the admin listener (health, readiness, metrics)")
    ] = "127.0.0.1"
    admin_port: Annotated[Port, Meta(description="port of the admin listener; 0: a free one")] = 0
    workers: Annotated[int, Meta(ge=1, le=64, description="worker processes")] = 1
    drain_seconds: Annotated[
        float, Meta(ge=0, le=3600, description="longest wait for open work on SIGTERM")
    ] = 10.0
    drain_grace_seconds: Annotated[
        float,
        Meta(ge=0, le=300, description="between `/ready` turning 503 and the end of accepting"),
    ] = 0.0
    log: LogSettings = LogSettings()
