"""One line of the access log, written straight from the record; see ``_accessline_py``."""

import json
import os
from select import PIPE_BUF

from nexus import clock
from nexus.observability._accessline_py import shown_agent, shown_id
from nexus.observability.redaction import wire_text

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
    put_thousandths,
    taken,
    taken_up_to,
)
from nexus.observability._record_c cimport RequestRecord

__all__ = ["AccessLineEncoder"]


cdef class AccessLineEncoder:
    """Encodes the records of one worker."""

    cdef Out _out
    cdef bytes _fixed
    cdef long long _second
    cdef bytes _stamp
    cdef Py_ssize_t _block
    cdef bytes _agent_wire
    cdef str _agent

    def __init__(self, str service not None, worker, Py_ssize_t block_bytes=PIPE_BUF):
        self._fixed = b'","service":%b,"worker":%b,"pid":%d,"method":"' % (
            json.dumps(service, ensure_ascii=False).encode(),
            json.dumps(worker).encode(),
            os.getpid(),
        )
        self._second = -1
        self._block = block_bytes
        self._agent_wire = b""
        self._agent = ""

    def __dealloc__(self):
        PyMem_Free(self._out.data)

    def encode(self, list records not None):
        """One line for each record, in blocks of whole lines."""
        cdef RequestRecord record
        cdef list blocks = []
        cdef Py_ssize_t end  # of the lines before
        self._out.size = 0
        for record in records:
            end = self._out.size
            self._line(record)
            if end and self._out.size > self._block:
                blocks.append(taken_up_to(&self._out, end))
        if self._out.size:
            blocks.append(taken(&self._out))
        return blocks

    cdef int _line(self, RequestRecord record) except -1:
        cdef Out *out = &self._out
        cdef str method
        cdef str target = record.shown()
        if is_plain(record.method):
            method = plain_text(record.method, 32)
        else:
            method = wire_text(record.method, 32)
        put_literal(out, b'{"timestamp":"')
        self._put_stamp(out, record.started_ns)
        if record.status >= 500:
            put_literal(out, b'","level":"error","logger":"nexus.access","message":"')
        else:
            put_literal(out, b'","level":"info","logger":"nexus.access","message":"')
        put_json(out, method)
        put_byte(out, c' ')
        put_json(out, record.route or target)
        put_byte(out, c' ')
        put_number(out, record.status)
        put_bytes(out, self._fixed)
        put_json(out, method)
        put_literal(out, b'","target":"')
        put_json(out, target)
        put_literal(out, b'","status":')
        put_number(out, record.status)
        put_literal(out, b',"latency_ms":')
        put_thousandths(out, (record.duration_ns + 500) // 1000)
        _put_field(out, b',"ip":"', record.ip)
        _put_field(out, b',"route":"', record.route)
        _put_field(out, b',"reason":"', record.reason)
        _put_field(out, b',"client_id":"', record.client_id)
        _put_field(out, b',"request_id":"', record.request_id)
        _put_field(out, b',"trace_id":"', record.trace_id)
        _put_field(out, b',"span_id":"', record.span_id)
        _put_field(out, b',"upstream":"', record.upstream)
        _put_count(out, b',"upstream_status":', record.upstream_status)
        if record.upstream_ns >= 500:
            put_literal(out, b',"upstream_ms":')
            put_thousandths(out, (record.upstream_ns + 500) // 1000)
        _put_count(out, b',"attempts":', record.attempts)
        _put_field(out, b',"retry_skipped":"', record.retry_skipped)
        _put_count(out, b',"bytes_in":', record.bytes_in)
        _put_count(out, b',"bytes_out":', record.bytes_out)
        if record.user_agent:
            if record.user_agent != self._agent_wire:
                self._agent = shown_agent(record.user_agent)
                self._agent_wire = record.user_agent
            _put_field(out, b',"user_agent":"', self._agent)
        if record.inbound_request_id:
            _put_field(out, b',"inbound_request_id":"', shown_id(record.inbound_request_id))
        if record.correlation_id:
            _put_field(out, b',"correlation_id":"', shown_id(record.correlation_id))
        return put_literal(out, b"}\n")

    cdef int _put_stamp(self, Out *out, long long unix_ns) except -1:
        cdef long long second = unix_ns // 1000000000
        cdef int ms = <int>(unix_ns % 1000000000 // 1000000)
        if second != self._second:
            self._stamp = clock.iso_utc(second * 1000)[:20].encode()
            self._second = second
        put_bytes(out, self._stamp)
        put_byte(out, <unsigned char>(48 + ms // 100))
        put_byte(out, <unsigned char>(48 + ms // 10 % 10))
        put_byte(out, <unsigned char>(48 + ms % 10))
        return put_byte(out, c'Z')


cdef inline int _put_field(Out *out, const char *name, str value) except -1:
    """A field of text that is left out where it is empty; ``name`` up to the opening quote."""
    if value:
        put_literal(out, name)
        put_json(out, value)
        put_byte(out, c'"')
    return 0


cdef inline int _put_count(Out *out, const char *name, long long value) except -1:
    if value:
        put_literal(out, name)
        put_number(out, value)
    return 0
