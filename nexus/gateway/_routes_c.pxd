cimport cython
from nexus._speedups._http1_c cimport RequestHead
from nexus.gateway._primitives cimport cut, slash


@cython.final
cdef class Route:
    cdef readonly str template
    cdef readonly frozenset methods
    cdef readonly int index
    cdef readonly object conditions
    cdef readonly str group
    cdef readonly bytes prefix
    cdef readonly object rewrite
    cdef readonly bint limited
    cdef readonly object limits
    cdef readonly bint authenticated
    cdef readonly object guard
    cdef readonly object cors
    cdef readonly long long body_bytes
    cdef readonly long long response_ns
    cdef readonly long long total_ns
    cdef readonly long long stream_idle_ns
    cdef readonly object retry_policy
    cdef readonly bint idempotency_key
    cdef readonly object request_rules
    cdef readonly object query_rules
    cdef readonly object response_rules
    cdef readonly bint envelope
    cdef readonly long long max_body
    cdef readonly bint reads_cookie
    cdef readonly object handler


@cython.final
cdef class Node:
    cdef public dict literals
    cdef public Node parameter
    cdef public list exact
    cdef public list rest
    cdef public bint leaf


@cython.final
cdef class Router:
    cdef dict _own
    cdef Node _others
    cdef dict _hosts
    cdef list _wildcards
    cdef dict _known
    cdef list _wrong
    cdef readonly tuple routes
    cdef readonly bint cors

    cpdef Route match(self, RequestHead head)
    @cython.locals(found=Route, table=Node, path=bytes)
    cpdef Route match_method(self, RequestHead head, bytes method, bint preflight)
    @cython.locals(end=Py_ssize_t, after=Py_ssize_t, segment=bytes, child=Node, found=Route)
    cdef Route _descend(self, Node node, bytes path, Py_ssize_t at, RequestHead head, bytes method, bint preflight)
    @cython.locals(route=Route)
    cdef Route _among(self, list candidates, RequestHead head, bytes method, bint preflight)
    cdef list _tables(self, bytes host)
