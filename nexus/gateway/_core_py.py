# cython: annotation_typing=False
"""What all exchanges of a worker share: clocks, stamps, upstreams, budgets, metrics, recorder.

One source, compiled as ``_core_c``. Everything in it is resolved when settings are applied, so
that a request only reads attributes.
"""

from __future__ import annotations

import json
import random
from email.utils import formatdate
from typing import TYPE_CHECKING, Any, Final

import cython  # type: ignore[import-untyped]

from nexus._version import __version__
from nexus.clock import iso_utc
from nexus.wire.http1 import (
    FRAMING,
    HOP,
    OURS,
    PROXYING,
    REASON_PHRASES,
    SECRET,
    TRACE,
    UNDERSCORE,
)

if not cython.compiled:
    from nexus.gateway._wheel_py import Wheel

if TYPE_CHECKING:
    from nexus.gateway.settings import GatewaySettings
    from nexus.observability.recorder import Recorder
    from nexus.observability.registry import LocalMetrics

__all__ = ["Core"]

_VERSION_FIELD: Final = b"x-gateway-version: " + __version__.encode() + b"\r\n"
_VIA: Final = b"Via: 1.1 nexus\r\n"
#: Rendered error bodies kept; their number is bounded by reasons and messages in practice.
_MAX_BODIES: Final = 256


class Core:
    """Owned by the app; read by every exchange and session of the worker."""

    def __init__(self, wheel: Wheel, metrics: LocalMetrics, rng: random.Random) -> None:
        self.wheel = wheel
        self.metrics: Any = metrics
        self.rng = rng
        self.recorder: Recorder | None = None
        self.events: Any = None
        self.tracer: Any = None
        # Set by the app before the first connection: a Balancer, a RetryPolicy, a RetryBudget.
        self.balancer: Any = None
        self.retry_policy: Any = None
        self.budget: Any = None
        self.breakers = False
        #: What the balancer asks of a server: whether its breaker would let a request through.
        self.usable: Any = None
        self.draining = False
        self.counting = True
        #: Wall clock minus monotonic clock, nanoseconds; renewed with every tick of the wheel.
        self.wall_offset = 0
        self.connections = 0
        self._id_ms = -1
        self._id_prefix = b""
        self._stamp_ms = -1
        self._stamp_second = -1
        self._stamp_prefix = b""
        self._stamp = b""
        self._date_s = -1
        self._date = b""
        self._getrandbits = rng.getrandbits
        self._requests: dict[Any, Any] = {}
        self._upstreams: dict[Any, Any] = {}
        self._counters: dict[Any, Any] = {}
        self._bodies: dict[Any, bytes] = {}

    def apply(self, settings: GatewaySettings) -> None:
        """Resolve what a request needs from the settings."""
        limits, timeouts = settings.limits, settings.timeouts
        self.max_head = limits.head_bytes
        self.max_line = limits.request_line_bytes
        self.max_fields = limits.fields
        self.max_body = limits.body_bytes
        self.max_connections = limits.connections
        self.head_ns = int(timeouts.head * 1e9)
        self.body_idle_ns = int(timeouts.body_idle * 1e9)
        self.keep_alive_ns = int(timeouts.keep_alive * 1e9)
        self.total_ns = int(timeouts.total * 1e9)
        self.stream_idle_ns = int(timeouts.stream_idle * 1e9)
        self.response_ns = settings.breaker.timeout_ms * 1_000_000
        self.buffer_bytes = settings.retry.buffer_bytes
        self.envelope = settings.envelope.enabled
        self.breakers = settings.breaker.enabled
        self.counting = settings.metrics.enabled
        self.max_address_labels = settings.metrics.max_address_labels
        self.request_drop = HOP | FRAMING | OURS | SECRET
        if not settings.underscores_in_headers:
            self.request_drop |= UNDERSCORE
        if settings.tracing.enabled:
            self.request_drop |= TRACE
        self.spoofable = PROXYING
        self.via = _VIA if settings.via else b""
        self.version_field = _VERSION_FIELD

    # --------------------------------------------------------------------------------- stamps

    def request_id(self, wall_ms: int) -> bytes:
        """``nexus-<unix ms>-<random>``; 48 random bits: at a thousand requests in one millisecond
        the chance that two of them share an id is one in half a billion.
        """
        if wall_ms != self._id_ms:
            self._id_ms = wall_ms
            self._id_prefix = b"nexus-%d-" % wall_ms
        return self._id_prefix + self._getrandbits(48).to_bytes(6, "big").hex().encode()

    def stamp(self, wall_ms: int) -> bytes:
        """ISO 8601, UTC, milliseconds; only the milliseconds are made anew within a second."""
        if wall_ms != self._stamp_ms:
            second = wall_ms // 1000
            if second != self._stamp_second:
                self._stamp_second = second
                self._stamp_prefix = iso_utc(second * 1000).encode()[:-4]
            self._stamp_ms = wall_ms
            self._stamp = self._stamp_prefix + b"%03dZ" % (wall_ms - second * 1000)
        return self._stamp

    def date(self, wall_s: int) -> bytes:
        """``Date`` of replies that we make ourselves (RFC 9110 §6.6.1)."""
        if wall_s != self._date_s:
            self._date_s = wall_s
            self._date = formatdate(wall_s, usegmt=True).encode()
        return self._date

    def error_body(self, status: int, reason: str, message: str) -> bytes:
        """``{"error", "message", "reason"}``; rendered once."""
        key = (status, reason, message)
        body = self._bodies.get(key)
        if body is None:
            error = REASON_PHRASES.get(status, "Error")
            document = {"error": error, "message": message, "reason": reason}
            body = json.dumps(document).encode()
            if len(self._bodies) < _MAX_BODIES:
                self._bodies[key] = body
        return body

    # -------------------------------------------------------------------------------- metrics

    def count_request(self, method: bytes, route: str, status: int, milliseconds: float) -> None:
        """One request, answered or broken off."""
        key = (method, route, status)
        handles = self._requests.get(key)
        if handles is None:
            labels = {
                "method": method.decode("latin-1") or "-",
                "route": route or "-",
                "status_code": str(status),
            }
            handles = (
                self.metrics.counter("nexus_http_requests_total", **labels),
                self.metrics.histogram("nexus_http_request_duration_ms", **labels),
            )
            self._requests[key] = handles
        handles[0].inc()
        handles[1].observe(milliseconds)

    def count_upstream(self, server: Any, method: bytes, status: int, milliseconds: float) -> None:
        """One attempt at an upstream; status 0: it gave none."""
        key = (server.url, method, status)
        handle = self._upstreams.get(key)
        if handle is None:
            handle = self._upstreams[key] = self.metrics.histogram(
                "nexus_upstream_request_duration_ms",
                upstream=server.url,
                method=method.decode("latin-1"),
                status_code=str(status),
            )
        handle.observe(milliseconds)

    def count(self, name: str, value: str) -> None:
        """One of the counters with a single label."""
        if not self.counting:
            return
        family = self._counters.get(name)
        if family is None:
            family = self._counters[name] = self.metrics.counters(name)
        family.labels(value).inc()
