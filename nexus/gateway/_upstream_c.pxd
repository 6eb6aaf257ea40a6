cimport cython
from nexus._speedups._http1_c cimport ChunkedDecoder, ResponseHead
from nexus.gateway._outlet_c cimport Outlet
from nexus.gateway._ports_c cimport PoolPort, ResponseSink
from nexus.gateway._primitives cimport copied
from nexus.gateway._wheel_c cimport Timed

cdef int _HEAD, _LENGTH, _CHUNKED, _UNTIL_CLOSE, _TUNNEL, _IDLE, _CLOSED
cdef long long CHECK_AFTER_NS


cdef class UpstreamConnection(Timed):
    cdef readonly PoolPort pool
    cdef public ResponseSink sink
    cdef readonly object transport
    cdef Outlet _out
    cdef readonly ResponseHead head
    cdef ChunkedDecoder _decoder
    cdef bytearray _pending
    cdef int _mode
    cdef long long _left
    cdef int _informational
    cdef bint _bodiless
    cdef bint _reusable
    cdef readonly bint answered
    cdef readonly long long requests
    cdef public bint rested
    cdef readonly long long idle_since
    cdef bint _reading

    cpdef object begin(self, ResponseSink sink, bytes data, bint bodiless)
    cpdef object write(self, bytes data)
    cpdef object pause_reading(self)
    cpdef object resume_reading(self)
    cpdef object release(self)
    cpdef object discard(self)
    cpdef object write_eof(self)
    cpdef bint alive(self, long long now) except -1
    cpdef bint raced(self) except -1
    cpdef object rest(self, long long now)
    @cython.locals(mode=cython.int, data=bytes)
    cdef object _consume(self, bytearray buffer, Py_ssize_t start, Py_ssize_t end)
    @cython.locals(head=ResponseHead, at=cython.Py_ssize_t, used=cython.Py_ssize_t)
    cdef object _heads(self, bytearray buffer, Py_ssize_t start, Py_ssize_t end)
    @cython.locals(head=ResponseHead, data=bytes, complete=cython.bint, sink=ResponseSink)
    cdef object _respond(self, bytearray buffer, Py_ssize_t at, Py_ssize_t end)
    @cython.locals(mode=cython.int, size=cython.Py_ssize_t, stop=cython.Py_ssize_t, used=cython.Py_ssize_t, decoder=ChunkedDecoder)
    cdef bytes _take(self, bytearray buffer, Py_ssize_t at, Py_ssize_t end)
    cdef object _upgrade(self, bytearray buffer, Py_ssize_t at, Py_ssize_t end)
    @cython.locals(sink=ResponseSink)
    cdef object _complete(self, bytes data)
    @cython.locals(sink=ResponseSink)
    cdef object _lost(self, str reason)
