cdef class RetryBudget:
    cdef public long long active
    cdef public long long floor
    cdef public double ratio
    cdef public long long refused
    cdef public long long retrying

    cpdef object begin(self)
    cpdef object end(self)
    cpdef bint try_acquire(self) except -1
    cpdef object release(self)
