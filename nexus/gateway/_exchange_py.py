# cython: annotation_typing=False
"""One request on its way: attempts at upstreams, retry, the response's transformation, the record.

::

    begin ─► (phases) ─► reject / answer ────────────────────────────────────────► finish
                    └──► forward ─► attempt ─► WAITING ─► SENT ─► STREAMING ─────► finish
                                       ▲          │         │         └► TUNNEL ─► finish
                                       └─ BACKOFF ◄─────────┘ (retry)

One source, compiled as ``_exchange_c``. A session has one exchange and uses it for one request
after the other, so nothing here is allocated per request that the request does not need.
"""

from __future__ import annotations

from typing import Any, Final

import cython  # type: ignore[import-untyped]

from nexus.gateway.envelope import PREFIX, is_wrappable, suffix
from nexus.policy.retry import IDEMPOTENT, RETRIABLE_STATUS, Failure, decide
from nexus.wire.http1 import (
    FRAMING,
    HOP,
    LAST_CHUNK,
    LOCATION_CATEGORY,
    OURS,
    REASON_PHRASES,
    REPRESENTATION,
    chunk,
    field,
)

if not cython.compiled:
    from time import monotonic_ns

    from nexus._speedups._http1_py import RequestHead, ResponseHead
    from nexus.gateway._core_py import Core
    from nexus.gateway._pool_py import Pool
    from nexus.gateway._ports_py import ClientPort, ResponseSink
    from nexus.gateway._upstream_py import UpstreamConnection
    from nexus.observability._record_py import RequestRecord

__all__ = ["Exchange"]

_CONTENT_TYPE: Final = field(b"content-type")
_CONTENT_ENCODING: Final = field(b"content-encoding")
_CACHE_CONTROL: Final = field(b"cache-control")
_ETAG: Final = field(b"etag")
_LOCATION: Final = field(b"location")
_FORWARDED_FOR: Final = field(b"x-forwarded-for")
_REQUEST_ID: Final = field(b"x-request-id")
_CORRELATION_ID: Final = field(b"x-correlation-id")
_IDEMPOTENCY_KEY: Final = field(b"idempotency-key")
_USER_AGENT: Final = field(b"user-agent")
_TRACEPARENT: Final = field(b"traceparent")
_TRACESTATE: Final = field(b"tracestate")
_UPGRADE: Final = field(b"upgrade")

#: Fields of a response that are never passed on as they are.
_RESPONSE_DROP: Final = HOP | FRAMING | OURS

#: Longest x-correlation-id that becomes an event's key; longer ones are no identifiers.
MAX_CORRELATION_ID: Final = 128

_FREE, _WAITING, _SENT, _STREAMING, _BACKOFF, _TUNNEL, _COLLECTING, _DONE = range(8)

#: Reasons of failed attempts that were timeouts: 504 instead of 502.
_ID_FIELD: Final = b"x-request-id: "
_TIMEOUTS: Final = frozenset(("connect_timeout", "upstream_timeout", "upstream_stalled"))


class Exchange(ResponseSink):
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
        self._series: Any = None
        self._forwarded = b""
        self._forwarded_host: bytes | None = None
        self._state = _FREE
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
        self.proxied = False
        self.wraps = False
        self.upstream_status = 0
        self.upstream_url = ""
        self.host = b""
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
        self._prefix_sent = False
        self._held_size = 0
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

    @property
    def active(self) -> bool:
        """Whether a request is under way."""
        return self._state != _FREE and self._state != _DONE

    @property
    def responded(self) -> bool:
        """Whether a byte of the response has been sent."""
        return self._responded

    # ----------------------------------------------------------------------------- the request

    def begin(self, head: RequestHead, has_body: bool) -> None:
        """A request's head has been read; ``head`` is valid until the phases have run."""
        core = self.core
        self._clear()
        self._state = _WAITING
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
        self._bodiless = self.method == b"HEAD"
        self._content_length = head.content_length
        self._chunked_in = head.chunked
        self.request_done = not has_body
        self._deadline_total = now + core.total_ns
        core.budget.begin()

    def begin_refused(self) -> None:
        """There is no request, only something that must be refused."""
        self._clear()
        self._state = _WAITING
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
        self._bodiless = False
        self.core.budget.begin()

    def note(self, head: RequestHead) -> None:
        """Keep what log, spans and events want to know of the head."""
        self.user_agent = head.value(_USER_AGENT) or b""
        self.inbound_request_id = head.value(_REQUEST_ID) or b""
        correlation = head.value(_CORRELATION_ID)
        if correlation is not None and len(correlation) <= MAX_CORRELATION_ID:
            self.correlation_id = correlation
        if self.core.tracer is not None:
            self.core.tracer.open(self, head.value(_TRACEPARENT), head.value(_TRACESTATE))

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
        head = b"HTTP/1.1 %d %b\r\nContent-Type: %b\r\nContent-Length: %d\r\nDate: %b\r\n" % (
            status,
            REASON_PHRASES.get(status, "").encode(),
            content_type,
            len(body),
            core.date(self.wall_ns // 1_000_000_000),
        )
        data = b"".join((head, extra, _ID_FIELD, self.request_id, self._last_fields(keep)))
        if not self._bodiless:
            data += body
        self._send(data)
        self._finish(keep)

    def collect(self, limit: int) -> None:
        """The route's handler wants the whole request body, of at most ``limit`` bytes."""
        self._collect_limit = limit
        if self._content_length > limit:
            self.reject(413, "body_too_large", f"the request body is limited to {limit} bytes")
        elif self.request_done:
            self._call_handler(b"")
        else:
            self._state = _COLLECTING
            self.invite()

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

    # --------------------------------------------------------------------------- the way up

    def forward(self, head: RequestHead) -> None:
        """Pass the request to an upstream: make its bytes, then the first attempt."""
        core = self.core
        route = self.route
        drop = core.request_drop
        if not self.trusted:
            drop |= core.spoofable
        path = head.path[len(route.prefix) :] or b"/"
        self._target_out = path + head.query if head.query else path
        self._upgrading = head.upgrade
        self._keyed = route.idempotency_key and head.count(_IDEMPOTENCY_KEY) == 1
        trace = b""
        if core.tracer is not None:
            trace = core.tracer.outgoing(self)
        self._fields = b"".join(
            (
                head.fields(drop),
                b"x-request-id: ",
                self.request_id,
                b"\r\n",
                core.version_field,
                self._forwarding(head),
                self.stamp,
                b"\r\n",
                trace,
                core.via,
                self._framing_out(head),
                b"\r\n",
            )
        )
        self.proxied = True
        self._attempt()

    def _forwarding(self, head: RequestHead) -> bytes:
        """Who asked for what, up to our timestamp's value; kept while a client asks one host."""
        host = head.host
        if host == self._forwarded_host and not self.trusted:
            return self._forwarded
        before = head.joined(_FORWARDED_FOR) if self.trusted else b""
        chain = before + b", " + self.peer.encode() if before else self.ip.encode()
        self._forwarded_host = host
        self._forwarded = b"".join(
            (
                b"x-forwarded-for: ",
                chain,
                b"\r\nx-forwarded-host: ",
                host,
                b"\r\nx-forwarded-proto: ",
                self.scheme,
                b"\r\nx-gateway-timestamp: ",
            )
        )
        return self._forwarded

    def _framing_out(self, head: RequestHead) -> bytes:
        if head.upgrade:
            return b"Connection: Upgrade\r\nUpgrade: websocket\r\n"
        if head.content_length >= 0:
            return b"Content-Length: %d\r\n" % head.content_length
        if head.chunked:
            return b"Transfer-Encoding: chunked\r\n"
        return b""

    def _attempt(self) -> None:
        core = self.core
        now = monotonic_ns() if self.attempt else self.started
        server = core.balancer.pick(None, self._tried)
        self._permit = 1
        if core.breakers and server is not None:
            breaker: Any = server.breaker
            self._permit = breaker.allow(now)
            if not self._permit:  # open: now ask all of them, which most requests need not
                server = core.balancer.pick(core.usable, self._tried)
                if server is not None:
                    breaker = server.breaker
                    self._permit = breaker.allow(now)
        if server is None or not self._permit:
            # No upstream, or another worker took the half-open trial between the two questions.
            if self.attempt:
                self._give_up(502, "no_upstream_left", "No upstream is left to try.")
            else:
                self.reject(503, "no_healthy_upstream", "No upstream is available.")
            return
        self.attempt += 1
        self.server = server
        self._tried.append(server)
        server.active += 1
        server.handled += 1
        self.upstream_url = server.url
        self.upstream_started = now
        self._state = _WAITING
        core.wheel.schedule(self, self._deadline_total)
        pool: Pool | Any = server.extra
        connection = pool.acquire(self)
        if connection is not None:
            self.on_connected(connection)

    def on_connected(self, connection: UpstreamConnection) -> None:
        self.connection = connection
        self._state = _SENT
        pool = connection.pool
        data = b"".join(
            (
                self.method,
                b" ",
                pool.base_path,
                self._target_out,
                b" HTTP/1.1\r\nHost: ",
                pool.authority,
                b"\r\n",
                self._fields,
                *self._held,
            )
        )
        if self._held_size > self.core.buffer_bytes:
            self.replayable = False
            self._held.clear()
        connection.begin(self, data, self._bodiless)
        self._await_response()
        if not self.request_done:
            self.session.resume_request()

    def _await_response(self) -> None:
        """The upstream's time runs from the last byte of the request."""
        core = self.core
        if self.request_done:
            until = core.wheel.now + core.response_ns
            if until > self._deadline_total:
                until = self._deadline_total
            core.wheel.schedule(self, until)
        else:
            self.deadline = 0

    def on_request_body(self, data: bytes, last: bool) -> None:
        """A piece of the request's body, without framing."""
        self.bytes_in += len(data)
        state = self._state
        if last:
            self.request_done = True
        if state == _COLLECTING:
            self._collect(data, last)
            return
        if state in (_FREE, _DONE, _TUNNEL):
            return
        if self.core.max_body and self.bytes_in > self.core.max_body:
            self._too_large()
            return
        if last:
            self._deadline_total = self.core.wheel.now + self.core.total_ns
        if self._chunked_in:
            data = chunk(data) if data else b""
            if last:
                data += LAST_CHUNK
        if not data:
            return
        if self.replayable:
            self._held.append(data)
            self._held_size += len(data)
        if state in (_SENT, _STREAMING):
            if self._held_size > self.core.buffer_bytes and self.replayable:
                self.replayable = False
                self._held.clear()
            self.connection.write(data)
            if last and state == _SENT:
                self._await_response()
        elif self._held_size > self.core.buffer_bytes and not last:
            self.session.pause_request()

    def _collect(self, data: bytes, last: bool) -> None:
        self._held.append(data)
        if self.bytes_in > self._collect_limit:
            self.reject(
                413, "body_too_large", f"the request body is limited to {self._collect_limit} bytes"
            )
        elif last:
            self._call_handler(b"".join(self._held))

    def _too_large(self) -> None:
        if self._responded:
            self.break_off("body_too_large")
        else:
            self.reject(413, "body_too_large", "The request body is too large.")

    def on_upstream_blocked(self) -> None:
        if not self.request_done:
            self.session.pause_request()
            if self._state == _SENT:
                self.core.wheel.schedule(self, self.core.wheel.now + self.core.response_ns)
        elif self._state == _TUNNEL:
            self.session.pause_request()

    def on_upstream_writable(self) -> None:
        if not self.request_done and self._state == _SENT:
            self.deadline = 0
        self.session.resume_request()

    # ------------------------------------------------------------------------ the way down

    def on_informational(
        self,
        connection: UpstreamConnection,  # noqa: ARG002  (the seam has it)
        head: ResponseHead,
    ) -> None:
        # RFC 9110 §15.2: not to HTTP/1.0 clients; and 100 only to who asked, and once.
        if self.minor == 0 or self._responded:
            return
        if head.status == 100:
            if not self.expects or self._continued:
                return
            self._continued = True
        self.session.send(head.block(_RESPONSE_DROP) + b"\r\n")

    def on_response(
        self, connection: UpstreamConnection, head: ResponseHead, body: bytes, complete: bool
    ) -> None:
        status = head.status
        self._attempt_answered(status)
        if status >= 500 and status in RETRIABLE_STATUS:
            decision = self._decide(Failure.STATUS, status)
            if decision.retry:
                self._set_aside(connection, head, body, complete)
                self._back_off(decision.delay_ns)
                return
        self.status = status
        keep = self._keep and self.request_done and not self.core.draining
        block, extra, wraps = self._compose(head, complete and not body)
        if self._bodiless or status == 204 or status == 304:
            extra += self._bodiless_length(status, head.content_length, wraps)
            self._end(connection, block, extra, b"", keep)
        elif complete:
            if wraps:
                body = b"".join((PREFIX, body, suffix(self.request_id, self.stamp)))
            self._end(connection, block, extra + b"Content-Length: %d\r\n" % len(body), body, keep)
        else:
            self.wraps = wraps
            self._stream(block, extra, body, head.content_length, keep)

    def _compose(self, head: ResponseHead, empty: bool) -> tuple[bytes, bytes, bool]:
        """The upstream's fields, ours in place of some of them, and whether the body is wrapped."""
        drop = _RESPONSE_DROP
        extra = b""
        route = self.route
        prefix = route.prefix
        if prefix and head.count(_LOCATION):
            extra = self._location(head.value(_LOCATION) or b"", prefix)
            if extra:
                drop |= LOCATION_CATEGORY
        wraps = (
            self.core.envelope
            and route.envelope
            and head.content_length != 0
            and (self._bodiless or not empty)
            and is_wrappable(
                head.status,
                head.value(_CONTENT_TYPE),
                head.value(_CONTENT_ENCODING),
                head.value(_CACHE_CONTROL),
            )
        )
        if wraps:
            drop |= REPRESENTATION
            etag = head.value(_ETAG)
            if etag is not None:
                weak = etag if etag.startswith(b"W/") else b"W/" + etag
                extra += b"ETag: " + weak + b"\r\n"
        return head.block(drop), extra, wraps

    def _bodiless_length(self, status: int, length: int, wraps: bool) -> bytes:
        """The length of the body that a GET would have had, where it still is that one."""
        if wraps or length < 0 or status == 204:
            return b""
        return b"Content-Length: %d\r\n" % length

    def _set_aside(
        self, connection: UpstreamConnection, head: ResponseHead, body: bytes, complete: bool
    ) -> None:
        """Another attempt follows; keep this response in case that one brings none."""
        self.connection = None
        if not complete:
            connection.discard()
            return
        block, extra, wraps = self._compose(head, not body)
        if self._bodiless:
            extra += self._bodiless_length(head.status, head.content_length, wraps)
            body = b""
        else:
            if wraps:
                body = b"".join((PREFIX, body, suffix(self.request_id, self.stamp)))
            extra += b"Content-Length: %d\r\n" % len(body)
        self._fallback = (head.status, block, extra, body)
        if self.request_done:
            connection.release()
        else:
            connection.discard()

    def _end(
        self, connection: UpstreamConnection, block: bytes, extra: bytes, body: bytes, keep: bool
    ) -> None:
        """A response that is complete: one write."""
        data = b"".join(
            (block, extra, self.core.via, _ID_FIELD, self.request_id, self._last_fields(keep), body)
        )
        self.connection = None
        self._leave_server()
        if self.request_done:
            connection.release()
        else:
            connection.discard()
        self._send(data)
        self._finish(keep)

    def _stream(self, block: bytes, extra: bytes, body: bytes, length: int, keep: bool) -> None:
        """A response of which more is to come."""
        self._state = _STREAMING
        if length >= 0:
            if self.wraps:
                length += len(PREFIX) + len(suffix(self.request_id, self.stamp))
            extra += b"Content-Length: %d\r\n" % length
            self._chunked_out = False
        elif self.minor == 1:
            extra += b"Transfer-Encoding: chunked\r\n"
            self._chunked_out = True
        else:
            self._chunked_out = False
            keep = False
        self._keep = keep
        data = b"".join(
            (block, extra, self.core.via, _ID_FIELD, self.request_id, self._last_fields(keep))
        )
        if body:
            data += self._frame(body)
        # Before the write, which may find that the client takes no more.
        self.core.wheel.schedule(self, self.core.wheel.now + self.core.stream_idle_ns)
        self._send(data)

    def _frame(self, data: bytes) -> bytes:
        if self.wraps and not self._prefix_sent:
            self._prefix_sent = True
            data = PREFIX + data
        return chunk(data) if self._chunked_out else data

    def on_body(self, connection: UpstreamConnection, data: bytes, complete: bool) -> None:
        if self._state == _TUNNEL:
            self.bytes_out += len(data)
            self.session.send(data)
            if complete:
                self.on_lost(connection, "closed")
            return
        out = self._frame(data) if data else b""
        if not complete:
            self.core.wheel.schedule(self, self.core.wheel.now + self.core.stream_idle_ns)
            self._send(out)
            return
        if self._prefix_sent:
            tail = suffix(self.request_id, self.stamp)
            out += chunk(tail) if self._chunked_out else tail
        if self._chunked_out:
            out += LAST_CHUNK
        self.connection = None
        self._leave_server()
        if self.request_done:
            connection.release()
        else:
            connection.discard()
        if out:
            self._send(out)
        self._finish(self._keep)

    def on_upgraded(self, connection: UpstreamConnection, head: ResponseHead, data: bytes) -> None:
        # RFC 9110 §7.8: a server may switch only to what was asked for, and that is all we forward.
        asked = self._upgrading and (head.value(_UPGRADE) or b"").lower() == b"websocket"
        if not asked or not head.upgrade:
            connection.discard()
            self.on_lost(connection, "upstream_unasked_upgrade")
            return
        self._attempt_answered(101)
        self._state = _TUNNEL
        self.status = 101
        self.deadline = 0
        head_bytes = b"".join(
            (
                head.block(_RESPONSE_DROP),
                b"Connection: Upgrade\r\nUpgrade: websocket\r\nx-request-id: ",
                self.request_id,
                b"\r\n\r\n",
            )
        )
        self._send(head_bytes + data)
        self.session.tunnel()

    def on_tunnel_data(self, data: bytes) -> None:
        """Bytes from the client, to the upstream."""
        self.bytes_in += len(data)
        if self.connection is not None:
            self.connection.write(data)

    # -------------------------------------------------------------------- what can go wrong

    def on_connect_failed(self, reason: str) -> None:
        if reason == "pool_full":
            self._release_breaker()
            self._leave_server()
            self.reject(503, "upstream_queue_full", "Too many requests wait for an upstream.")
            return
        self._failed(Failure.CONNECT, reason)

    def on_lost(self, connection: UpstreamConnection, reason: str) -> None:
        state = self._state
        self.connection = None
        if state == _SENT:
            if reason == "closed" or reason == "reset":
                if connection.raced() and self._may_repeat():
                    self._repeat()
                    return
                self._failed(Failure.RESET, f"upstream_{reason}")
            else:
                self._failed(Failure.MALFORMED, reason)
        elif state == _STREAMING:
            self._leave_server()
            self.break_off("upstream_truncated")
        elif state == _TUNNEL:
            self._leave_server()
            self._finish_record()
            self._state = _DONE
            self.session.tunnel_ended()

    def _may_repeat(self) -> bool:
        """Whether the request can be sent once more though the upstream may have seen it."""
        return (
            self.attempt < self.core.retry_policy.max_attempts
            and self.replayable
            and (self.method in IDEMPOTENT or self._keyed)
        )

    def _repeat(self) -> None:
        """A keep-alive race costs an attempt, but no delay, no budget, and nothing at the breaker.

        The upstream timed an idle connection out while the request was on its way (RFC 9112 §9.5
        wants clients to be ready for that at any time). So it goes out again, on a new connection.
        """
        core = self.core
        self.attempt += 1
        core.count("nexus_upstream_keepalive_races_total", self.upstream_url)
        self._state = _WAITING
        core.wheel.schedule(self, self._deadline_total)
        self.server.extra.acquire_new(self)

    def on_deadline(self, now: int) -> None:  # noqa: ARG002
        state = self._state
        if state == _SENT:
            self.connection.discard()
            self.connection = None
            stalled = not self.request_done
            self._failed(Failure.TIMEOUT, "upstream_stalled" if stalled else "upstream_timeout")
        elif state == _WAITING:
            self.server.extra.cancel(self)
            self._release_breaker()
            self._leave_server()
            self.reject(504, "queue_timeout", "No upstream connection became free in time.")
        elif state == _BACKOFF:
            self._attempt()
        elif state == _STREAMING:
            self._let_go_of_upstream()
            self.break_off("stream_idle")

    def _failed(self, failure: Failure, reason: str) -> None:
        """An attempt gave no response."""
        now = monotonic_ns()
        core = self.core
        server = self.server
        self.upstream_ns = now - self.upstream_started
        self.upstream_status = 0
        if core.counting:
            core.count_upstream(server, self.method, 0, self.upstream_ns / 1e6)
        if core.breakers and server.breaker.record_failure(now, self._permit):
            self._opened(server)
        sent = failure is not Failure.CONNECT
        self._leave_server()
        decision = self._decide(failure, 0, sent)
        if decision.retry:
            self._back_off(decision.delay_ns)
            return
        if failure is Failure.MALFORMED:
            self._keep = False  # neither connection is believed any more
        if reason in _TIMEOUTS:
            self._give_up(504, reason, "The upstream did not answer in time.")
        else:
            self._give_up(502, reason, "The upstream could not be reached or broke off.")

    def _give_up(self, status: int, reason: str, message: str) -> None:
        """No attempt is left: a real response that an earlier one gave is better than ours."""
        fallback = self._fallback
        if fallback is None:
            self.reject(status, reason, message)
            return
        keep = self._keep and self.request_done and not self.core.draining
        self.status, block, extra, body = fallback
        self._send(
            b"".join(
                (
                    block,
                    extra,
                    self.core.via,
                    _ID_FIELD,
                    self.request_id,
                    self._last_fields(keep),
                    body,
                )
            )
        )
        self._finish(keep)

    def _decide(self, failure: Failure, status: int, sent: bool = True) -> Any:
        core = self.core
        self._end_retry()
        decision = decide(
            core.retry_policy,
            core.budget,
            core.rng,
            attempt=self.attempt,
            method=self.method,
            failure=failure,
            status=status,
            sent=sent,
            response_started=self._responded,
            body_replayable=self.replayable,
            idempotency_key=self._keyed,
            now_ns=core.wheel.now,
            deadline_ns=self._deadline_total,
        )
        if not decision.retry:
            self.retry_skipped = decision.why_not
            core.count("nexus_retries_skipped_total", decision.why_not)
        return decision

    def _back_off(self, delay: int) -> None:
        self._retrying = True
        self._leave_server()
        self.core.count("nexus_retries_total", self.upstream_url)
        self._state = _BACKOFF
        self.core.wheel.schedule(self, self.core.wheel.now + delay)

    def _end_retry(self) -> None:
        if self._retrying:
            self._retrying = False
            self.core.budget.release()

    def _attempt_answered(self, status: int) -> None:
        """A response head: good or bad, the upstream lives."""
        now = monotonic_ns()
        core = self.core
        server = self.server
        self.upstream_ns = now - self.upstream_started
        self.upstream_status = status
        if core.counting:
            core.count_upstream(server, self.method, status, self.upstream_ns / 1e6)
        if core.breakers:
            breaker: Any = server.breaker
            if status < 500:
                breaker.record_success(now, self._permit)
            elif breaker.record_failure(now, self._permit):
                self._opened(server)

    def _opened(self, server: Any) -> None:
        core = self.core
        core.count("nexus_circuit_breaker_opens_total", server.url)
        if core.events is not None:
            core.events.circuit_opened(
                server.url, self.method.decode("latin-1"), self.target.decode("latin-1")
            )

    def _release_breaker(self) -> None:
        """The attempt says nothing about the upstream."""
        if self.core.breakers and self.server is not None:
            self.server.breaker.release(monotonic_ns(), self._permit)

    def _leave_server(self) -> None:
        server = self.server
        if server is not None:
            self.server = None
            server.active -= 1

    def _let_go_of_upstream(self) -> None:
        """Whatever was under way there is of no interest any more."""
        self.deadline = 0
        connection = self.connection
        if connection is not None:
            self.connection = None
            if self._state == _SENT:
                self._release_breaker()
            connection.discard()
        elif self._state == _WAITING and self.server is not None:
            self.server.extra.cancel(self)
            self._release_breaker()
        self._leave_server()

    def break_off(self, reason: str) -> None:
        """The response cannot be completed: no suffix, no last chunk, the connection ends."""
        self._let_go_of_upstream()
        self.reason = reason
        self.core.count("nexus_rejections_total", reason)
        self._finish_record()
        self._state = _DONE
        self.session.break_off()

    def cancel(self, status: int, reason: str) -> None:
        """The client is gone; nothing can be sent any more."""
        if self._state == _FREE or self._state == _DONE:
            return
        self._let_go_of_upstream()
        if self._state != _TUNNEL:
            self.status = status
            self.reason = reason
            self.core.count("nexus_rejections_total", reason)
        self._finish_record()
        self._state = _DONE

    def block_client(self, watched: bool) -> None:
        """The client takes no more bytes: read no more from the upstream.

        ``watched``: the session keeps the time, for it is not the upstream that is silent.
        """
        if self.connection is not None:
            self.connection.pause_reading()
            if watched and self._state == _STREAMING:
                self.deadline = 0

    def unblock_client(self) -> None:
        if self.connection is not None:
            self.connection.resume_reading()
            if self._state == _STREAMING:
                self.core.wheel.schedule(self, self.core.wheel.now + self.core.stream_idle_ns)

    def close_upstream_writing(self) -> None:
        """End of the client's side of a tunnel."""
        if self.connection is not None:
            self.connection.write_eof()

    # --------------------------------------------------------------------------------- the end

    def _finish(self, keep: bool) -> None:
        self._finish_record()
        self._state = _DONE
        self.session.response_done(keep)

    def _finish_record(self) -> None:
        core = self.core
        self.deadline = 0
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
        if core.recorder is not None:
            core.recorder.append(self._record(duration))

    def _record(self, duration: int) -> RequestRecord:
        record = RequestRecord()
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
            record.upstream_start_ns = self.upstream_started + self.core.wall_offset
            record.upstream_ns = self.upstream_ns
            record.attempts = self.attempt
        record.trace_id = self.trace_id
        record.span_id = self.span_id
        record.parent_span_id = self.parent_span_id
        record.upstream_span_id = self.upstream_span_id
        record.tracestate = self.tracestate
        record.sampled = self.sampled
        return record

    def _location(self, value: bytes, prefix: bytes) -> bytes:
        """A path-absolute ``Location`` gets the route's prefix back; others stay as they are."""
        if value.startswith(b"/") and not value.startswith(b"//"):
            return b"Location: " + prefix + value + b"\r\n"
        return b""
