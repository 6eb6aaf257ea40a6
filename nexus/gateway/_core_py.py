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
    from nexus._speedups._counters_py import Counter, Histogram
    from nexus.gateway._routes_py import Route
    from nexus.gateway._wheel_py import Wheel
    from nexus.policy._balance_py import Server

    def numbered(prefix: bytes, dice: random.Random) -> bytes:
        """See ``_primitives.pxd``."""
        return prefix + b"%012x" % dice.getrandbits(48)


if TYPE_CHECKING:
    from nexus.gateway.settings import GatewaySettings
    from nexus.observability.recorder import Recorder
    from nexus.observability.registry import LocalMetrics

__all__ = ["Core", "Series"]

_VERSION_FIELD: Final = b"x-gateway-version: " + __version__.encode() + b"\r\n"
_VIA: Final = b"Via: 1.1 nexus\r\n"
#: Rendered error bodies kept; their number is bounded by reasons and messages in practice.
_MAX_BODIES: Final = 256


class Series:
    """Handles of one combination of labels, found again by comparing three values.

    What asks for handles remembers the last ones: most requests of a connection differ from the
    one before in none of their labels.
    """

    __slots__ = ("duration", "method", "requests", "route", "status")

    def __init__(
        self,
        route: Route | None,
        method: bytes,
        status: int,
        requests: Counter | None,
        duration: Histogram,
    ) -> None:
        self.route = route
        self.method = method
        self.status = status
        self.requests = requests
        self.duration = duration


class Core:
    """Owned by the app; read by every exchange and session of the worker."""

    def __init__(self, wheel: Wheel, metrics: LocalMetrics, rng: random.Random) -> None:
        self.wheel = wheel
        self.metrics: Any = metrics
        self.rng = rng
        self.recorder: Recorder | None = None
        self.events: Any = None
        self.tracer: Any = None
        #: Upstream group → its balancer.
        self.balancers: dict[str, Any] = {}
        #: Set by the app before the first connection: a RetryBudget.
        self.budget: Any = None
        self.breakers = False
        #: What is told of every answer; ``None`` while ejection is switched off.
        self.outliers: Any = None
        #: ``None`` while no upstream group has a bulkhead.
        self.bulkheads: Any = None
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
        if not cython.compiled:
            self._dice: Any = rng
        else:
            for index in range(4):
                self._dice[index] = rng.getrandbits(64)
        self._requests: dict[tuple[bytes, str, int], Series] = {}
        self._upstreams: dict[tuple[str, bytes, int], Series] = {}
        self._counters: dict[Any, Any] = {}
        self.bad = metrics.counters("nexus_http_requests_bad_total")
        self._bodies: dict[Any, bytes] = {}
        self._lines: dict[int, bytes] = {}

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
        self.slow_ns = settings.metrics.slow_ms * 1_000_000
        self.max_address_labels = settings.metrics.max_address_labels
        self.request_drop = HOP | FRAMING | OURS | SECRET | TRACE
        if not settings.underscores_in_headers:
            self.request_drop |= UNDERSCORE
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
        return numbered(self._id_prefix, self._dice)

    def stamp(self, wall_ms: int) -> bytes:
        """ISO 8601, UTC, milliseconds; only the milliseconds are made anew within a second."""
        if wall_ms != self._stamp_ms:
            second = wall_ms // 1000
            if second != self._stamp_second:
                self._stamp_second = second
                self._stamp_prefix = iso_utc(second * 1000).encode()[:20]
            self._stamp_ms = wall_ms
            self._stamp = self._stamp_prefix + b"%03dZ" % (wall_ms - second * 1000)
        return self._stamp

    def date_field(self, wall_s: int) -> bytes:
        """``Date`` of replies that we make ourselves (RFC 9110 §6.6.1), the whole line."""
        if wall_s != self._date_s:
            self._date_s = wall_s
            self._date = b"Date: %b\r\n" % formatdate(wall_s, usegmt=True).encode()
        return self._date

    def status_line(self, status: int) -> bytes:
        """Of replies that we make ourselves."""
        line: bytes | None = self._lines.get(status)
        if line is None:
            phrase = REASON_PHRASES.get(status, "").encode()
            line = self._lines[status] = b"HTTP/1.1 %d %b\r\n" % (status, phrase)
        return line

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

    def request_series(self, route: Route | None, method: bytes, status: int) -> Series:
        """The handles of requests like this one, answered or broken off."""
        known = method
        if route is None or method not in route.methods:
            known = b"other" if method else b"-"  # a bounded number of label values
        key = (known, route.template if route is not None else "-", status)
        series = self._requests.get(key)
        if series is None or series.route is not route:
            labels = {"method": known.decode(), "route": key[1], "status_code": str(status)}
            series = self._requests[key] = Series(
                route,
                known,
                status,
                self.metrics.counter("nexus_http_requests_total", **labels),
                self.metrics.histogram("nexus_http_request_duration_ms", **labels),
            )
            for cause in ("failed", "slow"):
                self.bad.labels(key[1], cause)
        return series

    def count_bad(self, route: Route | None, status: int) -> None:
        """A request that the objective counts against itself; 101 and 499 say nothing of it."""
        if status in (101, 499):
            return
        template = route.template if route is not None else "-"
        cause = "failed" if status >= 500 or status == 0 else "slow"
        self.bad.labels(template, cause).inc()

    def count_upstream(
        self, server: Server, method: bytes, status: int, milliseconds: float
    ) -> None:
        """One attempt at an upstream; status 0: it gave none."""
        series: Any = server.series
        if series is None or series.status != status or series.method != method:
            key = (server.url, method, status)
            series = self._upstreams.get(key)
            if series is None:
                duration = self.metrics.histogram(
                    "nexus_upstream_request_duration_ms",
                    upstream=server.url,
                    method=method.decode("latin-1"),
                    status_code=str(status),
                )
                series = self._upstreams[key] = Series(None, method, status, None, duration)
            server.series = series
        series.duration.observe(milliseconds)

    def count(self, name: str, value: str) -> None:
        """One of the counters with a single label."""
        if not self.counting:
            return
        family = self._counters.get(name)
        if family is None:
            family = self._counters[name] = self.metrics.counters(name)
        family.labels(value).inc()
