cimport cython
from nexus._speedups._counters_c cimport Counter


@cython.final
cdef class Recorder:
    cdef tuple _sinks
    cdef Py_ssize_t _capacity
    cdef list _ring
    cdef object _loop
    cdef object _armed
    cdef bint _urgent
    cdef Counter _dropped
    cdef dict _errors
    cdef set _failing

    @cython.locals(waiting=Py_ssize_t)
    cpdef object append(self, record)
    cdef object _schedule(self, bint urgent)
    @cython.locals(handed=Py_ssize_t)
    cpdef object _drain(self)
    cdef Py_ssize_t _hand_over(self) except -1
