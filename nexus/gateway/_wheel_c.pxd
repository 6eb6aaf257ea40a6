cdef class Timed:
    cdef public long long deadline
    cdef public long long entry
    cpdef object on_deadline(self, long long now)


cdef class Wheel:
    cdef readonly long long now
    cdef long long _tick
    cdef list _slots
    cpdef object schedule(self, Timed timed, long long deadline)
    cpdef object advance(self, long long now)
