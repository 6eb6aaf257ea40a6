cimport cython
from nexus.observability._out cimport is_plain, plain_text


cdef int MAX_TARGET


@cython.final
cdef class RequestRecord:
    cdef public long long attempts
    cdef public long long bytes_in
    cdef public long long bytes_out
    cdef public str client_id
    cdef public bytes correlation_id
    cdef public long long duration_ns
    cdef public list earlier
    cdef public bytes host
    cdef public bytes inbound_request_id
    cdef public str ip
    cdef public bytes method
    cdef public str parent_span_id
    cdef public bint proxied
    cdef public str reason
    cdef public str redacted
    cdef public str request_id
    cdef public str retry_skipped
    cdef public str route
    cdef public bint sampled
    cdef public bint random_id
    cdef public bytes scheme
    cdef public str span_id
    cdef public long long started_ns
    cdef public long long status
    cdef public bytes target
    cdef public str trace_id
    cdef public bytes tracestate
    cdef public str upstream
    cdef public str upstream_error
    cdef public long long upstream_ns
    cdef public str upstream_span_id
    cdef public long long upstream_start_ns
    cdef public long long upstream_status
    cdef public bytes upstream_target
    cdef public bytes user_agent

    cpdef str shown(self)


@cython.locals(record=RequestRecord)
cpdef list picked(list records, bint errors, long long slow_ns)
