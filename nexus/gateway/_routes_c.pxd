cimport cython


@cython.final
cdef class Route:
    cdef readonly str template
    cdef readonly frozenset methods
    cdef readonly bytes prefix
    cdef readonly bytes inner
    cdef readonly bint limited
    cdef readonly bint authenticated
    cdef readonly bint envelope
    cdef readonly bint idempotency_key
    cdef readonly long long max_body
    cdef readonly object handler


@cython.final
cdef class Router:
    cdef dict _exact
    cdef list _proxied

    @cython.locals(route=Route)
    cpdef Route match(self, bytes path)
