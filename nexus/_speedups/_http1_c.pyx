# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
"""HTTP/1.1 heads and chunked bodies on C pointers: the twin of ``_http1_py``.

Heads are parsed where they lie; a field is six integers, and a ``bytes`` object is made only for
what is asked for. Every check, and the order of the checks, is that of the Python twin.
"""

from cpython.bytearray cimport PyByteArray_AS_STRING, PyByteArray_GET_SIZE
from cpython.bytes cimport (
    PyBytes_AS_STRING,
    PyBytes_FromStringAndSize,
    PyBytes_GET_SIZE,
)
from libc.stdlib cimport free, malloc
from libc.string cimport memchr, memcmp, memcpy, memset

from nexus._speedups import http1_table as table
from nexus._speedups.http1_table import refuse, refuse_response


cdef int HOP = table.HOP
cdef int UNDERSCORE = table.UNDERSCORE
cdef int UNDERSCORED = table.UNDERSCORED
cdef int MAX_METHOD = table.MAX_METHOD
cdef int MAX_LENGTH_DIGITS = table.MAX_LENGTH_DIGITS
cdef int MAX_NOMINATIONS = table.MAX_NOMINATIONS
cdef int MAX_CHUNK_DIGITS = table.MAX_CHUNK_DIGITS
cdef int MAX_CHUNK_LINE = table.MAX_CHUNK_LINE
cdef int MAX_EXTENSION_BYTES = table.MAX_EXTENSION_BYTES
cdef int MAX_TRAILER_BYTES = table.MAX_TRAILER_BYTES
cdef int HOST = table.field(b"host")
cdef int LENGTH = table.field(b"content-length")
cdef int ENCODING = table.field(b"transfer-encoding")
cdef int CONNECTION = table.field(b"connection")
cdef int EXPECT = table.field(b"expect")
cdef int UPGRADE = table.field(b"upgrade")
cdef int AUTHORIZATION = table.field(b"authorization")
cdef tuple METHODS = table.METHODS
cdef dict IDS = {name: index + 1 for index, name in enumerate(table.FIELD_NAMES)}
cdef tuple CATEGORIES = (0, *table.FIELDS.values())

# ------------------------------------------------------------------------- tables of characters
cdef enum:
    TOKEN = 1        # RFC 9110 §5.6.2 tchar
    TARGET = 2       # 0x21..0x7E
    VALUE_BAD = 4    # control characters but HTAB
    PLAIN = 8        # path characters that need no normalisation ("/" and "." are looked at)
    HOST_PLAIN = 16
    REASON = 32

cdef unsigned char KIND[256]
cdef unsigned char LOWER[256]
cdef signed char HEX[256]


cdef void fill_tables():
    cdef int byte
    for byte in range(256):
        KIND[byte] = 0
        LOWER[byte] = byte
        HEX[byte] = -1
        if 0x21 <= byte <= 0x7E:
            KIND[byte] |= TARGET
        if (byte < 0x20 and byte != 0x09) or byte == 0x7F:
            KIND[byte] |= VALUE_BAD
        else:
            KIND[byte] |= REASON
        if 0x41 <= byte <= 0x5A:
            LOWER[byte] = byte + 32
    for byte in b"!#$%&'*+-.^_`|~0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz":
        KIND[byte] |= TOKEN
    for byte in b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz-._~!$&'()*+,;=:@/":
        KIND[byte] |= PLAIN
    for byte in b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz-.":
        KIND[byte] |= HOST_PLAIN
    for byte in range(10):
        HEX[0x30 + byte] = byte
    for byte in range(6):
        HEX[0x41 + byte] = HEX[0x61 + byte] = 10 + byte


fill_tables()

# ------------------------------------------------------------------------- table of known names
cdef enum:
    MAX_KNOWN = 96
    NAME_SIZE = 24
    BUCKETS = 512

cdef struct Known:
    char name[NAME_SIZE]
    int size
    int category
    int next

cdef Known KNOWN[MAX_KNOWN]
cdef int KNOWN_COUNT = 0
cdef int BUCKET[BUCKETS]


cdef inline unsigned int slot_of(const unsigned char *name, int size) noexcept nogil:
    return (
        size * 61
        + LOWER[name[0]] * 7
        + LOWER[name[size - 1]] * 131
        + LOWER[name[size >> 1]] * 17
    ) & (BUCKETS - 1)


cdef int fill_known() except -1:
    global KNOWN_COUNT
    cdef int index, slot
    cdef bytes name
    for index in range(BUCKETS):
        BUCKET[index] = 0
    KNOWN_COUNT = len(CATEGORIES)
    if KNOWN_COUNT > MAX_KNOWN:
        raise AssertionError("http1_table.FIELDS has outgrown MAX_KNOWN")
    for index in range(1, KNOWN_COUNT):
        name = table.FIELD_NAMES[index - 1]
        if len(name) > NAME_SIZE:
            raise AssertionError("a field name has outgrown NAME_SIZE")
        memcpy(KNOWN[index].name, PyBytes_AS_STRING(name), len(name))
        KNOWN[index].size = len(name)
        KNOWN[index].category = CATEGORIES[index]
        slot = slot_of(<const unsigned char *>PyBytes_AS_STRING(name), len(name))
        KNOWN[index].next = BUCKET[slot]
        BUCKET[slot] = index
    return 0


fill_known()


cdef inline int identify(const unsigned char *name, int size) noexcept nogil:
    """The id of a field name in any case, 0 when it is not a known one."""
    cdef int index, at
    if size > NAME_SIZE:
        return 0
    index = BUCKET[slot_of(name, size)]
    while index:
        if KNOWN[index].size == size:
            at = 0
            while at < size and LOWER[name[at]] == <unsigned char>KNOWN[index].name[at]:
                at += 1
            if at == size:
                return index
        index = KNOWN[index].next
    return 0


cdef inline bint is_keep_alive(const unsigned char *value) noexcept nogil:
    cdef int at = 0
    while at < 10 and LOWER[value[at]] == <unsigned char>b"keep-alive"[at]:
        at += 1
    return at == 10


cdef int hyphenated(const unsigned char *name, int size) noexcept nogil:
    """The categories that a name shares with its form with hyphens: `UNDERSCORED` of them."""
    cdef unsigned char form[NAME_SIZE]
    cdef int at
    if size > NAME_SIZE:
        return 0
    for at in range(size):
        form[at] = 0x2D if name[at] == 0x5F else name[at]
    return KNOWN[identify(form, size)].category & UNDERSCORED


cdef inline str why(int byte, str otherwise):
    if byte == 0:
        return "nul_byte"
    if byte == 0x0D:
        return "bare_cr"
    return otherwise


cdef const unsigned char *data_of(object buffer, Py_ssize_t start, Py_ssize_t end) except NULL:
    """The bytes of ``buffer[start:end]``, with the bounds checked once for the whole parse."""
    cdef const unsigned char *data
    cdef Py_ssize_t size
    if isinstance(buffer, bytearray):
        data = <const unsigned char *>PyByteArray_AS_STRING(buffer)
        size = PyByteArray_GET_SIZE(buffer)
    elif isinstance(buffer, bytes):
        data = <const unsigned char *>PyBytes_AS_STRING(buffer)
        size = PyBytes_GET_SIZE(buffer)
    else:
        raise TypeError(f"expected bytes or bytearray, got {type(buffer).__name__}")
    if start < 0 or end < start or end > size:
        raise IndexError("the range is outside of the buffer")
    return data + start


cpdef bytes chunk(bytes payload):
    """One chunk (RFC 9112 §7.1); ``payload`` must not be empty, which would end the body."""
    cdef char digits[20]
    cdef Py_ssize_t size = PyBytes_GET_SIZE(payload)
    cdef Py_ssize_t rest = size
    cdef int at = 20
    cdef bytes out
    cdef char *target
    at -= 2
    digits[at] = 13
    digits[at + 1] = 10
    while True:
        at -= 1
        digits[at] = b"0123456789abcdef"[rest & 15]
        rest >>= 4
        if rest == 0:
            break
    out = PyBytes_FromStringAndSize(NULL, 20 - at + size + 2)
    target = PyBytes_AS_STRING(out)
    memcpy(target, digits + at, 20 - at)
    memcpy(target + 20 - at, PyBytes_AS_STRING(payload), size)
    target[20 - at + size] = 13
    target[20 - at + size + 1] = 10
    return out


cdef class Head:
    """What request and response heads have in common."""

    def __cinit__(self, int max_head, *limits):
        cdef int max_fields = limits[len(limits) - 1]
        self._fields = <Field *>malloc(max_fields * sizeof(Field))
        self._first = <int *>malloc(MAX_KNOWN * sizeof(int))
        self._count = <int *>malloc(MAX_KNOWN * sizeof(int))
        if self._fields == NULL or self._first == NULL or self._count == NULL:
            raise MemoryError
        memset(self._count, 0, MAX_KNOWN * sizeof(int))
        self._size = 0
        self._max_head = max_head
        self._max_fields = max_fields
        self._nominated = []
        self._data = b""
        self._buffer = None

    def __dealloc__(self):
        free(self._fields)
        free(self._first)
        free(self._count)

    cpdef object reset(self):
        self._begin = -1
        self._line = 0
        self._scan = 0
        self.minor = 1
        self.content_length = -1
        self.chunked = False
        self.keep_alive = True
        self._says_upgrade = False

    cpdef object value(self, int known):
        cdef Field *field
        if known < 0 or known >= KNOWN_COUNT:
            raise IndexError("no such field id")
        if self._count[known] == 0:
            return None
        field = &self._fields[self._first[known]]
        return PyBytes_FromStringAndSize(<const char *>self._data + field.value, field.value_size)

    cpdef bint is_value(self, int known, bytes value) except -1:
        cdef Field *field
        if value is None or self.count(known) == 0:
            return False
        field = &self._fields[self._first[known]]
        return field.value_size == PyBytes_GET_SIZE(value) and not memcmp(
            self._data + field.value, PyBytes_AS_STRING(value), field.value_size
        )

    cpdef int count(self, int known) except -1:
        if known < 0 or known >= KNOWN_COUNT:
            raise IndexError("no such field id")
        return self._count[known]

    cpdef bytes joined(self, int known):
        cdef list values = []
        cdef int index
        if self.count(known) == 1:
            return self.value(known)
        for index in range(self._size):
            if self._fields[index].known == known:
                values.append(
                    PyBytes_FromStringAndSize(
                        <const char *>self._data + self._fields[index].value,
                        self._fields[index].value_size,
                    )
                )
        return b", ".join(values)

    cpdef object named(self, bytes name):
        cdef list values = []
        cdef Field *field
        cdef const unsigned char *wanted = <const unsigned char *>PyBytes_AS_STRING(name)
        cdef int index, at, size = <int>PyBytes_GET_SIZE(name)
        for index in range(self._size):
            field = &self._fields[index]
            if field.name_size != size:
                continue
            at = 0
            while at < size and LOWER[self._data[field.name + at]] == wanted[at]:
                at += 1
            if at == size:
                values.append(
                    PyBytes_FromStringAndSize(
                        <const char *>self._data + field.value, field.value_size
                    )
                )
        if not values:
            return None
        return values[0] if len(values) == 1 else b", ".join(values)

    cpdef bytes fields(self, int drop):
        return self._serialise(b"", drop)

    cdef bint _kept(self, Field *field, int drop):
        if field.category & drop:
            return False
        if field.known == 0 and self._nominated:
            name = PyBytes_FromStringAndSize(
                <const char *>self._data + field.name, field.name_size
            )
            return (<bytes>name).lower() not in self._nominated
        return True

    cdef bytes _serialise(self, bytes prefix, int drop):
        cdef Py_ssize_t total = PyBytes_GET_SIZE(prefix)
        cdef Py_ssize_t first = total
        cdef Field *field
        cdef int index
        cdef char *out
        cdef const char *data = <const char *>self._data
        cdef bytes block
        for index in range(self._size):
            field = &self._fields[index]
            if self._kept(field, drop):
                total += field.name_size + field.value_size + 4
            else:
                field.category |= 1 << 30      # remembered for the second walk
        block = PyBytes_FromStringAndSize(NULL, total)
        out = PyBytes_AS_STRING(block)
        memcpy(out, PyBytes_AS_STRING(prefix), first)
        out += first
        for index in range(self._size):
            field = &self._fields[index]
            if field.category & (1 << 30):
                field.category &= ~(1 << 30)
                continue
            memcpy(out, data + field.name, field.name_size)
            out += field.name_size
            out[0] = 0x3A
            out[1] = 0x20
            out += 2
            memcpy(out, data + field.value, field.value_size)
            out += field.value_size
            out[0] = 0x0D
            out[1] = 0x0A
            out += 2
        return block

    cdef object _refuse(self, str reason):
        return refuse(reason) if self._request else refuse_response(reason)

    cdef int _find_begin(self, const unsigned char *data, Py_ssize_t size) except -1:
        cdef int offset = 0
        cdef unsigned char byte
        if size == 0:
            return 0
        if self._request and data[0] == 0x0D:
            if size > 1 and data[1] != 0x0A:
                raise self._refuse("bare_cr")
            if size <= 2:
                return 0
            offset = 2
        byte = data[offset]
        if byte == 0x0A:
            raise self._refuse("bare_lf")
        if self._request:
            if not KIND[byte] & TOKEN:
                raise self._refuse(why(byte, "bad_start_line"))
        elif byte != 0x48:
            raise self._refuse("bad_status_line")
        self._begin = self._line = self._scan = offset
        return 1

    cdef Py_ssize_t _find_end(self, const unsigned char *data, Py_ssize_t size) except -1:
        cdef const unsigned char *found
        cdef Py_ssize_t at, length
        cdef bint proper
        if self._begin < 0 and not self._find_begin(data, size):
            return 0
        while True:
            found = <const unsigned char *>memchr(data + self._scan, 0x0A, size - self._scan)
            if found == NULL:
                self._scan = <int>size
                if self._line == self._begin and size - self._begin > self._max_line + 1:
                    raise self._refuse("uri_too_long" if self._request else "head_too_large")
                if size > self._max_head:
                    raise self._refuse("head_too_large")
                return 0
            at = found - data
            proper = at > self._line and data[at - 1] == 0x0D
            length = at - self._line - proper
            if self._line == self._begin and length > self._max_line:
                raise self._refuse("uri_too_long" if self._request else "head_too_large")
            if at + 1 > self._max_head:
                raise self._refuse("head_too_large")
            if not proper:
                raise self._refuse("bare_lf")
            self._scan = self._line = <int>(at + 1)
            if length == 0:
                return at + 1

    cdef int _parse_fields(self, Py_ssize_t at, Py_ssize_t end) except -1:
        """Field lines in ``[at, end)``; each ends with CRLF, as the line scanner has seen."""
        cdef const unsigned char *data = self._data
        cdef Py_ssize_t stop, colon, last
        cdef int known, index = 0
        cdef unsigned char byte
        cdef Field *field
        memset(self._count, 0, MAX_KNOWN * sizeof(int))
        self._size = 0
        if self._nominated:
            self._nominated = []
        while at < end:
            stop = <const unsigned char *>memchr(data + at, 0x0A, end - at) - data - 1
            if index >= self._max_fields:
                raise self._refuse("too_many_fields")
            if data[at] == 0x20 or data[at] == 0x09:
                raise self._refuse("obs_fold")
            colon = at
            while KIND[data[colon]] & TOKEN:        # CR at `stop` is not a token character
                colon += 1
            if colon == stop:
                raise self._refuse("bad_field_name")
            byte = data[colon]
            if byte != 0x3A:
                if byte == 0x20 or byte == 0x09:
                    raise self._refuse("space_before_colon")
                raise self._refuse(why(byte, "bad_field_name"))
            if colon == at:
                raise self._refuse("bad_field_name")
            field = &self._fields[index]
            field.name = <int>at
            field.name_size = <int>(colon - at)
            colon += 1
            while colon < stop and (data[colon] == 0x20 or data[colon] == 0x09):
                colon += 1
            last = stop
            while last > colon and (data[last - 1] == 0x20 or data[last - 1] == 0x09):
                last -= 1
            field.value = <int>colon
            field.value_size = <int>(last - colon)
            while colon < last:
                if KIND[data[colon]] & VALUE_BAD:
                    raise self._refuse(why(data[colon], "bad_field_value"))
                colon += 1
            known = identify(data + at, field.name_size)
            field.known = known
            if known:
                field.category = KNOWN[known].category
                if self._count[known] == 0:
                    self._first[known] = index
                self._count[known] += 1
            elif memchr(data + at, 0x5F, field.name_size) != NULL:
                field.category = UNDERSCORE | hyphenated(data + at, field.name_size)
            else:
                field.category = 0
            index += 1
            self._size = index
            at = stop + 2
        return 0

    cdef int _parse_framing(self) except -1:
        cdef Field *field
        cdef long long number = 0
        cdef int index
        cdef unsigned char byte
        if self._count[ENCODING]:
            if self.minor == 0:
                raise self._refuse("encoding_in_http10")
            if self._count[LENGTH]:
                raise self._refuse("length_and_encoding")
            self._parse_encoding(self.joined(ENCODING))
        elif self._count[LENGTH]:
            if self._count[LENGTH] > 1:
                raise self._refuse("length_repeated")
            field = &self._fields[self._first[LENGTH]]
            if not 1 <= field.value_size <= MAX_LENGTH_DIGITS:
                raise self._refuse("bad_length")
            for index in range(field.value_size):
                byte = self._data[field.value + index]
                if not 0x30 <= byte <= 0x39:
                    raise self._refuse("bad_length")
                number = number * 10 + (byte - 0x30)
            self.content_length = number
        return 0

    cdef int _parse_encoding(self, bytes value) except -1:
        cdef bytes lowered = value.lower()
        cdef list codings
        if lowered != b"chunked":
            codings = [part.strip(b" \t") for part in lowered.split(b",")]
            last = codings.pop()        # no codings[-1]: wraparound is off in this file
            if last != b"chunked" or b"chunked" in codings:
                raise self._refuse("bad_encoding")
            raise self._refuse("unsupported_encoding")
        self.chunked = True
        return 0

    cdef int _parse_connection(self) except -1:
        cdef bint close = False
        cdef bytes option, value
        cdef list options
        cdef Field *field
        self.keep_alive = self.minor == 1
        if not self._count[CONNECTION]:
            return 0
        if self._count[CONNECTION] == 1:
            field = &self._fields[self._first[CONNECTION]]
            if field.value_size == 10 and is_keep_alive(self._data + field.value):
                self.keep_alive = True  # what nearly all say that say anything
                return 0
        value = self.joined(CONNECTION).lower()
        if value == b"keep-alive":
            self.keep_alive = True
            return 0
        options = value.split(b",")
        if len(options) > MAX_NOMINATIONS:
            raise self._refuse("bad_connection")
        for option in options:
            option = option.strip(b" \t")
            if option == b"close":
                close = True
            elif option == b"keep-alive":
                self.keep_alive = True
            elif option == b"upgrade":
                self._says_upgrade = True
            elif option:
                self._nominate(option)
        if close:
            self.keep_alive = False
        return 0

    cdef int _nominate(self, bytes option) except -1:
        cdef int known
        cdef unsigned char byte
        for byte in option:
            if not KIND[byte] & TOKEN:
                raise self._refuse("bad_connection")
        known = identify(<const unsigned char *>PyBytes_AS_STRING(option), <int>len(option))
        if known:
            if KNOWN[known].category != HOP:
                raise self._refuse("nominates_end_to_end")
        elif option.startswith((b"content-", b"x-forwarded-")):
            raise self._refuse("nominates_end_to_end")
        else:
            self._nominated.append(option)
        return 0


cdef class RequestHead(Head):
    """A request head (RFC 9112 §3); one object serves all requests of a connection."""

    def __init__(self, int max_head, int max_line, int max_fields):
        self._request = True
        self._max_line = min(max_line, max_head - 4)
        self.reset()

    cpdef object reset(self):
        Head.reset(self)
        self.method = b""
        self.target = b""
        self.path = b""
        self.query = b""
        self.host = b""
        self.expect_continue = False
        self.upgrade = False

    cpdef Py_ssize_t parse(self, object buffer, Py_ssize_t start, Py_ssize_t end) except -1:
        """Length of the head in ``buffer[start:end]``, 0 while incomplete."""
        cdef const unsigned char *data = data_of(buffer, start, end)
        cdef Py_ssize_t length = self._find_end(data, end - start)
        cdef Py_ssize_t at
        cdef bytes authority
        if length == 0:
            return 0
        self._buffer = buffer
        self._data = data
        at = <const unsigned char *>memchr(data + self._begin, 0x0A, length) - data + 1
        self._parse_start(self._begin, at - 2)
        authority = self._parse_target()
        self._parse_fields(at, length - 2)
        self._parse_host(authority)
        self._parse_framing()
        self._parse_connection()
        if self._count[AUTHORIZATION] > 1:
            raise refuse("authorization_repeated")
        self._parse_expect()
        if self._says_upgrade and self._count[UPGRADE] == 1:
            self.upgrade = (
                (<bytes>self.value(UPGRADE)).lower() == b"websocket"
                and self.method == b"GET"
                and self.minor == 1
                and self.content_length <= 0
                and not self.chunked
            )
        return length

    cdef Py_ssize_t _parse_start(self, Py_ssize_t at, Py_ssize_t end) except -1:
        cdef const unsigned char *data = self._data
        cdef Py_ssize_t stop = at
        cdef bytes method
        while stop < end and KIND[data[stop]] & TOKEN:
            stop += 1
        if stop == end or data[stop] != 0x20:
            raise refuse(why(data[stop] if stop < end else 0x20, "bad_start_line"))
        if stop - at > MAX_METHOD:
            raise refuse("bad_method")
        for method in METHODS:
            if PyBytes_GET_SIZE(method) == stop - at and not memcmp(
                PyBytes_AS_STRING(method), data + at, stop - at
            ):
                self.method = method
                break
        else:
            self.method = data[at:stop]
        at = stop + 1
        stop = at
        while stop < end and KIND[data[stop]] & TARGET:
            stop += 1
        if stop == at or stop == end or data[stop] != 0x20:
            raise refuse(why(data[stop] if stop < end else 0x20, "bad_start_line"))
        self.target = PyBytes_FromStringAndSize(<const char *>data + at, stop - at)
        stop += 1
        if end - stop != 8 or memcmp(data + stop, b"HTTP/", 5) or data[stop + 6] != 0x2E:
            raise refuse("bad_version")
        if not (0x30 <= data[stop + 5] <= 0x39 and 0x30 <= data[stop + 7] <= 0x39):
            raise refuse("bad_version")
        if data[stop + 5] != 0x31 or data[stop + 7] > 0x31:
            raise refuse("unsupported_version")
        self.minor = data[stop + 7] - 0x30
        return 0

    cdef bytes _parse_target(self):
        cdef bytes target = self.target
        cdef bytes authority = None
        cdef const unsigned char *data
        cdef Py_ssize_t size, at = 0
        cdef bint plain = True
        if self.method == b"CONNECT":
            raise refuse("connect_unsupported")
        if PyBytes_AS_STRING(target)[0] != 0x2F:
            if target == b"*":
                if self.method != b"OPTIONS":
                    raise refuse("bad_target")
                self.path = target
                return None
            authority, target = table.split_absolute(target)
        data = <const unsigned char *>PyBytes_AS_STRING(target)
        size = PyBytes_GET_SIZE(target)
        if memchr(data, 0x23, size) != NULL:
            raise refuse("bad_target")
        while at < size and data[at] != 0x3F:
            if not KIND[data[at]] & PLAIN:
                plain = False
            elif data[at] == 0x2F and (data[at + 1] == 0x2F or data[at + 1] == 0x2E):
                plain = False       # data[size] is the NUL behind every bytes object
            at += 1
        if at == size:
            self.path = target
            self.query = b""
        else:
            self.path = PyBytes_FromStringAndSize(<const char *>data, at)
            self.query = PyBytes_FromStringAndSize(<const char *>data + at, size - at)
        if not plain:
            self.path = table.normalise_path(self.path)
        return authority

    cdef int _parse_host(self, bytes authority) except -1:
        cdef Field *field
        cdef const unsigned char *data
        cdef int at = 0
        if self._count[HOST] > 1:
            raise refuse("host_repeated")
        if self._count[HOST] == 0:
            if self.minor == 1:
                raise refuse("host_missing")
            self.host = authority if authority is not None else b""
            return 0
        field = &self._fields[self._first[HOST]]
        data = self._data + field.value
        if (
            authority is None
            and self._last_host is not None
            and PyBytes_GET_SIZE(self._last_host) == field.value_size
            and not memcmp(PyBytes_AS_STRING(self._last_host), data, field.value_size)
        ):
            self.host = self._last_host  # a client asks one host again and again
            return 0
        self.host = PyBytes_FromStringAndSize(<const char *>data, field.value_size)
        # A letter-digit-dot name with at most four digits of port needs no closer look.
        while at < field.value_size and KIND[data[at]] & HOST_PLAIN:
            at += 1
        if 0 < at <= 255 and at < field.value_size and data[at] == 0x3A:
            if field.value_size - at <= 5:
                at += 1
                while at < field.value_size and 0x30 <= data[at] <= 0x39:
                    at += 1
        if not 0 < at <= 255 or at != field.value_size:
            if not table.host_is_valid(self.host):
                raise refuse("bad_host")
        if authority is not None and authority.lower() != self.host.lower():
            raise refuse("host_mismatch")
        self._last_host = self.host
        return 0

    cdef int _parse_expect(self) except -1:
        if not self._count[EXPECT] or self.minor == 0:
            return 0
        if self._count[EXPECT] > 1 or (<bytes>self.value(EXPECT)).lower() != b"100-continue":
            raise refuse("expectation_failed")
        self.expect_continue = True
        return 0


cdef class ResponseHead(Head):
    """A response head (RFC 9112 §4); one object serves all responses of a connection."""

    def __init__(self, int max_head, int max_fields):
        self._request = False
        self._max_line = max_head
        self.reset()

    cpdef object reset(self):
        Head.reset(self)
        self.status = 0
        self.reason = b""
        self.upgrade = False

    cpdef Py_ssize_t parse(self, object buffer, Py_ssize_t start, Py_ssize_t end) except -1:
        """Length of the head, 0 while incomplete; as ``RequestHead.parse``, but 502."""
        cdef const unsigned char *data = data_of(buffer, start, end)
        cdef Py_ssize_t length = self._find_end(data, end - start)
        cdef Py_ssize_t at, stop
        if length == 0:
            return 0
        self._buffer = buffer
        self._data = data
        at = <const unsigned char *>memchr(data, 0x0A, length) - data + 1
        stop = at - 2
        if (
            stop < 12
            or memcmp(data, b"HTTP/1.", 7)
            or not 0x30 <= data[7] <= 0x31
            or data[8] != 0x20
            or not 0x31 <= data[9] <= 0x35
            or not 0x30 <= data[10] <= 0x39
            or not 0x30 <= data[11] <= 0x39
            or (stop > 12 and data[12] != 0x20)
        ):
            raise refuse_response("bad_status_line")
        self.minor = data[7] - 0x30
        self.status = (data[9] - 0x30) * 100 + (data[10] - 0x30) * 10 + data[11] - 0x30
        if stop > 13:
            self.reason = PyBytes_FromStringAndSize(<const char *>data + 13, stop - 13)
            for index in range(13, stop):
                if not KIND[data[index]] & REASON:
                    raise refuse_response("bad_status_line")
        else:
            self.reason = b""
        self._parse_fields(at, length - 2)
        self._parse_framing()
        self._parse_connection()
        self.upgrade = self._says_upgrade and self._count[UPGRADE] == 1
        return length

    cpdef bytes block(self, int drop):
        """Status line and end-to-end fields, as they go to the client."""
        if self.status == 200 and self.reason == b"OK":
            return self._serialise(b"HTTP/1.1 200 OK\r\n", drop)
        return self._serialise(b"HTTP/1.1 %d %b\r\n" % (self.status, self.reason), drop)


cdef enum:
    SIZE = 0
    EXTENSION = 1
    SIZE_LF = 2
    DATA = 3
    DATA_CR = 4
    DATA_LF = 5
    TRAILER = 6
    TRAILER_LF = 7
    DONE = 8


cdef class ChunkedDecoder:
    """Chunked transfer coding (RFC 9112 §7.1): extensions and trailers are checked and dropped."""

    def __init__(self, bint request):
        self._request = request
        self.reset()

    cpdef object reset(self):
        """Begin a new body."""
        self._state = SIZE
        self._left = 0
        self._count = 0
        self._extensions = 0
        self._named = False
        self.payload = b""
        self.done = False

    cdef object _refuse(self, str reason):
        return refuse(reason) if self._request else refuse_response(reason)

    cpdef Py_ssize_t feed(self, object buffer, Py_ssize_t start, Py_ssize_t end) except -1:
        """Decode ``buffer[start:end]``; returns how many bytes belong to this body."""
        cdef const unsigned char *data = data_of(buffer, start, end)
        cdef Py_ssize_t size = end - start
        cdef Py_ssize_t at = 0, take
        cdef bytes piece = None
        cdef list pieces = None
        while at < size and self._state != DONE:
            if self._state == DATA:
                take = size - at
                if take > self._left:
                    take = <Py_ssize_t>self._left
                if piece is not None:
                    if pieces is None:
                        pieces = [piece]
                piece = PyBytes_FromStringAndSize(<const char *>data + at, take)
                if pieces is not None:
                    pieces.append(piece)
                at += take
                self._left -= take
                if self._left == 0:
                    self._state = DATA_CR
                continue
            self._step(data[at])
            at += 1
        if pieces is not None:
            self.payload = b"".join(pieces)
        else:
            self.payload = piece if piece is not None else b""
        self.done = self._state == DONE
        return at

    cdef int _step(self, unsigned char byte) except -1:
        cdef int state = self._state
        if state == SIZE:
            self._take_size(byte)
        elif state == EXTENSION:
            self._take_extension(byte)
        elif state == SIZE_LF:
            if byte != 0x0A:
                raise self._refuse("bare_cr")
            self._count = 0
            if self._left:
                self._state = DATA
            else:
                self._state = TRAILER
                self._extensions = 0
                self._named = False
        elif state == DATA_CR:
            if byte != 0x0D:
                raise self._refuse("bad_chunk_end")
            self._state = DATA_LF
        elif state == DATA_LF:
            if byte != 0x0A:
                raise self._refuse("bad_chunk_end")
            self._state = SIZE
        elif state == TRAILER:
            self._take_trailer(byte)
        else:
            if byte != 0x0A:
                raise self._refuse("bare_cr")
            if self._count == 0:
                self._state = DONE
            else:
                self._count = 0
                self._named = False
                self._state = TRAILER
        return 0

    cdef int _take_size(self, unsigned char byte) except -1:
        if HEX[byte] >= 0:
            self._count += 1
            if self._count > MAX_CHUNK_DIGITS:
                raise self._refuse("bad_chunk_size")
            self._left = self._left * 16 + HEX[byte]
            return 0
        if self._count == 0:
            raise self._refuse(why(byte, "bad_chunk_size"))
        if byte == 0x0D:
            self._state = SIZE_LF
        elif byte == 0x3B:
            self._state = EXTENSION
        elif byte == 0x0A:
            raise self._refuse("bare_lf")
        else:
            raise self._refuse(why(byte, "bad_chunk_size"))
        return 0

    cdef int _take_extension(self, unsigned char byte) except -1:
        if byte == 0x0D:
            self._state = SIZE_LF
            return 0
        if byte == 0x0A:
            raise self._refuse("bare_lf")
        if KIND[byte] & VALUE_BAD:
            raise self._refuse(why(byte, "bad_chunk_extension"))
        self._count += 1
        self._extensions += 1
        if self._count > MAX_CHUNK_LINE or self._extensions > MAX_EXTENSION_BYTES:
            raise self._refuse("bad_chunk_extension")
        return 0

    cdef int _take_trailer(self, unsigned char byte) except -1:
        if byte == 0x0D:
            if self._count and not self._named:
                raise self._refuse("bad_trailer")
            self._state = TRAILER_LF
            return 0
        if byte == 0x0A:
            raise self._refuse("bare_lf")
        if KIND[byte] & VALUE_BAD:
            raise self._refuse(why(byte, "bad_trailer"))
        if not self._named:
            if byte == 0x3A and self._count:
                self._named = True
            elif not KIND[byte] & TOKEN:
                raise self._refuse("bad_trailer")
        self._count += 1
        self._extensions += 1
        if self._extensions > MAX_TRAILER_BYTES:
            raise self._refuse("bad_trailer")
        return 0
