cimport cython
from nexus.gateway._primitives cimport Dice, drawn, low_bits, traceparent_line
from nexus.gateway._request_c cimport ServedRequest

cdef int _SAMPLED, _RANDOM


cdef class Tracer:
    cdef bint _recording
    cdef bint _always
    cdef object _sampler
    cdef bint _never
    cdef unsigned long long _bound
    cdef Dice _dice

    @cython.locals(parent=tuple, flags=cython.int)
    cpdef object open(self, ServedRequest request, bytes traceparent, bytes tracestate)
    cdef bint _sampled(self, str trace_id, object parent) except -1
    cdef int _flags(self, ServedRequest request) except -1
    @cython.locals(span_id=str, line=bytes)
    cpdef bytes outgoing(self, ServedRequest request)
    @cython.locals(span_id=str, flags=cython.int)
    cpdef bytes renew(self, ServedRequest request, bytes fields)
