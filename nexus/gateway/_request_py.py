# cython: annotation_typing=False
"""A request that a session serves: what is known of it, our own replies, what is recorded of it.

The lowest of three classes that are one object::

    ServedRequest (here)     its facts, replies that we make ourselves, its record at the end
    Attempts                 which upstream is tried, and when again (`_attempts_py`)
    Exchange                 the bytes of request and response, both ways (`_exchange_py`)

One source, compiled as ``_request_c``. A session uses its object for one request after the other,
so nothing here is allocated per request that the request does not need.
"""

from __future__ import annotations

from typing import Any, Final

import cython  # type: ignore[import-untyped]

from nexus.wire.http1 import field

if not cython.compiled:
    from time import monotonic_ns

    from nexus._speedups._http1_py import RequestHead
    from nexus.gateway._core_py import Core
    from nexus.gateway._ports_py import NOBODY, ClientPort, ResponseSink
    from nexus.gateway._upstream_py import UpstreamConnection
    from nexus.gateway.buffers import joined, length_field
    from nexus.observability._record_py import RequestRecord

__all__ = ["ServedRequest"]

_REQUEST_ID: Final = field(b"x-request-id")
_CORRELATION_ID: Final = field(b"x-correlation-id")
_USER_AGENT: Final = field(b"user-agent")
_TRACEPARENT: Final = field(b"traceparent")
_TRACESTATE: Final = field(b"tracestate")

#: Longest x-correlation-id that becomes an event's key; longer ones are no identifiers.
MAX_CORRELATION_ID: Final = 128

#: States of a request; the diagram stands in ``_exchange_py``.
FREE, WAITING, SENT, STREAMING, BACKOFF, TUNNEL, COLLECTING, DONE, HELD, QUEUED = range(10)

ID_FIELD: Final = b"x-request-id: "


class ServedRequest(ResponseSink):
    """The request that a session is serving."""

    def __init__(self, core: Core, session: ClientPort) -> None:
        super().__init__()
        self.core = core
        self.session = session
        self.peer = ""
        self.ip = ""
        self.trusted = False
        #: Key of the client's bucket; renewed where a trusted proxy names the client.
        self.limit_key = 0
        self.connection: UpstreamConnection | Any = None
        #: Its `extra` is its pool and its `breaker` its breaker.
        self.server: Any = None
        self.scheme = b"http"
        #: The bulkhead that it is inside of, or waits at.
        self._inside: Any = None
        self._waits_at: Any = None
        #: The head of a request that is held.
        self.held_head: RequestHead | Any = None
        self._series: Any = None
        #: Whom the connection's last token proved, and the wall clock in nanoseconds at its end.
        self.proved: Any = None
        self.proved_until = 0
        self.forwarded = b""
        self.forwarded_host: bytes | None = None
        self._state = FREE
        self._fields = b""
        self._held: list[bytes] = []
        self._tried: list[Any] = []
        self._clear()

    def _clear(self) -> None:
        self.route: Any = None
        self.client_id = ""
        self.status = 0
        self.reason = ""
        self.attempt = 0
        self.bytes_in = 0
        self.bytes_out = 0
        self.replayable = True
        self.request_done = True
        #: Whether the first bytes of the body follow within this call of the session.
        self.body_at_hand = False
        #: The upstream request's head, which waits for them.
        self._corked = b""
        self.proxied = False
        self.wraps = False
        self.upstream_status = 0
        #: Reason code of an attempt that gave no response.
        self.upstream_error = ""
        self.upstream_url = ""
        #: The attempts before this one; see ``RequestRecord.earlier``.
        self._earlier: list[Any] | None = None
        self.host = b""
        #: Field lines that every response of this request gets (CORS).
        self.shared = b""
        self.held = False
        #: Who asks, where the route demands a token.
        self.identity: Any = None
        #: The ``Cookie`` field, where the route's handler asks for it.
        self.cookie = b""
        self._target_out = b""
        self.upstream_started = 0
        self.upstream_ns = 0
        self.retry_skipped = ""
        self.user_agent = b""
        self.inbound_request_id = b""
        self.correlation_id = b""
        self.trace_id = ""
        self.span_id = ""
        self.parent_span_id = ""
        self.upstream_span_id = ""
        self.tracestate = b""
        self.sampled = False
        #: W3C's random flag: of the client's trace id, or of ours.
        self.random_id = False
        self._prefix_sent = False
        self._held_size = 0
        #: Whether the pool counts it among the requests whose bodies are still arriving.
        self._uploading = False
        self._retrying = False
        self._responded = False
        self._keyed = False
        self._keep = True
        self._chunked_out = False
        self._continued = False
        self._collect_limit = 0
        self._permit = 0
        self._fallback: tuple[int, bytes, bytes, bytes] | None = None
        self.expects = False

    def hold(self) -> None:
        """A limit must ask Redis: the request waits; its head is kept by whoever parsed it."""
        self._state = HELD
        self.held = True

    def detach(self) -> None:
        """The session is gone: neither it nor the wheel keeps the other in memory."""
        self.core.wheel.drop(self)
        self.session = NOBODY

    def let_go(self) -> None:
        """The limits admit the request."""
        self._state = WAITING
        self.held = False

    @property
    def active(self) -> bool:
        """Whether a request is under way."""
        return self._state != FREE and self._state != DONE

    @property
    def responded(self) -> bool:
        """Whether a byte of the response has been sent."""
        return self._responded

    @property
    def target_out(self) -> bytes:
        """The target that upstreams get; empty before that is known."""
        return self._target_out

    # ------------------------------------------------------------------------------ the request

    def begin(self, head: RequestHead, has_body: bool) -> None:
        """A request's head has been read; ``head`` is valid until the phases have run."""
        core = self.core
        self._clear()
        self._state = WAITING
        now = monotonic_ns()
        self.started = now
        self.wall_ns = now + core.wall_offset
        wall_ms = self.wall_ns // 1_000_000
        self.request_id = core.request_id(wall_ms)
        self.stamp = core.stamp(wall_ms)
        self.method = head.method
        self.target = head.target
        self.host = head.host
        self.minor = head.minor
        self.expects = head.expect_continue
        self._keep = head.keep_alive
        self.bodiless = self.method == b"HEAD"
        self._content_length = head.content_length
        self._chunked_in = head.chunked
        self.request_done = not has_body
        self._deadline_total = now + core.total_ns
        self._max_body = core.max_body
        core.budget.begin()

    def begin_refused(self) -> None:
        """There is no request, only something that must be refused."""
        self._clear()
        self._state = WAITING
        now = monotonic_ns()
        self.started = now
        self.wall_ns = now + self.core.wall_offset
        wall_ms = self.wall_ns // 1_000_000
        self.request_id = self.core.request_id(wall_ms)
        self.stamp = self.core.stamp(wall_ms)
        self.method = b""
        self.target = b""
        self.minor = 1
        self._keep = False
        self.bodiless = False
        self.core.budget.begin()
        if self.core.tracer is not None:
            self.core.tracer.open(self, None, b"")  # for its log line and its span

    def note(self, head: RequestHead) -> None:
        """Keep what log, spans and events want to know of the head."""
        self.user_agent = head.value(_USER_AGENT) or b""
        self.inbound_request_id = head.value(_REQUEST_ID) or b""
        correlation = head.value(_CORRELATION_ID)
        if correlation is not None and len(correlation) <= MAX_CORRELATION_ID:
            self.correlation_id = correlation
        if self.core.tracer is not None:
            # W3C Trace Context: a request with two traceparent fields has none that is valid
            # (§3.2.2); tracestate may be split over several (§3.3.1).
            parent = head.value(_TRACEPARENT) if head.count(_TRACEPARENT) == 1 else None
            state = head.joined(_TRACESTATE) if parent is not None else b""
            self.core.tracer.open(self, parent, state)

    # ------------------------------------------------------------------------------ own replies

    def reject(self, status: int, reason: str, message: str, extra: bytes = b"") -> None:
        """Answer with an error of our own; ``extra`` are whole field lines."""
        self._let_go_of_upstream()
        core = self.core
        self.reason = reason
        core.count("nexus_rejections_total", reason)
        self.answer(status, core.error_body(status, reason, message), b"application/json", extra)

    def answer(self, status: int, body: bytes, content_type: bytes, extra: bytes = b"") -> None:
        """Answer with a complete body of our own."""
        core = self.core
        keep = self._keep and self.request_done and not core.draining
        self.status = status
        self._send(
            joined(
                (
                    core.status_line(status),
                    b"Content-Type: ",
                    content_type,
                    b"\r\n",
                    length_field(len(body)),
                    core.date_field(self.wall_ns // 1_000_000_000),
                    extra,
                    self.shared,
                    ID_FIELD,
                    self.request_id,
                    self._last_fields(keep),
                    b"" if self.bodiless else body,
                )
            )
        )
        self._finish(keep)

    def answer_empty(self, extra: bytes) -> None:
        """Answer 204, which has neither body nor length (RFC 9110 §8.6)."""
        keep = self._keep and self.request_done and not self.core.draining
        self.status = 204
        self._send(
            joined(
                (
                    self.core.status_line(204),
                    self.core.date_field(self.wall_ns // 1_000_000_000),
                    extra,
                    ID_FIELD,
                    self.request_id,
                    self._last_fields(keep),
                )
            )
        )
        self._finish(keep)

    def collect(self, limit: int) -> None:
        """The route's handler wants the whole request body, of at most ``limit`` bytes."""
        self._collect_limit = limit
        if self._content_length > limit:
            self.reject(413, "body_too_large", f"the request body is limited to {limit} bytes")
        elif self.request_done:
            self._call_handler(b"")
        else:
            self._state = COLLECTING
            self.invite()

    def _collect(self, data: bytes, last: bool) -> None:
        self._held.append(data)
        if self.bytes_in > self._collect_limit:
            self.reject(
                413, "body_too_large", f"the request body is limited to {self._collect_limit} bytes"
            )
        elif last:
            self._call_handler(b"".join(self._held))

    def invite(self) -> None:
        """Answer ``Expect: 100-continue`` ourselves, once (RFC 9110 §10.1.1)."""
        if self.expects and not self._continued:
            self._continued = True
            self.session.send(b"HTTP/1.1 100 Continue\r\n\r\n")

    def _call_handler(self, body: bytes) -> None:
        self.route.handler(self, body)

    def _last_fields(self, keep: bool) -> bytes:
        """What follows the request id, our last field: persistence, and the end of the head."""
        if keep:
            return b"\r\n\r\n" if self.minor == 1 else b"\r\nConnection: keep-alive\r\n\r\n"
        return b"\r\nConnection: close\r\n\r\n"

    def _send(self, data: bytes) -> None:
        self._responded = True
        self.bytes_out += len(data)
        self.session.send(data)

    def _let_go_of_upstream(self) -> None:
        """Whatever is under way at an upstream is of no interest any more."""
        raise NotImplementedError

    # ---------------------------------------------------------------------------------- the end

    def _finish(self, keep: bool) -> None:
        self._finish_record()
        self._state = DONE
        self.session.response_done(keep)

    def _finish_record(self) -> None:
        core = self.core
        self.deadline = 0
        self.held = False
        self.held_head = None
        if self._inside is not None:
            inside = self._inside
            self._inside = None
            inside.leave(monotonic_ns())
        self._end_retry()
        core.budget.end()
        if self._held:
            self._held.clear()
        if self._tried:
            self._tried.clear()
        duration = monotonic_ns() - self.started
        if core.counting:
            series = self._series
            if (
                series is None
                or series.status != self.status
                or series.route is not self.route
                or series.method != self.method
            ):
                series = core.request_series(self.route, self.method, self.status)
                self._series = series
            series.requests.inc(1.0)
            series.duration.observe(duration / 1e6)
            if duration > core.slow_ns or self.status >= 500 or self.status == 0:
                core.count_bad(self.route, self.status)
        if core.recorder is not None:
            core.recorder.append(self._record(duration))

    def _end_retry(self) -> None:
        if self._retrying:
            self._retrying = False
            self.core.budget.release()

    def _record(self, duration: int) -> RequestRecord:
        record = RequestRecord.__new__(RequestRecord)
        record.redacted = None
        record.started_ns = self.wall_ns
        record.duration_ns = duration
        record.method = self.method
        record.target = self.target
        record.scheme = self.scheme
        record.host = self.host
        record.route = self.route.template if self.route is not None else ""
        record.status = self.status
        record.reason = self.reason
        record.ip = self.ip
        record.client_id = self.client_id
        record.user_agent = self.user_agent
        record.request_id = self.request_id.decode()
        record.inbound_request_id = self.inbound_request_id
        record.correlation_id = self.correlation_id
        record.bytes_in = self.bytes_in
        record.bytes_out = self.bytes_out
        record.retry_skipped = self.retry_skipped
        if self.proxied:
            record.proxied = True
            record.upstream = self.upstream_url
            record.upstream_target = self._target_out
            record.upstream_status = self.upstream_status
            # From the request's own: the offset between the clocks may have been set since.
            record.upstream_start_ns = self.wall_ns + self.upstream_started - self.started
            record.upstream_ns = self.upstream_ns
            if not self.upstream_ns and self.attempt:  # cut short: it lasted until now
                record.upstream_ns = self.started + duration - self.upstream_started
            record.upstream_error = self.upstream_error
            record.attempts = self.attempt
            record.earlier = self._earlier
        else:
            record.proxied = False
            record.upstream = ""
            record.upstream_target = b""
            record.upstream_status = 0
            record.upstream_start_ns = 0
            record.upstream_ns = 0
            record.upstream_error = ""
            record.attempts = 0
            record.earlier = None
        record.trace_id = self.trace_id
        record.span_id = self.span_id
        record.parent_span_id = self.parent_span_id
        record.upstream_span_id = self.upstream_span_id
        record.tracestate = self.tracestate
        record.sampled = self.sampled
        record.random_id = self.random_id
        return record
