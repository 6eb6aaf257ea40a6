cimport cython
from nexus.gateway._request_c cimport ServedRequest


cdef class Tracer:
    cdef bint _recording
    cdef bint _always
    cdef object _sampler
    cdef object _random
    cdef str _digits
    cdef Py_ssize_t _at

    @cython.locals(parent=tuple)
    cpdef object open(self, ServedRequest request, bytes traceparent, bytes tracestate)
    cdef bint _sampled(self, str trace_id, object parent) except -1
    @cython.locals(span_id=str)
    cpdef bytes outgoing(self, ServedRequest request)
    @cython.locals(span_id=str)
    cpdef bytes renew(self, ServedRequest request, bytes fields)
    @cython.locals(at=Py_ssize_t)
    cdef str _draw(self, Py_ssize_t digits)
