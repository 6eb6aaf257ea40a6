from nexus.gateway._primitives cimport joined

cdef object _JSON


cpdef bytes suffix(bytes request_id, bytes stamp)
cpdef bytes wrapped(bytes body, bytes request_id, bytes stamp)
cpdef bint is_wrappable(int status, bytes content_type, bytes content_encoding, bytes cache_control) except -1
