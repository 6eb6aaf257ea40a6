"""Where spans go and how: settings and ``OTEL_*`` variables → options; HTTP with retries.

OTLP/HTTP: https://opentelemetry.io/docs/specs/otlp/#otlphttp. A batch is retried on connection
errors and on 429, 502, 503 and 504, with full-jitter backoff, no earlier than ``Retry-After`` says;
everything else is final.
"""

from __future__ import annotations

import asyncio
import gzip
import os
import platform
import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, Protocol
from urllib.parse import unquote

import aiohttp
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse

from nexus._version import __version__
from nexus.errors import ConfigError

__all__ = ["EXPORTS", "ExportOptions", "ExportResult", "OtlpClient", "TracingConfig", "resolve"]

#: Batches of one worker that are on their way to the collector at once, at most.
EXPORTS: Final = 4

_RETRYABLE: Final = frozenset((429, 502, 503, 504))


class TracingConfig(Protocol):
    """What is needed of a service's tracing settings."""

    @property
    def otlp_endpoint(self) -> str: ...

    @property
    def service_name(self) -> str: ...


@dataclass(frozen=True, slots=True)
class ExportOptions:
    """Resolved: nothing is looked up later."""

    #: Full URL of the traces signal.
    url: str
    resource: dict[str, str | int]
    headers: dict[str, str] = field(default_factory=dict)
    gzip: bool = False
    #: One HTTP exchange, seconds; the OpenTelemetry SDK's default.
    timeout_seconds: float = 10.0
    #: Spans; the SDK's defaults (2048, 512) and the contract's delay.
    queue_spans: int = 2048
    batch_spans: int = 512
    delay_seconds: float = 0.5
    #: Tries of one batch; at the backoff below, about ten seconds on average.
    max_attempts: int = 5
    backoff_base_seconds: float = 0.5
    backoff_cap_seconds: float = 10.0
    semconv: str = ""


def resolve(
    settings: TracingConfig, environ: Mapping[str, str], *, worker: int | None = None
) -> ExportOptions:
    """Settings and environment as one; the ``OTEL_*`` variables beat the settings.

    Raises ``ConfigError`` for a variable that cannot be read.
    """
    endpoint = environ.get("OTEL_EXPORTER_OTLP_ENDPOINT") or settings.otlp_endpoint
    url = environ.get("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT") or endpoint.rstrip("/") + "/v1/traces"
    if not url.startswith(("http://", "https://")):
        raise ConfigError(
            f"expected an http:// or https:// URL, got {url!r}", path="tracing.otlp_endpoint"
        )
    compression = environ.get("OTEL_EXPORTER_OTLP_COMPRESSION", "none") or "none"
    if compression not in ("none", "gzip"):
        raise ConfigError(
            f"expected none or gzip, got {compression!r}",
            source="environment variable OTEL_EXPORTER_OTLP_COMPRESSION",
        )
    queue = _number(environ, "OTEL_BSP_MAX_QUEUE_SIZE", 2048, 2)
    batch = _number(environ, "OTEL_BSP_MAX_EXPORT_BATCH_SIZE", min(512, queue), 2)
    return ExportOptions(
        url=url,
        resource=_resource(settings, environ, worker),
        headers=_pairs(environ, "OTEL_EXPORTER_OTLP_HEADERS"),
        gzip=compression == "gzip",
        timeout_seconds=_number(environ, "OTEL_EXPORTER_OTLP_TIMEOUT", 10_000, 1) / 1000,
        queue_spans=queue,
        batch_spans=min(batch, queue),
        delay_seconds=_number(environ, "OTEL_BSP_SCHEDULE_DELAY", 500, 1) / 1000,
        semconv=environ.get("OTEL_SEMCONV_STABILITY_OPT_IN", ""),
    )


def _resource(
    settings: TracingConfig, environ: Mapping[str, str], worker: int | None
) -> dict[str, str | int]:
    given = _pairs(environ, "OTEL_RESOURCE_ATTRIBUTES")
    resource: dict[str, str | int] = {
        "service.name": settings.service_name,
        "service.version": __version__,
        "host.name": platform.node(),
        "process.pid": os.getpid(),
        "telemetry.sdk.name": "nexus",
        "telemetry.sdk.language": "python",
        "telemetry.sdk.version": __version__,
    }
    if worker is not None:
        resource["service.instance.id"] = f"{platform.node()}/{worker}"
    resource.update(given)
    # The variable of its own beats the attribute: the SDK's specification says so.
    if environ.get("OTEL_SERVICE_NAME"):
        resource["service.name"] = environ["OTEL_SERVICE_NAME"]
    return resource


def _number(environ: Mapping[str, str], name: str, default: int, least: int) -> int:
    text = environ.get(name, "").strip()
    if not text:
        return default
    if not text.isascii() or not text.isdigit() or int(text) < least:
        raise ConfigError(
            f"expected an integer >= {least}, got {text!r}", source=f"environment variable {name}"
        )
    return int(text)


def _pairs(environ: Mapping[str, str], name: str) -> dict[str, str]:
    """``key=value,key=value``, values percent-encoded (W3C Baggage)."""
    pairs: dict[str, str] = {}
    for item in environ.get(name, "").split(","):
        if not item.strip():
            continue
        key, separator, value = item.partition("=")
        if not separator or not key.strip():
            raise ConfigError(
                "expected key=value, comma-separated", source=f"environment variable {name}"
            )
        pairs[key.strip()] = unquote(value.strip())
    return pairs


@dataclass(frozen=True, slots=True)
class ExportResult:
    """What became of one batch."""

    #: Whether the collector took it; ``rejected`` of its spans were refused all the same.
    accepted: bool
    rejected: int = 0
    #: ``export_failed`` (gave up) or ``refused`` (the collector will never take it).
    reason: str = ""
    #: For people: the last error.
    error: str = ""


class OtlpClient:
    """One HTTP client session to a collector; sends encoded batches."""

    def __init__(self, options: ExportOptions) -> None:
        self._options: Final = options
        self._session: Final = aiohttp.ClientSession(
            timeout=aiohttp.ClientTimeout(total=options.timeout_seconds),
            headers={
                "Content-Type": "application/x-protobuf",
                "User-Agent": f"nexus/{__version__}",
                **options.headers,
            },
            connector=aiohttp.TCPConnector(limit=EXPORTS),
            auto_decompress=True,
        )

    async def send(self, body: bytes, stopping: asyncio.Event) -> ExportResult:
        """Deliver one batch. While ``stopping`` is set, one try is all it gets."""
        headers = {}
        if self._options.gzip:
            body = await asyncio.to_thread(gzip.compress, body, 6)
            headers["Content-Encoding"] = "gzip"
        error = ""
        for attempt in range(self._options.max_attempts):
            wait = 0.0
            try:
                async with self._session.post(
                    self._options.url, data=body, headers=headers, allow_redirects=False
                ) as response:
                    if response.status == 200:
                        return ExportResult(True, rejected=_rejected(await response.read()))
                    error = f"the collector answered {response.status}"
                    if response.status not in _RETRYABLE:
                        return ExportResult(False, reason="refused", error=error)
                    wait = _retry_after(response.headers.get("Retry-After", ""))
            except (aiohttp.ClientError, OSError, TimeoutError) as failure:
                error = str(failure) or type(failure).__name__
            if attempt + 1 == self._options.max_attempts or stopping.is_set():
                break
            await _sleep(max(wait, self._backoff(attempt)), stopping)
        return ExportResult(False, reason="export_failed", error=error)

    async def close(self) -> None:
        await self._session.close()

    def _backoff(self, attempt: int) -> float:
        """Full jitter: the whole wait is drawn, so that workers do not come back together."""
        options = self._options
        return random.uniform(
            0, min(options.backoff_cap_seconds, options.backoff_base_seconds * 2**attempt)
        )


async def _sleep(seconds: float, stopping: asyncio.Event) -> None:
    try:
        async with asyncio.timeout(seconds):
            await stopping.wait()
    except TimeoutError:
        pass


def _rejected(body: bytes) -> int:
    """Spans that the collector did not take in a batch that it accepted (partial success)."""
    try:
        answer = ExportTraceServiceResponse.FromString(body)
    except DecodeError:
        return 0  # accepted; what it said about it cannot be read
    return max(0, int(answer.partial_success.rejected_spans))


def _retry_after(value: str) -> float:
    """Seconds, at most a minute: the queue does not last longer. Dates count as none."""
    return min(60.0, float(value)) if value.isascii() and value.isdigit() else 0.0
