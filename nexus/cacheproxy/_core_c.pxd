"""C types of what the near-cache shares; the source is ``_core_py.py``."""

from libc.stdint cimport int64_t

cimport cython

from nexus._speedups._nearcache_c cimport NearTable
from nexus._speedups._respscan_c cimport CommandTable
from nexus.cacheproxy._link_c cimport Plane

cdef Py_ssize_t AGES_BOUNDS
cdef double[::1] _AGES


cdef class Core:
    cdef object __weakref__
    cdef public Plane plane
    cdef public CommandTable commands
    cdef public NearTable table
    cdef public double staleness             # seconds
    cdef public double max_ttl               # seconds
    cdef public bint singleflight
    cdef public bint keeping
    cdef public list matchers
    cdef public object hot
    cdef public object tagger
    cdef public object guard
    cdef public int64_t shadow_every
    cdef public int64_t shadow_hits
    cdef public int64_t compared
    cdef public int64_t differed
    cdef public int64_t spares
    cdef public int64_t spare_tick
    cdef public int64_t spare_limit
    cdef public object observe_fence
    cdef public int64_t hits
    cdef public int64_t joined
    cdef public int64_t misses
    cdef public int64_t bypassed
    cdef public int64_t waited
    cdef public int64_t late
    cdef public int64_t fills
    cdef public int64_t committed
    cdef public int64_t fences
    cdef public int64_t touches
    cdef public int64_t dropped_push
    cdef public int64_t dropped_write
    cdef public int64_t dropped_null
    cdef public int64_t dropped_lost
    cdef public int64_t pushes
    cdef public object leases
    cdef public dict discarded
    cdef public dict refused
    cdef public list ages
    cpdef bint spare(self) except -1
    @cython.locals(index=Py_ssize_t)
    cpdef object aged(self, double age, int64_t hits)
