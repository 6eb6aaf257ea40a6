cimport cython
from nexus._speedups._http1_c cimport RequestHead, ResponseHead
from nexus.gateway._core_c cimport Core
from nexus.gateway._envelope_c cimport is_wrappable
from nexus.gateway._primitives cimport joined, length_field
from nexus.gateway._request_c cimport ServedRequest
from nexus.gateway._routes_c cimport Route

cdef int _CONTENT_TYPE, _CONTENT_ENCODING, _CACHE_CONTROL, _ETAG, _LOCATION, _FORWARDED_FOR
cdef int _FORWARDED_PROTO
cdef int RESPONSE_DROP


@cython.locals(core=Core, drop=cython.int, fields=bytes)
cdef bytes request_fields(ServedRequest request, RequestHead head)
cdef bytes _forwarding(ServedRequest request, RequestHead head)
cdef bytes _scheme(ServedRequest request, RequestHead head)
cdef bytes _framing(RequestHead head)
@cython.locals(drop=cython.int, wraps=cython.bint, route=Route, location=bytes, block=bytes)
cdef tuple response_fields(ServedRequest request, ResponseHead head, bint empty)
cdef bytes bodiless_length(int status, long long length, bint wraps)
cdef bytes _location(bytes value, Route route)
