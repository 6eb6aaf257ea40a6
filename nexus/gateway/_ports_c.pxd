from nexus._speedups._http1_c cimport ResponseHead
from nexus.gateway._wheel_c cimport Timed


cdef class PoolPort:
    cdef readonly bytes authority
    cdef readonly bytes base_path
    cpdef object give_back(self, object connection)
    cpdef object forget(self, object connection)


cdef class ResponseSink(Timed):
    cpdef object on_connected(self, object connection)
    cpdef object on_connect_failed(self, str reason)
    cpdef object on_informational(self, object connection, ResponseHead head)
    cpdef object on_response(self, object connection, ResponseHead head, bytes body, bint complete)
    cpdef object on_upgraded(self, object connection, ResponseHead head, bytes data)
    cpdef object on_body(self, object connection, bytes data, bint complete)
    cpdef object on_lost(self, object connection, str reason)
    cpdef object on_upstream_blocked(self)
    cpdef object on_upstream_writable(self)


cdef class ClientPort(Timed):
    cpdef object send(self, bytes data)
    cpdef object response_done(self, bint keep)
    cpdef object tunnel(self)
    cpdef object tunnel_ended(self)
    cpdef object break_off(self)
    cpdef object pause_request(self)
    cpdef object resume_request(self)


cdef class Nobody(ClientPort):
    cpdef object send(self, bytes data)
    cpdef object response_done(self, bint keep)
    cpdef object tunnel(self)
    cpdef object tunnel_ended(self)
    cpdef object break_off(self)
    cpdef object pause_request(self)
    cpdef object resume_request(self)


cdef Nobody NOBODY
