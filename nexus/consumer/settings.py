"""Settings of the consumer; every key is described here and rendered in docs/configuration.md."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta

from nexus.net.settings import KafkaSettings, Port, RedisSettings, ServiceSettings
from nexus.settings import Settings

__all__ = [
    "ActionSettings",
    "BlockSettings",
    "ConsumerSettings",
    "FailureSettings",
    "FlowSettings",
    "SpikeSettings",
    "WebhookSettings",
]


class SpikeSettings(Settings, frozen=True):
    """Latency spikes: a request against the mean of the last ones of its route."""

    factor: Annotated[float, Meta(gt=1, description="times the mean that make a spike")] = 3.0
    window: Annotated[int, Meta(ge=2, le=10_000, description="requests per route")] = 50
    min_samples: Annotated[int, Meta(ge=1, description="requests before the first alert")] = 10
    floor_ms: Annotated[
        float,
        Meta(
            ge=0,
            le=3_600_000,
            description="nothing below this latency is a spike; 25 keeps routes of a millisecond "
            "from alerting on noise",
        ),
    ] = 0.0


class BlockSettings(Settings, frozen=True):
    """Automatic blocks: addresses that hit their rate limit again and again."""

    enabled: Annotated[bool, Meta(description="block addresses automatically")] = True
    hits: Annotated[
        int, Meta(ge=1, le=1000, description="rate-limit hits of one address that block it")
    ] = 5
    window_seconds: Annotated[
        float, Meta(gt=0, le=86_400, description="in which those hits must fall")
    ] = 60.0
    seconds: Annotated[
        float, Meta(ge=1, le=31_536_000, description="length of a block, from the last hit")
    ] = 300.0
    allow: Annotated[
        tuple[str, ...], Meta(description="networks that are never blocked automatically")
    ] = ()
    trusted_proxies: Annotated[
        tuple[str, ...],
        Meta(description="the gateways' `trusted_proxies`: never blocked, all clients are behind"),
    ] = ()


class WebhookSettings(Settings, frozen=True):
    """Every action as an HTTP POST too, at least once, with its id in `Idempotency-Key`."""

    url: Annotated[
        str,
        Meta(
            pattern=r"^(https?://.+)?$",
            extra={"form": "http[s]://host[:port]/path, or nothing"},
            description="empty: no webhook",
        ),
    ] = ""
    timeout_ms: Annotated[int, Meta(ge=10, le=60_000, description="of one attempt")] = 5000
    max_attempts: Annotated[
        int, Meta(ge=1, le=1000, description="before an action is given up, logged and counted")
    ] = 8


class ActionSettings(Settings, frozen=True):
    """What becomes of an action beside its log line."""

    delivery: Annotated[
        Literal["exactly-once", "at-least-once", "off"],
        Meta(
            description="into the topic `nexus.actions`; exactly-once: in one Kafka transaction "
            "with the offset of its event"
        ),
    ] = "exactly-once"
    webhook: WebhookSettings = WebhookSettings()


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
        int, Meta(ge=1, le=1024, description="webhook calls at once; one key stays in one lane")
    ] = 16
    partition_events: Annotated[
        int, Meta(ge=16, le=100_000, description="open events at which a partition is paused")
    ] = 1000
    commit_interval_ms: Annotated[
        int, Meta(ge=10, le=60_000, description="between commits; what a crash may repeat")
    ] = 500
    remembered_ids: Annotated[
        int,
        Meta(
            ge=1000,
            le=10_000_000,
            description="event ids kept in Redis, twice at most; duplicates are recognised by them",
        ),
    ] = 250_000
    instance_id: Annotated[
        str,
        Meta(
            max_length=200,
            pattern=r"^[A-Za-z0-9._-]*$",
            extra={"form": "letters, digits, '.', '_' and '-'"},
            description="name of this process within the group (static membership, KIP-345): a "
            "restarted worker takes its partitions up at once; empty: after `session_timeout_ms`",
        ),
    ] = ""
    session_timeout_ms: Annotated[
        int,
        Meta(ge=1000, le=300_000, description="after which the partitions of a dead worker move"),
    ] = 10_000
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
    block: BlockSettings = BlockSettings()
    spike: SpikeSettings = SpikeSettings()
    actions: ActionSettings = ActionSettings()
    failure: FailureSettings = FailureSettings()
    flow: FlowSettings = FlowSettings()
