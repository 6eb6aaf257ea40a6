cimport cython
from nexus._speedups._counters_c cimport Counter, Histogram
from nexus.gateway._primitives cimport Dice, numbered
from nexus.gateway._routes_c cimport Route
from nexus.gateway._wheel_c cimport Wheel
from nexus.policy._balance_c cimport Balancer, Server
from nexus.policy._budget_c cimport RetryBudget


@cython.final
cdef class Series:
    cdef readonly Route route
    cdef readonly bytes method
    cdef readonly int status
    cdef readonly Counter requests
    cdef readonly Histogram duration


cdef class Core:
    cdef readonly Wheel wheel
    cdef readonly object metrics
    cdef readonly object rng
    cdef public object recorder
    cdef public object events
    cdef public object tracer
    cdef public dict balancers
    cdef public RetryBudget budget
    cdef public bint breakers
    cdef public object usable
    cdef public object outliers
    cdef public object bulkheads
    cdef public bint draining
    cdef public bint counting
    cdef public long long wall_offset
    cdef public int connections
    cdef long long _id_ms
    cdef bytes _id_prefix
    cdef long long _stamp_ms
    cdef long long _stamp_second
    cdef bytes _stamp_prefix
    cdef bytes _stamp
    cdef long long _date_s
    cdef bytes _date
    cdef Dice _dice
    cdef dict _requests
    cdef dict _upstreams
    cdef dict _counters
    cdef dict _bodies
    cdef dict _lines
    cdef readonly int max_head
    cdef readonly int max_line
    cdef readonly int max_fields
    cdef readonly long long max_body
    cdef readonly int max_connections
    cdef readonly long long head_ns
    cdef readonly long long body_idle_ns
    cdef readonly long long keep_alive_ns
    cdef readonly long long total_ns
    cdef readonly long long slow_ns
    cdef readonly object bad
    cdef readonly long long stream_idle_ns
    cdef readonly long long response_ns
    cdef readonly long long buffer_bytes
    cdef readonly bint envelope
    cdef readonly int max_address_labels
    cdef readonly int request_drop
    cdef readonly int spoofable
    cdef readonly bytes via
    cdef readonly bytes version_field

    cpdef object apply(self, object settings)
    cpdef bytes request_id(self, long long wall_ms)
    @cython.locals(second=cython.longlong)
    cpdef bytes stamp(self, long long wall_ms)
    cpdef bytes date_field(self, long long wall_s)
    cpdef bytes status_line(self, int status)
    cpdef bytes error_body(self, int status, str reason, str message)
    @cython.locals(series=Series)
    cpdef Series request_series(self, Route route, bytes method, int status)
    @cython.locals(series=Series)
    cpdef object count_upstream(self, Server server, bytes method, int status, double milliseconds)
    cpdef object count(self, str name, str value)
