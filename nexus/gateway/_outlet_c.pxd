cimport cython
from nexus.gateway._primitives cimport send_now


@cython.final
cdef class Outlet:
    cdef object _transport
    cdef int _fd
    cdef bint _waiting

    @cython.locals(sent=Py_ssize_t)
    cpdef object write(self, bytes data, bint more=*)
    cpdef object close(self)
