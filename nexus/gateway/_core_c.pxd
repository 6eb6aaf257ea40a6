cimport cython
from nexus.gateway._wheel_c cimport Wheel


cdef class Core:
    cdef readonly Wheel wheel
    cdef readonly object metrics
    cdef readonly object rng
    cdef public object recorder
    cdef public object events
    cdef public object tracer
    cdef public object balancer
    cdef public object retry_policy
    cdef public object budget
    cdef public bint breakers
    cdef public object usable
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
    cdef object _getrandbits
    cdef dict _requests
    cdef dict _upstreams
    cdef dict _counters
    cdef dict _bodies
    cdef readonly int max_head
    cdef readonly int max_line
    cdef readonly int max_fields
    cdef readonly long long max_body
    cdef readonly int max_connections
    cdef readonly long long head_ns
    cdef readonly long long body_idle_ns
    cdef readonly long long keep_alive_ns
    cdef readonly long long total_ns
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
    cpdef bytes date(self, long long wall_s)
    cpdef bytes error_body(self, int status, str reason, str message)
    cpdef object count_request(self, bytes method, str route, int status, double milliseconds)
    cpdef object count_upstream(self, object server, bytes method, int status, double milliseconds)
    cpdef object count(self, str name, str value)
