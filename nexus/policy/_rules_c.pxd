"""C types of the rules; the source is ``_rules_py.py``."""

cimport cython


cdef class Rule:
    cdef public int index
    cdef public str pattern
    cdef public int shape
    cdef public bytes literal
    cdef public object regex
    cdef public bint enabled
    cdef public int near
    cdef public double ttl                   # seconds
    cdef public double negative_ttl          # seconds
    cdef public bint ttl_only
    cdef public long hot_threshold           # reads
    cdef public double hot_window            # seconds
    cdef public double extend                # seconds
    cdef public double max_total             # seconds
    cdef public bint leased
    cdef public double lease_wait            # seconds
    cdef public double lease_ttl             # seconds
    cdef public bint early_refresh
    cdef public bint fill_guard
    cdef public double stale_if_error        # seconds
    cdef public object rate

    cpdef bint matches(self, bytes key) except -1


cdef class Matcher:
    cdef public tuple rules
    cdef public Rule only
    cdef public dict memo

    @cython.locals(memo=dict, rule=Rule, found=Rule)
    cpdef Rule first(self, bytes key)
    @cython.locals(rule=Rule)
    cpdef Rule find(self, bytes key)
