# cython: annotation_typing=False
"""One request on its way: its bytes to an upstream, and the response's bytes to the client.

::

    begin ─► (phases) ─► reject / answer ────────────────────────────────────────► finish
                    └──► forward ─► attempt ─► WAITING ─► SENT ─► STREAMING ─────► finish
                                       ▲          │         │         └► TUNNEL ─► finish
                                       └─ BACKOFF ◄─────────┘ (retry)

One source, compiled as ``_exchange_c``; the highest of three classes, see ``_request_py``. What the
heads look like is made in ``_compose_py``.
"""

from __future__ import annotations

import cython  # type: ignore[import-untyped]

from nexus.gateway.envelope import PREFIX
from nexus.gateway.transforms import TransformError
from nexus.policy.retry import RETRIABLE_STATUS, Failure
from nexus.wire.http1 import LAST_CHUNK, chunk, field

if not cython.compiled:
    from nexus._speedups._http1_py import RequestHead, ResponseHead
    from nexus.gateway._attempts_py import Attempts
    from nexus.gateway._compose_py import (
        RESPONSE_DROP,
        bodiless_length,
        request_fields,
        response_fields,
    )
    from nexus.gateway._envelope_py import suffix, wrapped
    from nexus.gateway._request_py import (
        COLLECTING,
        DONE,
        FREE,
        ID_FIELD,
        SENT,
        STREAMING,
        TUNNEL,
        WAITING,
    )
    from nexus.gateway._upstream_py import UpstreamConnection
    from nexus.gateway.buffers import cut, joined, length_field

__all__ = ["Exchange"]

_IDEMPOTENCY_KEY = field(b"idempotency-key")
_UPGRADE = field(b"upgrade")


class Exchange(Attempts):
    """The request that a session is serving, whole."""

    # ------------------------------------------------------------------------------- the way up

    def forward(self, head: RequestHead) -> None:
        """Pass the request to an upstream: make its bytes, then the first attempt."""
        route = self.route
        if route.rewrite is None:
            path = cut(head.path, len(route.prefix), len(head.path)) or b"/"
        else:
            path = route.rewrite(head.path)
        query = head.query
        if route.query_rules is not None:
            query = route.query_rules.apply(query, self, head.path)
        self._target_out = path + query if query else path
        self._upgrading = head.upgrade
        self._keyed = route.idempotency_key and head.count(_IDEMPOTENCY_KEY) == 1
        self._deadline_total = self.started + route.total_ns
        self._max_body = route.body_bytes
        try:
            self._fields = request_fields(self, head)
        except TransformError as error:
            self.reject(400, "bad_transform", str(error))
            return
        self.proxied = True
        self._enter()

    def on_connected(self, connection: UpstreamConnection) -> None:
        upstream = connection
        self.connection = upstream
        self._state = SENT
        pool = upstream.pool
        data = joined(
            (
                self.method,
                b" ",
                pool.base_path,
                self._target_out,
                b" HTTP/1.1\r\nHost: ",
                pool.authority,
                b"\r\n",
                self._fields,
            )
        )
        if self._held:
            data = b"".join((data, *self._held))
        if self._held_size > self.core.buffer_bytes:
            self.replayable = False
            self._held.clear()
        if self.body_at_hand and not self._held:
            self._corked = data  # one send, and the upstream is woken once
            data = b""
        upstream.begin(self, data, self.bodiless)
        self._await_response()
        if not self.request_done:
            self.session.resume_request()

    def _await_response(self) -> None:
        """The upstream's time runs from the last byte of the request."""
        core = self.core
        if self.request_done:
            until = core.wheel.now + self.route.response_ns
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
        if state == COLLECTING:
            self._collect(data, last)
            return
        if state in (FREE, DONE, TUNNEL):
            return
        if self._max_body and self.bytes_in > self._max_body:
            self._too_large()
            return
        if last:
            self._deadline_total = self.core.wheel.now + self.route.total_ns
        if self._chunked_in:
            data = _chunked(data, last)
        corked = self._corked
        self._corked = b""
        if data:
            self._keep_for_replay(data)
        elif not corked:
            if not last:
                self._hold_more()
            return
        if state in (SENT, STREAMING):
            self.connection.write(corked + data if corked else data)
            if last and state == SENT:
                self._await_response()
        elif not last:
            self._hold_more()
        if last and self._uploading:
            self._uploaded()

    def _uploaded(self) -> None:
        self._uploading = False
        if self._state == WAITING:
            self.core.wheel.schedule(self, self._deadline_total)
        self.server.extra.body_complete(self)

    def _keep_for_replay(self, data: bytes) -> None:
        if not self.replayable:
            return
        self._held.append(data)
        self._held_size += len(data)
        if self.connection is not None and self._held_size > self.core.buffer_bytes:
            self.replayable = False
            self._held.clear()

    def _hold_more(self) -> None:
        """The body goes on, and waits here as long as there is no connection."""
        if self.connection is not None:
            return
        if self._uploading and self.server.extra.crowded(self):
            self.on_connect_failed("pool_full")
        elif self._held_size > self.core.buffer_bytes:
            self.session.pause_request()

    def _too_large(self) -> None:
        if self._responded:
            self.break_off("body_too_large")
        else:
            self.reject(413, "body_too_large", "The request body is too large.")

    def on_upstream_blocked(self) -> None:
        if not self.request_done:
            self.session.pause_request()
            if self._state == SENT:
                self.core.wheel.schedule(self, self.core.wheel.now + self.route.response_ns)
        elif self._state == TUNNEL:
            self.session.pause_request()
            self.core.wheel.schedule(self, self.core.wheel.now + self.route.stream_idle_ns)

    def on_upstream_writable(self) -> None:
        if self._state == TUNNEL or (not self.request_done and self._state == SENT):
            self.deadline = 0
        self.session.resume_request()

    # ----------------------------------------------------------------------------- the way down

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
        self.session.send(head.block(RESPONSE_DROP) + b"\r\n")

    def on_response(
        self, connection: UpstreamConnection, head: ResponseHead, body: bytes, complete: bool
    ) -> None:
        status = head.status
        if status == 408 and self._idle_timeout(connection, head):
            self.connection = None
            connection.discard()
            self.upstream_status = status
            self._repeat("upstream_idle_timeout")
            return
        self._attempt_answered(status)
        if status >= 500 and status in RETRIABLE_STATUS:
            decision = self._decide(Failure.STATUS, status, True, self._retry_after(head))
            if decision.retry:
                self._set_aside(connection, head, body, complete)
                self._back_off(decision.delay_ns)
                return
        self.status = status
        keep = self._keep and self.request_done and not self.core.draining
        block, extra, wraps = response_fields(self, head, complete and not body)
        if self.bodiless or status == 204 or status == 304:
            extra += bodiless_length(status, head.content_length, wraps)
            self._end(connection, block, extra, b"", keep)
        elif complete:
            if wraps:
                body = wrapped(body, self.request_id, self.stamp)
            self._end(connection, block, extra + length_field(len(body)), body, keep)
        else:
            self.wraps = wraps
            self._stream(block, extra, body, head.content_length, keep)

    def _idle_timeout(self, connection: UpstreamConnection, head: ResponseHead) -> bool:
        """Whether a 408 is no answer to this request, but the end of an idle connection.

        Some servers say it before they close one, and it crosses the next request (RFC 9110
        §15.5.9: that request may be repeated on a new connection).
        """
        return (
            not head.keep_alive
            and self.request_done
            and (connection.rested or connection.requests > 1)
            and self._may_repeat()
        )

    def _set_aside(
        self, connection: UpstreamConnection, head: ResponseHead, body: bytes, complete: bool
    ) -> None:
        """Another attempt follows; keep this response in case that one brings none."""
        self.connection = None
        if not complete:
            connection.discard()
            return
        block, extra, wraps = response_fields(self, head, not body)
        if self.bodiless:
            extra += bodiless_length(head.status, head.content_length, wraps)
            body = b""
        else:
            if wraps:
                body = wrapped(body, self.request_id, self.stamp)
            extra += length_field(len(body))
        self._fallback = (head.status, block, extra, body)
        if self.request_done:
            connection.release()
        else:
            connection.discard()

    def _end(
        self, connection: UpstreamConnection, block: bytes, extra: bytes, body: bytes, keep: bool
    ) -> None:
        """A response that is complete: one write."""
        data = joined(
            (block, extra, self.core.via, ID_FIELD, self.request_id, self._last_fields(keep), body)
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
        self._state = STREAMING
        if length >= 0:
            if self.wraps:
                length += len(PREFIX) + len(suffix(self.request_id, self.stamp))
            extra += length_field(length)
            self._chunked_out = False
        elif self.minor == 1:
            extra += b"Transfer-Encoding: chunked\r\n"
            self._chunked_out = True
        else:
            self._chunked_out = False
            keep = False
        self._keep = keep
        data = joined(
            (block, extra, self.core.via, ID_FIELD, self.request_id, self._last_fields(keep))
        )
        if body:
            data += self._frame(body)
        # Before the write, which may find that the client takes no more.
        self.core.wheel.schedule(self, self.core.wheel.now + self.route.stream_idle_ns)
        self._send(data)

    def _frame(self, data: bytes) -> bytes:
        if self.wraps and not self._prefix_sent:
            self._prefix_sent = True
            data = PREFIX + data
        return chunk(data) if self._chunked_out else data

    def on_body(self, connection: UpstreamConnection, data: bytes, complete: bool) -> None:
        if self._state == TUNNEL:
            self.bytes_out += len(data)
            self.session.send(data)
            if complete:
                self.on_lost(connection, "closed")
            return
        out = self._frame(data) if data else b""
        if not complete:
            self.core.wheel.schedule(self, self.core.wheel.now + self.route.stream_idle_ns)
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

    # ------------------------------------------------------------------- tunnels, back-pressure

    def on_upgraded(self, connection: UpstreamConnection, head: ResponseHead, data: bytes) -> None:
        # RFC 9110 §7.8: a server may switch only to what was asked for, and that is all we forward.
        asked = self._upgrading and (head.value(_UPGRADE) or b"").lower() == b"websocket"
        if not asked or not head.upgrade:
            connection.discard()
            self.on_lost(connection, "upstream_unasked_upgrade")
            return
        self._attempt_answered(101)
        self._state = TUNNEL
        self.status = 101
        self.deadline = 0
        head_bytes = b"".join(
            (
                head.block(RESPONSE_DROP),
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

    def block_client(self) -> None:
        """The client takes no more bytes: read no more from the upstream.

        The session keeps the time from now on, for it is not the upstream that is silent.
        """
        if self.connection is not None:
            self.connection.pause_reading()
            if self._state == STREAMING:
                self.deadline = 0

    def unblock_client(self) -> None:
        if self.connection is not None:
            self.connection.resume_reading()
            if self._state == STREAMING:
                self.core.wheel.schedule(self, self.core.wheel.now + self.route.stream_idle_ns)

    def close_upstream_writing(self) -> None:
        """End of the client's side of a tunnel."""
        if self.connection is not None:
            self.connection.write_eof()


def _chunked(data: bytes, last: bool) -> bytes:
    framed = chunk(data) if data else b""
    return framed + LAST_CHUNK if last else framed
