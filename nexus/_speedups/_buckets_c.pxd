# The map of the bucket table: what another compiled module may call without Python objects.
# Layout and guarantees: buckets.py.
from libc.stdint cimport int64_t, uint64_t

cdef uint64_t siphash13(const unsigned char* data, Py_ssize_t size, uint64_t k0, uint64_t k1) noexcept nogil


cdef class BucketTable:
    cdef Py_buffer _buffer
    cdef bint _held
    cdef unsigned char* _sets
    cdef uint64_t _mask
    cdef readonly long long evictions

    # Arguments as for ``take``, unchecked: 0 <= now, 1 <= interval, 1 <= burst,
    # now and interval * burst <= 2**61.
    cdef int64_t take_unchecked(self, uint64_t key, int64_t now, int64_t interval, int64_t burst) noexcept nogil
