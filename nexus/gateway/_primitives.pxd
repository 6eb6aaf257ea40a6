# What the compiled data path takes from C in place of Python: clock, copies, a socket's send.
from cpython.bytearray cimport PyByteArray_AS_STRING
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from posix.time cimport CLOCK_MONOTONIC, clock_gettime, timespec

cdef extern from "<sys/socket.h>" nogil:
    ssize_t send(int fd, const void *data, size_t size, int flags)
    int MSG_DONTWAIT
    int MSG_NOSIGNAL


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
