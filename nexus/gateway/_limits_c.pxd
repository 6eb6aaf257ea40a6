cimport cython
from nexus._speedups._buckets_c cimport BucketTable
from nexus._speedups._http1_c cimport RequestHead
from nexus.gateway._core_c cimport Core

cdef long long _PENDING, _UNAVAILABLE
cdef int _ADDRESS, _CLIENT, _ROUTE, _HEADER


cdef class Limit:
    cdef readonly object settings
    cdef readonly str name
    cdef readonly object rule
    cdef readonly long long interval
    cdef readonly long long burst
    cdef readonly list parts
    cdef readonly bytes prefix
    cdef readonly bint cluster

    @cython.locals(kind=cython.int, part=tuple, key=bytes)
    cpdef bytes key_of(self, object exchange, RequestHead head)


cdef class LimitSet:
    cdef readonly list limits
    cdef readonly list local
    cdef readonly list cluster
    cdef readonly bytes policy_field


cdef class Waiting:
    cdef readonly object exchange
    cdef readonly Limiter limiter
    cdef readonly LimitSet limits
    cdef readonly Py_ssize_t at
    cdef readonly object fields
    cdef readonly bytes request_id

    cpdef object answer(self, long long taken)


cdef class Limiter:
    cdef readonly Core core
    cdef BucketTable _table
    cdef object _seed
    cdef public object shared
    cdef public object proceed
    cdef public bint announce

    @cython.locals(limit=Limit, taken=cython.longlong)
    cpdef bint check(self, object exchange, RequestHead head, LimitSet limits) except -1
    cpdef long long take(self, Limit limit, bytes key, long long now) except? -1
    @cython.locals(limit=Limit, taken=cython.longlong, key=bytes)
    cpdef bint ask(self, object exchange, RequestHead head, LimitSet limits, Py_ssize_t at, object fields) except -1
    @cython.locals(core=Core)
    cpdef bint judge(self, object exchange, LimitSet limits, Limit limit, long long taken, object fields) except -1
    cpdef object tell(self, object exchange, LimitSet limits, list fields)
