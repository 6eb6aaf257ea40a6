"""A collector, and tracing switched on towards it; off again afterwards."""

from __future__ import annotations

import pytest
from support.collector import Collector

from nexus import tracing
from nexus.tracing.kernel import Span


@pytest.fixture(scope="package")
def receiver():
    collector = Collector()
    yield collector
    collector.close()


@pytest.fixture
def collector(receiver):
    receiver.spans.clear()
    receiver.answers.clear()
    return receiver


@pytest.fixture
def on(collector):
    """``on(ratio=1.0, **environ)`` switches tracing on; ``sent()`` gives what came, by name."""

    def enable(ratio: float = 1.0, **environ: str) -> None:
        tracing.enable(
            service_name="shop",
            otlp_endpoint=collector.url,
            sample_ratio=ratio,
            environ={"OTEL_BSP_SCHEDULE_DELAY": "20", **environ},
        )

    yield enable
    tracing.disable()


@pytest.fixture
def sent(collector):
    def flushed() -> dict[str, object]:
        assert tracing.flush()
        counts = tracing.counts()
        dropped = sum(n for what, n in counts.items() if what.endswith("dropped"))
        assert counts["made"] == counts.get("exported", 0) + dropped + counts["queued"]
        assert counts.get("exported", 0) == len(collector.spans)
        return {span.name: span for span in collector.spans}

    return flushed


@pytest.fixture
def current():
    """Our current span, or ``None``."""

    def get():
        span = tracing.current_span()
        return span if isinstance(span, Span) and type(span) is Span else None

    return get
