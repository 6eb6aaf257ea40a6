"""``@traced`` and ``instrument``: which calls become spans."""

from __future__ import annotations

import fnmatch
import functools
import inspect
from collections.abc import Callable, Iterable, Mapping
from types import FunctionType, MethodType, ModuleType
from typing import Any, Final, TypeVar, overload

from nexus.errors import ConfigError
from nexus.observability.redaction import secret_key
from nexus.tracing.drive import DRIVERS
from nexus.tracing.kernel import (
    ASYNC_GENERATOR,
    COROUTINE,
    FUNCTION,
    GENERATOR,
    Traced,
    as_function,
)
from nexus.tracing.state import STATE

__all__ = ["Instrumentation", "instrument", "traced"]

F = TypeVar("F", bound=Callable[..., Any])

#: What a call's own description may be made of.
Scalar = str | bool | int | float

_MARK: Final = "__nexus_traced__"


@overload
def traced(function: F, /) -> F: ...


@overload
def traced(
    *,
    name: str | None = ...,
    args: bool | Iterable[str] = ...,
    attributes: Mapping[str, Scalar] | None = ...,
    min_duration: float = ...,
) -> Callable[[F], F]: ...


def traced(
    function: Any = None,
    /,
    *,
    name: str | None = None,
    args: bool | Iterable[str] = False,
    attributes: Mapping[str, Scalar] | None = None,
    min_duration: float = 0.0,
) -> Any:
    """Each call of the function is a span: start, end, error, duration.

    Works on functions, coroutines, generators, asynchronous generators, partials and methods
    (below ``@staticmethod``, ``@classmethod`` and ``@property``). While tracing is off the call
    goes straight to the function.

    ``name``: of the span; default: module and qualified name. ``args``: ``True`` records every
    argument as attribute ``arg.<parameter>``, names record these; values of parameters whose name
    says that they are secret are masked, text is redacted by pattern. ``attributes``: the same for
    every call. ``min_duration``: seconds; shorter calls that did not fail are not recorded.

    Raises ``TypeError`` for what cannot be called, ``ValueError`` for a parameter that it has not.
    """
    if function is None:
        return functools.partial(
            traced, name=name, args=args, attributes=attributes, min_duration=min_duration
        )
    if isinstance(function, staticmethod | classmethod):
        decorate: Any = traced(
            name=name, args=args, attributes=attributes, min_duration=min_duration
        )
        return type(function)(decorate(function.__func__))
    if not callable(function) or isinstance(function, type):
        raise TypeError(f"@traced: expected a function or another callable, got {function!r}")
    if _is_traced(function):
        return function
    if min_duration < 0:
        raise ValueError(f"min_duration: expected seconds, at least 0, got {min_duration}")
    form = _form(function)
    made = Traced(
        function,
        STATE,
        form,
        name or _name(function),
        dict(attributes) if attributes else None,
        _captured(function, args),
        round(min_duration * 1e9),
        DRIVERS.get(form, _no_driver),
    )
    return as_function(made) if form == FUNCTION else made


class Instrumentation:
    """What :func:`instrument` replaced; :meth:`undo` puts it back."""

    def __init__(self) -> None:
        #: (owner, attribute, what was there, whether it was the owner's own)
        self._replaced: list[tuple[Any, str, Any, bool]] = []

    @property
    def names(self) -> tuple[str, ...]:
        """Attributes that are spans now."""
        return tuple(name for _, name, _, _ in self._replaced)

    def replace(self, owner: Any, name: str, new: Any) -> None:
        own = name in vars(owner)
        old = vars(owner).get(name)
        setattr(owner, name, new)
        self._replaced.append((owner, name, old, own))

    def undo(self) -> None:
        """Everything as it was before."""
        while self._replaced:
            owner, name, old, own = self._replaced.pop()
            if own:
                setattr(owner, name, old)
            else:
                delattr(owner, name)

    def __enter__(self) -> Instrumentation:
        return self

    def __exit__(self, *_: object) -> None:
        self.undo()


def instrument(
    target: Any,
    include: str | Iterable[str] | Callable[[str], bool] | None = None,
    *,
    args: bool | Iterable[str] = False,
    min_duration: float = 0.0,
) -> Any:
    """Trace code that is not yours to decorate; tracing stays selective.

    * A callable: returns it traced, as :func:`traced` does.
    * A module, class or instance: replaces its callables and returns an :class:`Instrumentation`.
      ``include`` chooses by name: patterns (``"get_*"``, in a module also ``"Class.method"``) or a
      predicate; without it, everything public that is defined there. A module's classes are
      entered only by a pattern with a dot.

    Raises ``LookupError`` when a pattern fits nothing, ``TypeError`` where nothing can be replaced
    (compiled classes).
    """
    options: dict[str, Any] = {"args": args, "min_duration": min_duration}
    if not isinstance(target, type | ModuleType) and (
        isinstance(target, FunctionType | MethodType | functools.partial)
        or inspect.isroutine(target)
        or _is_traced(target)
    ):
        return traced(target, **options)
    patterns = [include] if isinstance(include, str) else include
    done = Instrumentation()
    try:
        if patterns is None:
            _replace(done, target, lambda name: not name.startswith("_"), options)
        elif callable(patterns):
            _replace(done, target, patterns, options)
        else:
            for pattern in patterns:
                _replace_pattern(done, target, pattern, options)
    except BaseException:
        done.undo()
        raise
    return done


def instrument_named(spec: str, **options: Any) -> Instrumentation:
    """:func:`instrument` by text: ``package.module:pattern``, as settings have it.

    Raises ``ConfigError`` for what does not exist or cannot be replaced.
    """
    module_name, colon, pattern = spec.partition(":")
    if not colon or not pattern:
        raise ConfigError(f"expected package.module:function or …:Class.method, got {spec!r}")
    try:
        module = __import__(module_name, fromlist=["_"])
    except ImportError as error:
        raise ConfigError(f"{spec}: cannot be imported: {error}") from None
    try:
        made: Instrumentation = instrument(module, [pattern], **options)
    except (LookupError, TypeError) as error:
        raise ConfigError(f"{spec}: {error}") from None
    return made


def _replace_pattern(
    done: Instrumentation, target: Any, pattern: str, options: dict[str, Any]
) -> None:
    before = len(done.names)
    outer, dot, inner = pattern.rpartition(".")
    if dot:
        for name, owner in list(vars(target).items()):
            if isinstance(owner, type) and fnmatch.fnmatchcase(name, outer):
                _replace(done, owner, _matcher(inner), options)
    else:
        _replace(done, target, _matcher(pattern), options)
    if len(done.names) == before and not _already(target, pattern):
        raise LookupError(f"{pattern!r} fits no function of {_label(target)}")


def _already(target: Any, pattern: str) -> bool:
    """Whether what the pattern names is traced since before."""
    found = target
    for part in pattern.split("."):
        found = getattr(found, part, None)
    return _is_traced(found)


def _matcher(pattern: str) -> Callable[[str], bool]:
    return lambda name: fnmatch.fnmatchcase(name, pattern)


def _replace(
    done: Instrumentation, target: Any, wanted: Callable[[str], bool], options: dict[str, Any]
) -> None:
    for name, value in _members(target):
        if not wanted(name) or _is_traced(value):
            continue
        if isinstance(value, property):
            new: Any = property(
                traced(value.fget, **options) if value.fget else None,
                value.fset,
                value.fdel,
                value.__doc__,
            )
        else:
            new = traced(value, **options)
        try:
            done.replace(target, name, new)
        except (TypeError, AttributeError) as error:
            raise TypeError(f"{_label(target)}.{name} cannot be replaced: {error}") from None


def _members(target: Any) -> list[tuple[str, Any]]:
    """What of ``target`` can be traced, by name; dunder methods only where they are asked for."""
    if isinstance(target, ModuleType):
        return [
            (name, value)
            for name, value in vars(target).items()
            if inspect.isroutine(value) and getattr(value, "__module__", None) == target.__name__
        ]
    if isinstance(target, type):
        return [
            (name, value)
            for name, value in vars(target).items()
            if isinstance(value, staticmethod | classmethod | property) or inspect.isroutine(value)
        ]
    if not hasattr(target, "__dict__"):
        raise TypeError(f"{target!r} has no attributes that could be replaced")
    return [
        (name, value)
        for name, value in inspect.getmembers(target, inspect.ismethod)
        if not name.startswith("__")
    ]


def _label(target: Any) -> str:
    return str(getattr(target, "__qualname__", getattr(target, "__name__", repr(target))))


def _is_traced(function: Any) -> bool:
    if isinstance(function, staticmethod | classmethod | MethodType):
        function = function.__func__
    return isinstance(function, Traced) or _MARK in getattr(function, "__dict__", ())


def _no_driver(*_: object) -> None:
    raise AssertionError("a plain function is not driven")


def _form(function: Any) -> int:
    """Which of the four forms a callable is; partials, methods and callable objects included."""
    while isinstance(function, functools.partial):
        function = function.func
    if not inspect.isroutine(function) and not isinstance(function, Traced):
        function = getattr(type(function), "__call__", function)  # noqa: B004  (asks for its kind)
    if inspect.iscoroutinefunction(function):
        return COROUTINE
    if inspect.isasyncgenfunction(function):
        return ASYNC_GENERATOR
    if inspect.isgeneratorfunction(function):
        return GENERATOR
    return FUNCTION


def _name(function: Any) -> str:
    while isinstance(function, functools.partial):
        function = function.func
    name = getattr(function, "__qualname__", None) or type(function).__qualname__
    module = getattr(function, "__module__", None)
    return f"{module}.{name}" if module else name


def _captured(
    function: Any, args: bool | Iterable[str]
) -> tuple[tuple[str, int, str, bool], ...] | None:
    """See ``Traced``: which arguments of a call are recorded."""
    if args is False:
        return None
    try:
        parameters = inspect.signature(function).parameters
    except (TypeError, ValueError):
        if args is True:
            return None  # a builtin without a signature
        raise ValueError(f"args: the parameters of {_name(function)} are not known") from None
    wanted = set(parameters) if args is True else set(args)
    unknown = wanted - set(parameters)
    if unknown:
        raise ValueError(
            f"args: {_name(function)} has no parameter {', '.join(sorted(unknown))}; "
            f"it has {', '.join(parameters) or 'none'}"
        )
    found = []
    for position, (name, parameter) in enumerate(parameters.items()):
        if name not in wanted or (args is True and name in ("self", "cls")):
            continue
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            continue
        by_position = parameter.kind is not parameter.KEYWORD_ONLY
        found.append((name, position if by_position else -1, f"arg.{name}", secret_key(name)))
    return tuple(found)
