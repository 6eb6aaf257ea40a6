"""The bucket table on C pointers; see ``buckets.py`` for layout and guarantees.

Why one compare-and-swap is enough, with no lock and no second look
--------------------------------------------------------------------
A slot is read as two 64-bit words, TAT first, then key. Words of two different buckets may meet
in such a read; the compare-and-swap over all 16 bytes fails then, and a refusal, which writes
nothing, is confirmed by a compare-and-swap that writes the same value.

Two processes must not insert one key into two slots. Both choose the slot of the smallest TAT,
the first of equals. As long as TATs only grow, the one that comes second either reads the other's
key or finds its own chosen slot changed: had it read the winner's slot before the winner wrote,
that slot was still the smallest. (TAT before key matters: the other order may see the old key
beside the new TAT.) The only write that lowers a TAT replaces a bucket that still has debt, which
is an eviction, and evictions are counted and excepted from the guarantee.
"""

from cpython.buffer cimport PyBUF_SIMPLE, PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from libc.stdint cimport int64_t, uint64_t, uintptr_t
from libc.string cimport memcmp, memcpy

from operator import index

cdef extern from *:
    """
    #include <stdint.h>
    #include <string.h>

    #if !defined(__SIZEOF_INT128__) || !defined(__GCC_HAVE_SYNC_COMPARE_AND_SWAP_16)
    #error "needs a 16-byte compare-and-swap: x86-64 with -mcx16, or arm64 with GCC >= 10 or clang"
    #endif

    typedef struct { uint64_t key; int64_t tat; } nx_slot;

    /* Acquire loads keep the order TAT → key on weakly ordered machines. */
    static inline int64_t nx_load_tat(const nx_slot *slot) {
        return __atomic_load_n(&slot->tat, __ATOMIC_ACQUIRE);
    }
    static inline uint64_t nx_load_key(const nx_slot *slot) {
        return __atomic_load_n(&slot->key, __ATOMIC_ACQUIRE);
    }

    /* __sync and not __atomic: GCC sends the 16-byte __atomic form to libatomic, which may lock,
       and a lock does not survive its owner's death. */
    static inline int nx_swap(nx_slot *slot, uint64_t key, int64_t tat,
                              uint64_t new_key, int64_t new_tat) {
        nx_slot from = { key, tat }, to = { new_key, new_tat };
        unsigned __int128 before, after;
        memcpy(&before, &from, 16);
        memcpy(&after, &to, 16);
        return __sync_bool_compare_and_swap((unsigned __int128 *)slot, before, after);
    }

    static inline uint64_t nx_word(const unsigned char *p) {
        uint64_t word;
        memcpy(&word, p, 8);
    #if __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
        word = __builtin_bswap64(word);
    #endif
        return word;
    }
    """
    ctypedef struct nx_slot:
        uint64_t key
        int64_t tat
    int64_t nx_load_tat(const nx_slot* slot) noexcept nogil
    uint64_t nx_load_key(const nx_slot* slot) noexcept nogil
    bint nx_swap(
        nx_slot* slot, uint64_t key, int64_t tat, uint64_t new_key, int64_t new_tat
    ) noexcept nogil
    uint64_t nx_word(const unsigned char* p) noexcept nogil

cdef extern from "Python.h":
    unsigned long long PyLong_AsUnsignedLongLongMask(object) except? 0xFFFFFFFFFFFFFFFF
    long long PyLong_AsLongLongAndOverflow(object, int*) except? -1

cdef enum:
    WAYS = 8
    SET_BYTES = 128
    HEADER_BYTES = 64
    ALIGNMENT = 64
    #: 2**26 sets are 8 GiB; more is a mistake in units.
    MAX_SETS = 1 << 26

#: 73 years in nanoseconds: a TAT stays below 2**62, and one more token below 2**63.
cdef int64_t MAX_TIME = <int64_t>1 << 61


cdef class BucketTable:
    """GCRA buckets in ``buffer``, in ``sets`` sets of eight.

    ``buffer`` is writable, zeroed, aligned to 64 bytes and at least ``size(sets)`` long; ``sets``
    is a power of two. Raises ``ValueError`` otherwise, also when the buffer holds a table already.
    """

    def __init__(self, buffer, sets):
        sets = index(sets)
        cdef object size = BucketTable.size(sets)
        if self._held:
            raise ValueError("the table is made already")
        view = memoryview(buffer).cast("B")
        if view.readonly:
            raise ValueError("the buffer must be writable")
        if len(view) < size:
            raise ValueError(f"{sets} sets need {size} bytes, the buffer has {len(view)}")
        PyObject_GetBuffer(view, &self._buffer, PyBUF_SIMPLE | PyBUF_WRITABLE)
        self._held = True
        if <uintptr_t>self._buffer.buf % ALIGNMENT:
            raise ValueError(f"the buffer must be aligned to {ALIGNMENT} bytes; use mmap")
        _claim(<unsigned char*>self._buffer.buf, <uint64_t>sets)
        self._sets = <unsigned char*>self._buffer.buf + HEADER_BYTES
        self._mask = <uint64_t>sets - 1

    def __dealloc__(self):
        if self._held:
            PyBuffer_Release(&self._buffer)

    @staticmethod
    def size(sets):
        """Bytes that a table of ``sets`` sets needs."""
        sets = index(sets)
        if not 1 <= sets <= MAX_SETS or sets & (sets - 1):
            raise ValueError(f"sets must be a power of two from 1 to {MAX_SETS}, got {sets}")
        return HEADER_BYTES + sets * SET_BYTES

    def take(self, key, now_ns, interval_ns, burst):
        """Take one token from the bucket of ``key`` (64 bits; see :func:`hash_key`).

        ``now_ns`` is the monotonic clock, ``interval_ns`` the time that one token takes to grow,
        ``burst`` the capacity in tokens. Returns the tokens left (>= 0) when admitted, else
        ``-(ns until one token is there)``. Raises ``ValueError`` when an argument is out of range.
        """
        cdef int over_now = 0, over_interval = 0, over_burst = 0
        cdef uint64_t bits = PyLong_AsUnsignedLongLongMask(key)
        cdef int64_t now = PyLong_AsLongLongAndOverflow(now_ns, &over_now)
        cdef int64_t interval = PyLong_AsLongLongAndOverflow(interval_ns, &over_interval)
        cdef int64_t tokens = PyLong_AsLongLongAndOverflow(burst, &over_burst)
        if (
            over_now or over_interval or over_burst
            or now < 0 or now >= MAX_TIME
            or interval < 1 or interval >= MAX_TIME
            or tokens < 1 or tokens > MAX_TIME // interval
        ):
            raise ValueError(
                "now_ns must be >= 0, interval_ns and burst >= 1, "
                "now_ns and interval_ns * burst at most 2**61"
            )
        if self._sets is NULL:
            raise ValueError("the table was not made")
        return self.take_unchecked(bits, now, interval, tokens)

    cdef int64_t take_unchecked(
        self, uint64_t key, int64_t now, int64_t interval, int64_t burst
    ) noexcept nogil:
        cdef nx_slot* first = <nx_slot*>(self._sets + ((key >> 32) & self._mask) * SET_BYTES)
        cdef nx_slot* slot
        cdef int i
        cdef int64_t tat, wait, base, new_tat
        cdef uint64_t found
        cdef int64_t slot_tat = 0
        cdef uint64_t slot_key = 0
        while True:
            slot = NULL
            for i in range(WAYS):
                tat = nx_load_tat(&first[i])
                found = nx_load_key(&first[i])
                if found == key:
                    slot = &first[i]
                    slot_tat = tat
                    slot_key = key
                    break
                if slot is NULL or tat < slot_tat:
                    slot = &first[i]
                    slot_tat = tat
                    slot_key = found
            base = slot_tat if slot_key == key and slot_tat > now else now
            new_tat = base + interval
            wait = new_tat - now - interval * burst
            if wait > 0:
                if nx_swap(slot, slot_key, slot_tat, slot_key, slot_tat):
                    return -wait
                continue
            if nx_swap(slot, slot_key, slot_tat, key, new_tat):
                if slot_key != key and slot_tat > now:
                    self.evictions += 1
                return -wait // interval


cdef int _claim(unsigned char* header, uint64_t sets) except -1:
    """Write the header, or say whose it is already."""
    cdef uint64_t found
    memcpy(&found, header + 8, 8)
    if memcmp(header, b"NXBUCK1", 7) == 0:
        name = {b"P": "pure", b"C": "compiled"}.get(header[7:8], "unknown")
        raise ValueError(
            f"the buffer holds a table already ({name} backend, {found} sets): "
            "make it once, before the fork"
        )
    if memcmp(header, b"\0\0\0\0\0\0\0\0", 8) != 0 or found:
        raise ValueError("the buffer is not zeroed")
    memcpy(header, b"NXBUCK1C", 8)
    memcpy(header + 8, &sets, 8)
    return 0


def hash_key(data, seed):
    """SipHash-1-3 of ``data`` as an unsigned 64-bit number, the same in every process.

    ``seed`` is the secret key (its low 128 bits): drawn at start-up, so that nobody can choose
    addresses which all fall into one set. SipHash: Aumasson and Bernstein, 2012; one compression
    and three finalisation rounds as in CPython's own ``hash(bytes)``.
    """
    if not isinstance(data, bytes):
        raise TypeError(f"expected bytes, got {type(data).__name__}")
    seed = index(seed)
    return siphash13(
        <const unsigned char*>PyBytes_AS_STRING(data),
        PyBytes_GET_SIZE(data),
        PyLong_AsUnsignedLongLongMask(seed),
        PyLong_AsUnsignedLongLongMask(seed >> 64),
    )


cdef inline uint64_t _rotate(uint64_t x, int bits) noexcept nogil:
    return x << bits | x >> (64 - bits)


cdef inline void _round(uint64_t* v) noexcept nogil:
    v[0] += v[1]
    v[2] += v[3]
    v[1] = _rotate(v[1], 13) ^ v[0]
    v[3] = _rotate(v[3], 16) ^ v[2]
    v[0] = _rotate(v[0], 32)
    v[2] += v[1]
    v[0] += v[3]
    v[1] = _rotate(v[1], 17) ^ v[2]
    v[3] = _rotate(v[3], 21) ^ v[0]
    v[2] = _rotate(v[2], 32)


cdef uint64_t siphash13(
    const unsigned char* data, Py_ssize_t size, uint64_t k0, uint64_t k1
) noexcept nogil:
    cdef uint64_t[4] v
    cdef uint64_t word
    cdef Py_ssize_t i, whole = size & ~<Py_ssize_t>7
    v[0] = k0 ^ 0x736F6D6570736575ULL
    v[1] = k1 ^ 0x646F72616E646F6DULL
    v[2] = k0 ^ 0x6C7967656E657261ULL
    v[3] = k1 ^ 0x7465646279746573ULL
    for i in range(0, whole, 8):
        word = nx_word(data + i)
        v[3] ^= word
        _round(v)
        v[0] ^= word
    word = <uint64_t>(size & 0xFF) << 56
    for i in range(whole, size):
        word |= <uint64_t>data[i] << (8 * (i - whole))
    v[3] ^= word
    _round(v)
    v[0] ^= word
    v[2] ^= 0xFF
    for i in range(3):
        _round(v)
    return v[0] ^ v[1] ^ v[2] ^ v[3]
