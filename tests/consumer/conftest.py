"""An in-memory broker for the quick tests; the real one is the fixture ``kafka_broker``."""

import pytest

from nexus.demo.kafka import MockBroker
from nexus.errors import NexusError
from nexus.observability.registry import Registry


@pytest.fixture(scope="session")
def mock_kafka():
    try:
        broker = MockBroker()
    except NexusError as error:
        pytest.skip(str(error))
    with broker:
        yield broker.bootstrap


@pytest.fixture
def registry():
    return Registry(workers=1)


@pytest.fixture
def metrics(registry):
    return registry.open(0)
