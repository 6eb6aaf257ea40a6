"""Boundary scanners for RESP; twin of ``_respscan_py.py``, on C pointers.

Every position is checked against ``end`` before the byte behind it is read; ``start`` and ``end``
are checked against the bytearray at each entry, and no pointer outlives the call.
"""

from cpython.bytearray cimport PyByteArray_AS_STRING, PyByteArray_GET_SIZE, PyByteArray_Resize
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.stdint cimport int64_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memchr, memcmp, memcpy, memset

from nexus.errors import RespError

cdef extern from "<sys/socket.h>" nogil:
    ssize_t socket_send "send"(int descriptor, const void* data, size_t size, int flags)
    int MSG_DONTWAIT
    int MSG_NOSIGNAL

__all__ = ["CommandScanner", "CommandTable", "ReplyScanner", "arguments"]

cdef enum:
    LINE_LIMIT = 65536
    NAME_LIMIT = 32
    ARGC_LIMIT = 2147483647

UNWATCHED = <unsigned int>1 << 31
cdef int64_t REPLY_LIMIT = <int64_t>1 << 40
cdef int64_t VALUES_LIMIT = <int64_t>1 << 60
cdef int64_t NUMBER_LIMIT = <int64_t>1 << 61
cdef int64_t BAD = -(<int64_t>1 << 62)


cdef inline int _check(bytearray data, Py_ssize_t start, Py_ssize_t end) except -1:
    if data is None or not 0 <= start <= end <= PyByteArray_GET_SIZE(data):
        raise ValueError(
            f"[{start}:{end}] is not within {0 if data is None else len(data)} bytes"
        )
    return 0


cdef int append(bytearray out, bytearray data, Py_ssize_t start, Py_ssize_t end) except -1:
    """``out += data[start:end]`` with one copy."""
    cdef Py_ssize_t size
    _check(data, start, end)
    size = PyByteArray_GET_SIZE(out)
    PyByteArray_Resize(out, size + end - start)
    memcpy(PyByteArray_AS_STRING(out) + size, PyByteArray_AS_STRING(data) + start, end - start)
    return 0


cdef bytes cut(bytearray data, Py_ssize_t start, Py_ssize_t end):
    """``bytes(data[start:end])`` with one copy."""
    _check(data, start, end)
    return PyBytes_FromStringAndSize(PyByteArray_AS_STRING(data) + start, end - start)


cdef Py_ssize_t send(int descriptor, bytearray data, Py_ssize_t start, Py_ssize_t end) except -1:
    """Write to a non-blocking socket at once; how many bytes it took (0 also where it failed)."""
    cdef ssize_t sent
    _check(data, start, end)
    sent = socket_send(
        descriptor, PyByteArray_AS_STRING(data) + start, end - start, MSG_DONTWAIT | MSG_NOSIGNAL
    )
    return sent if sent > 0 else 0


cdef Py_ssize_t send_bytes(int descriptor, bytes data) except -1:
    """The same for all of ``data``."""
    cdef ssize_t sent
    if data is None:
        raise TypeError("the data is missing")
    sent = socket_send(
        descriptor, PyBytes_AS_STRING(data), PyBytes_GET_SIZE(data), MSG_DONTWAIT | MSG_NOSIGNAL
    )
    return sent if sent > 0 else 0


cdef inline int64_t _integer(const unsigned char* data, Py_ssize_t start, Py_ssize_t end) noexcept nogil:
    """Redis's ``string2ll``: no sign but ``-``, no leading zero, no blanks; ``BAD`` otherwise."""
    cdef int64_t value
    cdef Py_ssize_t position = start
    if start >= end or end - start > 20:
        return BAD
    if data[start] == 48:
        return 0 if end - start == 1 else BAD
    if data[start] == 45:
        position += 1
    if position == end or not 49 <= data[position] <= 57:
        return BAD
    value = 0
    while position < end:
        if not 48 <= data[position] <= 57:
            return BAD
        # Before it is made: 20 digits wrap, and 2 ** 64 + 1 would be one argument.
        if value > (NUMBER_LIMIT - (data[position] - 48)) // 10:
            return BAD
        value = value * 10 + (data[position] - 48)
        position += 1
    return -value if data[start] == 45 else value


cdef inline void _lower(uint64_t* word, const unsigned char* name, Py_ssize_t length) noexcept nogil:
    """Copy a name of at most NAME_LIMIT bytes, A-Z lowered, zero-padded."""
    cdef unsigned char* out = <unsigned char*>word
    cdef Py_ssize_t index
    memset(word, 0, NAME_LIMIT)
    for index in range(length):
        out[index] = name[index] | 32 if 65 <= name[index] <= 90 else name[index]


cdef inline uint64_t _mix(uint64_t* word) noexcept nogil:
    cdef uint64_t value = word[0] * <uint64_t>0x9E3779B97F4A7C15
    value ^= word[1] * <uint64_t>0xC2B2AE3D27D4EB4F
    value ^= (word[2] ^ (word[3] << 7)) * <uint64_t>0x165667B19E3779F9
    return value ^ (value >> 29)


cdef class CommandTable:
    """Command name → class; see the Python twin."""

    def __cinit__(self):
        self._slots = <Slot*>calloc(TABLE_SLOTS, sizeof(Slot))
        if self._slots is NULL:
            raise MemoryError

    def __init__(self, dict classes, unsigned int unknown, dict groups=None, dict effects=None):
        if 2 * len(classes) > TABLE_SLOTS:
            raise ValueError(f"{len(classes)} commands are more than the table holds")
        for name, value in classes.items():
            if not 0 < len(name) <= NAME_LIMIT:
                raise ValueError(f"command name {name!r} is not 1 to {NAME_LIMIT} bytes long")
            if value <= 0 or value & (value - 1) or value > 1 << 30:
                raise ValueError(f"class {value} of {name!r} is not a power of two below 2**31")
        for name, group in (groups or {}).items():
            if not 0 <= group < GROUPS:
                raise ValueError(f"group {group} of {name!r} is not from 0 to {GROUPS - 1}")
        lowered = {name.lower(): group for name, group in (groups or {}).items()}
        for name, value in classes.items():
            self._insert(name, value, lowered.get(name.lower(), 0))
        for name, (effect, first, last, step) in (effects or {}).items():
            self._affect(name, effect, first, last, step)
        self.unknown = unknown

    def watch(self, int effect, prefixes):
        cdef list kept = []
        cdef bytes prefix, last = None
        if prefixes is not None:
            for prefix in sorted(set(prefixes)):
                if last is None or not prefix.startswith(last):
                    kept.append(prefix)
                    last = prefix
        self._watched = None if prefixes is None else tuple(kept)
        self._watched_effect = effect

    def watched(self, bytes key not None):
        return self._fits(<const unsigned char*>PyBytes_AS_STRING(key), PyBytes_GET_SIZE(key))

    cdef bint _fits(self, const unsigned char* key, Py_ssize_t size) noexcept:
        """Whether a key is watched: the last prefix that is not behind it begins it."""
        cdef bytes prefix
        cdef Py_ssize_t low = 0, high, middle, length
        cdef int order
        if self._watched is None:
            return True
        high = len(self._watched)
        while low < high:
            middle = (low + high) >> 1
            prefix = <bytes>self._watched[middle]
            length = PyBytes_GET_SIZE(prefix)
            order = memcmp(PyBytes_AS_STRING(prefix), key, min(length, size))
            if order == 0:
                if length <= size:
                    return True
                order = 1
            if order > 0:
                high = middle
            else:
                low = middle + 1
        return False

    cdef bint _unwatched(
        self, int number, int64_t argc, const unsigned char* data, Py_ssize_t begin
    ) noexcept:
        """Whether a complete command may be passed over; ``begin``: its second argument."""
        cdef const Slot* slot
        cdef Py_ssize_t position = begin + 1
        cdef Py_ssize_t size = 0
        if number == 0 or argc < 2:
            return False
        slot = &self._slots[number - 1]
        if slot.effect != self._watched_effect or slot.first != 1 or (argc > 2 and slot.last != 1):
            return False
        # The scanner has read this header before.
        while data[position] != 13:
            size = size * 10 + data[position] - 48
            position += 1
        return not self._fits(data + position + 2, size)

    def __dealloc__(self):
        free(self._slots)

    cdef int _insert(self, bytes name, unsigned int kind, unsigned int group) except -1:
        cdef uint64_t word[4]
        cdef size_t index
        _lower(word, <const unsigned char*>PyBytes_AS_STRING(name), PyBytes_GET_SIZE(name))
        index = _mix(word) & (TABLE_SLOTS - 1)
        while self._slots[index].kind and not _same(self._slots[index].word, word):
            index = (index + 1) & (TABLE_SLOTS - 1)
        memcpy(self._slots[index].word, word, NAME_LIMIT)
        self._slots[index].kind = kind
        self._slots[index].group = group
        return 0

    cdef int _affect(self, bytes name, int effect, int first, int last, int step) except -1:
        cdef Slot* slot = <Slot*>self.find(
            <const unsigned char*>PyBytes_AS_STRING(name), PyBytes_GET_SIZE(name)
        )
        if slot is NULL:
            raise ValueError(f"{name!r} has an effect and no class")
        slot.effect = effect
        slot.first = first
        slot.last = last
        slot.step = step
        return 0

    cdef const Slot* find(self, const unsigned char* name, Py_ssize_t length) noexcept nogil:
        """The slot of a name; NULL: unknown."""
        cdef uint64_t word[4]
        cdef size_t index
        if length > NAME_LIMIT or length == 0:
            return NULL
        _lower(word, name, length)
        index = _mix(word) & (TABLE_SLOTS - 1)
        while self._slots[index].kind:
            if _same(self._slots[index].word, word):
                return &self._slots[index]
            index = (index + 1) & (TABLE_SLOTS - 1)
        return NULL

    def lookup(self, bytes name not None):
        cdef const Slot* slot = self.find(
            <const unsigned char*>PyBytes_AS_STRING(name), PyBytes_GET_SIZE(name)
        )
        return self.unknown if slot is NULL else slot.kind

    def group(self, bytes name not None):
        cdef const Slot* slot = self.find(
            <const unsigned char*>PyBytes_AS_STRING(name), PyBytes_GET_SIZE(name)
        )
        return 0 if slot is NULL else slot.group

    def number(self, bytes name not None):
        cdef const Slot* slot = self.find(
            <const unsigned char*>PyBytes_AS_STRING(name), PyBytes_GET_SIZE(name)
        )
        return 0 if slot is NULL else <int>(slot - self._slots) + 1

    def effect(self, int number):
        return self._slots[number - 1].effect if 0 < number <= TABLE_SLOTS else 0

    cpdef (int, int, int) keys(self, int number):
        if not 0 < number <= TABLE_SLOTS:
            return 0, 0, 0
        return self._slots[number - 1].first, self._slots[number - 1].last, self._slots[number - 1].step

    cpdef object count(self, int row, int group, int64_t number=1):
        if not (0 <= row < ROWS and 0 <= group < GROUPS):
            raise IndexError(f"row {row} or group {group} is out of range")
        self._counts[row * GROUPS + group] += number

    def counts(self, int row):
        if not 0 <= row < ROWS:
            raise IndexError(f"row {row} is out of range")
        return [self._counts[row * GROUPS + group] for group in range(GROUPS)]


cdef inline bint _same(uint64_t* a, uint64_t* b) noexcept nogil:
    return a[0] == b[0] and a[1] == b[1] and a[2] == b[2] and a[3] == b[3]


cdef class CommandScanner:
    """Boundaries in one client's request stream; see the Python twin."""

    def __init__(self, CommandTable table not None, int64_t bulk_limit, int64_t big_bytes):
        self._table = table
        self.bulk_limit = bulk_limit
        self.big_bytes = big_bytes
        self.error = ""
        self._bulk_left = -1

    cpdef int scan(self, bytearray data, Py_ssize_t start, Py_ssize_t end, unsigned int mask) except -1:
        cdef const unsigned char* base
        cdef Py_ssize_t command = start
        cdef Py_ssize_t position = start + self._progress
        cdef Py_ssize_t stop
        cdef int64_t count
        _check(data, start, end)
        if position > end:
            raise ValueError("the bytes scanned before are not there any more")
        base = <const unsigned char*>PyByteArray_AS_STRING(data)
        self.run_count = 0
        while True:
            self.run_end = command
            if self._args_left == 0:
                if position >= end:
                    self._progress = 0
                    return MORE
                if base[position] != 42:
                    return self._inline(base, command, end)
                stop = self._line(base, position, position, end, "mbulk count")
                if stop < 0:
                    self._progress = 0
                    return MORE if stop == -1 else ERROR
                count = _integer(base, position + 1, stop)
                if count == BAD or count > ARGC_LIMIT:
                    self.error = "Protocol error: invalid multibulk length"
                    return ERROR
                position = stop + 2
                if count <= 0:
                    command = position
                    continue
                self._args_left = self.argc = count
                self._first = True
                self.kind = self._table.unknown
                self.group = 0
                self.effect = 0
                self.number = 0
            position = self._arguments(base, command, position, end)
            if self._args_left:
                if position < 0:
                    return <int>(-1 - position)
                self._progress = position - command
                return MORE
            self._progress = 0
            if not self.kind & mask or (
                mask & UNWATCHED
                and not self._table._unwatched(self.number, self.argc, base, command + self.name_end)
            ):
                self.command_end = position
                return COMMAND
            self.run_count += 1
            self._table._counts[(self.row & (ROWS - 1)) * GROUPS + self.group] += 1
            command = position

    cpdef Py_ssize_t stream(self, bytearray data, Py_ssize_t start, Py_ssize_t end):
        cdef const unsigned char* base
        cdef Py_ssize_t position
        cdef Py_ssize_t header
        cdef int64_t taken
        _check(data, start, end)
        if not self._args_left:
            raise ValueError("no command is being streamed")
        self.streaming = True
        base = <const unsigned char*>PyByteArray_AS_STRING(data)
        position = start + self._progress
        self._searched = max(self._searched - self._progress, 0)
        self._progress = 0
        if position > end:
            raise ValueError("the bytes scanned before are not there any more")
        while self._args_left:
            if self._bulk_left >= 0:
                taken = min(self._bulk_left, <int64_t>(end - position))
                position += taken
                self._bulk_left -= taken
                if self._bulk_left:
                    return position
                self._bulk_left = -1
                self._first = False
                self._args_left -= 1
                continue
            header = self._bulk_header(base, position, position, end)
            if header < 0:
                if self.error:
                    self._args_left = 0
                    return -1 - position
                return position
            position = header
        self.streaming = False
        return position

    cdef Py_ssize_t _arguments(
        self, const unsigned char* data, Py_ssize_t command, Py_ssize_t position, Py_ssize_t end
    ) except? -99:
        """Scan arguments; a negative answer is ``-1 - verdict`` to return."""
        cdef Py_ssize_t size
        cdef const Slot* slot
        while self._args_left:
            if self._bulk_left < 0:
                size = self._bulk_header(data, command, position, end)
                if size < 0:
                    if self.error:
                        self._args_left = 1
                        return -1 - ERROR
                    if position - command > self.big_bytes:
                        self._progress = position - command
                        return -1 - BIG
                    return position
                position = size
            if end - position < self._bulk_left:
                if position - command + self._bulk_left > self.big_bytes:
                    self._progress = position - command
                    return -1 - BIG
                return position
            if self._first:
                self._first = False
                slot = self._table.find(data + position, self._bulk_left - 2)
                if slot is not NULL:
                    self.kind = slot.kind
                    self.group = slot.group
                    self.effect = slot.effect
                    self.number = <int>(slot - self._table._slots) + 1
                self.name_end = position + self._bulk_left - command
            position += self._bulk_left
            self._bulk_left = -1
            self._args_left -= 1
        return position

    cdef Py_ssize_t _bulk_header(
        self, const unsigned char* data, Py_ssize_t command, Py_ssize_t position, Py_ssize_t end
    ) except? -99:
        """Read ``$<length>``; -1 when it is incomplete or wrong (then ``error`` is set)."""
        cdef int64_t length
        cdef Py_ssize_t stop = self._line(data, command, position, end, "bulk count")
        if stop < 0:
            return -1
        if data[position] != 36:
            shown = 32 if data[position] in (13, 10) else data[position]
            self.error = f"Protocol error: expected '$', got '{chr(shown)}'"
            return -1
        length = _integer(data, position + 1, stop)
        if length < 0 or length > self.bulk_limit:
            self.error = "Protocol error: invalid bulk length"
            return -1
        self._bulk_left = length + 2
        return stop + 2

    cdef Py_ssize_t _line(
        self, const unsigned char* data, Py_ssize_t base, Py_ssize_t position, Py_ssize_t end,
        str what
    ) except? -99:
        """Index of the CR that ends the line at ``position``; -1: not there yet; -2: too long."""
        cdef Py_ssize_t begin = base + self._searched
        cdef Py_ssize_t stop
        cdef const unsigned char* found = NULL
        if begin < position:
            begin = position
        # Header lines are a few bytes long: a loop beats the call of memchr.
        stop = begin
        while stop < end and stop < begin + 24 and data[stop] != 13:
            stop += 1
        if stop < end and data[stop] != 13:
            found = <const unsigned char*>memchr(data + stop, 13, end - stop)
            stop = end if found is NULL else found - data
        if stop < end:
            if stop + 2 <= end:
                self._searched = 0
                return stop
            self._searched = stop - base
            return -1
        if end - position > LINE_LIMIT:
            self.error = f"Protocol error: too big {what} string"
            return -2
        self._searched = end - base
        return -1

    cdef int _inline(self, const unsigned char* data, Py_ssize_t command, Py_ssize_t end) except -1:
        cdef Py_ssize_t begin = command + self._searched
        cdef const unsigned char* found = NULL
        self._progress = 0
        if begin < end:
            found = <const unsigned char*>memchr(data + begin, 10, end - begin)
        if found is NULL:
            if end - command > LINE_LIMIT:
                self.error = "Protocol error: too big inline request"
                return ERROR
            self._searched = end - command
            return MORE
        self._searched = 0
        self.command_end = found - data + 1
        self.kind = self._table.unknown
        self.group = 0
        self.effect = 0
        self.number = 0
        return INLINE


def arguments(bytearray data not None, Py_ssize_t start, Py_ssize_t end):
    """Arguments of the complete multibulk command in ``data[start:end]``; see the Python twin."""
    cdef const unsigned char* base
    cdef const unsigned char* found
    cdef Py_ssize_t position, stop
    cdef int64_t count = BAD
    cdef int64_t length
    cdef list args = []
    _check(data, start, end)
    base = <const unsigned char*>PyByteArray_AS_STRING(data)
    found = <const unsigned char*>memchr(base + start, 13, end - start) if end > start else NULL
    stop = -1 if found is NULL else found - base
    if stop > start and base[start] == 42:
        count = _integer(base, start + 1, stop)
    position = stop + 2
    while len(args) < count:
        found = NULL
        if position < end:
            found = <const unsigned char*>memchr(base + position, 13, end - position)
        stop = -1 if found is NULL else found - base
        length = BAD
        if stop > position and base[position] == 36:
            length = _integer(base, position + 1, stop)
        if length < 0 or stop + 2 + length + 2 > end:
            raise RespError("Protocol error: invalid bulk length")
        args.append(PyBytes_FromStringAndSize(<const char*>base + stop + 2, length))
        position = stop + 2 + length + 2
    if count < 0 or position != end:
        raise RespError("Protocol error: invalid multibulk length")
    return args


cdef inline int _family(unsigned char kind) noexcept nogil:
    """0: unknown; 1: one line; 2: length and payload; 3: aggregate."""
    if kind == 36 or kind == 33 or kind == 61:
        return 2
    if kind == 43 or kind == 45 or kind == 58 or kind == 44 or kind == 35 or kind == 40 or kind == 95:
        return 1
    if kind == 42 or kind == 126 or kind == 62 or kind == 37 or kind == 124:
        return 3
    return 0


cdef class ReplyScanner:
    """Boundaries in an upstream's reply stream; see the Python twin."""

    @property
    def partial(self):
        return self._left != 0

    cpdef Py_ssize_t scan(
        self, bytearray data, Py_ssize_t start, Py_ssize_t end, Py_ssize_t want
    ) except -1:
        cdef const unsigned char* base
        cdef Py_ssize_t position = start
        cdef int64_t taken
        _check(data, start, end)
        base = <const unsigned char*>PyByteArray_AS_STRING(data)
        self.done = 0
        if self._left == 0:
            self.push = False
        while position < end:
            if self._skip:
                taken = min(self._skip, <int64_t>(end - position))
                position += taken
                self._skip -= taken
                if self._skip:
                    return position
                self._left -= 1
            else:
                if self._line == 0:
                    if self._left == 0:
                        if base[position] == 62:
                            if position > start:
                                return position
                            self.push = True
                        self._left = 1
                    self._begin(base[position])
                    position += 1
                position = self._header(base, position, end)
                if self._line:
                    return position
            if self._left == 0 and self._line == 0 and self._skip == 0:
                if self.push:
                    return position
                self.done += 1
                if self.done == want:
                    return position
        return position

    cdef int _begin(self, unsigned char kind) except -1:
        if _family(kind) == 0:
            raise RespError(f"Protocol error: unknown reply type byte 0x{kind:02x}")
        self._line = kind
        self._state = 0
        self._number = 0
        self._negative = False
        return 0

    cdef Py_ssize_t _header(
        self, const unsigned char* data, Py_ssize_t position, Py_ssize_t end
    ) except -1:
        cdef unsigned char kind = self._line
        cdef unsigned char byte
        cdef const unsigned char* found = NULL
        if _family(kind) == 1:
            if position < end:
                found = <const unsigned char*>memchr(data + position, 10, end - position)
            if found is NULL:
                return end
            self._line = 0
            self._left -= 1
            return found - data + 1
        while position < end:
            byte = data[position]
            position += 1
            if self._state == 2:
                if byte != 10:
                    raise RespError("Protocol error: reply length is not followed by CRLF")
                self._line = 0
                self._length(kind, -self._number if self._negative else self._number)
                return position
            if 48 <= byte <= 57:
                self._number = self._number * 10 + byte - 48
                if self._number > REPLY_LIMIT:
                    raise RespError("Protocol error: reply length is out of bounds")
                self._state = 1
            elif byte == 13 and self._state == 1:
                self._state = 2
            elif byte == 45 and self._state == 0 and not self._negative:
                self._negative = True
            else:
                raise RespError("Protocol error: reply length is not a number")
        return position

    cdef int _length(self, unsigned char kind, int64_t length) except -1:
        cdef int64_t values
        if length < -1:
            raise RespError("Protocol error: reply length is out of bounds")
        if _family(kind) == 2:
            if length < 0:
                self._left -= 1
            else:
                self._skip = length + 2
            return 0
        values = length if length > 0 else 0
        if kind == 37 or kind == 124:
            values *= 2
        if kind != 124:
            self._left -= 1
        self._left += values
        if self._left > VALUES_LIMIT:
            raise RespError("Protocol error: reply length is out of bounds")
        return 0
