"""Fixtures of the areas that deal in events; their conftest.py imports what it offers."""

import os

import pytest

from nexus.demo.kafka import MockBroker
from nexus.errors import NexusError
from nexus.observability.registry import Registry


@pytest.fixture(scope="session")
def mock_kafka():
    """Bootstrap address of an in-memory broker: quick, and no evidence of durability."""
    try:
        broker = MockBroker()
    except NexusError as error:
        if os.environ.get("NEXUS_TEST_REQUIRE") == "all":
            pytest.fail(f"required by NEXUS_TEST_REQUIRE=all: {error}", pytrace=False)
        pytest.skip(str(error))
    with broker:
        yield broker.bootstrap


@pytest.fixture
def registry():
    return Registry(workers=1)


@pytest.fixture
def metrics(registry):
    return registry.open(0)
