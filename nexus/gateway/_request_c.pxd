cimport cython
from nexus._speedups._http1_c cimport RequestHead
from nexus.gateway._core_c cimport Core, Series
from nexus.gateway._ports_c cimport NOBODY, ClientPort, ResponseSink
from nexus.gateway._upstream_c cimport UpstreamConnection
from nexus.gateway._primitives cimport joined, length_field, monotonic_ns
from nexus.gateway._routes_c cimport Route
from nexus.observability._record_c cimport RequestRecord
from nexus.policy._balance_c cimport Server

cdef int _REQUEST_ID, _CORRELATION_ID, _USER_AGENT, _TRACEPARENT, _TRACESTATE
cdef int FREE, WAITING, SENT, STREAMING, BACKOFF, TUNNEL, COLLECTING, DONE, HELD, QUEUED
cdef bytes ID_FIELD


cdef class ServedRequest(ResponseSink):
    cdef readonly Core core
    cdef readonly ClientPort session
    cdef public str peer
    cdef public str ip
    cdef public bint trusted
    cdef public unsigned long long limit_key
    cdef readonly UpstreamConnection connection
    cdef readonly Server server
    cdef public bytes scheme
    cdef readonly bytes host
    cdef public bytes shared
    cdef readonly bint held
    cdef public RequestHead held_head
    cdef object _inside
    cdef object _waits_at
    cdef public object identity
    cdef public object proved
    cdef public long long proved_until
    cdef public bytes cookie
    cdef Series _series
    cdef bytes forwarded
    cdef bytes forwarded_host
    cdef int _state
    cdef list _held
    cdef list _tried
    cdef public Route route
    cdef public str client_id
    cdef public int status
    cdef public str reason
    cdef readonly int attempt
    cdef readonly long long bytes_in
    cdef readonly long long bytes_out
    cdef readonly bint replayable
    cdef readonly bint request_done
    cdef public bint body_at_hand
    cdef bytes _corked
    cdef readonly bint proxied
    cdef readonly bint wraps
    cdef readonly int upstream_status
    cdef readonly str upstream_error
    cdef readonly str upstream_url
    cdef list _earlier
    cdef readonly long long upstream_started
    cdef readonly long long upstream_ns
    cdef readonly str retry_skipped
    cdef readonly bytes user_agent
    cdef readonly bytes inbound_request_id
    cdef readonly bytes correlation_id
    cdef public str trace_id
    cdef public str span_id
    cdef public str parent_span_id
    cdef public str upstream_span_id
    cdef public bytes tracestate
    cdef public bint sampled
    cdef public bint random_id
    cdef public bint expects
    cdef bint _prefix_sent
    cdef long long _held_size
    cdef bint _uploading
    cdef bint _retrying
    cdef bint _responded
    cdef bint _keyed
    cdef bint _keep
    cdef bint _chunked_out
    cdef bint _continued
    cdef long long _collect_limit
    cdef long long _permit
    cdef tuple _fallback
    cdef readonly long long started
    cdef readonly long long wall_ns
    cdef readonly bytes request_id
    cdef readonly bytes stamp
    cdef readonly bytes method
    cdef readonly bytes target
    cdef readonly int minor
    cdef bint bodiless
    cdef long long _content_length
    cdef bint _chunked_in
    cdef long long _deadline_total
    cdef long long _max_body
    cdef bytes _target_out
    cdef bint _upgrading
    cdef bytes _fields

    cdef object _clear(self)
    @cython.locals(core=Core, now=cython.longlong, wall_ms=cython.longlong)
    cpdef object begin(self, RequestHead head, bint has_body)
    cpdef object begin_refused(self)
    cpdef object hold(self)
    cpdef object detach(self)
    cpdef object let_go(self)
    cpdef object note(self, RequestHead head)
    @cython.locals(core=Core)
    cpdef object reject(self, int status, str reason, str message, bytes extra=*)
    @cython.locals(core=Core, keep=cython.bint)
    cpdef object answer(self, int status, bytes body, bytes content_type, bytes extra=*)
    cpdef object answer_empty(self, bytes extra)
    cpdef object collect(self, long long limit)
    cdef object _collect(self, bytes data, bint last)
    cpdef object invite(self)
    cdef object _call_handler(self, bytes body)
    cdef bytes _last_fields(self, bint keep)
    cdef object _send(self, bytes data)
    cdef object _let_go_of_upstream(self)
    cdef object _finish(self, bint keep)
    @cython.locals(core=Core, duration=cython.longlong, series=Series)
    cdef object _finish_record(self)
    cdef object _end_retry(self)
    @cython.locals(record=RequestRecord)
    cdef RequestRecord _record(self, long long duration)
