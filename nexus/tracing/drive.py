"""Calls of coroutines, generators and asynchronous generators under a span.

A span is current only while the code of its own function runs. A coroutine keeps it over its
awaits, for they are of the same task; a generator gives it up at every ``yield``, for what runs
then is its caller. One that is abandoned ends its span when it is collected; one that was never
started never had a span. Nothing is registered anywhere, so nothing can be left behind.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Coroutine, Generator, Mapping
from typing import Any, Final

from nexus.tracing.kernel import (
    ASYNC_GENERATOR,
    COROUTINE,
    GENERATOR,
    Traced,
    begin,
    enter,
    finish,
    leave,
)

__all__ = ["DRIVERS"]

_Args = tuple[Any, ...]
_Kwargs = dict[str, Any]


def _coroutine(traced: Traced, args: _Args, kwargs: _Kwargs) -> Any:
    # Made here, so that wrong arguments fail at the call, as they do without us.
    inner = traced.function(*args, **kwargs)
    outer: Any = _await(traced, args, kwargs, inner)
    # For "coroutine 'f' was never awaited" and for the names of tasks.
    outer.__name__, outer.__qualname__ = inner.__name__, inner.__qualname__
    return outer


async def _await(
    traced: Traced, args: _Args, kwargs: _Kwargs, inner: Coroutine[Any, Any, Any]
) -> Any:
    span = begin(traced, args, kwargs)
    if span is None:
        return await inner
    token = enter(span)
    try:
        result = await inner
    except BaseException as error:
        leave(token)
        finish(traced, span, error)
        raise
    leave(token)
    finish(traced, span, None)
    return result


def _generator(traced: Traced, args: _Args, kwargs: _Kwargs) -> Generator[Any, Any, Any]:
    return _steps(traced, args, kwargs, traced.function(*args, **kwargs))


def _steps(
    traced: Traced, args: _Args, kwargs: _Kwargs, inner: Generator[Any, Any, Any]
) -> Generator[Any, Any, Any]:
    span = begin(traced, args, kwargs)
    if span is None:
        return (yield from inner)
    step: Callable[[], Any] = inner.__next__
    try:
        while True:
            token = enter(span)
            try:
                value = step()
            except StopIteration as stop:
                finish(traced, span, None)
                return stop.value
            finally:
                leave(token)
            try:
                sent = yield value
            except GeneratorExit:
                token = enter(span)
                try:
                    inner.close()
                finally:
                    leave(token)
                raise
            except BaseException as thrown:  # noqa: BLE001  (the caller's, for the generator)
                step = _bound(inner.throw, thrown)
            else:
                step = inner.__next__ if sent is None else _bound(inner.send, sent)
    except BaseException as error:
        finish(traced, span, error)
        raise


def _async_generator(traced: Traced, args: _Args, kwargs: _Kwargs) -> AsyncGenerator[Any, Any]:
    return _async_steps(traced, args, kwargs, traced.function(*args, **kwargs))


async def _async_steps(
    traced: Traced, args: _Args, kwargs: _Kwargs, inner: AsyncGenerator[Any, Any]
) -> AsyncGenerator[Any, Any]:
    span = begin(traced, args, kwargs)
    step: Callable[[], Any] = inner.__anext__
    try:
        while True:
            token = enter(span) if span is not None else None
            try:
                value = await step()
            except StopAsyncIteration:
                if span is not None:
                    finish(traced, span, None)
                return
            finally:
                if token is not None:
                    leave(token)
            try:
                sent = yield value
            except GeneratorExit:
                token = enter(span) if span is not None else None
                try:
                    await inner.aclose()
                finally:
                    if token is not None:
                        leave(token)
                raise
            except BaseException as thrown:  # noqa: BLE001  (the caller's, for the generator)
                step = _bound(inner.athrow, thrown)
            else:
                step = inner.__anext__ if sent is None else _bound(inner.asend, sent)
    except BaseException as error:
        if span is not None:
            finish(traced, span, error)
        raise


def _bound(method: Callable[[Any], Any], value: Any) -> Callable[[], Any]:
    return lambda: method(value)


#: Form of a callable → what runs its calls.
DRIVERS: Final[Mapping[int, Callable[..., Any]]] = {
    COROUTINE: _coroutine,
    GENERATOR: _generator,
    ASYNC_GENERATOR: _async_generator,
}
