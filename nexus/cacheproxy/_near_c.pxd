"""C types of the near-cache in a client's path; the source is ``_near_py.py``."""

from libc.stdint cimport int64_t

cimport cython

from nexus._speedups._nearcache_c cimport (
    BUSY, FLUSH, FULL, HIT, LATE, MISS, PENDING, READ, UNKNOWN, WRITE, NearTable, Notes, Rate
)
from nexus._speedups._respscan_c cimport UNWATCHED, CommandScanner, cut
from nexus.cacheproxy._client_c cimport HELD, Client, Near
from nexus.cacheproxy._core_c cimport Core
from nexus.cacheproxy._link_c cimport DOWN, Link, Plane
from nexus.policy._rules_c cimport Matcher, Rule
from nexus.cacheproxy._tracking_c cimport Flight, Reading, Source

cdef int MORE
cdef int COMMAND
cdef int SHARED
cdef int CACHED
cdef int READS
cdef int WRITES
cdef int FLUSHES
cdef int FORWARDED
cdef int HITS
cdef int JOINED
cdef int HOT
cdef int ALWAYS
cdef int FENCES


cdef class Partition(Near):
    cdef public Core core
    cdef public NearTable table
    cdef public Link link
    cdef public int protocol
    cdef public object identity
    cdef public int db
    cdef public Source source
    cdef public int space
    cdef public Notes notes
    cdef object unknowns

    @cython.locals(
        core=Core, plane=Plane, table=NearTable, scanner=CommandScanner, link=Link,
        source=Source, run=Py_ssize_t, position=Py_ssize_t, stop=Py_ssize_t, count=Py_ssize_t, hits=int64_t,
        now=double, fresh=double, floor=double, need=double, usable=bint, alone=bint, verdict=int, effect=int,
        code=int, mask=cython.uint,
    )
    cpdef Py_ssize_t take(
        self, Client client, bytearray data, Py_ssize_t start, Py_ssize_t end
    ) except -1
    @cython.locals(core=Core, scanner=CommandScanner)
    cdef object _shadow(
        self, Client client, bytearray data, Py_ssize_t position, Py_ssize_t stop
    )
    cdef object _refresh(self, Source source, double now)
    @cython.locals(_first=int, last=int, _step=int)
    cdef bint _single(self, CommandScanner scanner) except -1
    @cython.locals(scanner=CommandScanner, received=int64_t)
    cdef int _probe(
        self, Client client, bytearray data, Py_ssize_t position, Py_ssize_t stop, double now,
        double fresh, double floor
    ) except -1
    @cython.locals(table=NearTable, used=Py_ssize_t)
    cdef object _emit(self, Client client)
    @cython.locals(scanner=CommandScanner, seq=int64_t, entries=int64_t)
    cdef object _read(
        self, Client client, bytearray data, Py_ssize_t position, Py_ssize_t stop,
        Py_ssize_t count, int code
    )
    @cython.locals(scanner=CommandScanner, seq=int64_t, effect=int, kind=int, entries=int64_t)
    cdef object _note(
        self, Client client, bytearray data, Py_ssize_t position, Py_ssize_t stop,
        Py_ssize_t count
    )
    cpdef object prepare(self, Client client, bytearray data, Py_ssize_t start, Py_ssize_t stop)
    cdef object _tag(self, Client client, bytearray data, Py_ssize_t start, Py_ssize_t stop)
    cpdef object note(self, Client client, bytearray data, Py_ssize_t start, Py_ssize_t stop)
    @cython.locals(now=double, unknown=int64_t, dropped=int64_t, client=Client)
    cpdef object answered(self, Link link)
    @cython.locals(core=Core, source=Source, scanner=CommandScanner, free=bint, reading=Reading, flight=Flight)
    cdef bint _slow(
        self, Client client, bytearray data, Py_ssize_t position, Py_ssize_t stop, int code,
        double now, double floor, bint alone, Py_ssize_t count
    ) except -1
    @cython.locals(matcher=Matcher, rule=Rule, table=NearTable)
    cdef object _leased(
        self, CommandScanner scanner, bytearray data, Py_ssize_t position, Py_ssize_t stop
    )
    cdef bint _overdue(self, Source source, double now) except -1
    @cython.locals(
        core=Core, source=Source, scanner=CommandScanner, table=NearTable, begin=Py_ssize_t,
        number=int, rate=Rate, reads=int, hot=bint, together=bint, rule=Rule, matcher=Matcher,
        leased=bint,
    )
    cdef bint _miss(
        self, Client client, bytearray data, Py_ssize_t position, Py_ssize_t stop, double now,
        bint alone, bint free
    ) except -1
    @cython.locals(core=Core, scanner=CommandScanner, number=int, flight=Flight)
    cdef bint _ask(
        self, Client client, bytearray data, Py_ssize_t position, Py_ssize_t stop, double now,
        bint alone, bint together, Rule rule, bint admit
    ) except -1
    @cython.locals(scanner=CommandScanner, plane=Plane)
    cdef Reading _hold(
        self, Client client, bytearray data, Py_ssize_t position, Py_ssize_t stop, double now,
        str outcome
    )
