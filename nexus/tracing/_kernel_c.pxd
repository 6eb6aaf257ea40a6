cimport cython

cdef object _random, _draw, _uniform, _wall, _clock, _SAMPLED, _UNSAMPLED, _key, _get, _attach, _detach


@cython.final
cdef class State:
    cdef public bint on
    cdef public unsigned long long bound
    cdef public double ratio
    cdef public bint always
    cdef public bint never
    cdef public bint parent_based
    cdef public object sdk
    cdef public object queue
    cdef public Py_ssize_t limit
    cdef public Py_ssize_t batch
    cdef public long long dropped
    cdef public object wake

    @cython.locals(waiting=Py_ssize_t)
    cpdef push(self, Span span)
    cpdef bint decide(self, object trace_id) except -1


@cython.final
@cython.freelist(16)
cdef class Span:
    cdef State _state
    cdef object _context
    cdef public str name
    cdef public int kind
    cdef public bint sampled
    cdef public bint random_id
    cdef public object trace_id
    cdef public object span_id
    cdef public object parent_id
    cdef public bint parent_remote
    cdef public Span parent
    cdef public object trace_state
    cdef public long long started_ns
    cdef public long long started
    cdef public long long duration_ns
    cdef public long long min_ns
    cdef public bint ended
    cdef public bint needed
    cdef public bint withheld
    cdef public dict attributes
    cdef public list events
    cdef public list links
    cdef public int status
    cdef public str description
    cdef public object scope
    cdef public int dropped_attributes
    cdef public int dropped_events
    cdef public int dropped_links

    cdef set_up(self, State state, str name, bint sampled)
    @cython.locals(attributes=dict)
    cpdef set_attribute(self, str key, object value)
    @cython.locals(parent=Span)
    cpdef end(self, object end_time=*)
    cpdef failed(self, object error)
    cdef _identify(self)


@cython.locals(parent=Span)
cpdef visible_parent(Span span)
cdef object _settled(object value)
@cython.locals(span=Span, sampled=bint, bound=object)
cpdef start(State state, str name, object context=*)
@cython.locals(span=Span)
cdef _child(State state, str name, Span parent)
@cython.locals(span=Span, sampled=bint)
cdef Span _under(State state, str name, object given)
cpdef enter(object span)
cpdef leave(object token)
@cython.locals(state=State, ours=Span)
cpdef begin(Traced traced, tuple args, dict kwargs)
@cython.locals(ours=Span)
cpdef finish(Traced traced, object span, object error)


cdef class Traced:
    cdef dict __dict__
    cdef object __weakref__
    cdef public object function
    cdef public State state
    cdef public int form
    cdef public str span_name
    cdef public dict attributes
    cdef public tuple captured
    cdef public long long min_ns
    cdef public object drive

    @cython.locals(found=dict, given=Py_ssize_t, position=Py_ssize_t, secret=bint)
    cpdef dict describe(self, tuple args, dict kwargs)
