# C types for _counters_py.py, compiled as _counters_c. Layouts are described there.

cimport cython


@cython.final
cdef class Counter:
    cdef double[::1] _slots
    cdef Py_ssize_t _at

    cpdef object inc(self, double n=*)


@cython.final
cdef class Gauge:
    cdef double[::1] _slots
    cdef Py_ssize_t _at

    cpdef object set(self, double value)
    cpdef object inc(self, double n=*)
    cpdef object dec(self, double n=*)


@cython.final
cdef class StampedGauge:
    cdef double[::1] _slots
    cdef Py_ssize_t _at

    cpdef object set(self, double value)
    cpdef object inc(self, double n=*)
    cpdef object dec(self, double n=*)


@cython.final
cdef class Histogram:
    cdef double[::1] _slots
    cdef Py_ssize_t _at
    cdef double[::1] _bounds
    cdef Py_ssize_t _last

    @cython.locals(bucket=Py_ssize_t)
    cpdef object observe(self, double value)
