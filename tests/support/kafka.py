"""Fixtures of the areas that deal in events; their conftest.py imports what it offers."""

import pytest

from nexus.demo.kafka import MockBroker
from nexus.errors import NexusError
from nexus.observability.registry import Registry
from support.requirements import missing


@pytest.fixture(scope="session")
def mock_kafka():
    """Bootstrap address of an in-memory broker: quick, and no evidence of durability."""
    try:
        broker = MockBroker()
    except NexusError as error:
        missing(str(error))
    with broker:
        yield broker.bootstrap


@pytest.fixture
def registry():
    return Registry(workers=1)


@pytest.fixture
def metrics(registry):
    return registry.open(0)
