cimport cython


cdef class Server:
    cdef public str url
    cdef public long long weight
    cdef public long long active
    cdef public long long handled
    cdef public bint healthy
    cdef public bint draining
    cdef public object breaker
    cdef public object extra
    cdef public object series
    cdef public double ramp
    cdef public double credit
    cdef public object state


@cython.locals(server=Server)
cdef bint _can_take(Server server, object usable, bint healthy) except -1


cdef class Balancer:
    cdef long long _panic
    cdef list _servers
    cdef readonly bint panicking

    @cython.locals(server=Server, serving=cython.longlong, healthy=cython.longlong)
    cpdef object assess(self)
    @cython.locals(other=Server)
    cdef Server _warm(self, Server server, object usable, object exclude, bint healthy)
    @cython.locals(found=Server, healthy=cython.bint)
    cpdef Server pick(self, object usable=*, object exclude=*)
    cdef Server _choose(self, object usable, object exclude, bint healthy)


cdef class _InTurn(Balancer):
    cdef list _circle
    cdef Py_ssize_t _next

    @cython.locals(circle=list, size=Py_ssize_t, at=Py_ssize_t, server=Server, refused=Server)
    cdef Server _choose(self, object usable, object exclude, bint healthy)


cdef class _RoundRobin(_InTurn):
    pass


cdef class _Weighted(_InTurn):
    cdef list _shape


cdef class _Smooth(_Weighted):
    pass


cdef class _LeastConnections(Balancer):
    cdef Py_ssize_t _start

    @cython.locals(
        servers=list, size=Py_ssize_t, at=Py_ssize_t, behind=Py_ssize_t, server=Server, best=Server
    )
    cdef Server _choose(self, object usable, object exclude, bint healthy)


cdef class _PowerOfTwo(Balancer):
    cdef object _random

    @cython.locals(best=Server, left=list)
    cdef Server _choose(self, object usable, object exclude, bint healthy)
    @cython.locals(
        size=Py_ssize_t, at=Py_ssize_t, other=Py_ssize_t, first=Server, second=Server,
        server=Server, best=Server
    )
    cdef Server _draw(self, list servers, object usable, object exclude, bint healthy)
