"""A plain function that is traced; see ``_call_py``.

Calls come by the vectorcall protocol (PEP 590), positional and keyword arguments alike: while
tracing is off, the function gets the very array that we got. Cython makes no such types, so the
slot is put in after the type is ready, which the interpreter looks up at each call.
"""

import functools

from cpython.object cimport PyObject
from cpython.tuple cimport PyTuple_GET_ITEM, PyTuple_GET_SIZE

from nexus.tracing._kernel_c cimport State, Traced, begin, enter, finish, leave

__all__ = ["as_function"]


cdef extern from "Python.h":
    ctypedef PyObject *(*vectorcallfunc)(PyObject *, PyObject *const *, size_t, PyObject *)

    ctypedef struct PyTypeObject:
        Py_ssize_t tp_vectorcall_offset
        unsigned long tp_flags

    const unsigned long Py_TPFLAGS_HAVE_VECTORCALL
    const unsigned long Py_TPFLAGS_METHOD_DESCRIPTOR

    void PyType_Modified(PyTypeObject *)
    object PyMethod_New(object, object)
    object PyObject_Vectorcall(object, PyObject *const *, size_t, PyObject *)
    Py_ssize_t PyVectorcall_NARGS(size_t)


cdef class TracedFunction:
    cdef dict __dict__
    cdef object __weakref__
    cdef vectorcallfunc _vectorcall
    cdef State _state
    cdef object _function
    cdef Traced _traced

    def __cinit__(self):
        self._vectorcall = <vectorcallfunc>_call

    def __call__(self, *args, **kwargs):
        # By tp_call, which few go through: functools.partial in old ways, C code without PEP 590.
        return _run(self, args, kwargs)

    def __get__(self, instance, owner):
        return self if instance is None else PyMethod_New(self, instance)

    def __getattr__(self, str name):
        if name in ("__code__", "__defaults__", "__kwdefaults__", "__globals__", "__closure__"):
            return getattr(self._function, name)
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    def __repr__(self):
        return f"<traced {self._function!r}>"

    def __reduce__(self):
        return self.__qualname__


cdef object _call(object itself, PyObject *const *args, size_t flags, PyObject *names):
    cdef TracedFunction called = <TracedFunction>itself
    cdef Traced traced
    cdef State state = called._state
    if not state.on:
        return PyObject_Vectorcall(called._function, args, flags, names)
    traced = called._traced
    if traced.captured is None and state.sdk is None:
        span = begin(traced, (), None)
    else:
        span = begin(traced, _positional(args, flags), _named(args, flags, names))
    if span is None:
        return PyObject_Vectorcall(called._function, args, flags, names)
    token = enter(span)
    try:
        result = PyObject_Vectorcall(called._function, args, flags, names)
    except BaseException as error:
        leave(token)
        finish(traced, span, error)
        raise
    leave(token)
    finish(traced, span, None)
    return result


cdef object _run(TracedFunction called, tuple args, dict kwargs):
    """The same with arguments that are collected already."""
    if not called._state.on:
        return called._function(*args, **kwargs)
    span = begin(called._traced, args, kwargs)
    if span is None:
        return called._function(*args, **kwargs)
    token = enter(span)
    try:
        result = called._function(*args, **kwargs)
    except BaseException as error:
        leave(token)
        finish(called._traced, span, error)
        raise
    leave(token)
    finish(called._traced, span, None)
    return result


cdef tuple _positional(PyObject *const *args, size_t flags):
    cdef Py_ssize_t at
    return tuple([<object>args[at] for at in range(PyVectorcall_NARGS(flags))])


cdef dict _named(PyObject *const *args, size_t flags, PyObject *names):
    cdef Py_ssize_t at, given = PyVectorcall_NARGS(flags)
    cdef dict found = {}
    if names is not NULL:
        for at in range(PyTuple_GET_SIZE(<tuple>names)):
            found[<object>PyTuple_GET_ITEM(<tuple>names, at)] = <object>args[given + at]
    return found


def as_function(Traced traced):
    """``traced`` as something that is called, bound, inspected and pickled like its function."""
    cdef TracedFunction made = TracedFunction.__new__(TracedFunction)
    made._state = traced.state
    made._function = traced.function
    made._traced = traced
    functools.update_wrapper(made, traced.function)
    made.__nexus_traced__ = traced
    return made


cdef void _install():
    cdef TracedFunction one = TracedFunction.__new__(TracedFunction)
    cdef PyTypeObject *kind = <PyTypeObject *>TracedFunction
    kind.tp_vectorcall_offset = <char *>&one._vectorcall - <char *><PyObject *>one
    # A method call then needs no bound method: the instance is one more argument in the array.
    kind.tp_flags |= Py_TPFLAGS_HAVE_VECTORCALL | Py_TPFLAGS_METHOD_DESCRIPTOR
    PyType_Modified(kind)


_install()
