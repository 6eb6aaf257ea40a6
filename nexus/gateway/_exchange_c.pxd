cimport cython
from nexus._speedups._http1_c cimport RequestHead, ResponseHead
from nexus.gateway._attempts_c cimport Attempts
from nexus.gateway._compose_c cimport (
    RESPONSE_DROP,
    bodiless_length,
    request_fields,
    response_fields,
)
from nexus.gateway._core_c cimport Core
from nexus.gateway._envelope_c cimport suffix, wrapped
from nexus.gateway._ports_c cimport PoolPort
from nexus.gateway._primitives cimport cut, joined, length_field
from nexus.gateway._request_c cimport (
    COLLECTING,
    DONE,
    FREE,
    ID_FIELD,
    SENT,
    STREAMING,
    TUNNEL,
    WAITING,
)
from nexus.gateway._routes_c cimport Route
from nexus.gateway._upstream_c cimport UpstreamConnection

cdef int _IDEMPOTENCY_KEY, _UPGRADE


cdef class Exchange(Attempts):
    @cython.locals(route=Route, path=bytes)
    cpdef object forward(self, RequestHead head)
    @cython.locals(upstream=UpstreamConnection, pool=PoolPort, data=bytes)
    cpdef object on_connected(self, object connection)
    @cython.locals(core=Core, until=cython.longlong)
    cdef object _await_response(self)
    @cython.locals(state=cython.int, corked=bytes)
    cpdef object on_request_body(self, bytes data, bint last)
    cdef object _uploaded(self)
    cdef object _keep_for_replay(self, bytes data)
    cdef object _hold_more(self)
    cdef object _too_large(self)
    @cython.locals(status=cython.int, keep=cython.bint, wraps=cython.bint, block=bytes, extra=bytes)
    cpdef object on_response(self, object connection, ResponseHead head, bytes body, bint complete)
    cdef bint _idle_timeout(self, UpstreamConnection connection, ResponseHead head) except -1
    cdef object _set_aside(self, UpstreamConnection connection, ResponseHead head, bytes body, bint complete)
    @cython.locals(data=bytes)
    cdef object _end(self, UpstreamConnection connection, bytes block, bytes extra, bytes body, bint keep)
    cdef object _stream(self, bytes block, bytes extra, bytes body, long long length, bint keep)
    cdef bytes _frame(self, bytes data)
    cpdef object on_tunnel_data(self, bytes data)
    cpdef object block_client(self)
    cpdef object unblock_client(self)
    cpdef object close_upstream_writing(self)


@cython.locals(framed=bytes)
cdef bytes _chunked(bytes data, bint last)
