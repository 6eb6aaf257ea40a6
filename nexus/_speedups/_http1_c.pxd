# cython: language_level=3
# The map of the compiled HTTP/1.1 kernel. Offsets point into the buffer of the last `parse` and
# are valid only until that buffer changes; `value`, `joined`, `fields` and `block` copy.

cdef struct Field:
    int name
    int name_size
    int value
    int value_size
    int known
    int category


cdef class Head:
    cdef bint _request
    cdef int _max_head
    cdef int _max_line
    cdef int _max_fields
    cdef int _begin
    cdef int _line
    cdef int _scan
    cdef bint _says_upgrade
    cdef Field *_fields
    cdef int _size
    cdef int *_first            # id -> index of its first line, or -1
    cdef int *_count            # id -> number of lines
    cdef list _nominated
    cdef object _buffer         # keeps `_data` alive
    cdef const unsigned char *_data
    cdef readonly int minor
    cdef readonly long long content_length
    cdef readonly bint chunked
    cdef readonly bint keep_alive

    cpdef object reset(self)
    cpdef object value(self, int known)
    cpdef bint is_value(self, int known, bytes value) except -1
    cpdef int count(self, int known) except -1
    cpdef bytes joined(self, int known)
    cpdef object named(self, bytes name)
    cpdef bytes fields(self, int drop)
    cdef object _refuse(self, str reason)
    cdef int _find_begin(self, const unsigned char *data, Py_ssize_t size) except -1
    cdef Py_ssize_t _find_end(self, const unsigned char *data, Py_ssize_t size) except -1
    cdef int _parse_fields(self, Py_ssize_t at, Py_ssize_t end) except -1
    cdef int _parse_framing(self) except -1
    cdef int _parse_encoding(self, bytes value) except -1
    cdef int _parse_connection(self) except -1
    cdef int _nominate(self, bytes option) except -1
    cdef bint _kept(self, Field *field, int drop)
    cdef bytes _serialise(self, bytes prefix, int drop)


cdef class RequestHead(Head):
    cdef readonly bytes method
    cdef readonly bytes target
    cdef readonly bytes path
    cdef readonly bytes query
    cdef readonly bytes host
    cdef bytes _last_host       # found valid, by an earlier parse
    cdef readonly bint expect_continue
    cdef readonly bint upgrade

    cpdef Py_ssize_t parse(self, object buffer, Py_ssize_t start, Py_ssize_t end) except -1
    cdef Py_ssize_t _parse_start(self, Py_ssize_t at, Py_ssize_t end) except -1
    cdef bytes _parse_target(self)
    cdef int _parse_host(self, bytes authority) except -1
    cdef int _parse_expect(self) except -1


cdef class ResponseHead(Head):
    cdef readonly int status
    cdef readonly bytes reason
    cdef readonly bint upgrade

    cpdef Py_ssize_t parse(self, object buffer, Py_ssize_t start, Py_ssize_t end) except -1
    cpdef bytes block(self, int drop)


cdef class ChunkedDecoder:
    cdef bint _request
    cdef int _state
    cdef long long _left
    cdef int _count
    cdef int _extensions
    cdef bint _named
    cdef readonly bytes payload
    cdef readonly bint done

    cpdef object reset(self)
    cpdef Py_ssize_t feed(self, object buffer, Py_ssize_t start, Py_ssize_t end) except -1
    cdef object _refuse(self, str reason)
    cdef int _step(self, unsigned char byte) except -1
    cdef int _take_size(self, unsigned char byte) except -1
    cdef int _take_extension(self, unsigned char byte) except -1
    cdef int _take_trailer(self, unsigned char byte) except -1


cpdef bytes chunk(bytes payload)
