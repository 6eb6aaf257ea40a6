"""C types of the tracking connection; the source is ``_tracking_py.py``."""

from libc.stdint cimport int64_t

cimport cython

from nexus._speedups._nearcache_c cimport (
    CHANGED, COMMITTED, HIT, LATE, PENDING, READ
)
from nexus._speedups._respscan_c cimport cut
from nexus.cacheproxy._client_c cimport Client, Held
from nexus.cacheproxy._core_c cimport Core
from nexus.cacheproxy._link_c cimport DOWN, UP, Link, Plane, Receiver

cdef class Reading(Held):
    cdef public Client client
    cdef public object partition
    cdef public int number
    cdef public bytes raw
    cdef public Py_ssize_t begin
    cdef public double arrival               # seconds
    cdef public double need                  # seconds
    cdef public int64_t after                # commands of the tracking connection
    cdef public Flight flight
    cdef public object rule
    cdef public bint forwarded


@cython.locals(link=Link, plane=Plane, reading=Reading)
cpdef object release(Client client, Core core)


cdef class Flight(Receiver):
    cdef public Source source
    cdef public object partition
    cdef public int number
    cdef public bytes request
    cdef public object rule
    cdef public bint admit
    cdef public double sent                  # seconds
    cdef int64_t flushes
    cdef int64_t number_sent
    cdef public object token
    cdef bytearray data
    cdef public bytes reply
    cdef public list waiters
    cdef public Py_ssize_t late
    cdef public bint landed
    cdef public double expiry                # seconds
    cpdef object join(self, Reading reading, double now)
    cpdef object left(self)


cdef class Lifetime(Receiver):
    cdef Flight flight
    cdef bytes data


cdef class Probe(Receiver):
    cdef Source source
    cdef double sent


cdef class Source(Receiver):
    cdef object __weakref__
    cdef public Core core
    cdef public int index
    cdef public object owner
    cdef public Link link
    cdef public bint up
    cdef public bint tracked
    cdef public double fresh                 # seconds
    cdef public object pings
    cdef int64_t ping_flushes
    cdef int64_t ping_number
    cdef public object waiting
    cdef public dict flights
    cdef bytes push
    cdef object timer
    cdef double due                          # seconds
    cdef public bint probing
    cdef public double suspected             # seconds
    cdef public bint doubted
    cdef public double used
    cdef public list partitions
    cpdef object fence(self, double need, int64_t after, double now)
    cpdef int64_t newest(self) except -1
    cpdef bint overdue(self, double now) except -1
    cpdef double patience(self) except -1
    @cython.locals(reading=Reading)
    cpdef object advance(self, double sent)
    cpdef object wait(self, Reading reading, double now)
    cpdef Flight fly(
        self, object partition, int number, bytearray raw, Py_ssize_t begin, object rule,
        bint admit, double now
    )
    cpdef object compare(self, object partition, int number, bytearray raw, Py_ssize_t begin)
    cdef object _arm(self, double now, double late=*)
