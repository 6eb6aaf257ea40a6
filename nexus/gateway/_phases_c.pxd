cimport cython
from nexus._speedups._buckets_c cimport BucketTable
from nexus._speedups._http1_c cimport RequestHead
from nexus.gateway._core_c cimport Core
from nexus.gateway._exchange_c cimport Exchange
from nexus.gateway._limits_c cimport Limiter, LimitSet
from nexus.gateway._routes_c cimport Route, Router

cdef int _AUTHORIZATION, _COOKIE, _FORWARDED_FOR, _ORIGIN


cdef class Phases:
    cdef readonly Core core
    cdef BucketTable _table
    cdef object _seed
    cdef public object clients
    cdef public Router router
    cdef readonly object limit
    cdef public object authenticator
    cdef public object blocked
    cdef public LimitSet limits
    cdef readonly Limiter limiter
    cdef public object denied
    cdef long long _interval
    cdef long long _burst
    cdef long long _refused_wait
    cdef bytes _refused_fields

    cpdef object set_limit(self, object limit)
    cpdef object identify(self, Exchange exchange, object peername)
    @cython.locals(core=Core, route=Route, preflight=bytes)
    cpdef object run(self, Exchange exchange, RequestHead head)
    cpdef object resume(self, Exchange exchange, RequestHead head)
    @cython.locals(route=Route, limits=LimitSet)
    cdef object _known(self, Exchange exchange, RequestHead head)
    @cython.locals(route=Route)
    cpdef object proceed(self, Exchange exchange, RequestHead head)
    cdef object _behind_proxy(self, Exchange exchange, RequestHead head)
    @cython.locals(wait=cython.longlong)
    cdef object _too_many(self, Exchange exchange, long long taken)
    @cython.locals(router=Router, route=Route, preflight=bytes)
    cdef bytes _find_route(self, Exchange exchange, RequestHead head)
    @cython.locals(taken=cython.longlong, route=Route)
    cdef bint _admits(self, Exchange exchange) except -1
    cdef bint _knows(self, Exchange exchange, RequestHead head, bint patient) except -1
    cdef bint _authorizes(self, Exchange exchange, Route route) except -1
    cdef object _answer_preflight(self, Exchange exchange, RequestHead head, bytes method)
    cdef object _announce(self, Exchange exchange, long long taken)
    cdef object _wrong_method(self, Exchange exchange, RequestHead head)
