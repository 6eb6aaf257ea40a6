"""The event of a proxied request that ended, from the record to bytes; see ``_completed_py``."""

from nexus import clock
from nexus.observability.redaction import wire_text
from nexus.wire import events

from cpython.mem cimport PyMem_Free

from nexus.observability._out cimport (
    Out,
    is_plain,
    plain_text,
    put_byte,
    put_bytes,
    put_json,
    put_literal,
    put_number,
    put_text,
    put_thousandths,
    taken,
)
from nexus.observability._record_c cimport RequestRecord

__all__ = ["CompletedEncoder"]

cdef int _MAX_METHOD = events.MAX_URL_CHARACTERS


cdef class CompletedEncoder:
    """Encodes the records of one worker; ``source`` is the CloudEvents source."""

    cdef Out _out
    cdef long long _worker_id
    cdef tuple _source
    cdef tuple _fixed
    cdef long long _second
    cdef bytes _prefix

    def __init__(self, long long worker_id, bytes source not None):
        self._worker_id = worker_id
        self._source = ("ce_source", source)
        # Those that every event of this topic has, in their order.
        self._fixed = tuple(
            events.cloud_event_headers(events.REQUEST_COMPLETED, "", "", source)[3:]
        )
        self._second = -1

    def __dealloc__(self):
        PyMem_Free(self._out.data)

    def encode(self, RequestRecord record not None, str event_id not None):
        """Value and headers of the Kafka record."""
        cdef Out *out = &self._out
        cdef bytes emitted_at = self._stamp(record.started_ns + record.duration_ns)
        cdef list headers
        out.size = 0
        put_literal(out, b'{"emittedAt":"')
        put_bytes(out, emitted_at)
        put_literal(out, b'","id":"')
        put_json(out, event_id)
        put_literal(out, b'","method":"')
        if record.method and is_plain(record.method):
            put_json(out, plain_text(record.method, _MAX_METHOD))
        else:
            put_json(out, wire_text(record.method, _MAX_METHOD) or "-")
        put_literal(out, b'","url":"')
        put_json(out, record.shown() or "-")
        put_literal(out, b'","route":"')
        put_json(out, record.route)
        put_literal(out, b'","statusCode":')
        put_number(out, record.status)
        put_literal(out, b',"latencyMs":')
        put_thousandths(out, record.duration_ns // 1000)
        put_literal(out, b',"ip":"')
        put_json(out, record.ip)
        if record.client_id:
            put_literal(out, b'","clientId":"')
            put_json(out, record.client_id)
            put_literal(out, b'","workerId":')
        else:
            put_literal(out, b'","clientId":null,"workerId":')
        put_number(out, self._worker_id)
        put_byte(out, c'}')
        value = taken(out)
        headers = [("ce_id", event_id.encode()), self._source, ("ce_time", emitted_at)]
        headers.extend(self._fixed)
        if record.trace_id and record.span_id:
            put_literal(out, b"00-")
            put_text(out, record.trace_id)
            put_byte(out, c'-')
            put_text(out, record.span_id)
            put_literal(out, b"-0")
            put_byte(out, c'0' + record.sampled + 2 * record.random_id)
            headers.append(("traceparent", taken(out)))
        return value, headers

    cdef bytes _stamp(self, long long unix_ns):
        cdef long long second = unix_ns // 1000000000
        cdef int ms = <int>(unix_ns % 1000000000 // 1000000)
        if second != self._second:
            self._prefix = clock.iso_utc(second * 1000)[:20].encode()
            self._second = second
        return b"%b%03dZ" % (self._prefix, ms)
