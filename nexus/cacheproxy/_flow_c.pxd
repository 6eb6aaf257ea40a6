"""C types of the hot path; the source is ``_flow_py.py``."""

from libc.stdint cimport int64_t

cimport cython

from nexus._speedups._nearcache_c cimport Notes
from nexus._speedups._respscan_c cimport (
    CommandScanner, CommandTable, ReplyScanner, append, cut, send, send_bytes
)

cdef int MORE
cdef int BARRIER
cdef int PIN_WAIT
cdef int CLIENT_FULL
cdef int LINK_FULL
cdef int HELD
cdef int CONNECTING
cdef int UP
cdef int DOWN


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


cdef class Near:
    cdef object __weakref__
    cpdef Py_ssize_t take(
        self, Client client, bytearray data, Py_ssize_t start, Py_ssize_t end
    ) except -1
    cpdef object answered(self, Link link)


cdef class Held:
    cdef public bytes reply


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
    cdef public Near near

    cpdef object send(
        self, Receiver receiver, bytearray data, Py_ssize_t start, Py_ssize_t end, Py_ssize_t count
    )
    cpdef object expect(self, Receiver receiver, Py_ssize_t count)
    cdef object _schedule(self)
    cpdef object wait(self, Receiver receiver)
    cpdef object retire(self, Receiver slow)
    cpdef object release_slow(self)
    cpdef object pause(self, bint paused)
    cpdef object close(self)
    cpdef object resume_writing(self)
    cpdef object flush(self)
    @cython.locals(sent=Py_ssize_t, size=Py_ssize_t)
    cdef object _write(self, bytearray data)
    cdef object _answered(self, Near near)
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
