"""Settings of the consumer; every key is described here and rendered in docs/configuration.md."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta

from nexus.net.settings import KafkaSettings, Port, RedisSettings, ServiceSettings
from nexus.settings import Settings

__all__ = ["ConsumerSettings", "FailureSettings", "FlowSettings", "SpikeSettings"]


class SpikeSettings(Settings, frozen=True):
    """Latency spikes: a request against the mean of the last ones of its route."""

    factor: Annotated[float, Meta(gt=1, description="times the mean that make a spike")] = 3.0
    window: Annotated[int, Meta(ge=2, le=10_000, description="requests per route")] = 50
    min_samples: Annotated[int, Meta(ge=1, description="requests before the first alert")] = 10


class FailureSettings(Settings, frozen=True):
    """What happens to an event whose handler fails; a dependency that is away never counts."""

    max_attempts: Annotated[
        int, Meta(ge=1, le=100, description="attempts before an event goes to `<topic>.dlq`")
    ] = 5
    base_ms: Annotated[
        int, Meta(ge=1, le=60_000, description="base of the full-jitter delay between attempts")
    ] = 100
    cap_ms: Annotated[int, Meta(ge=1, le=600_000, description="longest of those delays")] = 5000


class FlowSettings(Settings, frozen=True):
    """How many events are worked on at once, and how often progress is committed."""

    lanes: Annotated[
        int, Meta(ge=1, le=1024, description="events handled at once; one key stays in one lane")
    ] = 16
    partition_events: Annotated[
        int, Meta(ge=16, le=100_000, description="open events at which a partition is paused")
    ] = 1000
    commit_interval_ms: Annotated[
        int, Meta(ge=10, le=60_000, description="between commits; what a crash may repeat")
    ] = 500
    remembered_ids: Annotated[
        int, Meta(ge=0, le=10_000_000, description="event ids by which duplicates are recognised")
    ] = 65_536
    stall_seconds: Annotated[
        float, Meta(ge=5, le=3600, description="without any progress: the worker is replaced")
    ] = 60.0


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
    log_events: Annotated[bool, Meta(description="one log line for every event")] = True
    spike: SpikeSettings = SpikeSettings()
    failure: FailureSettings = FailureSettings()
    flow: FlowSettings = FlowSettings()
