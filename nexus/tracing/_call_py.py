"""A plain function that is traced: what stands in its place and is called instead of it.

Most calls find tracing off, so this is the one object of the package in which a hundredth of a
microsecond counts. The pure side is a closure; ``_call_c`` passes the caller's arguments on as they
lie on its stack, without a tuple or a dict of them.
"""

from __future__ import annotations

import functools
from typing import Any

from nexus.tracing._kernel_py import Traced, begin, enter, finish, leave

__all__ = ["as_function"]


def as_function(traced: Traced) -> Any:
    """``traced`` as something that is called, bound, inspected and pickled like its function."""
    state = traced.state
    function = traced.function

    def call(*args: Any, **kwargs: Any) -> Any:
        if not state.on:
            return function(*args, **kwargs)
        span = begin(traced, args, kwargs)
        if span is None:
            return function(*args, **kwargs)
        token = enter(span)
        try:
            result = function(*args, **kwargs)
        except BaseException as error:
            leave(token)
            finish(traced, span, error)
            raise
        leave(token)
        finish(traced, span, None)
        return result

    functools.update_wrapper(call, function)
    call.__nexus_traced__ = traced  # type: ignore[attr-defined]
    return call
