"""C types of a client's connection; the source is ``_client_py.py``."""

from libc.stdint cimport int64_t

cimport cython

from nexus._speedups._respscan_c cimport CommandScanner, append, cut, send, send_bytes
from nexus.cacheproxy._link_c cimport DOWN, Link, Plane, Receiver, Settler, direct_descriptor

cdef int MORE
cdef int BARRIER
cdef int PIN_WAIT
cdef int CLIENT_FULL
cdef int LINK_FULL
cdef int HELD


cdef class Near(Settler):
    cpdef Py_ssize_t take(
        self, Client client, bytearray data, Py_ssize_t start, Py_ssize_t end
    ) except -1


cdef class Held:
    cdef public bytes reply
    cdef public object span


cdef class Client(Receiver):
    cdef object __weakref__
    cdef public Plane plane
    cdef public object transport
    cdef public Link link
    cdef public bint pinned                  # `link` is this client's own
    cdef public bint spliced_through         # and passes raw bytes both ways
    cdef public bint discarding              # a big command goes nowhere
    cdef public unsigned int mask            # classes that need no decision
    cdef public CommandScanner scanner
    cdef public bytearray pending            # input not used yet; None: none
    cdef public Py_ssize_t outstanding       # replies expected before `slots`
    cdef public object slots                 # bytes: own answer; int: replies expected
    cdef public int blocked
    cdef public bint closed
    cdef public bint eof                     # the client sends no more
    cdef public bint quitting                # nor is it listened to
    cdef public bint congested
    cdef bint reading_paused
    cdef public bint half_open
    cdef int descriptor                      # -1: only the transport may write
    cdef bint queued                         # bytes wait in the transport
    cdef bint processing                     # guards against re-entry by a nested resume
    cdef int64_t reply_bytes
    cdef public int64_t big_until            # tick
    cdef public int64_t last_seen            # tick
    cdef public Near near
    cdef public int verdict
    cdef public Py_ssize_t held
    cdef public int64_t write_seq
    cdef public int64_t read_seq
    cdef public double fence_after           # seconds
    cdef public bint guarded

    @cython.locals(plane=Plane, position=Py_ssize_t)
    cpdef object buffer_updated(self, Py_ssize_t size)
    @cython.locals(data=bytearray, size=Py_ssize_t, position=Py_ssize_t)
    cpdef object resume(self)
    cdef Py_ssize_t process(self, bytearray data, Py_ssize_t start, Py_ssize_t end) except -1
    @cython.locals(scanner=CommandScanner, verdict=int)
    cdef Py_ssize_t _process(self, bytearray data, Py_ssize_t start, Py_ssize_t end) except -1
    cdef Py_ssize_t _near(
        self, Near near, bytearray data, Py_ssize_t start, Py_ssize_t end
    ) except -1
    cpdef object forward(self, bytearray data, Py_ssize_t start, Py_ssize_t end, Py_ssize_t count)
    @cython.locals(plane=Plane)
    cpdef object traced(self, bytearray data, Py_ssize_t start, Py_ssize_t end, Py_ssize_t count)
    cpdef object expecting(self, Py_ssize_t count)
    @cython.locals(stop=Py_ssize_t)
    cdef Py_ssize_t _stream(self, bytearray data, Py_ssize_t start, Py_ssize_t end) except -1
    cdef object _forget_last(self)
    cdef object _pause_reading(self)
    cpdef object answer(self, bytes data)
    @cython.locals(sent=Py_ssize_t)
    cpdef object write(self, bytes data)
    cdef object _queue(self, bytes data)
    @cython.locals(sent=Py_ssize_t)
    cpdef object pass_on(self, bytearray data, Py_ssize_t start, Py_ssize_t end)
    cpdef object settle(self)
    cpdef object hold(self, Held held)
    cpdef object found(self)
    cpdef object unblock(self, int reason)
    cpdef object abort(self)
