cimport cython
from nexus.gateway._ports_c cimport PoolPort, ResponseSink
from nexus.gateway._upstream_c cimport UpstreamConnection
from nexus.gateway._wheel_c cimport Wheel


cdef class Pool(PoolPort):
    cdef readonly str url
    cdef bint _tls
    cdef str _host
    cdef int _port
    cdef str _path
    cdef object _upstream
    cdef object _context
    cdef Wheel _wheel
    cdef list _idle
    cdef object _waiting
    cdef object _waiting_new
    cdef set _uploads
    cdef dict _waiting_uploads
    cdef set _tasks
    cdef set _open
    cdef bint _closed
    cdef int _max
    cdef int _max_uploads
    cdef int _queue_size
    cdef long long _keep_alive_ns
    cdef double _connect_seconds

    cpdef object acquire(self, ResponseSink sink)
    @cython.locals(connection=UpstreamConnection, idle=list)
    cdef UpstreamConnection _take_idle(self)
    cpdef object acquire_upload(self, ResponseSink sink, bint at_hand)
    cpdef bint crowded(self, ResponseSink sink) except -1
    cpdef object body_complete(self, ResponseSink sink)
    cpdef bint waits_for_place(self, ResponseSink sink) except -1
    cdef object _next_upload(self)
    cdef object _serve(self, ResponseSink sink)
    cpdef object acquire_new(self, ResponseSink sink, bint upload=*)
    @cython.locals(rested=UpstreamConnection)
    cpdef object give_back(self, object connection)
