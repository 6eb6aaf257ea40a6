# cython: annotation_typing=False
"""Attempts at upstreams: which server is tried, when again, what breaker and budget are told.

::

    _attempt ─► balancer ─► breaker ─► pool ─► on_connected (`_exchange_py` sends the request)
        ▲                                          │ no response, or one that may be retried
        └──────── BACKOFF ◄─── decide (retry) ◄────┘ else: give up, or pass on what came

One source, compiled as ``_attempts_c``; the middle of three classes, see ``_request_py``.
"""

from __future__ import annotations

from typing import Any, Final

import cython  # type: ignore[import-untyped]

from nexus.gateway.reasons import cause_of
from nexus.policy.bulkhead import ENTERED, WAITS
from nexus.policy.retry import IDEMPOTENT, Failure, decide, retry_after_ns

if not cython.compiled:
    from time import monotonic_ns

    from nexus._speedups._http1_py import ResponseHead
    from nexus.gateway._pool_py import Pool
    from nexus.gateway._request_py import (
        BACKOFF,
        DONE,
        FREE,
        ID_FIELD,
        QUEUED,
        SENT,
        STREAMING,
        TUNNEL,
        WAITING,
        ServedRequest,
    )
    from nexus.gateway._upstream_py import UpstreamConnection

__all__ = ["Attempts"]

#: An attempt that ended so leaves doubts about every connection that rests in the pools.
_BROKEN: Final = frozenset(("upstream_closed", "upstream_reset"))
#: Reasons of failed attempts that were timeouts: 504 instead of 502.
_TIMEOUTS: Final = frozenset(("connect_timeout", "upstream_timeout", "upstream_stalled"))


class Attempts(ServedRequest):
    """The upstream side of a request, up to the moment in which it answers."""

    def _enter(self) -> None:
        """Through the group's bulkhead, to the first attempt."""
        core = self.core
        if core.bulkheads is None:
            self._attempt()
            return
        bulkhead = core.bulkheads.of(self.route.group)
        entered = bulkhead.enter(self, monotonic_ns())
        if entered == WAITS:
            self._waits_at = bulkhead
            self._state = QUEUED
            now = core.wheel.now
            core.wheel.schedule(self, min(now + bulkhead.wait_ns, self._deadline_total))
        elif entered == ENTERED:
            self._inside = bulkhead
            self._attempt()
        else:
            self._no_place()

    def on_admitted(self) -> None:
        """A place in the bulkhead is free."""
        self.deadline = 0
        self._inside = self._waits_at
        self._waits_at = None
        self._attempt()

    def _no_place(self) -> None:
        self.reject(
            503,
            "bulkhead_full",
            "Too many requests are under way at the upstreams of this route.",
            b"Retry-After: 1\r\n",
        )

    def _attempt(self) -> None:
        core = self.core
        now = monotonic_ns() if self.attempt or self._inside is not None else self.started
        balancer: Any = core.balancers.get(self.route.group)
        server = balancer.pick(None, self._tried) if balancer is not None else None
        self._permit = 1
        if core.breakers and server is not None:
            breaker: Any = server.breaker
            self._permit = breaker.allow(now)
            if not self._permit:  # open: now ask all of them, which most requests need not
                server = self._pick_usable(balancer)
        if server is None:
            if self.attempt:
                self._give_up(502, "no_upstream_left", "No upstream is left to try.")
            else:
                self.reject(503, "no_healthy_upstream", "No upstream is available.")
            return
        afresh = False
        if self.attempt:
            afresh = self.upstream_error in _BROKEN
            self._set_apart()
        self.attempt += 1
        self.server = server
        self._tried.append(server)
        server.active += 1
        server.handled += 1
        self.upstream_url = server.url
        self.upstream_started = now
        self._state = WAITING
        core.wheel.schedule(self, self._deadline_total)
        pool: Pool | Any = server.extra
        if afresh:
            # No attempt may be lost to a second keep-alive race.
            self._uploading = not self.request_done
            pool.acquire_new(self, self._uploading)
            return
        if self.request_done:
            connection = pool.acquire(self)
        else:
            self._uploading = True
            connection = pool.acquire_upload(self, self.body_at_hand)
            if self.expects and pool.waits_for_place(self):
                # The upstream cannot say yet whether it wants the body; ours is the time, and a
                # body that fits into the buffer needs no place.
                self.invite()
        if connection is not None:
            self.on_connected(connection)

    def _set_apart(self) -> None:
        """Another attempt begins: what the span of the one before it needs, and new ids."""
        core = self.core
        if self._earlier is None:
            self._earlier = []
        self._earlier.append(
            (
                self.upstream_url,
                self.upstream_status,
                self.upstream_error,
                self.wall_ns + self.upstream_started - self.started,
                self.upstream_ns,
                self.upstream_span_id,
            )
        )
        self.upstream_status = 0
        self.upstream_error = ""
        self.upstream_ns = 0
        if core.tracer is not None:
            self._fields = core.tracer.renew(self, self._fields)

    def _pick_usable(self, balancer: Any) -> Any:
        """A server whose breaker lets this request through, with its permit; else ``None``.

        Another worker may take a half-open trial between the balancer's question and ours: then
        that server is out, and the balancer is asked again.
        """
        refused: list[Any] = []
        while True:
            server: Any = balancer.pick(self.core.usable, [*self._tried, *refused])
            if server in refused:
                # Whoever else could take it was tried before: better again than not at all.
                server = balancer.pick(self.core.usable, refused)
            if server is None or server in refused:
                return None
            # Later than the balancer's question: what it found ready is so still.
            self._permit = server.breaker.allow(monotonic_ns())
            if self._permit:
                return server
            refused.append(server)

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
        if core.outliers is not None:
            core.outliers.answered(server, status)
        if status >= 500:
            server.state.failed_with(status, now)

    # ------------------------------------------------------------------------ what can go wrong

    def on_connect_failed(self, reason: str) -> None:
        if reason == "pool_full":
            self._release_breaker()
            self._leave_server()
            self.reject(503, "upstream_queue_full", "Too many requests wait for an upstream.")
            return
        if reason == "out_of_descriptors":
            # Our own shortage: no upstream is to blame, and another attempt would meet it too.
            self._release_breaker()
            self._leave_server()
            self._give_up(503, reason, "No connection to an upstream can be made now.")
            return
        self._failed(Failure.CONNECT, reason)

    def on_lost(self, connection: UpstreamConnection, reason: str) -> None:
        state = self._state
        self.connection = None
        if state == SENT:
            if reason == "closed" or reason == "reset":
                if connection.raced() and self._may_repeat():
                    self._repeat(f"upstream_{reason}")
                    return
                self._failed(Failure.RESET, f"upstream_{reason}")
            else:
                self._failed(Failure.MALFORMED, reason)
        elif state == STREAMING:
            self._leave_server()
            self.break_off("upstream_truncated")
        elif state == TUNNEL:
            self._leave_server()
            self._finish_record()
            self._state = DONE
            self.session.tunnel_ended()

    def _may_repeat(self) -> bool:
        """Whether the request can be sent once more though the upstream may have seen it."""
        return (
            self.attempt < self.route.retry_policy.max_attempts
            and self.replayable
            and (self.method in IDEMPOTENT or self._keyed)
        )

    def _repeat(self, reason: str) -> None:
        """A keep-alive race costs an attempt, but no delay, no budget, and nothing at the breaker.

        The upstream timed an idle connection out while the request was on its way (RFC 9112 §9.5
        wants clients to be ready for that at any time). So it goes out again, on a new connection.
        """
        core = self.core
        now = monotonic_ns()
        self.upstream_ns = now - self.upstream_started
        self.upstream_error = reason
        self._set_apart()
        self.attempt += 1
        self.upstream_started = now
        core.count("nexus_upstream_keepalive_races_total", self.upstream_url)
        self._state = WAITING
        core.wheel.schedule(self, self._deadline_total)
        self.server.extra.acquire_new(self)

    def on_deadline(self, now: int) -> None:  # noqa: ARG002
        state = self._state
        if state == SENT:
            self.connection.discard()
            self.connection = None
            stalled = not self.request_done
            self._failed(Failure.TIMEOUT, "upstream_stalled" if stalled else "upstream_timeout")
        elif state == WAITING:
            self.server.extra.cancel(self)
            self._release_breaker()
            self._leave_server()
            self.reject(504, "queue_timeout", "No upstream connection became free in time.")
        elif state == BACKOFF:
            self._attempt()
        elif state == QUEUED:
            self._no_place()
        elif state in (STREAMING, TUNNEL):
            self._let_go_of_upstream()
            self.break_off("stream_idle")

    def _failed(self, failure: Failure, reason: str) -> None:
        """An attempt gave no response."""
        now = monotonic_ns()
        core = self.core
        server = self.server
        self.upstream_ns = now - self.upstream_started
        self.upstream_status = 0
        self.upstream_error = reason
        if core.counting:
            core.count_upstream(server, self.method, 0, self.upstream_ns / 1e6)
        if core.breakers and server.breaker.record_failure(now, self._permit):
            self._opened(server)
        if core.outliers is not None:
            core.outliers.failed(server)
        server.state.failed_with(cause_of(reason), now)
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

    def _retry_after(self, head: ResponseHead) -> int:
        """Nanoseconds that the upstream wants to be left alone, where no other is to be had."""
        value = head.named(b"retry-after")
        if not value:
            return 0
        for server in self.core.balancers[self.route.group].servers:
            if server.healthy and not server.draining and server not in self._tried:
                return 0
        return retry_after_ns(value, self.wall_ns + self.core.wheel.now - self.started)

    def _decide(self, failure: Failure, status: int, sent: bool = True, not_before: int = 0) -> Any:
        core = self.core
        self._end_retry()
        decision = decide(
            self.route.retry_policy,
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
            not_before_ns=not_before,
        )
        if not decision.retry:
            self.retry_skipped = decision.why_not
            core.count("nexus_retries_skipped_total", decision.why_not)
        return decision

    def _back_off(self, delay: int) -> None:
        self._retrying = True
        self._leave_server()
        self.core.count("nexus_retries_total", self.upstream_url)
        self._state = BACKOFF
        self.core.wheel.schedule(self, self.core.wheel.now + delay)

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
                    ID_FIELD,
                    self.request_id,
                    self._last_fields(keep),
                    body,
                )
            )
        )
        self._finish(keep)

    # ------------------------------------------------------------------------------- letting go

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
            if self._uploading:
                self._uploading = False
                server.extra.cancel(self)

    def _let_go_of_upstream(self) -> None:
        """Whatever was under way there is of no interest any more."""
        self.deadline = 0
        if self._waits_at is not None:
            self._waits_at.cancel(self, monotonic_ns())
            self._waits_at = None
        connection = self.connection
        if connection is not None:
            self.connection = None
            if self._state == SENT:
                self._release_breaker()
            connection.discard()
        elif self._state == WAITING and self.server is not None:
            self.server.extra.cancel(self)
            self._release_breaker()
        self._leave_server()

    def break_off(self, reason: str) -> None:
        """The response cannot be completed: no suffix, no last chunk, the connection ends."""
        self._let_go_of_upstream()
        self.reason = reason
        self.core.count("nexus_rejections_total", reason)
        self._finish_record()
        self._state = DONE
        self.session.break_off()

    def cancel(self, status: int, reason: str) -> None:
        """The client is gone; nothing can be sent any more."""
        if self._state == FREE or self._state == DONE:
            return
        self._let_go_of_upstream()
        if self._state != TUNNEL:
            self.status = status
            self.reason = reason
            self.core.count("nexus_rejections_total", reason)
        self._finish_record()
        self._state = DONE
