"""Settings of the consumer; every key is described here and rendered in docs/configuration.md."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta

from nexus.net.settings import KafkaSettings, Port, RedisSettings, ServiceSettings
from nexus.settings import Settings

__all__ = ["ConsumerSettings", "SpikeSettings"]


class SpikeSettings(Settings, frozen=True):
    """Latency spikes: a request against the mean of the last ones of its route."""

    factor: Annotated[float, Meta(gt=1, description="times the mean that make a spike")] = 3.0
    window: Annotated[int, Meta(ge=2, le=10_000, description="requests per route")] = 50
    min_samples: Annotated[int, Meta(ge=1, description="requests before the first alert")] = 10


class ConsumerSettings(ServiceSettings, frozen=True):
    """``python -m nexus.consumer``."""

    admin_port: Annotated[Port, Meta(description="port of the admin listener; 0: a free one")] = (
        3901
    )
    kafka: KafkaSettings = KafkaSettings()
    redis: RedisSettings = RedisSettings()
    group: Annotated[str, Meta(min_length=1, max_length=249, description="consumer group")] = (
        "nexus-consumer-group"
    )
    start: Annotated[
        Literal["earliest", "latest"], Meta(description="where a new group begins")
    ] = "earliest"
    spike: SpikeSettings = SpikeSettings()
