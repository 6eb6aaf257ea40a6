cimport cython
from posix.time cimport CLOCK_MONOTONIC, clock_gettime, timespec

cdef long long _TICK
cdef long long _SLOTS


cdef inline long long monotonic_ns() noexcept nogil:
    """`time.monotonic_ns` without a Python integer."""
    cdef timespec now
    clock_gettime(CLOCK_MONOTONIC, &now)
    return <long long>now.tv_sec * 1000000000 + now.tv_nsec


cdef class Timed:
    cdef public long long deadline
    cdef public long long entry
    cpdef object on_deadline(self, long long now)


cdef class Wheel:
    cdef readonly long long now
    cdef long long _tick
    cdef list _slots
    @cython.locals(tick=cython.longlong)
    cpdef object schedule(self, Timed timed, long long deadline)
    @cython.locals(last=cython.longlong, timed=Timed, due=list, place=cython.longlong)
    cpdef object advance(self, long long now)
