"""The development broker: librdkafka's in-memory mock cluster, which speaks the real protocol.

For ``nexus up`` on a machine without Java, and for fast tests. Nothing is persisted, nothing is
replicated and retention is a few megabytes per partition, so it proves nothing about durability;
``scripts/kafka-dev`` starts a real broker.

::

    python -m nexus.demo.kafka        prints  bootstrap=127.0.0.1:PORT  and serves until SIGTERM

librdkafka chooses the port; it cannot be asked for one. Topics come to be when they are first
named, with four partitions.
"""

from __future__ import annotations

import contextlib
import signal
import sys
from types import TracebackType
from typing import Any, Final

from nexus.errors import NexusError

__all__ = ["BOOTSTRAP_PREFIX", "MockBroker", "main"]

#: The line on standard output that names the address; ``nexus up`` reads it.
BOOTSTRAP_PREFIX: Final = "bootstrap="

_START_SECONDS: Final = 10.0


class MockBroker:
    """One in-memory broker inside this process, on threads of librdkafka. Raises ``NexusError``."""

    def __init__(self) -> None:
        try:
            from confluent_kafka import KafkaException, Producer
        except ImportError:
            raise NexusError(
                "the in-memory Kafka needs confluent-kafka: pip install 'nexus-edge[embedded]', "
                "or use a broker of your own (kafka.bootstrap_servers)"
            ) from None
        # The client instance owns the cluster: when it goes, the broker goes.
        self._owner: Any = Producer(
            {
                "test.mock.num.brokers": 1,
                # Required by the client, replaced by the mock's own address.
                "bootstrap.servers": "127.0.0.1:9",
                "log_level": 0,
            }
        )
        try:
            brokers = self._owner.list_topics(timeout=_START_SECONDS).brokers
        except KafkaException as error:
            raise NexusError(f"the in-memory Kafka does not start: {error}") from None
        broker = next(iter(brokers.values()))
        self.bootstrap: Final = f"{broker.host}:{broker.port}"

    def close(self) -> None:
        """End the broker; what it held is gone."""
        self._owner = None

    def __enter__(self) -> MockBroker:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def main() -> int:
    """Serve until SIGTERM or SIGINT."""
    ends = {signal.SIGTERM, signal.SIGINT}
    # Blocked before librdkafka makes its threads, so that only sigwait below takes them.
    signal.pthread_sigmask(signal.SIG_BLOCK, ends)
    try:
        broker = MockBroker()
    except NexusError as error:
        print(f"nexus demo kafka: {error}", file=sys.stderr)
        return 1
    with broker, contextlib.suppress(BrokenPipeError):
        print(f"{BOOTSTRAP_PREFIX}{broker.bootstrap}", flush=True)
        signal.sigwait(ends)
    return 0


if __name__ == "__main__":
    sys.exit(main())
