"""RESP2 and RESP3, decoded as the bytes come in: the compiled twin of ``_resp_py``.

Every rule is explained there; this file is the same rules over C pointers.
"""

from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.list cimport PyList_Append, PyList_GET_ITEM, PyList_GET_SIZE
from libc.stdlib cimport free, malloc, realloc
from libc.string cimport memchr, memcmp, memcpy, memmove

from nexus._speedups.resp_values import (
    INCOMPLETE as _INCOMPLETE,
    MAX_ARGUMENTS,
    MAX_BULK_BYTES,
    MAX_DEPTH,
    MAX_ELEMENTS,
    MAX_INLINE_BYTES,
    MAX_LINE_BYTES,
    MAX_REQUEST_BYTES,
    UNAUTHENTICATED_ARGUMENTS,
    UNAUTHENTICATED_BULK_BYTES,
    Attributed as _Attributed,
    BigNumber as _BigNumber,
    BulkError as _BulkError,
    Map as _Map,
    Push as _Push,
    Set as _Set,
    SimpleError as _SimpleError,
    SimpleString as _SimpleString,
    VerbatimString as _VerbatimString,
    bad_reply,
    expected_count,
    expected_length,
    require_line_limit,
)
from nexus.errors import RespError

cdef extern from "Python.h":
    Py_ssize_t PY_SSIZE_T_MAX
    double PyOS_string_to_double(const char* text, char** end, void* overflow) except? -1.0

__all__ = ["ReplyDecoder", "RequestDecoder", "split_inline"]

# Module globals are looked up in a dict at each use; these are C variables.
cdef object INCOMPLETE = _INCOMPLETE
cdef object Attributed = _Attributed
cdef object BigNumber = _BigNumber
cdef object BulkError = _BulkError
cdef object Map = _Map
cdef object Push = _Push
cdef object Set = _Set
cdef object SimpleError = _SimpleError
cdef object SimpleString = _SimpleString
cdef object VerbatimString = _VerbatimString
cdef object OK = _SimpleString(b"OK")
# An aggregate or bulk string was begun: no value yet.
cdef object OPENED = object()

cdef long long NOAUTH_ARGUMENTS = UNAUTHENTICATED_ARGUMENTS
cdef long long NOAUTH_BULK = UNAUTHENTICATED_BULK_BYTES
cdef int INT64_CHARS = 20
# An own buffer above this is given back when it has been decoded wholly.
cdef Py_ssize_t KEEP_BYTES = 1 << 20


cdef inline bint parse_int64(const char* text, Py_ssize_t size, long long* out) noexcept nogil:
    """A decimal as Redis's ``string2ll`` takes it; False: not one."""
    cdef unsigned long long value = 0
    cdef unsigned long long bound = 9223372036854775807ULL
    cdef unsigned int digit
    cdef Py_ssize_t i = 0
    if size < 1 or size > INT64_CHARS:
        return False
    if size == 1 and text[0] == b'0':
        out[0] = 0
        return True
    if text[0] == b'-':
        i = 1
        bound += 1
    if i == size or text[i] < b'1' or text[i] > b'9':
        return False
    while i < size:
        digit = <unsigned char>text[i] - 48
        # At most 20 digits: the product of 19 fits in 64 bits, so only the last can overflow.
        if digit > 9 or value > (bound - digit) // 10:
            return False
        value = value * 10 + digit
        i += 1
    out[0] = <long long>(0 - value) if text[0] == b'-' else <long long>value
    return True


cdef inline Py_ssize_t short_number(
    const char* text, Py_ssize_t size, long long* out
) noexcept nogil:
    """Fast path of nearly all headers: 1 to 18 digits, then CR and one byte more.

    The index of the CR, or 0: look again, slowly (the only bytes that are seen twice). Takes no number that ``parse_int64`` refuses.
    """
    cdef long long value = 0
    cdef unsigned int digit
    cdef Py_ssize_t i = 0
    cdef Py_ssize_t stop = min(size - 1, 19)
    while i < stop:
        digit = <unsigned char>text[i] - 48
        if digit > 9:
            if text[i] != b'\r' or (text[0] == b'0' and i > 1):
                return 0
            out[0] = value
            return i
        value = value * 10 + digit
        i += 1
    return 0


cdef class Input:
    """The bytes that were fed and are not decoded yet."""

    def __cinit__(self):
        self.data = NULL
        self.own = NULL

    def __dealloc__(self):
        free(self.own)

    @property
    def consumed(self):
        """Bytes of the stream up to the end of the last complete message."""
        return self.consumed_

    @property
    def pending(self):
        """Bytes that were fed and wait for the rest of their message (or for ``read()``)."""
        return self.base + self.end - self.consumed_

    def feed(self, data):
        """Append what was received; copies unless it is ``bytes``. Ignored after an error."""
        cdef Py_buffer view
        if self.error is not None:
            return
        if self.pos == self.end and self.capacity > KEEP_BYTES:
            self.rebase(0)
            free(self.own)
            self.data = self.own = NULL
            self.capacity = 0
            self.borrowed = None
        if type(data) is bytes:
            if self.pos == self.end:
                self.rebase(0)
                self.borrowed = <bytes>data
                self.data = PyBytes_AS_STRING(data)
                self.end = PyBytes_GET_SIZE(data)
                return
            self.append(PyBytes_AS_STRING(data), PyBytes_GET_SIZE(data))
            return
        data = memoryview(data)
        PyObject_GetBuffer(data, &view, PyBUF_SIMPLE)
        try:
            self.append(<const char*>view.buf, view.len)
        finally:
            PyBuffer_Release(&view)

    cdef int append(self, const char* piece, Py_ssize_t size) except -1:
        """Put ``piece`` behind what is left, in ``own``."""
        cdef Py_ssize_t left = self.end - self.pos
        if size > PY_SSIZE_T_MAX // 4 - self.end:
            raise MemoryError
        if self.borrowed is not None:
            self.reserve(left + size)
            memcpy(self.own, self.data + self.pos, left)
            self.rebase(left)
            self.borrowed = None
        else:
            # Moving only when more than half is decoded keeps the cost per byte constant.
            if self.pos >= left:
                if left:
                    memmove(self.own, self.own + self.pos, left)
                self.rebase(left)
            self.reserve(self.end + size)
        self.data = self.own
        memcpy(self.own + self.end, piece, size)
        self.end += size
        return 0

    cdef int reserve(self, Py_ssize_t wanted) except -1:
        """Make ``own`` hold ``wanted`` bytes at least."""
        cdef char* grown
        if wanted <= self.capacity and self.own != NULL:
            return 0
        wanted = max(wanted, 2 * self.capacity, 4096)
        grown = <char*>realloc(self.own, wanted)
        if grown == NULL:
            raise MemoryError
        self.own = grown
        self.capacity = wanted
        return 0

    cdef void rebase(self, Py_ssize_t left) noexcept:
        self.base += self.pos
        self.scan -= self.pos
        self.pos = 0
        self.end = left

    cdef int fail(self, str text) except -1:
        self.error = text
        self.borrowed = None
        free(self.own)
        self.own = NULL
        self.data = NULL
        self.capacity = 0
        self.base = self.consumed_
        self.pos = self.scan = self.end = 0
        raise RespError(text)


cdef class RequestDecoder(Input):
    """Client to server: arrays of bulk strings, and inline commands with Redis's quoting."""

    def __init__(
        self,
        *,
        long long max_bulk_bytes=MAX_BULK_BYTES,
        long long max_arguments=MAX_ARGUMENTS,
        long long max_inline_bytes=MAX_INLINE_BYTES,
        long long max_request_bytes=MAX_REQUEST_BYTES,
        bint authenticated=True,
    ):
        require_line_limit("max_inline_bytes", max_inline_bytes)
        self.authenticated = authenticated
        self.max_bulk = max_bulk_bytes
        self.max_arguments = max_arguments
        self.max_inline = max_inline_bytes
        self.max_request = max_request_bytes
        self.arguments = []
        self.bulk = -1

    def read(self):
        """The next request, never empty, or ``None`` when more bytes are needed."""
        cdef list request
        if self.error is not None:
            raise RespError(self.error)
        while True:
            if self.missing == 0:
                if self.pos == self.end:
                    return None
                self.start = self.base + self.pos
                if self.data[self.pos] != b'*':
                    request = self.read_inline()
                    if request is None:
                        return None
                    self.consumed_ = self.base + self.pos
                    if request:
                        return request
                    continue
                if not self.read_count():
                    return None
            while self.missing:
                if not self.read_argument():
                    return None
            self.consumed_ = self.base + self.pos
            if PyList_GET_SIZE(self.arguments):
                request = self.arguments
                self.arguments = []
                return request

    cdef Py_ssize_t line_end(self, char terminator, str too_big) except -2:
        """Index of the terminator of the line at ``pos``, or -1: not there yet."""
        cdef Py_ssize_t stop = min(self.end, self.pos + self.max_inline + 1)
        cdef Py_ssize_t i = self.scan
        # A NUL that was met stays at `scan` and is met again at once: it hides the rest.
        while i < stop and self.data[i] != 0:
            if self.data[i] == terminator:
                self.scan = i
                return i
            i += 1
        self.scan = i
        if self.end - self.pos > self.max_inline:
            self.fail(too_big)
        return -1

    cdef Py_ssize_t header_end(self, str too_big) except -2:
        cdef Py_ssize_t end = self.line_end(b'\r', too_big)
        return end if end + 1 < self.end else -1

    cdef list read_inline(self):
        cdef Py_ssize_t end = self.line_end(b'\n', "Protocol error: too big inline request")
        cdef Py_ssize_t stop = end
        cdef list words
        if end < 0:
            return None
        if end > self.pos and self.data[end - 1] == b'\r':
            stop = end - 1
        words = split_words(self.data + self.pos, stop - self.pos)
        if words is None:
            self.fail("Protocol error: unbalanced quotes in request")
        self.pos = self.scan = end + 1
        return words

    cdef int read_count(self) except -1:
        cdef long long count = 0
        cdef const char* text = self.data + self.pos + 1
        cdef Py_ssize_t end = short_number(text, self.end - self.pos - 1, &count)
        cdef bint valid = True
        if end:
            end += self.pos + 1
        else:
            end = self.header_end("Protocol error: too big mbulk count string")
            if end < 0:
                return False
            valid = parse_int64(text, end - self.pos - 1, &count)
        if not valid or count > self.max_arguments:
            self.fail("Protocol error: invalid multibulk length")
        if count > NOAUTH_ARGUMENTS and not self.authenticated:
            self.fail("Protocol error: unauthenticated multibulk length")
        self.pos = self.scan = end + 2
        self.missing = max(count, 0)
        return True

    cdef int read_argument(self) except -1:
        if self.bulk < 0 and not self.read_length():
            return False
        if self.end - self.pos < self.bulk + 2:
            return False
        PyList_Append(
            self.arguments, PyBytes_FromStringAndSize(self.data + self.pos, self.bulk)
        )
        self.pos = self.scan = self.pos + self.bulk + 2
        self.bulk = -1
        self.missing -= 1
        return True

    cdef int read_length(self) except -1:
        cdef long long length = 0
        cdef const char* text = self.data + self.pos + 1
        cdef Py_ssize_t end = 0
        cdef bint valid = True
        if self.pos < self.end and self.data[self.pos] == b'$':
            end = short_number(text, self.end - self.pos - 1, &length)
        if end:
            end += self.pos + 1
        else:
            end = self.header_end("Protocol error: too big bulk count string")
            if end < 0:
                return False
            if self.data[self.pos] != b'$':
                self.not_a_bulk(self.data[self.pos])
            valid = parse_int64(text, end - self.pos - 1, &length)
        if not valid or length < 0 or length > self.max_bulk:
            self.fail("Protocol error: invalid bulk length")
        if length > NOAUTH_BULK and not self.authenticated:
            self.fail("Protocol error: unauthenticated bulk length")
        if self.base + end + 2 + length + 2 - self.start > self.max_request:
            self.fail("Protocol error: too big request")
        self.pos = self.scan = end + 2
        self.bulk = length
        return True

    cdef int not_a_bulk(self, char first) except -1:
        # Redis writes CR and LF as blanks into an error reply.
        shown = " " if first == b'\r' or first == b'\n' else chr(<unsigned char>first)
        return self.fail(f"Protocol error: expected '$', got '{shown}'")


cdef inline bint is_space(char c) noexcept nogil:
    return c == b' ' or (c >= 9 and c <= 13)


cdef inline int hex_digit(char c) noexcept nogil:
    if c >= b'0' and c <= b'9':
        return c - 48
    if c >= b'a' and c <= b'f':
        return c - 87
    if c >= b'A' and c <= b'F':
        return c - 55
    return -1


cdef inline char unescaped(char c) noexcept nogil:
    if c == b'n':
        return b'\n'
    if c == b'r':
        return b'\r'
    if c == b't':
        return b'\t'
    if c == b'b':
        return b'\b'
    if c == b'a':
        return b'\a'
    return c


def split_inline(bytes line not None):
    """Words of an inline request; a NUL ends the line. See the Python twin."""
    cdef Py_ssize_t size = 0
    cdef const char* text = PyBytes_AS_STRING(line)
    while size < PyBytes_GET_SIZE(line) and text[size] != 0:
        size += 1
    return split_words(text, size)


cdef list split_words(const char* line, Py_ssize_t size):
    """Words of an inline request by the rules of Redis's ``sdssplitargs``; ``None``: bad quotes."""
    cdef list words = []
    cdef Py_ssize_t pos = 0, length
    cdef char c
    # No word is longer than the line.
    cdef char* word = <char*>malloc(size + 1)
    if word == NULL:
        raise MemoryError
    try:
        while True:
            while pos < size and is_space(line[pos]):
                pos += 1
            if pos == size:
                return words
            length = 0
            while pos < size:
                c = line[pos]
                if c == b' ' or c == b'\n' or c == b'\r' or c == b'\t':
                    break
                if c != b'"' and c != b"'":
                    word[length] = c
                    length += 1
                    pos += 1
                    continue
                pos = unquote(line, size, pos + 1, c, word, &length)
                if pos < 0:
                    return None
                break
            words.append(PyBytes_FromStringAndSize(word, length))
    finally:
        free(word)


cdef Py_ssize_t unquote(
    const char* line, Py_ssize_t size, Py_ssize_t pos, char quote, char* word, Py_ssize_t* length
) noexcept nogil:
    """Append the quoted text at ``pos`` to ``word``; the index behind its end, or -1: bad."""
    cdef char c, follower
    while pos < size:
        c = line[pos]
        if c == quote:
            pos += 1
            return pos if pos == size or is_space(line[pos]) else -1
        if c == b'\\' and pos + 1 < size:
            follower = line[pos + 1]
            if quote == b'"':
                if (
                    follower == b'x'
                    and pos + 3 < size
                    and hex_digit(line[pos + 2]) >= 0
                    and hex_digit(line[pos + 3]) >= 0
                ):
                    c = <char>(hex_digit(line[pos + 2]) * 16 + hex_digit(line[pos + 3]))
                    pos += 3
                else:
                    c = unescaped(follower)
                    pos += 1
            elif follower == b"'":
                c = follower
                pos += 1
        word[length[0]] = c
        length[0] += 1
        pos += 1
    return -1


cdef inline bint is_number_kind(char kind) noexcept nogil:
    """Types whose header is a decimal."""
    return (
        kind == b'$' or kind == b'*' or kind == b':' or kind == b'%' or kind == b'~'
        or kind == b'>' or kind == b'!' or kind == b'=' or kind == b'|'
    )


cdef class ReplyDecoder(Input):
    """Server to client: values of RESP2 and RESP3, as listed in ``resp_values``."""

    def __cinit__(self):
        self.frames = NULL

    def __init__(
        self,
        *,
        long long max_bulk_bytes=MAX_BULK_BYTES,
        long long max_line_bytes=MAX_LINE_BYTES,
        long long max_elements=MAX_ELEMENTS,
        Py_ssize_t max_depth=MAX_DEPTH,
    ):
        require_line_limit("max_line_bytes", max_line_bytes)
        self.max_bulk = max_bulk_bytes
        self.max_line = max_line_bytes
        self.max_elements = max_elements
        self.max_depth = max_depth
        self.bulk = -1
        self.bulk_kind = b'$'
        self.lists = []
        free(self.frames)
        self.frames = <Frame*>malloc((max(max_depth, 0) + 1) * sizeof(Frame))
        if self.frames == NULL:
            raise MemoryError

    def __dealloc__(self):
        free(self.frames)

    def read(self):
        """The next complete value, or ``INCOMPLETE`` when more bytes are needed."""
        cdef object value
        cdef Frame* frame
        cdef list items
        if self.error is not None:
            raise RespError(self.error)
        while True:
            value = self.read_bulk() if self.bulk >= 0 else self.read_header()
            if value is INCOMPLETE:
                return INCOMPLETE
            if value is OPENED:
                continue
            while self.depth:
                frame = &self.frames[self.depth - 1]
                PyList_Append(<object>PyList_GET_ITEM(self.lists, self.depth - 1), value)
                frame.missing -= 1
                if frame.missing:
                    break
                self.depth -= 1
                items = self.lists.pop()
                value = items if frame.kind == b'*' else finish(frame.kind, items)
            else:
                self.consumed_ = self.base + self.pos
                return value

    cdef int refuse(self, str expected, Py_ssize_t start, Py_ssize_t stop) except -1:
        cdef bytes got = PyBytes_FromStringAndSize(self.data + start, min(stop - start, 33))
        return self.fail(str(bad_reply(self.base + self.pos, expected, got)))

    cdef Py_ssize_t line_end(self) except -2:
        """Index of the CR of the line at ``pos``, or -1: CR LF are not there yet."""
        cdef Py_ssize_t pos = self.pos
        cdef Py_ssize_t stop = self.end
        cdef Py_ssize_t start = max(self.scan, pos + 1)
        cdef const char* found = NULL
        if stop - pos > self.max_line + 1:
            stop = pos + self.max_line + 1
        if start < stop:
            found = <const char*>memchr(self.data + start, b'\r', stop - start)
        if found == NULL:
            self.scan = stop
            if stop - pos > self.max_line:
                self.refuse(f"a line of at most {self.max_line} bytes", pos, stop)
            return -1
        start = found - self.data
        self.scan = start
        if start + 1 == self.end:
            return -1
        if self.data[start + 1] != b'\n':
            self.refuse("CR LF at the end of the line", pos, start + 2)
        return start

    cdef object read_header(self):
        """A value of one line, an opened aggregate or bulk string, or ``INCOMPLETE``."""
        cdef Py_ssize_t pos = self.pos, stop
        cdef long long number = 0
        cdef bint valid
        cdef char kind
        if pos == self.end:
            return INCOMPLETE
        kind = self.data[pos]
        stop = short_number(self.data + pos + 1, self.end - pos - 1, &number)
        if stop and self.data[pos + stop + 2] == b'\n' and is_number_kind(kind):
            return self.number_value(kind, pos + 1 + stop, True, number)
        if memchr(b"+-:$*_#,(!=%~>|", kind, 15) == NULL:
            self.refuse("a RESP type", pos, pos + 1)
        stop = self.line_end()
        if stop < 0:
            return INCOMPLETE
        if is_number_kind(kind):
            valid = parse_int64(self.data + pos + 1, stop - pos - 1, &number)
            return self.number_value(kind, stop, valid, number)
        value = self.line_value(kind, pos + 1, stop)
        self.pos = self.scan = stop + 2
        return value

    cdef object number_value(self, char kind, Py_ssize_t stop, bint valid, long long number):
        """An integer, or the length or count of something."""
        if kind == b':':
            if not valid:
                self.refuse("an integer of 64 bits", self.pos, stop)
            self.pos = self.scan = stop + 2
            return number
        if kind == b'$' or kind == b'!' or kind == b'=':
            return self.open_bulk(kind, stop, valid, number)
        return self.open_aggregate(kind, stop, valid, number)

    cdef object line_value(self, char kind, Py_ssize_t start, Py_ssize_t stop):
        cdef const char* text = self.data + start
        cdef char* end
        cdef double value
        cdef Py_ssize_t size = stop - start
        if kind == b'+' or kind == b'-':
            if kind == b'+' and size == 2 and text[0] == b'O' and text[1] == b'K':
                return OK
            if memchr(text, b'\n', size) != NULL:
                self.refuse("a line without LF inside", start - 1, stop)
            line = PyBytes_FromStringAndSize(text, size)
            return SimpleString(line) if kind == b'+' else SimpleError(line)
        if kind == b'_':
            if size:
                self.refuse("a null without content", start - 1, stop)
            return None
        if kind == b'#':
            if size != 1 or (text[0] != b't' and text[0] != b'f'):
                self.refuse("#t or #f", start - 1, stop)
            return text[0] == b't'
        if kind == b',':
            if not is_double(text, size):
                self.refuse("a double", start - 1, stop)
            if short_double(text, size, &value):
                return value
            # Checked above, and the CR behind it ends it: nothing has to be copied.
            return PyOS_string_to_double(text, &end, NULL)
        if not is_big_number(text, size):
            self.refuse("a big number", start - 1, stop)
        return BigNumber(PyBytes_FromStringAndSize(text, size))

    cdef object open_bulk(self, char kind, Py_ssize_t stop, bint valid, long long length):
        cdef int lowest = -1 if kind == b'$' else 0 if kind == b'!' else 4
        if not valid or length < lowest or length > self.max_bulk:
            self.refuse(expected_length(lowest, self.max_bulk), self.pos, stop)
        self.pos = self.scan = stop + 2
        if length < 0:
            return None
        self.bulk = length
        self.bulk_kind = kind
        # Most bulk strings are there with their header.
        return self.read_bulk()

    cdef object read_bulk(self):
        cdef Py_ssize_t pos = self.pos, stop
        cdef const char* text = self.data + pos
        cdef object value
        if self.end - pos < self.bulk + 2:
            return INCOMPLETE
        stop = pos + self.bulk
        if self.data[stop] != b'\r' or self.data[stop + 1] != b'\n':
            self.refuse("CR LF behind a bulk string", stop, stop + 2)
        if self.bulk_kind == b'=' and text[3] != b':':
            self.refuse("three letters and a colon", pos, stop)
        value = PyBytes_FromStringAndSize(text, self.bulk)
        if self.bulk_kind != b'$':
            value = BulkError(value) if self.bulk_kind == b'!' else VerbatimString(value)
        self.pos = self.scan = stop + 2
        self.bulk = -1
        return value

    cdef object open_aggregate(self, char kind, Py_ssize_t stop, bint valid, long long count):
        cdef int width = 2 if kind == b'%' or kind == b'|' else 1
        cdef int lowest = -1 if kind == b'*' else 0
        cdef long long highest = self.max_elements // width
        cdef long long elements
        if not valid or count < lowest or count > highest:
            self.refuse(expected_count(lowest, highest), self.pos, stop)
        if kind == b'>' and self.depth:
            self.refuse("a push at the top level only", self.pos, stop)
        if count >= 0 and self.depth == self.max_depth:
            self.refuse(f"at most {self.max_depth} levels", self.pos, stop)
        self.pos = self.scan = stop + 2
        if count < 0:
            return None
        # An attribute's frame also takes the value that it belongs to.
        elements = count * width + (kind == b'|')
        if elements == 0:
            return finish(kind, [])
        self.frames[self.depth].kind = kind
        self.frames[self.depth].missing = elements
        self.depth += 1
        self.lists.append([])
        return OPENED


cdef object finish(char kind, list items):
    if kind == b'*':
        return items
    if kind == b'%':
        return Map(items)
    if kind == b'~':
        return Set(items)
    if kind == b'>':
        return Push(items)
    value = items.pop()
    return Attributed(value, Map(items))


cdef Py_ssize_t digits(const char* text, Py_ssize_t size, Py_ssize_t pos) noexcept nogil:
    """Index behind the digits at ``pos``."""
    while pos < size and text[pos] >= b'0' and text[pos] <= b'9':
        pos += 1
    return pos


cdef bint is_big_number(const char* text, Py_ssize_t size) noexcept nogil:
    cdef Py_ssize_t start = 1 if size and text[0] == b'-' else 0
    return start < size and digits(text, size, start) == size


#: Powers of ten that a double holds exactly, as far as they are needed.
cdef double[16] TENS = [1e0, 1e1, 1e2, 1e3, 1e4, 1e5, 1e6, 1e7, 1e8, 1e9, 1e10, 1e11, 1e12, 1e13,
                        1e14, 1e15]


cdef bint short_double(const char* text, Py_ssize_t size, double* value) noexcept nogil:
    """A double of at most 15 digits without exponent; False: it is another one.

    The digits and the power of ten are exact, so one division rounds right (W. D. Clinger, "How to
    read floating point numbers accurately", PLDI 1990). Python's own way loads the control word of
    the x87 unit twice, which on some processors costs more than the rest of the parse.
    """
    cdef Py_ssize_t pos = 1 if text[0] == b'-' else 0, point = size
    cdef long long number = 0
    if size - pos > 16:
        return False
    while pos < size:
        if b'0' <= text[pos] <= b'9':
            number = number * 10 + (text[pos] - 48)
        elif text[pos] == b'.':
            point = pos + 1
        else:
            return False
        pos += 1
    if number >= 1_000_000_000_000_000LL:
        return False
    value[0] = number / TENS[size - point]
    if text[0] == b'-':
        value[0] = -value[0]
    return True


cdef bint is_double(const char* text, Py_ssize_t size) noexcept nogil:
    cdef Py_ssize_t start = 1 if size and text[0] == b'-' else 0
    cdef Py_ssize_t pos = start
    if size - start == 3 and (
        memcmp(text + start, b"inf", 3) == 0 or memcmp(text + start, b"nan", 3) == 0
    ):
        return True
    pos = digits(text, size, start)
    if pos == start:
        return False
    if pos < size and text[pos] == b'.':
        pos = digits(text, size, pos + 1)
    if pos < size and (text[pos] == b'e' or text[pos] == b'E'):
        pos += 1
        if pos < size and (text[pos] == b'+' or text[pos] == b'-'):
            pos += 1
        start = pos
        pos = digits(text, size, start)
        if pos == start:
            return False
    return pos == size
