# cython: annotation_typing=False
"""The one object that a finished request leaves behind.

The data path fills a :class:`RequestRecord` with scalars that it has at hand anyway and appends it
to the recorder; access log, spans, telemetry and events are all encoded from it later, in batches,
off the request path. Nothing in it is formatted before somebody reads it.

One source, compiled as ``_record_c``.
"""

from __future__ import annotations

import cython  # type: ignore[import-untyped]

from nexus.observability.redaction import redact_target

if not cython.compiled:
    from nexus.observability.redaction import is_plain

    def plain_text(wire: bytes, limit: int) -> str:
        """See ``_out.pxd``."""
        return wire[:limit].decode()


__all__ = ["RequestRecord", "picked"]

#: Characters of a target that are shown anywhere.
MAX_TARGET: int = 2048


class RequestRecord:
    """Scalars of one request. Text that came over the wire stays ``bytes`` until it is encoded.

    The request path makes it by ``__new__`` alone and sets every field itself: an empty record to
    be overwritten would be a write more to each of them.
    """

    __slots__ = (
        "attempts",
        "bytes_in",
        "bytes_out",
        "client_id",
        "correlation_id",
        "duration_ns",
        "earlier",
        "host",
        "inbound_request_id",
        "ip",
        "method",
        "parent_span_id",
        "proxied",
        "random_id",
        "reason",
        "redacted",
        "request_id",
        "retry_skipped",
        "route",
        "sampled",
        "scheme",
        "span_id",
        "started_ns",
        "status",
        "target",
        "trace_id",
        "tracestate",
        "upstream",
        "upstream_error",
        "upstream_ns",
        "upstream_span_id",
        "upstream_start_ns",
        "upstream_status",
        "upstream_target",
        "user_agent",
    )

    def __init__(self) -> None:
        #: What :meth:`shown` has worked out.
        self.redacted: str | None = None
        #: Wall clock at the first byte of the head, nanoseconds since the Unix epoch.
        self.started_ns = 0
        #: First byte in → last byte out, nanoseconds, monotonic.
        self.duration_ns = 0
        self.method = b""
        #: The request target as received, query included.
        self.target = b""
        self.scheme = b"http"
        #: The Host field; ``b""`` where there was none.
        self.host = b""
        #: Route template (``/api/*``), never the raw path; ``""`` where no route matched.
        self.route = ""
        self.status = 0
        #: Machine-readable reason of a reply that we made ourselves or of an abort; else ``""``.
        self.reason = ""
        #: Client address after trusted proxies were believed.
        self.ip = ""
        self.client_id = ""
        self.user_agent = b""
        self.request_id = ""
        self.inbound_request_id = b""
        self.correlation_id = b""
        self.bytes_in = 0
        self.bytes_out = 0
        #: Whether the request was sent to an upstream at all.
        self.proxied = False
        #: URL of the upstream of the last attempt.
        self.upstream = ""
        self.upstream_status = 0
        #: The request target as sent to the upstream (prefix stripped); ``b""``: as received.
        self.upstream_target = b""
        #: Wall clock at the start of the last attempt, and its duration to the response head.
        self.upstream_start_ns = 0
        self.upstream_ns = 0
        #: Reason code of a last attempt that gave no response; else ``""``.
        self.upstream_error = ""
        self.attempts = 0
        #: The attempts before the last, in order, or ``None``: (upstream URL, status or 0, reason
        #: code, wall clock at the start, duration, span id); times in nanoseconds.
        self.earlier: list[tuple[str, int, str, int, int, str]] | None = None
        #: Why a failure was not retried (``not_idempotent``, ``budget``, …); else ``""``.
        self.retry_skipped = ""
        #: Lower-case hex: 32 digits; 16 digits each; ``parent_span_id`` is ``""`` at a root.
        self.trace_id = ""
        self.span_id = ""
        self.parent_span_id = ""
        self.upstream_span_id = ""
        self.tracestate = b""
        self.sampled = False
        #: Whether the trace id is known to be random (W3C Trace Context, Level 2).
        self.random_id = False

    def shown(self) -> str:
        """The target as access log, spans and events show it: redacted, at most 2048 characters.

        Worked out once for all of them, when the first one asks; the target stays as it is then.
        """
        shown = self.redacted
        if shown is None:
            if is_plain(self.target):  # most are
                shown = plain_text(self.target, MAX_TARGET)
            else:
                shown = redact_target(self.target, MAX_TARGET)
            self.redacted = shown
        return shown


def picked(records: list[RequestRecord], errors: bool, slow_ns: int) -> list[RequestRecord]:
    """Those that are sampled; with ``errors``, also what ended in 5xx or without an answer, and
    what took at least ``slow_ns`` (0: no matter how long).
    """
    found: list[RequestRecord] = []
    for record in records:
        if (
            record.sampled
            or (errors and (record.status >= 500 or record.status == 0))
            or (slow_ns > 0 and record.duration_ns >= slow_ns)
        ):
            found.append(record)  # noqa: PERF401  (a comprehension's variable has no C type)
    return found
