"""The near-cache's table; twin of ``_nearcache_py.py``, on C pointers.

Every offset into a caller's bytes is checked before use; entries own their bytes.
"""

import os

from cpython.bytearray cimport PyByteArray_AS_STRING, PyByteArray_GET_SIZE
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memchr, memcmp, memcpy, memset

from nexus._speedups._respscan_c cimport CommandTable

from nexus.errors import RespError

cdef extern from *:
    """
    #include <stdint.h>
    #include <string.h>

    /* A keyed 64-bit hash of the multiply-and-fold family (after wyhash, public domain). */
    static inline uint64_t near_fold(uint64_t a, uint64_t b) {
        __uint128_t product = (__uint128_t)a * b;
        return (uint64_t)product ^ (uint64_t)(product >> 64);
    }
    static inline uint64_t near_word(const unsigned char *p) {
        uint64_t word; memcpy(&word, p, 8); return word;
    }
    static inline uint64_t near_half(const unsigned char *p) {
        uint32_t word; memcpy(&word, p, 4); return word;
    }
    static inline uint64_t near_hash(const unsigned char *p, size_t size, uint64_t seed) {
        const uint64_t k0 = 0xa0761d6478bd642fULL, k1 = 0xe7037ed1a0b428dbULL;
        uint64_t a, b;
        size_t left = size;
        seed ^= near_fold(seed ^ k0, k1);
        if (size <= 16) {
            if (size >= 8) { a = near_word(p); b = near_word(p + size - 8); }
            else if (size >= 4) { a = near_half(p); b = near_half(p + size - 4); }
            else if (size) { a = ((uint64_t)p[0] << 16) | ((uint64_t)p[size >> 1] << 8)
                                 | p[size - 1]; b = 0; }
            else { a = b = 0; }
        } else {
            while (left > 16) {
                seed = near_fold(near_word(p) ^ k1, near_word(p + 8) ^ seed);
                p += 16; left -= 16;
            }
            a = near_word(p + left - 16); b = near_word(p + left - 8);
        }
        return near_fold(k1 ^ size, near_fold(a ^ k1, b ^ seed));
    }
    /* An entry and its body are on several lines of the cache: ask for all at once. */
    static inline void near_prefetch(const void *p) {
        const char *line = (const char *)p;
        __builtin_prefetch(line);
        __builtin_prefetch(line + 64);
        __builtin_prefetch(line + 128);
        __builtin_prefetch(line + 192);
    }
    """
    void near_prefetch(const void* entry) nogil
    uint64_t near_hash(const unsigned char* data, size_t size, uint64_t seed) nogil

__all__ = ["NearTable", "Notes", "Rate"]

cdef int64_t NEVER = <int64_t>1 << 62
cdef enum:
    OVERHEAD = 160
    LARGEST = 8
    FIRST_BUCKETS = 1024
    FIRST_NOTES = 64
    ROWS_OF_RATE = 4


cdef class Notes:
    """What is outstanding on one link and matters to the table; see the Python twin."""

    def __cinit__(self):
        self._size = FIRST_NOTES
        self._ring = <Note*>malloc(self._size * sizeof(Note))
        if self._ring is NULL:
            raise MemoryError
        self.at = NEVER

    def __dealloc__(self):
        free(self._ring)

    def __len__(self):
        return self._count

    cdef int _push(self, int64_t seq, int kind, uint64_t key_hash) except -1:
        cdef Note* bigger
        cdef Note* note
        cdef size_t index
        if self._count == self._size:
            bigger = <Note*>malloc(2 * self._size * sizeof(Note))
            if bigger is NULL:
                raise MemoryError
            for index in range(self._count):
                bigger[index] = self._ring[(self._first + index) & (self._size - 1)]
            free(self._ring)
            self._ring = bigger
            self._first = 0
            self._size *= 2
        if self._count == 0:
            self.at = seq
        note = &self._ring[(self._first + self._count) & (self._size - 1)]
        note.seq = seq
        note.kind = kind
        note.key_hash = key_hash
        self._count += 1
        return 0

    cdef Note _next(self) noexcept:
        cdef Note note = self._ring[self._first]
        self._first = (self._first + 1) & (self._size - 1)
        self._count -= 1
        self.at = self._ring[self._first].seq if self._count else NEVER
        return note


cdef inline int64_t _size_of(
    const unsigned char* data, Py_ssize_t position, Py_ssize_t stop, Py_ssize_t* payload
) noexcept:
    """Read ``$<size>`` at ``position``; -1: it is not that, or the payload is not all there."""
    cdef int64_t size = 0
    if position >= stop or data[position] != 36:
        return -1
    position += 1
    if position >= stop or data[position] == 13:
        return -1
    while position < stop and data[position] != 13:
        if not 48 <= data[position] <= 57 or size > <int64_t>1 << 40:
            return -1
        size = size * 10 + data[position] - 48
        position += 1
    if position + 2 + size + 2 > stop:
        return -1
    payload[0] = position + 2
    return size


cdef class NearTable:
    """See the Python twin."""

    def __cinit__(self):
        self._mask = FIRST_BUCKETS - 1
        self._table = <Entry**>calloc(FIRST_BUCKETS, sizeof(Entry*))
        self._keys = <Entry**>calloc(FIRST_BUCKETS, sizeof(Entry*))
        if self._table is NULL or self._keys is NULL:
            raise MemoryError

    def __init__(self, int64_t max_bytes, Py_ssize_t buffer_bytes=262_144, uint64_t seed=0):
        self.max_bytes = max_bytes
        self.buffer = bytearray(buffer_bytes)
        self.seed = seed or int.from_bytes(os.urandom(8), "little")

    def __dealloc__(self):
        cdef size_t index
        cdef Entry* entry
        cdef Entry* following
        if self._table is not NULL:
            for index in range(self._mask + 1):
                entry = self._table[index]
                while entry is not NULL:
                    following = entry.next
                    free(entry)
                    entry = following
        free(self._table)
        free(self._keys)

    cdef Entry* _find(
        self, int space, int number, const unsigned char* request, Py_ssize_t size
    ) noexcept:
        cdef uint64_t hashed = near_hash(
            request, size, self.seed ^ (<uint64_t>space << 16) ^ <uint64_t>number
        )
        cdef Entry* entry = self._table[hashed & self._mask]
        while entry is not NULL:
            near_prefetch(entry)
            if (
                entry.hash == hashed
                and entry.request_size == size
                and entry.number == number
                and entry.space == space
                and memcmp(<const void*>(entry + 1), request, size) == 0
            ):
                return entry
            entry = entry.next
        return NULL

    cpdef int probe(
        self, int space, int number, bytearray data, Py_ssize_t begin, Py_ssize_t stop,
        double now, double fresh, double floor, int64_t received, bint reading
    ) except -1:
        cdef Entry* entry
        cdef Py_ssize_t end
        if data is None or not 0 <= begin <= stop <= PyByteArray_GET_SIZE(data):
            raise ValueError(f"[{begin}:{stop}] is not within {len(data or b'')} bytes")
        entry = self._find(
            space, number, <const unsigned char*>PyByteArray_AS_STRING(data) + begin, stop - begin
        )
        if entry is NULL:
            return MISS
        if entry.pending:
            return PENDING if entry.pending == 1 else MISS
        if now >= entry.expiry:
            self.expired += 1
            self._remove(entry)
            return MISS
        self.ripe = entry.ripe
        if reading and received < entry.seq:
            return BUSY
        if fresh < floor or fresh < entry.ripe:
            return LATE
        end = self.used + entry.reply_size
        if end > PyByteArray_GET_SIZE(self.buffer):
            return FULL
        memcpy(
            PyByteArray_AS_STRING(self.buffer) + self.used,
            <const unsigned char*>(entry + 1) + entry.request_size,
            entry.reply_size,
        )
        self.used = end
        entry.visited = 1
        entry.hits += 1
        return HIT

    cdef Entry* _named(self, int space, int number, bytes request) except? NULL:
        if request is None:
            raise TypeError("the request is missing")
        return self._find(
            space, number, <const unsigned char*>PyBytes_AS_STRING(request),
            PyBytes_GET_SIZE(request)
        )

    cpdef bint alive(self, int space, int number, bytes request, uint64_t token) except -1:
        cdef Entry* entry = self._named(space, number, request)
        return entry is not NULL and entry.token == token

    cpdef uint64_t token(self, int space, int number, bytes request) except? 0:
        cdef Entry* entry = self._named(space, number, request)
        return 0 if entry is NULL else entry.token

    def facts(self, int space, int number, bytes request not None):
        cdef Entry* entry = self._named(space, number, request)
        cdef bytes reply
        if entry is NULL or entry.pending:
            return None
        reply = PyBytes_FromStringAndSize(
            <const char*>(entry + 1) + entry.request_size, entry.reply_size
        )
        return entry.token, reply, entry.expiry, entry.hits

    cpdef uint64_t begin(self, int space, int number, bytes request) except? 0:
        cdef Entry* entry = self._named(space, number, request)
        cdef const unsigned char* data = <const unsigned char*>PyBytes_AS_STRING(request)
        cdef Py_ssize_t size = PyBytes_GET_SIZE(request)
        cdef Py_ssize_t payload = 0
        cdef int64_t key_size = _size_of(data, 0, size, &payload)
        if key_size < 0:
            raise RespError("Protocol error: a request without a key")
        if entry is not NULL:
            self._remove(entry)
        if <size_t>(self.entries + self.pending) > self._mask:
            self._grow()
        entry = <Entry*>calloc(1, sizeof(Entry) + size)
        if entry is NULL:
            raise MemoryError
        self._token += 1
        entry.token = self._token
        entry.space = space
        entry.number = number
        entry.pending = 1
        entry.request_size = <uint32_t>size
        memcpy(<void*>(entry + 1), data, size)
        entry.hash = near_hash(data, size, self.seed ^ (<uint64_t>space << 16) ^ <uint64_t>number)
        entry.key_hash = near_hash(data + payload, key_size, self.seed)
        self._link(entry)
        self.pending += 1
        self.bytes += OVERHEAD + size
        return entry.token

    cpdef object close(self, int space, int number, bytes request, uint64_t token):
        cdef Entry* entry = self._named(space, number, request)
        if entry is not NULL and entry.token == token and entry.pending:
            entry.pending = 2

    cpdef object abandon(self, int space, int number, bytes request, uint64_t token):
        cdef Entry* entry = self._named(space, number, request)
        if entry is not NULL and entry.token == token and entry.pending:
            self._remove(entry)

    cpdef int commit(
        self, int space, int number, bytes request, uint64_t token, bytes reply, double expiry,
        int64_t seq
    ) except -1:
        cdef Entry* entry = self._named(space, number, request)
        cdef Entry* kept
        cdef Py_ssize_t size
        if reply is None:
            raise TypeError("the reply is missing")
        size = PyBytes_GET_SIZE(reply)
        if entry is NULL or entry.token != token or not entry.pending:
            return CHANGED
        if (
            OVERHEAD + <int64_t>entry.request_size + size > self.max_bytes // LARGEST
            or size > PyByteArray_GET_SIZE(self.buffer)
        ):
            self._remove(entry)
            return TOO_BIG
        kept = <Entry*>malloc(sizeof(Entry) + entry.request_size + size)
        if kept is NULL:
            raise MemoryError
        memcpy(kept, entry, sizeof(Entry) + entry.request_size)
        memcpy(<unsigned char*>(kept + 1) + kept.request_size, PyBytes_AS_STRING(reply), size)
        kept.at[0] = kept
        if kept.next is not NULL:
            kept.next.at = &kept.next
        kept.key_at[0] = kept
        if kept.key_next is not NULL:
            kept.key_next.key_at = &kept.key_next
        free(entry)
        kept.pending = 0
        kept.reply_size = <uint32_t>size
        kept.expiry = expiry
        kept.seq = seq
        kept.newer = NULL
        kept.older = self._newest
        if self._newest is not NULL:
            self._newest.newer = kept
        self._newest = kept
        if self._oldest is NULL:
            self._oldest = kept
        self.pending -= 1
        self.entries += 1
        self.bytes += size
        while self.bytes > self.max_bytes and self.entries > 1:
            self._evict()
        return COMMITTED

    cpdef object locate(self, bytearray data, Py_ssize_t begin, Py_ssize_t stop):
        cdef Py_ssize_t payload = 0
        cdef int64_t size
        if data is None or not 0 <= begin <= stop <= PyByteArray_GET_SIZE(data):
            raise ValueError(f"[{begin}:{stop}] is not within {len(data or b'')} bytes")
        size = _size_of(<const unsigned char*>PyByteArray_AS_STRING(data), begin, stop, &payload)
        if size < 0:
            raise RespError("Protocol error: a request without a key")
        self.key_begin = payload
        self.key_stop = payload + size

    cpdef int64_t note(
        self, Notes notes, int kind, int64_t seq, CommandTable table, int number, int64_t argc,
        bytearray data, Py_ssize_t begin, Py_ssize_t stop
    ) except -1:
        cdef const unsigned char* base
        cdef Py_ssize_t position = begin
        cdef Py_ssize_t payload = 0
        cdef int64_t size, index, last
        cdef int64_t dropped = 0
        cdef uint64_t key_hash
        cdef int first, last_key, step
        cdef Entry* entry
        if data is None or not 0 <= begin <= stop <= PyByteArray_GET_SIZE(data):
            raise ValueError(f"[{begin}:{stop}] is not within {len(data or b'')} bytes")
        if kind == FLUSH or kind == UNKNOWN:
            notes._push(seq, kind, 0)
            return self.clear(-1) if kind == FLUSH else 0
        base = <const unsigned char*>PyByteArray_AS_STRING(data)
        first, last_key, step = table.keys(number)
        last = last_key if last_key >= 0 else last_key + argc
        index = 1
        while index < argc and index <= last and step > 0:
            size = _size_of(base, position, stop, &payload)
            if size < 0:
                raise RespError("Protocol error: invalid bulk length")
            if index >= first and (index - first) % step == 0:
                key_hash = near_hash(base + payload, size, self.seed)
                if kind == WRITE:
                    dropped += self._drop(key_hash)
                else:
                    entry = self._keys[key_hash & self._mask]
                    while entry is not NULL:
                        dropped += entry.key_hash == key_hash and not entry.pending
                        entry = entry.key_next
                notes._push(seq, kind, key_hash)
            position = payload + size + 2
            index += 1
        return dropped

    cpdef (int64_t, int64_t) answered(self, Notes notes, int64_t received, double now):
        cdef int64_t unknown = 0
        cdef int64_t dropped = 0
        cdef Note note
        cdef Entry* entry
        while notes.at <= received:
            note = notes._next()
            if note.kind == WRITE:
                dropped += self._drop(note.key_hash)
            elif note.kind == READ:
                entry = self._keys[note.key_hash & self._mask]
                while entry is not NULL:
                    if entry.key_hash == note.key_hash:
                        entry.ripe = now
                    entry = entry.key_next
            elif note.kind == FLUSH:
                dropped += self.clear(-1)
            else:
                unknown += 1
        return unknown, dropped

    cpdef int64_t invalidate(self, bytes data) except -2:
        cdef const unsigned char* base
        cdef const unsigned char* found
        cdef Py_ssize_t position = 21
        cdef Py_ssize_t stop, payload = 0
        cdef int64_t size, count, index
        cdef int64_t dropped = 0
        if data is None or not data.startswith(b">2\r\n$10\r\ninvalidate\r\n"):
            return -1
        base = <const unsigned char*>PyBytes_AS_STRING(data)
        stop = PyBytes_GET_SIZE(data)
        if position >= stop or base[position] != 42 or data.startswith(b"*-1", position):
            return self.clear(-1)
        found = <const unsigned char*>memchr(base + position, 13, stop - position)
        count = 0
        if found is not NULL:
            for index in range(position + 1, found - base):
                if not 48 <= base[index] <= 57 or count > stop:
                    return self.clear(-1)
                count = count * 10 + base[index] - 48
            position = found - base + 2
        for index in range(count):
            size = _size_of(base, position, stop, &payload)
            if size < 0:
                return self.clear(-1)  # not what it should be: drop on doubt
            dropped += self._drop(near_hash(base + payload, size, self.seed))
            position = payload + size + 2
        return dropped

    cpdef int64_t drop(self, bytes key) except -1:
        if key is None:
            raise TypeError("the key is missing")
        return self._drop(
            near_hash(
                <const unsigned char*>PyBytes_AS_STRING(key), PyBytes_GET_SIZE(key), self.seed
            )
        )

    cdef int64_t _drop(self, uint64_t key_hash) noexcept:
        """All entries of a key hash: another key with the same hash loses its entries, no more."""
        cdef Entry* entry = self._keys[key_hash & self._mask]
        cdef Entry* following
        cdef int64_t count = 0
        while entry is not NULL:
            following = entry.key_next
            if entry.key_hash == key_hash:
                self._remove(entry)
                count += 1
            entry = following
        return count

    cpdef int64_t clear(self, int source) except -1:
        cdef size_t index
        cdef Entry* entry
        cdef Entry* following
        cdef int64_t count = 0
        if self.entries == 0 and self.pending == 0:
            return 0
        for index in range(self._mask + 1):
            entry = self._table[index]
            while entry is not NULL:
                following = entry.next
                if source < 0 or entry.space >> 1 == source:
                    self._remove(entry)
                    count += 1
                entry = following
        return count

    def touched(self, int limit, double now):
        cdef list found = []
        cdef Entry* entry = self._cursor
        cdef Entry* older
        cdef int64_t count = min(<int64_t>limit, self.entries)
        cdef Py_ssize_t payload = 0
        cdef int64_t size
        while count > 0:
            count -= 1
            if entry is NULL:
                entry = self._newest
            if entry is NULL:
                break
            older = entry.older
            if now >= entry.expiry:
                self.expired += 1
                self._remove(entry)
            elif entry.hits:
                size = _size_of(<const unsigned char*>(entry + 1), 0, entry.request_size, &payload)
                found.append((
                    entry.space,
                    PyBytes_FromStringAndSize(<const char*>(entry + 1) + payload, size),
                    entry.hits,
                ))
                entry.hits = 0
            entry = older
        self._cursor = entry
        return found

    cdef void _link(self, Entry* entry) noexcept:
        cdef Entry** slot = &self._table[entry.hash & self._mask]
        entry.next = slot[0]
        entry.at = slot
        if entry.next is not NULL:
            entry.next.at = &entry.next
        slot[0] = entry
        slot = &self._keys[entry.key_hash & self._mask]
        entry.key_next = slot[0]
        entry.key_at = slot
        if entry.key_next is not NULL:
            entry.key_next.key_at = &entry.key_next
        slot[0] = entry

    cdef int _grow(self) except -1:
        cdef size_t buckets = 2 * (self._mask + 1)
        cdef Entry** old = self._table
        cdef size_t index, count = self._mask + 1
        cdef Entry* entry
        cdef Entry* following
        cdef Entry** table = <Entry**>calloc(buckets, sizeof(Entry*))
        cdef Entry** keys = <Entry**>calloc(buckets, sizeof(Entry*))
        if table is NULL or keys is NULL:
            free(table)
            free(keys)
            raise MemoryError
        free(self._keys)
        self._table = table
        self._keys = keys
        self._mask = buckets - 1
        for index in range(count):
            entry = old[index]
            while entry is not NULL:
                following = entry.next
                self._link(entry)
                entry = following
        free(old)
        return 0

    cdef void _evict(self) noexcept:
        cdef Entry* entry = self._hand if self._hand is not NULL else self._oldest
        while entry is not NULL and entry.visited:
            entry.visited = 0
            entry = entry.newer if entry.newer is not NULL else self._oldest
        if entry is NULL:
            return
        self._hand = entry.newer
        self.evictions += 1
        self._remove(entry)

    cdef void _remove(self, Entry* entry) noexcept:
        entry.at[0] = entry.next
        if entry.next is not NULL:
            entry.next.at = entry.at
        entry.key_at[0] = entry.key_next
        if entry.key_next is not NULL:
            entry.key_next.key_at = entry.key_at
        self.bytes -= OVERHEAD + <int64_t>entry.request_size + entry.reply_size
        if entry.pending:
            self.pending -= 1
            free(entry)
            return
        self.entries -= 1
        if self._hand is entry:
            self._hand = entry.newer
        if self._cursor is entry:
            self._cursor = entry.older
        if entry.newer is NULL:
            self._newest = entry.older
        else:
            entry.newer.older = entry.older
        if entry.older is NULL:
            self._oldest = entry.newer
        else:
            entry.older.newer = entry.newer
        free(entry)


cdef class Rate:
    """How often keys were read lately; see the Python twin. A count-min sketch, conservative."""

    def __cinit__(self, double window, size_t counters=1 << 18):
        cdef size_t size = 1024
        while size < counters:
            size *= 2
        self._mask = size - 1
        self._now = <uint8_t*>calloc(ROWS_OF_RATE, size)
        self._before = <uint8_t*>calloc(ROWS_OF_RATE, size)
        if self._now is NULL or self._before is NULL:
            raise MemoryError
        self.window = window
        self._seed = int.from_bytes(os.urandom(8), "little")

    def __dealloc__(self):
        free(self._now)
        free(self._before)

    cpdef int touch(self, bytearray data, Py_ssize_t begin, Py_ssize_t stop, double now) except -1:
        cdef uint64_t hashed, step
        cdef size_t width = self._mask + 1
        cdef size_t slots[ROWS_OF_RATE]
        cdef uint8_t* other
        cdef int row, lowest = 255, before = 255
        if data is None or not 0 <= begin <= stop <= PyByteArray_GET_SIZE(data):
            raise ValueError(f"[{begin}:{stop}] is not within {len(data or b'')} bytes")
        hashed = near_hash(
            <const unsigned char*>PyByteArray_AS_STRING(data) + begin, stop - begin, self._seed
        )
        step = (hashed >> 32) | 1
        if now - self._since >= self.window:
            other = self._before
            self._before = self._now
            self._now = other
            memset(self._now, 0, ROWS_OF_RATE * width)
            if now - self._since < 2 * self.window:
                self._since += self.window
            else:
                memset(self._before, 0, ROWS_OF_RATE * width)
                self._since = now
        for row in range(ROWS_OF_RATE):
            slots[row] = row * width + <size_t>((hashed + row * step) & self._mask)
            if self._now[slots[row]] < lowest:
                lowest = self._now[slots[row]]
            if self._before[slots[row]] < before:
                before = self._before[slots[row]]
        if lowest < 255:
            lowest += 1
            for row in range(ROWS_OF_RATE):
                if self._now[slots[row]] < lowest:
                    self._now[slots[row]] = lowest
        return lowest + <int>(before * (1.0 - (now - self._since) / self.window))
