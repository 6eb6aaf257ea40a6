cimport cython
from nexus._speedups._http1_c cimport ChunkedDecoder, RequestHead
from nexus.gateway._core_c cimport Core
from nexus.gateway._exchange_c cimport Exchange
from nexus.gateway._phases_c cimport Phases
from nexus.gateway._outlet_c cimport Outlet
from nexus.gateway._ports_c cimport ClientPort
from nexus.gateway._primitives cimport copied

cdef int _READING, _BODY, _WAITING, _LINGERING, _TUNNELLING, _CLOSED


cdef class Session(ClientPort):
    cdef readonly Core core
    cdef readonly Phases phases
    cdef set _sessions
    cdef str _peer
    cdef readonly Exchange exchange
    cdef readonly object transport
    cdef Outlet _out
    cdef bint _more
    cdef RequestHead _head
    cdef ChunkedDecoder _decoder
    cdef bytearray _pending
    cdef int _state
    cdef long long _left
    cdef bint _chunked
    cdef bint _request_done
    cdef bint _response_done
    cdef bint _keep
    cdef bint _busy
    cdef bint _reading
    cdef bint _paused_ahead
    cdef bint _head_begun
    cdef bint _blocked
    cdef long long _lingered
    cdef long long _body_started
    cdef long long _unsent
    cdef long long _window
    cdef long long _send_by
    cdef long long _paused_at
    cdef long long _last_read
    cdef long long _served

    @cython.locals(state=cython.int, used=cython.Py_ssize_t)
    cdef object _process(self, bytearray buffer, Py_ssize_t at, Py_ssize_t end)
    @cython.locals(head=RequestHead, core=Core, used=cython.Py_ssize_t, has_body=cython.bint, exchange=Exchange)
    cdef Py_ssize_t _read_head(self, bytearray buffer, Py_ssize_t at, Py_ssize_t end) except -1
    cdef object _start_body(self)
    @cython.locals(decoder=ChunkedDecoder, used=cython.Py_ssize_t, last=cython.bint, data=bytes)
    cdef Py_ssize_t _read_body(self, bytearray buffer, Py_ssize_t at, Py_ssize_t end) except -1
    cdef object _bound_ahead(self)
    cdef object _refuse(self, object error)
    cdef object _next(self)
    cdef object _unpause_ahead(self)
    cdef object _close_politely(self)
    cpdef object close_when_idle(self)
    cpdef object abort(self)
    cdef object _check_body(self, long long now)
    cdef object _close(self)
    cdef object _watch_sending(self, long long now, long long window)
    @cython.locals(taken=cython.longlong)
    cdef object _check_sending(self, long long now)
    @cython.locals(core=Core, until=cython.longlong)
    cdef object _expect_body(self, long long now)
