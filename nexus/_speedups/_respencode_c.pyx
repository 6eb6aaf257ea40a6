"""RESP2 and RESP3, written: the compiled twin of ``_respencode_py``, where every rule is explained."""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.stdlib cimport free, malloc, realloc
from libc.string cimport memchr, memcpy

from nexus._speedups.resp_values import (
    MAX_DEPTH as _MAX_DEPTH,
    Attributed as _Attributed,
    BigNumber as _BigNumber,
    BulkError as _BulkError,
    Map as _Map,
    Push as _Push,
    Set as _Set,
    SimpleError as _SimpleError,
    SimpleString as _SimpleString,
    VerbatimString as _VerbatimString,
)

cdef extern from "Python.h":
    const char* PyUnicode_AsUTF8AndSize(object text, Py_ssize_t* size) except NULL
    Py_ssize_t PY_SSIZE_T_MAX

__all__ = ["encode_command", "encode_reply"]

# Module globals are looked up in a dict at each use; these are C variables.
cdef object Attributed = _Attributed
cdef object BigNumber = _BigNumber
cdef object BulkError = _BulkError
cdef object Map = _Map
cdef object Push = _Push
cdef object Set = _Set
cdef object SimpleError = _SimpleError
cdef object SimpleString = _SimpleString
cdef object VerbatimString = _VerbatimString
cdef int MAX_DEPTH = _MAX_DEPTH


cdef class Output:
    """Bytes being written, in memory of our own until ``done`` copies them once."""

    cdef char* data
    cdef Py_ssize_t size
    cdef Py_ssize_t capacity

    def __cinit__(self):
        self.capacity = 256
        self.data = <char*>malloc(self.capacity)
        if self.data == NULL:
            raise MemoryError

    def __dealloc__(self):
        free(self.data)

    cdef inline char* room(self, Py_ssize_t size) except NULL:
        """Where the next ``size`` bytes may be written; valid until the next call."""
        if self.capacity - self.size < size:
            self.grow(size)
        return self.data + self.size

    cdef int grow(self, Py_ssize_t size) except -1:
        cdef Py_ssize_t wanted
        cdef char* grown
        if size > PY_SSIZE_T_MAX // 2 - self.size:
            raise MemoryError
        wanted = max(self.size + size, 2 * self.capacity)
        grown = <char*>realloc(self.data, wanted)
        if grown == NULL:
            raise MemoryError
        self.data = grown
        self.capacity = wanted
        return 0

    cdef int line(self, char kind, const char* text, Py_ssize_t size) except -1:
        """``kind text CR LF``"""
        cdef char* at = self.room(size + 3)
        at[0] = kind
        memcpy(at + 1, text, size)
        at[size + 1] = b'\r'
        at[size + 2] = b'\n'
        self.size += size + 3
        return 0

    cdef int number(self, char kind, long long value) except -1:
        """``kind decimal CR LF``"""
        cdef char text[24]
        cdef char* at = text + 24
        cdef unsigned long long rest
        if value < 0:
            rest = 0 - <unsigned long long>value
        else:
            rest = <unsigned long long>value
        while True:
            at -= 1
            at[0] = <char>(48 + rest % 10)
            rest //= 10
            if rest == 0:
                break
        if value < 0:
            at -= 1
            at[0] = b'-'
        return self.line(kind, at, text + 24 - at)

    cdef int bulk(self, char kind, const char* text, Py_ssize_t size) except -1:
        """``kind length CR LF text CR LF``"""
        cdef char* at
        self.number(kind, size)
        at = self.room(size + 2)
        memcpy(at, text, size)
        at[size] = b'\r'
        at[size + 1] = b'\n'
        self.size += size + 2
        return 0

    cdef bytes done(self):
        return PyBytes_FromStringAndSize(self.data, self.size)


def encode_command(arguments):
    """A request as an array of bulk strings; ``str`` goes as UTF-8, ``int`` in decimal."""
    cdef Output out
    cdef Py_ssize_t size
    cdef const char* text
    if not arguments:
        raise ValueError("a command needs at least one argument")
    out = Output.__new__(Output)
    out.number(b'*', len(arguments))
    for argument in arguments:
        if type(argument) is bytes:
            out.bulk(b'$', PyBytes_AS_STRING(argument), PyBytes_GET_SIZE(argument))
        elif isinstance(argument, str):
            text = PyUnicode_AsUTF8AndSize(argument, &size)
            out.bulk(b'$', text, size)
        else:
            plain = plain_argument(argument)
            out.bulk(b'$', PyBytes_AS_STRING(plain), PyBytes_GET_SIZE(plain))
    return out.done()


cdef bytes plain_argument(object argument):
    if isinstance(argument, int) and not isinstance(argument, bool):
        return b"%d" % argument
    if not isinstance(argument, (bytes, bytearray, memoryview)):
        raise TypeError(
            f"a command's argument must be bytes, str or int, not {type(argument).__name__}"
        )
    # A subclass of bytes may override __bytes__; its content is what counts.
    return bytes(memoryview(argument))


def encode_reply(value, protocol=3):
    """A value as a server sends it in the given protocol version."""
    cdef Output out
    if protocol not in (2, 3):
        raise ValueError(f"protocol must be 2 or 3, not {protocol!r}")
    out = Output.__new__(Output)
    encode(value, protocol == 3, 0, out)
    return out.done()


cdef int encode(object value, bint resp3, int depth, Output out) except -1:
    if isinstance(value, bytes):
        encode_text(value, resp3, out)
    elif value is None:
        if resp3:
            out.line(b'_', b"", 0)
        else:
            out.line(b'$', b"-1", 2)
    elif isinstance(value, bool):
        if resp3:
            out.line(b'#', b"t" if value else b"f", 1)
        else:
            out.line(b':', b"1" if value else b"0", 1)
    elif isinstance(value, int):
        if not -(2**63) <= value < 2**63:
            raise ValueError("an integer must fit in 64 bits; use BigNumber")
        out.number(b':', <long long>value)
    elif isinstance(value, float):
        text = repr(value).encode()
        if resp3:
            out.line(b',', PyBytes_AS_STRING(text), PyBytes_GET_SIZE(text))
        else:
            out.bulk(b'$', PyBytes_AS_STRING(text), PyBytes_GET_SIZE(text))
    elif isinstance(value, (list, Attributed)):
        if depth == MAX_DEPTH:
            raise ValueError(f"a value may nest at most {MAX_DEPTH} levels")
        encode_aggregate(value, resp3, depth, out)
    else:
        raise TypeError(f"not a RESP value: {type(value).__name__}")
    return 0


cdef int encode_text(object value, bint resp3, Output out) except -1:
    cdef const char* text = PyBytes_AS_STRING(value)
    cdef Py_ssize_t size = PyBytes_GET_SIZE(value)
    kind = type(value)
    if kind is bytes:
        out.bulk(b'$', text, size)
    elif kind is SimpleString or kind is SimpleError:
        if memchr(text, b'\r', size) != NULL or memchr(text, b'\n', size) != NULL:
            raise ValueError(f"a simple string or error cannot hold CR or LF: {value!r}")
        out.line(b'+' if kind is SimpleString else b'-', text, size)
    elif kind is BulkError:
        if resp3:
            out.bulk(b'!', text, size)
        else:
            plain = value.replace(b"\r", b" ").replace(b"\n", b" ")
            out.line(b'-', PyBytes_AS_STRING(plain), size)
    elif kind is BigNumber:
        if not is_big_number(text, size):
            raise ValueError(f"a big number must be decimal digits: {value!r}")
        if resp3:
            out.line(b'(', text, size)
        else:
            out.bulk(b'$', text, size)
    elif kind is VerbatimString:
        if size < 4 or text[3] != b':':
            raise ValueError(f"a verbatim string must begin with three letters and ':': {value!r}")
        if resp3:
            out.bulk(b'=', text, size)
        else:
            out.bulk(b'$', text + 4, size - 4)
    else:
        raise TypeError(f"not a RESP value: {kind.__name__}")
    return 0


cdef int encode_aggregate(object value, bint resp3, int depth, Output out) except -1:
    if isinstance(value, Attributed):
        if resp3:
            attributes = value.attributes
            out.number(b'|', pair_count(attributes))
            for item in attributes:
                encode(item, resp3, depth + 1, out)
        return encode(value.value, resp3, depth + 1, out)
    kind = type(value)
    cdef Py_ssize_t count = pair_count(value) if kind is Map else len(value)
    if kind is Push and depth:
        raise ValueError("a push can only be sent at the top level")
    if kind is list or not resp3:
        out.number(b'*', len(value))
    elif kind is Map:
        out.number(b'%', count)
    elif kind is Set:
        out.number(b'~', count)
    elif kind is Push:
        out.number(b'>', count)
    else:
        raise TypeError(f"not a RESP value: {kind.__name__}")
    for item in value:
        encode(item, resp3, depth + 1, out)
    return 0


cdef Py_ssize_t pair_count(object items) except -1:
    if len(items) % 2:
        raise ValueError("a map needs a value for every key")
    return len(items) // 2


cdef bint is_big_number(const char* text, Py_ssize_t size) noexcept nogil:
    cdef Py_ssize_t start = 1 if size and text[0] == b'-' else 0
    cdef Py_ssize_t i
    for i in range(start, size):
        if text[i] < b'0' or text[i] > b'9':
            return False
    return start < size
