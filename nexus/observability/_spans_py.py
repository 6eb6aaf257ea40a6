"""Records → spans in OTLP's protobuf: a SERVER span for each, a CLIENT span for each attempt.

A request that met no upstream has no CLIENT span; one that was retried has several, each with the
id that its upstream got.

Attribute names follow the contract (OpenTelemetry's names before HTTP became stable); the stable
ones replace or join them by ``OTEL_SEMCONV_STABILITY_OPT_IN`` (``http``, ``http/dup``), see
https://opentelemetry.io/docs/specs/semconv/non-normative/http-migration/.

The pure side; ``_spans_c`` writes the same bytes straight from the record.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final
from urllib.parse import urlsplit

from opentelemetry.proto.common.v1.common_pb2 import AnyValue, InstrumentationScope, KeyValue
from opentelemetry.proto.resource.v1.resource_pb2 import Resource

from nexus._version import __version__
from nexus.observability.otlpwire import (
    KIND_CLIENT,
    KIND_SERVER,
    delimited,
    integer,
    recurring,
    span,
    text,
)
from nexus.observability.record import RequestRecord
from nexus.observability.redaction import redact_target, redact_text, wire_text
from nexus.observability.tracecontext import new_span_id, new_trace_id, trace_flags

__all__ = ["SpanEncoder", "encoded_resource", "peer_of"]

#: Methods that may stand in a span's name; any other is ``HTTP``, as the conventions ask.
_METHODS: Final = frozenset(
    (b"GET", b"HEAD", b"POST", b"PUT", b"DELETE", b"PATCH", b"OPTIONS", b"TRACE", b"CONNECT")
)

#: SpanFlags of OTLP, above W3C's own: "is remote" is known, parent is remote.
_HAS_IS_REMOTE: Final = 0x100
_IS_REMOTE: Final = 0x200

_MAX_URL_CHARS: Final = 2048

_Attributes = list[bytes]  # encoded


class SpanEncoder:
    """Encodes batches for one resource (this worker)."""

    def __init__(self, resource: Mapping[str, str | int], *, semconv: str = "") -> None:
        """``semconv``: the value of ``OTEL_SEMCONV_STABILITY_OPT_IN``."""
        self._old, self._new = conventions(semconv)
        self._resource, self._scope = encoded_resource(resource)
        self._peers: Final[dict[str, tuple[str, int]]] = {}

    def encode(self, records: Iterable[RequestRecord]) -> bytes:
        """An ``ExportTraceServiceRequest``; several of them concatenated are one again."""
        spans: list[bytes] = [self._scope]
        for record in records:
            trace_id = bytes.fromhex(record.trace_id or new_trace_id())
            span_id = bytes.fromhex(record.span_id or new_span_id())
            spans.append(self._server(record, trace_id, span_id))
            if record.proxied and record.attempts:
                spans += self._clients(record, trace_id, span_id)
        scope_spans = delimited(b"\x12", b"".join(spans))
        return delimited(b"\x0a", self._resource + scope_spans)

    def _server(self, record: RequestRecord, trace_id: bytes, span_id: bytes) -> bytes:
        method = record.method.decode("latin-1") if record.method in _METHODS else "HTTP"
        error = record.status >= 500 or record.status == 0
        remote = _IS_REMOTE if record.parent_span_id else 0
        return span(
            trace_id=trace_id,
            span_id=span_id,
            parent_id=bytes.fromhex(record.parent_span_id),
            tracestate=record.tracestate.decode("latin-1"),
            flags=_HAS_IS_REMOTE | remote | trace_flags(record.sampled, record.random_id),
            name=f"{method} {record.route}" if record.route else method,
            kind=KIND_SERVER,
            start_ns=record.started_ns,
            end_ns=record.started_ns + record.duration_ns,
            attributes=self._server_attributes(record, error),
            error=error,
        )

    def _server_attributes(self, record: RequestRecord, error: bool) -> _Attributes:
        target = record.shown()
        scheme = record.scheme.decode("latin-1")
        out: _Attributes = []
        if self._old:
            url = target
            if record.host and target.startswith("/"):
                url = f"{scheme}://{record.host.decode('latin-1')}{target}"
            out += [
                recurring("http.method", record.method.decode("latin-1")),
                text("http.url", url),
                recurring("net.peer.ip", record.ip),
                integer("http.status_code", record.status),
            ]
        if self._new:
            path, _, query = target.partition("?")
            out += [
                *_method(record.method),
                recurring("url.scheme", scheme),
                text("url.path", path),
                recurring("client.address", record.ip),
                integer("http.response.status_code", record.status),
            ]
            if query:
                out.append(text("url.query", query))
            host, port = host_of(record.host)
            _add(out, "server.address", host)
            if port:
                out.append(integer("server.port", port))
            _add(
                out,
                "user_agent.original",
                redact_text(wire_text(record.user_agent, _MAX_URL_CHARS)),
            )
            if error:
                out.append(recurring("error.type", str(record.status or "aborted")))
        _add(out, "http.route", record.route)
        if record.request_id:
            out.append(text("nexus.request_id", record.request_id))
        _add(out, "nexus.client_id", record.client_id)
        _add(out, "nexus.reason", record.reason)
        _add(out, "nexus.retry_skipped", record.retry_skipped)
        if record.attempts > 1:
            out.append(integer("nexus.attempts", record.attempts))
        return out

    def _clients(self, record: RequestRecord, trace_id: bytes, parent_id: bytes) -> Iterable[bytes]:
        resent = 0
        for attempt in record.earlier or ():
            yield self._client(record, trace_id, parent_id, resent, *attempt)
            resent += 1
        yield self._client(
            record,
            trace_id,
            parent_id,
            resent,
            record.upstream,
            record.upstream_status,
            record.upstream_error or record.reason,
            record.upstream_start_ns or record.started_ns,
            record.upstream_ns,
            record.upstream_span_id,
        )

    def _client(
        self,
        record: RequestRecord,
        trace_id: bytes,
        parent_id: bytes,
        resent: int,
        upstream: str,
        status: int,
        reason: str,
        start: int,
        duration: int,
        span_id: str,
    ) -> bytes:
        """The span of one attempt; ``resent``: how many came before it."""
        error = status >= 400 or status == 0
        return span(
            trace_id=trace_id,
            span_id=bytes.fromhex(span_id or new_span_id()),
            parent_id=parent_id,
            tracestate=record.tracestate.decode("latin-1"),
            flags=_HAS_IS_REMOTE | trace_flags(record.sampled, record.random_id),
            name="upstream.proxy",
            kind=KIND_CLIENT,
            start_ns=start,
            end_ns=start + duration,
            attributes=self._client_attributes(record, upstream, status, reason, resent),
            error=error,
        )

    def _client_attributes(
        self, record: RequestRecord, upstream: str, status: int, reason: str, resent: int
    ) -> _Attributes:
        host, port = self._peer(upstream)
        target = redact_target(record.upstream_target or record.target, _MAX_URL_CHARS)
        url = upstream.rstrip("/") + target if target.startswith("/") else upstream
        out = [recurring("peer.service", f"{host}:{port}" if port else host)]
        if self._old:
            out += [
                recurring("http.method", record.method.decode("latin-1")),
                text("http.url", url),
            ]
            if status:
                out.append(integer("http.status_code", status))
        if self._new:
            out += [
                *_method(record.method),
                text("url.full", url),
                recurring("server.address", host),
                integer("server.port", port),
            ]
            if status:
                out.append(integer("http.response.status_code", status))
            if resent:
                out.append(integer("http.request.resend_count", resent))
            if not status or status >= 400:
                kind = str(status) if status else reason
                out.append(recurring("error.type", kind or "_OTHER"))
        return out

    def _peer(self, url: str) -> tuple[str, int]:
        """Host and port of an upstream; parsed once (there are as many as upstreams)."""
        peer = self._peers.get(url)
        if peer is None:
            peer = self._peers[url] = peer_of(url)
        return peer


def host_of(field: bytes) -> tuple[str, int]:
    """Host and port of a request's ``Host``; 0: it names none."""
    host, colon, port = field.decode("latin-1").rpartition(":")
    if colon and port.isascii() and port.isdigit() and len(port) < 6:
        return host, int(port)
    return field.decode("latin-1"), 0


def conventions(semconv: str) -> tuple[bool, bool]:
    """Whether the old names are written, and whether the stable ones are."""
    chosen = {part.strip() for part in semconv.split(",")}
    old = "http" not in chosen or "http/dup" in chosen
    return old, bool(chosen & {"http", "http/dup"})


def encoded_resource(resource: Mapping[str, str | int]) -> tuple[bytes, bytes]:
    """Field 1 of a ResourceSpans, and of a ScopeSpans: the same for every batch."""
    encoded = Resource(attributes=[_attribute(k, v) for k, v in resource.items()])
    scope = InstrumentationScope(name="nexus.gateway", version=__version__)
    return (
        delimited(b"\x0a", encoded.SerializeToString()),
        delimited(b"\x0a", scope.SerializeToString()),
    )


def peer_of(url: str) -> tuple[str, int]:
    """Host and port of an upstream; a unix socket is its path and 0."""
    parts = urlsplit(url)
    if parts.scheme == "unix":
        return parts.path, 0
    return parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)


def _method(method: bytes) -> _Attributes:
    if method in _METHODS:
        return [recurring("http.request.method", method.decode())]
    original = method[:64].decode("latin-1")
    return [
        recurring("http.request.method", "_OTHER"),
        recurring("http.request.method_original", original),
    ]


def _attribute(key: str, value: str | int) -> KeyValue:
    if isinstance(value, int):
        return KeyValue(key=key, value=AnyValue(int_value=value))
    return KeyValue(key=key, value=AnyValue(string_value=value))


def _add(out: _Attributes, key: str, value: str) -> None:
    if value:
        out.append(recurring(key, value))
