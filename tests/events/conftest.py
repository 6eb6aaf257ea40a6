from support.kafka import metrics, mock_kafka, registry

__all__ = ["metrics", "mock_kafka", "registry"]
