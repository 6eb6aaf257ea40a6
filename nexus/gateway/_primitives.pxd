# What the compiled data path takes from C in place of Python: clock, copies, joins, random digits, a
# socket's send. What each does in Python stands beside its use, under `if not cython.compiled`.
from cpython.bytearray cimport PyByteArray_AS_STRING
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.tuple cimport PyTuple_GET_ITEM, PyTuple_GET_SIZE
from cpython.ref cimport PyObject
from libc.string cimport memchr, memcpy
from posix.time cimport CLOCK_MONOTONIC, clock_gettime, timespec

cdef extern from "<sys/socket.h>" nogil:
    ssize_t send(int fd, const void *data, size_t size, int flags)
    int MSG_DONTWAIT
    int MSG_NOSIGNAL

cdef extern from "Python.h":
    object PyUnicode_New(Py_ssize_t size, Py_UCS4 largest)
    void *PyUnicode_DATA(object text)
    Py_ssize_t PyUnicode_GET_LENGTH(object text)
    char *bytes_data "PyBytes_AS_STRING"(PyObject *value)
    Py_ssize_t bytes_size "PyBytes_GET_SIZE"(PyObject *value)

# State of xoshiro256** (Blackman, Vigna: "Scrambled linear pseudorandom number generators", 2021).
ctypedef unsigned long long[4] Dice


cdef inline long long monotonic_ns() noexcept nogil:
    """`time.monotonic_ns` without a Python integer."""
    cdef timespec now
    clock_gettime(CLOCK_MONOTONIC, &now)
    return <long long>now.tv_sec * 1000000000 + now.tv_nsec


cdef inline bytes copied(bytearray buffer, Py_ssize_t at, Py_ssize_t end):
    """`bytes(buffer[at:end])` with one copy; 0 <= at <= end <= len(buffer)."""
    return PyBytes_FromStringAndSize(PyByteArray_AS_STRING(buffer) + at, end - at)


cdef inline Py_ssize_t send_now(int fd, bytes data) noexcept:
    """Bytes that the kernel took at once; -1: none, and the transport will find out why."""
    return send(fd, PyBytes_AS_STRING(data), PyBytes_GET_SIZE(data), MSG_DONTWAIT | MSG_NOSIGNAL)


cdef inline bytes cut(bytes data, Py_ssize_t at, Py_ssize_t end):
    """`data[at:end]`; 0 <= at <= end <= len(data)."""
    return PyBytes_FromStringAndSize(PyBytes_AS_STRING(data) + at, end - at)


cdef inline Py_ssize_t slash(bytes path, Py_ssize_t at) noexcept:
    """`path.find(b"/", at)`; 0 <= at <= len(path)."""
    cdef const char *data = PyBytes_AS_STRING(path)
    cdef const char *found = <const char *>memchr(data + at, c"/", PyBytes_GET_SIZE(path) - at)
    return found - data if found != NULL else -1


cdef inline bytes joined(tuple parts):
    """`b"".join(parts)` of a tuple of `bytes` and nothing else."""
    cdef Py_ssize_t count = PyTuple_GET_SIZE(parts), index, size = 0
    cdef PyObject *part
    cdef bytes whole
    cdef char *out
    for index in range(count):
        size += bytes_size(<PyObject *>PyTuple_GET_ITEM(parts, index))
    whole = PyBytes_FromStringAndSize(NULL, size)
    out = PyBytes_AS_STRING(whole)
    for index in range(count):
        part = <PyObject *>PyTuple_GET_ITEM(parts, index)
        size = bytes_size(part)
        memcpy(out, bytes_data(part), size)
        out += size
    return whole


cdef inline bytes length_field(long long length):
    """`b"Content-Length: %d\r\n"`; not negative."""
    cdef char text[40]
    cdef int at = 38
    text[38] = 13
    text[39] = 10
    while True:
        at -= 1
        text[at] = <char>(48 + length % 10)
        length //= 10
        if length == 0:
            break
    at -= 16
    memcpy(text + at, b"Content-Length: ", 16)
    return PyBytes_FromStringAndSize(text + at, 40 - at)


cdef inline unsigned long long roll(unsigned long long *dice) noexcept:
    """64 random bits; not for secrets."""
    cdef unsigned long long rolled = dice[1] * 5
    cdef unsigned long long kept = dice[1] << 17
    rolled = ((rolled << 7) | (rolled >> 57)) * 9
    dice[2] ^= dice[0]
    dice[3] ^= dice[1]
    dice[1] ^= dice[2]
    dice[0] ^= dice[3]
    dice[2] ^= kept
    dice[3] = (dice[3] << 45) | (dice[3] >> 19)
    return rolled


cdef inline void put_hex(char *out, unsigned long long bits, int digits) noexcept:
    """The lowest bits, as lower-case digits."""
    cdef int at = digits
    while at:
        at -= 1
        out[at] = b"0123456789abcdef"[bits & 15]
        bits >>= 4


cdef inline str drawn(unsigned long long *dice, int digits):
    """So many random hex digits, a multiple of 16."""
    cdef object text = PyUnicode_New(digits, 127)
    cdef char *out = <char *>PyUnicode_DATA(text)
    cdef int at = 0
    while at < digits:
        put_hex(out + at, roll(dice), 16)
        at += 16
    return <str>text


cdef inline bytes numbered(bytes prefix, unsigned long long *dice):
    """`prefix` and twelve random hex digits."""
    cdef Py_ssize_t size = PyBytes_GET_SIZE(prefix)
    cdef bytes value = PyBytes_FromStringAndSize(NULL, size + 12)
    memcpy(PyBytes_AS_STRING(value), PyBytes_AS_STRING(prefix), size)
    put_hex(PyBytes_AS_STRING(value) + size, roll(dice), 12)
    return value


cdef inline unsigned long long low_bits(str trace_id) noexcept:
    """`int(trace_id[16:], 16)` of 32 lower-case hex digits."""
    cdef const unsigned char *digits = <const unsigned char *>PyUnicode_DATA(trace_id)
    cdef unsigned long long bits = 0
    cdef int at
    for at in range(16, 32):
        bits = bits << 4 | (digits[at] - 48 if digits[at] < 58 else digits[at] - 87)
    return bits


cdef inline bytes traceparent_line(str trace_id, str span_id, int flags):
    """The whole field line, of 32 and 16 hex digits (W3C Trace Context, §3.2)."""
    cdef bytes line = PyBytes_FromStringAndSize(NULL, 70)
    cdef char *out = PyBytes_AS_STRING(line)
    memcpy(out, b"traceparent: 00-", 16)
    out += 16
    memcpy(out, PyUnicode_DATA(trace_id), 32)
    out[32] = c"-"
    memcpy(out + 33, PyUnicode_DATA(span_id), 16)
    memcpy(out + 49, b"-00\r\n", 5)
    out[51] += <char>flags  # one digit: of the flags only two bits are known
    return line
