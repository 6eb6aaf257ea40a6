cimport cython

cdef extern from *:
    """
    #define nexus_fence() __atomic_thread_fence(__ATOMIC_RELEASE)
    """
    void fence "nexus_fence"() noexcept nogil

cdef long long _CLOSED, _OPEN, _HALF_OPEN, _HELD
cdef long long _BUCKETS, _BUCKET_NS
cdef long long _STATE, _UNTIL, _OPENS, _CHANGED, _SLOT_HEAD
cdef long long _IN_USE, _GENERATION, _COUNTS, _BLOCK


cdef class Breaker:
    cdef readonly str url
    cdef object _config
    cdef bint _enabled
    cdef long long[::1] _words
    cdef Py_ssize_t _block
    cdef Py_ssize_t _workers
    cdef object _lock
    cdef object _slot
    cdef long long _trial
    cdef long long _reset_ns
    cdef long long _trial_ns

    cpdef bint ready(self, long long now_ns) except -1
    @cython.locals(word=cython.longlong)
    cpdef long long allow(self, long long now_ns) except -1
    @cython.locals(word=cython.longlong)
    cpdef object record_success(self, long long now_ns, long long permit=*)
    @cython.locals(word=cython.longlong)
    cpdef bint record_failure(self, long long now_ns, long long permit=*) except -1
    @cython.locals(word=cython.longlong)
    cpdef object release(self, long long now_ns, long long permit=*)
    cdef bint _is_trial(self, long long word, long long permit) except -1
    cdef object _acquire(self)
    cdef object _release_lock(self)
    cdef object _enter(self, long long state, long long now_ns)
    cdef bint _trip(self, long long now_ns, long long word) except -1
    cdef bint _end_trial(self, long long now_ns, long long word, long long state) except -1
    @cython.locals(block=Py_ssize_t, at=Py_ssize_t, second=cython.longlong)
    cdef object _count(self, long long now_ns, long long generation, Py_ssize_t failed)
    @cython.locals(
        oldest=cython.longlong, successes=cython.longlong, failures=cython.longlong,
        worker=Py_ssize_t, block=Py_ssize_t, at=Py_ssize_t
    )
    cdef tuple _sum(self, long long now_ns, long long generation)
    cdef bint _over_threshold(self, long long now_ns, long long generation) except -1
