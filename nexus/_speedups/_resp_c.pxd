# The map of the compiled codec. Memory: `data` points either into `borrowed` (the very bytes object
# that was fed; kept alive by this reference) or into `own` (malloc'd, freed with the decoder).
# Every read of data[i] is behind a check of i against `end`.


cdef class Input:
    cdef const char* data
    cdef Py_ssize_t pos         # first byte that is not decoded
    cdef Py_ssize_t scan        # no line ends between pos and here
    cdef Py_ssize_t end         # bytes in data
    cdef long long base         # bytes of the stream before data[0]
    cdef long long consumed_    # of the stream, to the end of the last complete message
    cdef bytes borrowed
    cdef char* own
    cdef Py_ssize_t capacity    # of own
    cdef str error              # text of the error that ended the stream

    cdef int append(self, const char* piece, Py_ssize_t size) except -1
    cdef int reserve(self, Py_ssize_t wanted) except -1
    cdef void rebase(self, Py_ssize_t left) noexcept
    cdef int fail(self, str text) except -1


cdef class RequestDecoder(Input):
    cdef public bint authenticated
    cdef long long max_bulk, max_arguments, max_inline, max_request
    cdef list arguments
    cdef long long missing      # arguments still to come
    cdef long long bulk         # length of the argument that comes next, or -1 before its header
    cdef long long start        # where in the stream the request began

    cdef Py_ssize_t line_end(self, char terminator, str too_big) except -2
    cdef Py_ssize_t header_end(self, str too_big) except -2
    cdef list read_inline(self)
    cdef int read_count(self) except -1
    cdef int read_argument(self) except -1
    cdef int read_length(self) except -1
    cdef int not_a_bulk(self, char first) except -1


cdef struct Frame:
    long long missing           # elements to come
    char kind


cdef class ReplyDecoder(Input):
    cdef long long max_bulk, max_line, max_elements
    cdef Py_ssize_t max_depth
    cdef long long bulk
    cdef char bulk_kind
    cdef Frame* frames          # max_depth of them; `depth` are open
    cdef Py_ssize_t depth
    cdef list lists             # the elements so far of each open aggregate

    cdef int refuse(self, str expected, Py_ssize_t start, Py_ssize_t stop) except -1
    cdef Py_ssize_t line_end(self) except -2
    cdef object read_header(self)
    cdef object number_value(self, char kind, Py_ssize_t stop, bint valid, long long number)
    cdef object line_value(self, char kind, Py_ssize_t start, Py_ssize_t stop)
    cdef object open_bulk(self, char kind, Py_ssize_t stop, bint valid, long long length)
    cdef object open_aggregate(self, char kind, Py_ssize_t stop, bint valid, long long count)
    cdef object read_bulk(self)
