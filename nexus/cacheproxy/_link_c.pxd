"""C types of a connection to Redis; the source is ``_link_py.py``."""

from libc.stdint cimport int64_t

cimport cython

from nexus._speedups._nearcache_c cimport Notes
from nexus._speedups._respscan_c cimport CommandTable, ReplyScanner, append, cut, send

cdef int CONNECTING
cdef int UP
cdef int DOWN
cdef int64_t NEVER

cpdef int direct_descriptor(object transport) except -2


@cython.final
cdef class Plane:
    cdef public object loop
    cdef public object call_soon
    cdef public CommandTable table
    cdef public bytearray buffer
    cdef public Py_ssize_t pending_limit     # bytes
    cdef public int64_t big_command          # bytes
    cdef public int64_t big_reply            # bytes
    cdef public int64_t bulk_limit           # bytes
    cdef public int64_t output_limit         # bytes
    cdef public Py_ssize_t link_high         # bytes
    cdef public Py_ssize_t link_low          # bytes
    cdef public unsigned int shared_mask
    cdef public bint near_on
    cdef public bint tracing
    cdef public int64_t trace_left           # commands
    cdef public object tracer
    cdef public bytes loading
    cdef public bytes lost
    cdef public int64_t tick                 # seconds
    cdef public int64_t shared_commands
    cdef public int64_t pinned_commands
    cdef public int64_t local_commands
    cdef public int64_t refused_commands
    cdef public int64_t lost_commands
    cdef public int64_t client_bytes_in
    cdef public int64_t client_bytes_out
    cdef public int64_t upstream_bytes_in
    cdef public int64_t upstream_bytes_out
    cdef public int64_t output_limit_kills


cdef class Receiver:
    cdef public bint split
    cpdef object deliver(self, bytearray data, Py_ssize_t start, Py_ssize_t end, Py_ssize_t done)
    cpdef object pushed(self, bytearray data, Py_ssize_t start, Py_ssize_t end)
    cpdef object lost(self, Py_ssize_t count, bint partial, bytes error)
    cpdef object spliced(self, bytearray data, Py_ssize_t end)
    cpdef object link_ready(self, Link link)


cdef class Settler:
    cdef object __weakref__
    cpdef object answered(self, Link link)


cdef class Link:
    cdef object __weakref__
    cdef public Plane plane
    cdef public object owner
    cdef public object transport
    cdef public int state
    cdef public bytes refusal
    cdef public bytearray out
    cdef int descriptor                      # -1: only the transport may write
    cdef bint queued                         # bytes wait in the transport
    cdef object fifo                         # receiver, count, receiver, count, …
    cdef Receiver head
    cdef Py_ssize_t head_count
    cdef bint head_partial
    cdef Receiver tail
    cdef Py_ssize_t tail_count
    cdef public ReplyScanner scanner
    cdef bint flush_due
    cdef public bint closing
    cdef public bint congested
    cdef list waiters
    cdef readonly bint retired
    cdef readonly Receiver slow              # for whom a retired link's reading is paused
    cdef int stalled_seconds
    cdef public Receiver pin                 # the one client of a dedicated link
    cdef public bint splice                  # raw bytes from now on
    cdef bint reading_paused
    cdef public int64_t sent
    cdef public int64_t received
    cdef int64_t sample_at
    cdef double sample_began                 # seconds, the loop's clock
    cdef public object info
    cdef public int64_t flushes
    cdef public Notes notes
    cdef public Settler near
    cdef public object traces
    cdef public int64_t trace_at

    cpdef object send(
        self, Receiver receiver, bytearray data, Py_ssize_t start, Py_ssize_t end, Py_ssize_t count
    )
    cpdef object expect(self, Receiver receiver, Py_ssize_t count)
    cdef object _schedule(self)
    cpdef object follow(self, int64_t number, object span)
    @cython.locals(before=int64_t)
    cdef object _traced(self, bytearray data, Py_ssize_t start, Py_ssize_t stop, Py_ssize_t done)
    cpdef object wait(self, Receiver receiver)
    cpdef object retire(self, Receiver slow)
    cpdef object release_slow(self)
    cpdef object pause(self, bint paused)
    cpdef object close(self)
    cpdef object resume_writing(self)
    cpdef object flush(self)
    @cython.locals(sent=Py_ssize_t, size=Py_ssize_t)
    cdef object _write(self, bytearray data)
    cdef object _answered(self, Settler near)
    cdef object _lose(self, Receiver receiver, Py_ssize_t count, bint partial, bytes error)
    cpdef object give_up(self, bytes error)
    @cython.locals(position=Py_ssize_t, stop=Py_ssize_t, done=Py_ssize_t, receiver=Receiver)
    cdef object _take(self, bytearray data, Py_ssize_t size)
    cdef object _deliver(
        self, Receiver who, bytearray data, Py_ssize_t start, Py_ssize_t end, Py_ssize_t done
    )
    cdef object _push(self, Receiver who, bytearray data, Py_ssize_t start, Py_ssize_t end)
    cdef object _splice(self, Receiver who, bytearray data, Py_ssize_t start, Py_ssize_t end)
    cdef bint _advance(self) except -1
    @cython.locals(stop=Py_ssize_t)
    cdef Py_ssize_t _unasked(self, bytearray data, Py_ssize_t position, Py_ssize_t size) except -1
