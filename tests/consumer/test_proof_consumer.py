"""The proof of the consumer, small: two kills, one service that joins and leaves."""

import pytest

from proofs.consumer import prove

# The consumer has no kernels; test_service.py kills it on either backend of what it counts with.
pytestmark = [pytest.mark.evidence, pytest.mark.once]


@pytest.mark.kafka
@pytest.mark.timeout(100)
async def test_killed_consumers_lose_nothing_and_repeat_nothing(
    kafka_broker, redis_factory, tmp_path
):
    redis = redis_factory()
    result = await prove(2500, 2, 7, kafka_broker.bootstrap, redis.url, tmp_path)
    assert result.passed, result.summary
