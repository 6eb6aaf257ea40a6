cimport cython

cdef long long _TICK
cdef long long _SLOTS


cdef class Timed:
    cdef public long long deadline
    cdef public long long entry
    cdef public long long since
    cpdef object on_deadline(self, long long now)


cdef class Wheel:
    cdef readonly long long now
    cdef long long _tick
    cdef bint _behind
    cdef list _slots
    @cython.locals(tick=cython.longlong, entry=cython.longlong)
    cpdef object schedule(self, Timed timed, long long deadline)
    @cython.locals(entry=cython.longlong)
    cpdef object drop(self, Timed timed)
    @cython.locals(before=cython.longlong, timed=Timed, due=set)
    cpdef bint late(self, long long now) except -1
    @cython.locals(
        last=cython.longlong, timed=Timed, due=set, place=cython.longlong, since=cython.longlong
    )
    cpdef object advance(self, long long now)
