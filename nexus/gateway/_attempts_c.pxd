cimport cython
from nexus._speedups._http1_c cimport ResponseHead
from nexus.gateway._core_c cimport Core
from nexus.gateway._pool_c cimport Pool
from nexus.gateway._primitives cimport monotonic_ns
from nexus.gateway._request_c cimport (
    BACKOFF,
    DONE,
    FREE,
    ID_FIELD,
    QUEUED,
    SENT,
    STREAMING,
    TUNNEL,
    WAITING,
    ServedRequest,
)
from nexus.gateway._upstream_c cimport UpstreamConnection
from nexus.policy._balance_c cimport Balancer, Server
from nexus.policy._breaker_c cimport Breaker


cdef class Attempts(ServedRequest):
    @cython.locals(core=Core, now=cython.longlong)
    cdef object _enter(self)
    cpdef object on_admitted(self)
    cdef object _no_place(self)
    @cython.locals(core=Core, now=cython.longlong, connection=UpstreamConnection, server=Server, pool=Pool, breaker=Breaker, balancer=Balancer, afresh=cython.bint)
    cdef object _attempt(self)
    @cython.locals(core=Core, now=cython.longlong, server=Server, breaker=Breaker)
    cdef object _attempt_answered(self, int status)
    @cython.locals(core=Core)
    cdef object _set_apart(self)
    @cython.locals(server=Server, breaker=Breaker)
    cdef object _pick_usable(self, object balancer)
    cdef bint _may_repeat(self) except -1
    @cython.locals(core=Core, now=cython.longlong)
    cdef object _repeat(self, str reason)
    @cython.locals(core=Core, now=cython.longlong, server=Server, breaker=Breaker)
    cdef object _failed(self, object failure, str reason)
    cdef long long _retry_after(self, ResponseHead head) except -1
    cdef object _decide(self, object failure, int status, bint sent=*, long long not_before=*)
    cdef object _back_off(self, long long delay)
    cdef object _give_up(self, int status, str reason, str message)
    cdef object _opened(self, object server)
    cdef object _release_breaker(self)
    @cython.locals(server=Server)
    cdef object _leave_server(self)
    cdef object _let_go_of_upstream(self)
    cpdef object break_off(self, str reason)
    cpdef object cancel(self, int status, str reason)
