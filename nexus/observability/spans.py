"""Records → spans in OTLP's protobuf: a SERVER span for each, a CLIENT span where it was proxied.

Attribute names follow the contract (OpenTelemetry's names before HTTP became stable); the stable
ones replace or join them by ``OTEL_SEMCONV_STABILITY_OPT_IN`` (``http``, ``http/dup``), see
https://opentelemetry.io/docs/specs/semconv/non-normative/http-migration/.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final
from urllib.parse import urlsplit

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, InstrumentationScope, KeyValue
from opentelemetry.proto.resource.v1.resource_pb2 import Resource
from opentelemetry.proto.trace.v1.trace_pb2 import ResourceSpans, ScopeSpans, Span, Status

from nexus._version import __version__
from nexus.observability.record import RequestRecord
from nexus.observability.redaction import redact_text, redact_url
from nexus.observability.tracecontext import new_span_id, new_trace_id

__all__ = ["SpanEncoder", "span_count"]

#: Methods that may stand in a span's name; any other is ``HTTP``, as the conventions ask.
_METHODS: Final = frozenset(
    (b"GET", b"HEAD", b"POST", b"PUT", b"DELETE", b"PATCH", b"OPTIONS", b"TRACE", b"CONNECT")
)

#: SpanFlags of OTLP: W3C sampled, "is remote" is known, parent is remote.
_SAMPLED: Final = 0x01
_HAS_IS_REMOTE: Final = 0x100
_IS_REMOTE: Final = 0x200

_MAX_URL_CHARS: Final = 2048

_Attributes = list[KeyValue]


def span_count(record: RequestRecord) -> int:
    """How many spans ``record`` makes."""
    return 2 if record.proxied else 1


class SpanEncoder:
    """Encodes batches for one resource (this worker)."""

    def __init__(self, resource: Mapping[str, str | int], *, semconv: str = "") -> None:
        """``semconv``: the value of ``OTEL_SEMCONV_STABILITY_OPT_IN``."""
        chosen = {part.strip() for part in semconv.split(",")}
        self._old: Final = "http" not in chosen or "http/dup" in chosen
        self._new: Final = bool(chosen & {"http", "http/dup"})
        self._resource: Final = Resource(attributes=[_any(k, v) for k, v in resource.items()])
        self._scope: Final = InstrumentationScope(name="nexus.gateway", version=__version__)
        self._peers: dict[str, tuple[str, int]] = {}

    def encode(self, records: Iterable[RequestRecord]) -> bytes:
        """An ``ExportTraceServiceRequest``; several of them concatenated are one again."""
        spans: list[Span] = []
        for record in records:
            trace_id = bytes.fromhex(record.trace_id or new_trace_id())
            span_id = bytes.fromhex(record.span_id or new_span_id())
            spans.append(self._server(record, trace_id, span_id))
            if record.proxied:
                spans.append(self._client(record, trace_id, span_id))
        scope_spans = ScopeSpans(scope=self._scope, spans=spans)
        resource_spans = ResourceSpans(resource=self._resource, scope_spans=[scope_spans])
        request = ExportTraceServiceRequest(resource_spans=[resource_spans])
        encoded: bytes = request.SerializeToString()
        return encoded

    def _server(self, record: RequestRecord, trace_id: bytes, span_id: bytes) -> Span:
        method = record.method.decode("latin-1") if record.method in _METHODS else "HTTP"
        error = record.status >= 500 or record.status == 0
        remote = _IS_REMOTE if record.parent_span_id else 0
        return Span(
            trace_id=trace_id,
            span_id=span_id,
            parent_span_id=bytes.fromhex(record.parent_span_id),
            trace_state=record.tracestate.decode("latin-1"),
            flags=_HAS_IS_REMOTE | remote | (_SAMPLED if record.sampled else 0),
            name=f"{method} {record.route}" if record.route else method,
            kind=Span.SPAN_KIND_SERVER,
            start_time_unix_nano=record.started_ns,
            end_time_unix_nano=record.started_ns + record.duration_ns,
            attributes=self._server_attributes(record, error),
            status=Status(code=Status.STATUS_CODE_ERROR) if error else None,
        )

    def _server_attributes(self, record: RequestRecord, error: bool) -> _Attributes:
        target = redact_url(_cut(record.target))
        scheme = record.scheme.decode("latin-1")
        out: _Attributes = []
        if self._old:
            url = target
            if record.host and target.startswith("/"):
                url = f"{scheme}://{record.host.decode('latin-1')}{target}"
            out += [
                _text("http.method", record.method.decode("latin-1")),
                _text("http.url", url),
                _text("net.peer.ip", record.ip),
                _int("http.status_code", record.status),
            ]
        if self._new:
            path, _, query = target.partition("?")
            out += [
                *_method(record.method),
                _text("url.scheme", scheme),
                _text("url.path", path),
                _text("client.address", record.ip),
                _int("http.response.status_code", record.status),
            ]
            _add(out, "url.query", query)
            _add(out, "server.address", record.host.decode("latin-1"))
            _add(out, "user_agent.original", redact_text(_cut(record.user_agent)))
            if error:
                out.append(_text("error.type", str(record.status or "aborted")))
        _add(out, "http.route", record.route)
        _add(out, "nexus.request_id", record.request_id)
        _add(out, "nexus.client_id", record.client_id)
        _add(out, "nexus.reason", record.reason)
        _add(out, "nexus.retry_skipped", record.retry_skipped)
        if record.attempts > 1:
            out.append(_int("nexus.attempts", record.attempts))
        return out

    def _client(self, record: RequestRecord, trace_id: bytes, parent_id: bytes) -> Span:
        status = record.upstream_status
        error = status >= 400 or status == 0
        start = record.upstream_start_ns or record.started_ns
        return Span(
            trace_id=trace_id,
            span_id=bytes.fromhex(record.upstream_span_id or new_span_id()),
            parent_span_id=parent_id,
            trace_state=record.tracestate.decode("latin-1"),
            flags=_HAS_IS_REMOTE | (_SAMPLED if record.sampled else 0),
            name="upstream.proxy",
            kind=Span.SPAN_KIND_CLIENT,
            start_time_unix_nano=start,
            end_time_unix_nano=start + record.upstream_ns,
            attributes=self._client_attributes(record, error),
            status=Status(code=Status.STATUS_CODE_ERROR) if error else None,
        )

    def _client_attributes(self, record: RequestRecord, error: bool) -> _Attributes:
        host, port = self._peer(record.upstream)
        target = redact_url(_cut(record.upstream_target or record.target))
        url = record.upstream.rstrip("/") + target if target.startswith("/") else record.upstream
        out = [_text("peer.service", f"{host}:{port}")]
        if self._old:
            out += [_text("http.method", record.method.decode("latin-1")), _text("http.url", url)]
            if record.upstream_status:
                out.append(_int("http.status_code", record.upstream_status))
        if self._new:
            out += [
                *_method(record.method),
                _text("url.full", url),
                _text("server.address", host),
                _int("server.port", port),
            ]
            if record.upstream_status:
                out.append(_int("http.response.status_code", record.upstream_status))
            if record.attempts > 1:
                out.append(_int("http.request.resend_count", record.attempts - 1))
            if error:
                kind = str(record.upstream_status) if record.upstream_status else record.reason
                out.append(_text("error.type", kind or "_OTHER"))
        return out

    def _peer(self, url: str) -> tuple[str, int]:
        """Host and port of an upstream; parsed once (there are as many as upstreams)."""
        peer = self._peers.get(url)
        if peer is None:
            parts = urlsplit(url)
            default = 443 if parts.scheme == "https" else 80
            peer = self._peers[url] = (parts.hostname or "", parts.port or default)
        return peer


def _method(method: bytes) -> _Attributes:
    if method in _METHODS:
        return [_text("http.request.method", method.decode())]
    original = method[:64].decode("latin-1")
    return [_text("http.request.method", "_OTHER"), _text("http.request.method_original", original)]


def _text(key: str, value: str) -> KeyValue:
    return KeyValue(key=key, value=AnyValue(string_value=value))


def _int(key: str, value: int) -> KeyValue:
    return KeyValue(key=key, value=AnyValue(int_value=value))


def _any(key: str, value: str | int) -> KeyValue:
    return _int(key, value) if isinstance(value, int) else _text(key, value)


def _add(out: _Attributes, key: str, value: str) -> None:
    if value:
        out.append(_text(key, value))


def _cut(wire: bytes) -> str:
    return wire[:_MAX_URL_CHARS].decode("utf-8", "backslashreplace")
