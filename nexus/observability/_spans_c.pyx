"""Records → spans in OTLP's protobuf, written straight from the record; see ``_spans_py``."""

from nexus.observability._spans_py import conventions, encoded_resource, host_of, peer_of
from nexus.observability.redaction import redact_target, redact_text, wire_text
from nexus.observability.tracecontext import new_span_id, new_trace_id

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from cpython.mem cimport PyMem_Free
from libc.string cimport strlen

from nexus.observability._out cimport (
    Out,
    PyUnicode_AsUTF8AndSize,
    is_plain,
    plain_text,
    put,
    put_byte,
    put_bytes,
    put_varint,
    reserve,
    taken,
    varint_size,
)
from nexus.observability._record_c cimport RequestRecord

__all__ = ["SpanEncoder"]

cdef frozenset _METHODS = frozenset(
    (b"GET", b"HEAD", b"POST", b"PUT", b"DELETE", b"PATCH", b"OPTIONS", b"TRACE", b"CONNECT")
)

cdef int _HAS_IS_REMOTE = 0x100
cdef int _IS_REMOTE = 0x200
cdef int _MAX_URL_CHARS = 2048


cdef class SpanEncoder:
    """Encodes batches for one resource (this worker)."""

    cdef Out _spans
    cdef Out _body
    cdef bint _old
    cdef bint _new
    cdef bytes _resource
    cdef bytes _scope
    cdef dict _peers

    def __init__(self, resource, *, str semconv=""):
        self._old, self._new = conventions(semconv)
        self._resource, self._scope = encoded_resource(resource)
        self._peers = {}

    def __dealloc__(self):
        PyMem_Free(self._spans.data)
        PyMem_Free(self._body.data)

    def encode(self, records):
        """An ``ExportTraceServiceRequest``; several of them concatenated are one again."""
        cdef RequestRecord record
        cdef char ids[24]
        cdef Out *out = &self._spans
        cdef Py_ssize_t spans
        cdef bytes scope = self._scope
        out.size = 0
        for record in records:
            _unhex(record.trace_id or new_trace_id(), ids, 16)
            _unhex(record.span_id or new_span_id(), ids + 16, 8)
            self._server(record, ids)
            if record.proxied and record.attempts:
                self._clients(record, ids)
        cdef bytes encoded = taken(out)
        # ExportTraceServiceRequest.resource_spans 1 { resource 1, scope_spans 2 { scope 1, spans 2 } }
        spans = PyBytes_GET_SIZE(scope) + PyBytes_GET_SIZE(encoded)
        put_byte(out, 0x0A)
        put_varint(out, PyBytes_GET_SIZE(self._resource) + 1 + varint_size(spans) + spans)
        put_bytes(out, self._resource)
        put_byte(out, 0x12)
        put_varint(out, spans)
        put_bytes(out, scope)
        put_bytes(out, encoded)
        return taken(out)

    cdef int _server(self, RequestRecord record, char *ids) except -1:
        cdef Out *out = &self._body
        cdef bint error = record.status >= 500 or record.status == 0
        cdef bint known = record.method in _METHODS
        cdef int flags = _HAS_IS_REMOTE
        cdef str method = record.method.decode("latin-1")
        cdef str target = record.shown()
        cdef str path, mark, query, agent
        _begin(out, ids, ids + 16, record.tracestate)
        if record.parent_span_id:
            flags |= _IS_REMOTE
            put(out, b"\x22\x08", 2)
            reserve(out, 8)
            _unhex(record.parent_span_id, out.data + out.size, 8)
            out.size += 8
        _name(out, method if known else "HTTP", record.route)
        _times(out, 2, record.started_ns, record.started_ns + record.duration_ns)
        if self._old:
            _text(out, b"http.method", method)
            if record.host and target.startswith("/"):
                _url(out, b"http.url", record.scheme, record.host.decode("latin-1"), target)
            else:
                _text(out, b"http.url", target)
            _text(out, b"net.peer.ip", record.ip)
            _integer(out, b"http.status_code", record.status)
        if self._new:
            path, mark, query = target.partition("?")
            _method(out, record.method, method, known)
            _text(out, b"url.scheme", record.scheme.decode("latin-1"))
            _text(out, b"url.path", path)
            _text(out, b"client.address", record.ip)
            _integer(out, b"http.response.status_code", record.status)
            if query:
                _text(out, b"url.query", query)
            if record.host:
                host, port = host_of(record.host)
                if host:
                    _text(out, b"server.address", host)
                if port:
                    _integer(out, b"server.port", port)
            agent = redact_text(wire_text(record.user_agent, _MAX_URL_CHARS))
            if agent:
                _text(out, b"user_agent.original", agent)
            if error:
                _text(out, b"error.type", str(record.status or "aborted"))
        _given(out, b"http.route", record.route)
        _given(out, b"nexus.request_id", record.request_id)
        _given(out, b"nexus.client_id", record.client_id)
        _given(out, b"nexus.reason", record.reason)
        _given(out, b"nexus.retry_skipped", record.retry_skipped)
        if record.attempts > 1:
            _integer(out, b"nexus.attempts", record.attempts)
        _end(out, error, flags | record.sampled | 2 * record.random_id)
        return self._add()

    cdef int _clients(self, RequestRecord record, char *ids) except -1:
        cdef int resent = 0
        if record.earlier is not None:
            for upstream, status, reason, start, duration, span_id in record.earlier:
                self._client(record, ids, resent, upstream, status, reason, start, duration, span_id)
                resent += 1
        return self._client(
            record,
            ids,
            resent,
            record.upstream,
            record.upstream_status,
            record.upstream_error or record.reason,
            record.upstream_start_ns or record.started_ns,
            record.upstream_ns,
            record.upstream_span_id,
        )

    cdef int _client(
        self,
        RequestRecord record,
        char *ids,
        int resent,
        str upstream,
        long long status,
        str reason,
        long long start,
        long long duration,
        str span_id,
    ) except -1:
        cdef Out *out = &self._body
        cdef bint error = status >= 400 or status == 0
        cdef char own[8]
        cdef str method = record.method.decode("latin-1")
        cdef bytes wire = record.upstream_target or record.target
        cdef str target
        if is_plain(wire):  # most are
            target = plain_text(wire, _MAX_URL_CHARS)
        else:
            target = redact_target(wire, _MAX_URL_CHARS)
        cdef str url = upstream
        cdef str host, service
        cdef int port
        if target.startswith("/"):
            url = url.rstrip("/") + target
        peer = self._peers.get(upstream)
        if peer is None:
            host, port = peer_of(upstream)
            peer = self._peers[upstream] = (host, port, f"{host}:{port}" if port else host)
        host, port, service = peer
        _unhex(span_id or new_span_id(), own, 8)
        _begin(out, ids, own, record.tracestate)
        put(out, b"\x22\x08", 2)
        put(out, ids + 16, 8)
        put(out, b"\x2a\x0eupstream.proxy", 16)
        _times(out, 3, start, start + duration)
        _text(out, b"peer.service", service)
        if self._old:
            _text(out, b"http.method", method)
            _text(out, b"http.url", url)
            if status:
                _integer(out, b"http.status_code", status)
        if self._new:
            _method(out, record.method, method, record.method in _METHODS)
            _text(out, b"url.full", url)
            _text(out, b"server.address", host)
            _integer(out, b"server.port", port)
            if status:
                _integer(out, b"http.response.status_code", status)
            if resent:
                _integer(out, b"http.request.resend_count", resent)
            if error:
                _text(out, b"error.type", (str(status) if status else reason) or "_OTHER")
        _end(out, error, _HAS_IS_REMOTE | record.sampled | 2 * record.random_id)
        return self._add()

    cdef int _add(self) except -1:
        """The span that was written becomes field 2 of the ScopeSpans."""
        cdef Out *out = &self._spans
        put_byte(out, 0x12)
        put_varint(out, self._body.size)
        put(out, self._body.data, self._body.size)
        self._body.size = 0
        return 0


cdef int _unhex(str digits, char *target, int size) except -1:
    """``size`` bytes of twice as many hex digits. Raises ``ValueError`` for anything else."""
    cdef Py_ssize_t length
    cdef const char *data = PyUnicode_AsUTF8AndSize(digits, &length)
    cdef int at, high, low
    if length != 2 * size:
        raise ValueError("expected a trace id of 16 bytes and span ids of 8")
    for at in range(size):
        high = _digit(data[2 * at])
        low = _digit(data[2 * at + 1])
        if high < 0 or low < 0:
            raise ValueError(f"expected hexadecimal digits, got {digits!r}")
        target[at] = <char>(high << 4 | low)
    return 0


cdef inline int _digit(char c) noexcept:
    if c'0' <= c <= c'9':
        return c - 48
    if c'a' <= c <= c'f':
        return c - 87
    if c'A' <= c <= c'F':
        return c - 55
    return -1


cdef int _begin(Out *out, const char *trace_id, const char *span_id, bytes tracestate) except -1:
    cdef bytes text
    out.size = 0
    put(out, b"\x0a\x10", 2)
    put(out, trace_id, 16)
    put(out, b"\x12\x08", 2)
    put(out, span_id, 8)
    if tracestate:
        text = tracestate.decode("latin-1").encode()
        put_byte(out, 0x1A)
        put_varint(out, PyBytes_GET_SIZE(text))
        put_bytes(out, text)
    return 0


cdef int _name(Out *out, str method, str route) except -1:
    cdef Py_ssize_t method_size, route_size
    cdef str sound_method = _sound(method)
    cdef const char *m = PyUnicode_AsUTF8AndSize(sound_method, &method_size)
    cdef str sound_route = _sound(route)
    cdef const char *r = PyUnicode_AsUTF8AndSize(sound_route, &route_size)
    put_byte(out, 0x2A)
    if not route_size:
        put_varint(out, method_size)
        return put(out, m, method_size)
    put_varint(out, method_size + 1 + route_size)
    put(out, m, method_size)
    put_byte(out, c' ')
    return put(out, r, route_size)


cdef int _times(Out *out, int kind, unsigned long long start, unsigned long long end) except -1:
    put_byte(out, 0x30)
    put_byte(out, <unsigned char>kind)
    put_byte(out, 0x39)
    _fixed(out, start, 8)
    put_byte(out, 0x41)
    return _fixed(out, end, 8)


cdef int _end(Out *out, bint error, unsigned int flags) except -1:
    if error:
        put(out, b"\x7a\x02\x18\x02", 4)
    put(out, b"\x85\x01", 2)
    return _fixed(out, flags, 4)


cdef int _fixed(Out *out, unsigned long long value, int size) except -1:
    """Little-endian, whatever the machine is."""
    cdef int at
    for at in range(size):
        put_byte(out, <unsigned char>(value >> 8 * at & 255))
    return 0


cdef str _sound(str text):
    """What is none of Unicode's characters becomes a question mark."""
    cdef Py_ssize_t size
    try:
        PyUnicode_AsUTF8AndSize(text, &size)
    except UnicodeEncodeError:
        return text.encode("utf-8", "replace").decode()
    return text


cdef int _head(Out *out, const char *key, Py_ssize_t value) except -1:
    """An attribute up to its value, a message of ``value`` bytes; keys are shorter than 126."""
    cdef Py_ssize_t size = strlen(key)
    put_byte(out, 0x4A)
    put_varint(out, 2 + size + 1 + varint_size(value) + value)
    put_byte(out, 0x0A)
    put_byte(out, <unsigned char>size)
    put(out, key, size)
    put_byte(out, 0x12)
    put_varint(out, value)
    return 0


cdef int _text(Out *out, const char *key, str value) except -1:
    cdef Py_ssize_t size
    cdef str sound_value = _sound(value)
    cdef const char *data = PyUnicode_AsUTF8AndSize(sound_value, &size)
    _head(out, key, 1 + varint_size(size) + size)
    put_byte(out, 0x0A)
    put_varint(out, size)
    return put(out, data, size)


cdef inline int _given(Out *out, const char *key, str value) except -1:
    return _text(out, key, value) if value else 0


cdef int _integer(Out *out, const char *key, long long value) except -1:
    _head(out, key, 1 + varint_size(value))
    put_byte(out, 0x18)
    return put_varint(out, value)


cdef int _url(Out *out, const char *key, bytes scheme, str host, str target) except -1:
    """``scheme://host`` and the target, without putting them together first."""
    cdef Py_ssize_t host_size, target_size, size
    cdef str sound_host = _sound(host)
    cdef const char *h = PyUnicode_AsUTF8AndSize(sound_host, &host_size)
    cdef str sound_target = _sound(target)
    cdef const char *t = PyUnicode_AsUTF8AndSize(sound_target, &target_size)
    size = PyBytes_GET_SIZE(scheme) + 3 + host_size + target_size
    _head(out, key, 1 + varint_size(size) + size)
    put_byte(out, 0x0A)
    put_varint(out, size)
    put_bytes(out, scheme)
    put(out, b"://", 3)
    put(out, h, host_size)
    return put(out, t, target_size)


cdef int _method(Out *out, bytes wire, str method, bint known) except -1:
    if known:
        return _text(out, b"http.request.method", method)
    _text(out, b"http.request.method", "_OTHER")
    return _text(out, b"http.request.method_original", wire[:64].decode("latin-1"))
