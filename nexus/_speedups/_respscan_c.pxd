"""Boundary scanners for RESP, on C pointers; the map is in ``respscan.py``."""

from libc.stdint cimport int64_t, uint64_t

cdef enum:
    TABLE_SLOTS = 2048
    ROWS = 8
    GROUPS = 32
    MORE = 0
    COMMAND = 1
    BIG = 2
    INLINE = 3
    ERROR = 4

cdef unsigned int UNWATCHED

cdef struct Slot:
    uint64_t word[4]     # lower-case name, zero-padded to NAME_LIMIT bytes
    unsigned int kind    # class; 0: free slot
    unsigned int group   # below GROUPS
    int effect           # on keys, the caller's own numbers; 0: none
    int first            # key positions as in COMMAND: first, last (negative: from the end), step
    int last
    int step

cdef int append(bytearray out, bytearray data, Py_ssize_t start, Py_ssize_t end) except -1
cdef bytes cut(bytearray data, Py_ssize_t start, Py_ssize_t end)
cdef Py_ssize_t send(int descriptor, bytearray data, Py_ssize_t start, Py_ssize_t end) except -1
cdef Py_ssize_t send_bytes(int descriptor, bytes data) except -1

cdef class CommandTable:
    cdef Slot* _slots
    cdef int64_t _counts[256]            # ROWS × GROUPS
    cdef tuple _watched                  # prefixes in order; None: every key is watched
    cdef int _watched_effect
    cdef readonly unsigned int unknown
    cdef bint _fits(self, const unsigned char* key, Py_ssize_t size) noexcept
    cdef bint _unwatched(
        self, int number, int64_t argc, const unsigned char* data, Py_ssize_t begin
    ) noexcept
    cdef const Slot* find(self, const unsigned char* name, Py_ssize_t length) noexcept nogil
    cdef int _insert(self, bytes name, unsigned int kind, unsigned int group) except -1
    cdef int _affect(self, bytes name, int effect, int first, int last, int step) except -1
    cpdef object count(self, int row, int group, int64_t number=*)
    cpdef (int, int, int) keys(self, int number)

cdef class CommandScanner:
    cdef CommandTable _table
    cdef public int64_t bulk_limit       # bytes, longest argument
    cdef public int64_t big_bytes        # bytes, longest command that is waited for
    cdef public Py_ssize_t run_end
    cdef public Py_ssize_t run_count
    cdef public Py_ssize_t command_end
    cdef public unsigned int kind
    cdef public unsigned int group
    cdef public int effect               # of the command stopped at
    cdef public int number               # its place in the table; 0: unknown
    cdef public Py_ssize_t name_end      # offset of its second argument
    cdef public unsigned int row         # where runs are counted; below ROWS
    cdef public int64_t argc
    cdef public str error
    cdef public bint streaming
    cdef int64_t _args_left              # arguments still to read; 0: between commands
    cdef int64_t _bulk_left              # bytes of the current argument, CRLF included; -1: header
    cdef bint _first
    cdef Py_ssize_t _progress            # scanned bytes behind the start of the command
    cdef Py_ssize_t _searched            # bytes behind the same known to hold no line end

    cpdef int scan(self, bytearray data, Py_ssize_t start, Py_ssize_t end, unsigned int mask) except -1
    cpdef Py_ssize_t stream(self, bytearray data, Py_ssize_t start, Py_ssize_t end)
    cdef Py_ssize_t _arguments(
        self, const unsigned char* data, Py_ssize_t command, Py_ssize_t position, Py_ssize_t end
    ) except? -99
    cdef Py_ssize_t _bulk_header(
        self, const unsigned char* data, Py_ssize_t command, Py_ssize_t position, Py_ssize_t end
    ) except? -99
    cdef Py_ssize_t _line(
        self, const unsigned char* data, Py_ssize_t base, Py_ssize_t position, Py_ssize_t end,
        str what
    ) except? -99
    cdef int _inline(self, const unsigned char* data, Py_ssize_t command, Py_ssize_t end) except -1

cdef class ReplyScanner:
    cdef readonly Py_ssize_t done
    cdef readonly bint push
    cdef int64_t _left                   # values the current reply still needs; 0: between replies
    cdef int64_t _skip                   # bytes of the current payload, CRLF included
    cdef unsigned char _line             # type byte of an unfinished header line
    cdef int _state                      # of that line: 0 sign or digit, 1 digit, 2 CR seen
    cdef int64_t _number
    cdef bint _negative

    cpdef Py_ssize_t scan(
        self, bytearray data, Py_ssize_t start, Py_ssize_t end, Py_ssize_t want
    ) except -1
    cdef int _begin(self, unsigned char kind) except -1
    cdef Py_ssize_t _header(
        self, const unsigned char* data, Py_ssize_t position, Py_ssize_t end
    ) except -1
    cdef int _length(self, unsigned char kind, int64_t length) except -1
