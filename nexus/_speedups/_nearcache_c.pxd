"""The near-cache's table, on C pointers; the map is in ``nearcache.py``."""

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t

from nexus._speedups._respscan_c cimport CommandTable

cdef enum:
    MISS = 0
    HIT = 1
    PENDING = 2
    LATE = 3
    BUSY = 4
    FULL = 5

    READ = 1
    WRITE = 2
    UNKNOWN = 3
    FLUSH = 4

    CHANGED = 0
    COMMITTED = 1
    TOO_BIG = 2

cdef struct Entry:
    # What a hit needs is in the first 64 bytes: most of its cost is memory that no cache holds.
    Entry* next              # same bucket of the index of requests
    uint64_t hash
    double expiry            # seconds
    double ripe              # seconds, earliest fence that serves it
    int64_t seq              # sent on its clients' link when it was committed
    uint32_t request_size    # bytes; the body is the request, then the reply
    uint32_t reply_size
    int space
    int number
    uint32_t hits
    uint8_t visited
    uint8_t pending          # 0: a reply; 1: may be joined; 2: not any more
    Entry** at               # what points here in the chain of the bucket
    Entry* key_next          # same bucket of the index of Redis keys
    Entry** key_at
    Entry* newer             # SIEVE's queue
    Entry* older
    uint64_t key_hash
    uint64_t token

cdef struct Note:
    int64_t seq
    uint64_t key_hash
    int kind

cdef class Notes:
    cdef Note* _ring
    cdef size_t _size                    # slots, a power of two
    cdef size_t _first
    cdef size_t _count
    cdef public int64_t at
    cdef int _push(self, int64_t seq, int kind, uint64_t key_hash) except -1
    cdef Note _next(self) noexcept

cdef class NearTable:
    cdef public int64_t max_bytes
    cdef public bytearray buffer
    cdef public Py_ssize_t used
    cdef readonly int64_t bytes
    cdef readonly int64_t entries
    cdef readonly int64_t pending
    cdef public int64_t evictions
    cdef public int64_t expired
    cdef public double ripe
    cdef readonly Py_ssize_t key_begin
    cdef readonly Py_ssize_t key_stop
    cdef readonly uint64_t seed
    cdef uint64_t _token
    cdef Entry** _table                  # by request
    cdef Entry** _keys                   # by Redis key
    cdef size_t _mask
    cdef Entry* _newest
    cdef Entry* _oldest
    cdef Entry* _hand
    cdef Entry* _cursor

    cdef Entry* _named(self, int space, int number, bytes request) except? NULL
    cdef Entry* _find(
        self, int space, int number, const unsigned char* request, Py_ssize_t size
    ) noexcept
    cpdef int probe(
        self, int space, int number, bytearray data, Py_ssize_t begin, Py_ssize_t stop,
        double now, double fresh, double floor, int64_t received, bint reading
    ) except -1
    cpdef bint alive(self, int space, int number, bytes request, uint64_t token) except -1
    cpdef uint64_t token(self, int space, int number, bytes request) except? 0
    cpdef uint64_t begin(self, int space, int number, bytes request) except? 0
    cpdef object close(self, int space, int number, bytes request, uint64_t token)
    cpdef object abandon(self, int space, int number, bytes request, uint64_t token)
    cpdef int commit(
        self, int space, int number, bytes request, uint64_t token, bytes reply, double expiry,
        int64_t seq
    ) except -1
    cpdef object locate(self, bytearray data, Py_ssize_t begin, Py_ssize_t stop)
    cpdef int64_t note(
        self, Notes notes, int kind, int64_t seq, CommandTable table, int number, int64_t argc,
        bytearray data, Py_ssize_t begin, Py_ssize_t stop
    ) except -1
    cpdef (int64_t, int64_t) answered(self, Notes notes, int64_t received, double now)
    cpdef int64_t invalidate(self, bytes data) except -2
    cpdef int64_t drop(self, bytes key) except -1
    cpdef int64_t clear(self, int source) except -1
    cdef int64_t _drop(self, uint64_t key_hash) noexcept
    cdef int _grow(self) except -1
    cdef void _link(self, Entry* entry) noexcept
    cdef void _evict(self) noexcept
    cdef void _remove(self, Entry* entry) noexcept


cdef class Rate:
    cdef readonly double window              # seconds
    cdef double _since                       # seconds
    cdef size_t _mask
    cdef uint8_t* _now                       # ROWS_OF_RATE × (mask + 1) counters
    cdef uint8_t* _before
    cdef uint64_t _seed
    cpdef int touch(self, bytearray data, Py_ssize_t begin, Py_ssize_t stop, double now) except -1
