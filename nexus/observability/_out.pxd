# A growing buffer of bytes and what is written into it, for the compiled encoders.
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.mem cimport PyMem_Realloc
from libc.string cimport memcpy, memmove, strlen

cdef extern from "Python.h":
    str PyUnicode_DecodeASCII(const char *data, Py_ssize_t size, const char *errors)
    const char *PyUnicode_AsUTF8AndSize(object text, Py_ssize_t *size) except NULL

cdef struct Out:
    char *data
    Py_ssize_t size
    Py_ssize_t room


cdef inline int reserve(Out *out, Py_ssize_t more) except -1:
    """Room for `more` bytes behind what is there."""
    cdef Py_ssize_t wanted = out.size + more
    cdef char *data
    if wanted > out.room:
        wanted += wanted // 2 + 1024
        data = <char *>PyMem_Realloc(out.data, wanted)
        if data == NULL:
            raise MemoryError
        out.data = data
        out.room = wanted
    return 0


cdef inline int put(Out *out, const char *data, Py_ssize_t size) except -1:
    reserve(out, size)
    memcpy(out.data + out.size, data, size)
    out.size += size
    return 0


cdef inline int put_byte(Out *out, unsigned char value) except -1:
    reserve(out, 1)
    out.data[out.size] = <char>value
    out.size += 1
    return 0


cdef inline int put_bytes(Out *out, bytes data) except -1:
    return put(out, PyBytes_AS_STRING(data), PyBytes_GET_SIZE(data))


cdef inline int put_literal(Out *out, const char *data) except -1:
    """A literal; the compiler knows its length."""
    return put(out, data, strlen(data))


cdef inline int put_text(Out *out, str text) except -1:
    """UTF-8."""
    cdef Py_ssize_t size
    cdef const char *data = PyUnicode_AsUTF8AndSize(text, &size)
    return put(out, data, size)


cdef inline int put_number(Out *out, long long value) except -1:
    """Decimal."""
    cdef char digits[24]
    cdef int at = 24
    cdef unsigned long long rest
    if value < 0:
        put_byte(out, c'-')
        rest = <unsigned long long>(-(value + 1)) + 1
    else:
        rest = <unsigned long long>value
    while True:
        at -= 1
        digits[at] = <char>(48 + rest % 10)
        rest //= 10
        if rest == 0:
            break
    return put(out, digits + at, 24 - at)


cdef inline int put_thousandths(Out *out, long long value) except -1:
    """`repr(value / 1000)` of a number from 0 to 10^15: at least one decimal, none for nothing."""
    cdef int rest = <int>(value % 1000)
    put_number(out, value // 1000)
    put_byte(out, c'.')
    put_byte(out, <unsigned char>(48 + rest // 100))
    if rest % 100:
        put_byte(out, <unsigned char>(48 + rest // 10 % 10))
        if rest % 10:
            put_byte(out, <unsigned char>(48 + rest % 10))
    return 0


cdef inline int put_json(Out *out, str text) except -1:
    """The inside of a JSON string; escapes as msgspec does."""
    cdef Py_ssize_t size, at, begin = 0
    cdef const char *data = PyUnicode_AsUTF8AndSize(text, &size)
    cdef unsigned char c
    cdef unsigned char escaped = 0
    cdef const char *hexa = b"0123456789abcdef"
    # Nearly nothing needs an escape, and a loop without a branch is done sixteen at a time.
    for at in range(size):
        c = <unsigned char>data[at]
        escaped |= (c < 32) | (c == c'"') | (c == c'\\')
    if not escaped:
        return put(out, data, size)
    reserve(out, size)
    for at in range(size):
        c = <unsigned char>data[at]
        if c >= 32 and c != c'"' and c != c'\\':
            continue
        put(out, data + begin, at - begin)
        begin = at + 1
        put_byte(out, c'\\')
        if c == c'"' or c == c'\\':
            put_byte(out, c)
        elif c == 8:
            put_byte(out, c'b')
        elif c == 9:
            put_byte(out, c't')
        elif c == 10:
            put_byte(out, c'n')
        elif c == 12:
            put_byte(out, c'f')
        elif c == 13:
            put_byte(out, c'r')
        else:
            put(out, b"u00", 3)
            put_byte(out, hexa[c >> 4])
            put_byte(out, hexa[c & 15])
    return put(out, data + begin, size - begin)


cdef inline int put_varint(Out *out, unsigned long long value) except -1:
    """Protobuf's base 128, least significant group first."""
    while value > 127:
        put_byte(out, <unsigned char>(value & 127 | 128))
        value >>= 7
    return put_byte(out, <unsigned char>value)


cdef inline int varint_size(unsigned long long value) noexcept:
    cdef int size = 1
    while value > 127:
        size += 1
        value >>= 7
    return size


cdef inline bint is_plain(bytes wire) noexcept:
    """`redaction.is_plain`."""
    cdef const unsigned char *data = <const unsigned char *>PyBytes_AS_STRING(wire)
    cdef Py_ssize_t at
    for at in range(PyBytes_GET_SIZE(wire)):
        if data[at] >= 128 or data[at] == c"?" or data[at] == c"@":
            return False
        # A NUL stands behind every bytes object.
        if data[at] == c"e" and data[at + 1] == c"y" and data[at + 2] == c"J":
            return False
    return True


cdef inline str plain_text(bytes wire, Py_ssize_t limit):
    """The first `limit` bytes of what `is_plain`; what `redact_target` and `wire_text` make of it."""
    cdef Py_ssize_t size = PyBytes_GET_SIZE(wire)
    return PyUnicode_DecodeASCII(PyBytes_AS_STRING(wire), size if size < limit else limit, NULL)


cdef inline bytes taken_up_to(Out *out, Py_ssize_t end):
    """The first `end` bytes as a value of their own; what is behind them stays."""
    cdef bytes value = PyBytes_FromStringAndSize(out.data, end)
    out.size -= end
    memmove(out.data, out.data + end, out.size)
    return value


cdef inline bytes taken(Out *out):
    """What was written, as a value of its own; the buffer is empty again."""
    cdef bytes value = PyBytes_FromStringAndSize(out.data, out.size)
    out.size = 0
    return value
