# cython: annotation_typing=False
"""Spans of functions, and what a decorated call costs: the part that runs with every call.

::

    Traced.__call__ ── off ─────────► the function, nothing else
                    ── unsampled ───► the function, under a parent that says "not sampled"
                    ── sampled ─────► Span ► the function ► end ► queue ──► exporter's thread

A span is current through OpenTelemetry's own context, so ``opentelemetry.trace.get_current_span()``
finds it and the SDK's spans become its children; ``Span`` answers to the interface of
``opentelemetry.trace.Span``. Nothing is formatted here: ids are numbers, values are kept as they
are, and the exporter encodes and redacts later.

One source, compiled as ``_kernel_c``.
"""

from __future__ import annotations

import asyncio
import functools
import os
import random
import time
import traceback
from collections import deque
from types import MethodType, TracebackType
from typing import TYPE_CHECKING, Any

import cython  # type: ignore[import-untyped]
from opentelemetry import context as _otel
from opentelemetry.trace import SpanContext, TraceFlags, TraceState
from opentelemetry.trace.propagation import _SPAN_KEY

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

__all__ = [
    "ASYNC_GENERATOR",
    "COROUTINE",
    "FUNCTION",
    "GENERATOR",
    "Span",
    "State",
    "Traced",
    "begin",
    "enter",
    "finish",
    "leave",
    "start",
]

#: What a wrapped callable is.
FUNCTION = 0
COROUTINE = 1
GENERATOR = 2
ASYNC_GENERATOR = 3

#: The SDK's defaults for one span; what is beyond is counted in the span.
MAX_ATTRIBUTES = 128
MAX_EVENTS = 128
MAX_LINKS = 128
#: Characters of the text of a value that is neither text nor number, and of a stack.
MAX_REPR = 256
MAX_STACK = 8192

_UNSET = 0
_OK = 1
_ERROR = 2

_HALF = (1 << 64) - 1

# Not for secrets; seeded again after every fork, or processes would draw alike.
_random = random.Random()
os.register_at_fork(after_in_child=_random.seed)
_draw = _random.getrandbits
_uniform = _random.random
_wall = time.time_ns
_clock = time.perf_counter_ns
#: By sampled, and twice the random flag of W3C Trace Context Level 2.
_FLAGS = tuple(TraceFlags(bits) for bits in range(4))
_key = _SPAN_KEY

# The functions behind opentelemetry.context: the context variable itself, where it is one.
_variable: Any = getattr(_otel._RUNTIME_CONTEXT, "_current_context", None)  # noqa: SLF001
if _variable is None:
    _get = _otel.get_current
    _attach = _otel.attach
    _detach = _otel.detach
else:
    _get = _variable.get
    _attach = _variable.set
    _detach = _variable.reset

#: Exceptions by which code says that it is done, not that it failed.
_ENDINGS = (StopIteration, StopAsyncIteration, GeneratorExit, SystemExit)


class State:
    """What decides about spans, and where they go. One for each process."""

    __slots__ = (
        "always",
        "batch",
        "bound",
        "dropped",
        "limit",
        "never",
        "on",
        "parent_based",
        "queue",
        "ratio",
        "sdk",
        "wake",
    )

    def __init__(self) -> None:
        self.on = False
        #: The share of roots that are sampled, and what the last 64 bits of their ids are below.
        self.ratio = 1.0
        self.bound = _HALF
        self.always = True
        self.never = False
        self.parent_based = True
        #: A tracer of the OpenTelemetry SDK, which then makes the spans; else ``None``.
        self.sdk: Any = None
        self.queue: deque[Span] = deque()
        self.limit = 0
        self.batch = 512
        self.dropped = 0
        self.wake: Any = None

    def sample(self, ratio: float, parent_based: bool) -> None:
        """``ratio``: share of roots that are sampled, 0 to 1."""
        self.ratio = ratio
        self.bound = max(0, min(round(ratio * 2**64), _HALF))
        self.always = ratio >= 1.0
        self.never = ratio <= 0.0
        self.parent_based = parent_based

    def push(self, span: Span) -> None:
        """Give a span that has ended to the exporter; a full queue drops and counts."""
        waiting = len(self.queue)
        if waiting >= self.limit:
            self.dropped += 1
            return
        self.queue.append(span)
        if waiting + 1 >= self.batch and self.wake is not None:
            self.wake()

    def decide(self, trace_id: Any) -> bool:
        """Whether a new trace is sampled; as OpenTelemetry's ``TraceIdRatioBased``."""
        if self.always:
            return True
        if self.never:
            return False
        return bool((trace_id & _HALF) < self.bound)


class Span:
    """One operation. The interface is that of ``opentelemetry.trace.Span``.

    Also a context manager: ``with span:`` ends it, and records an exception that leaves the block.
    """

    __slots__ = (
        "_context",
        "_state",
        "attributes",
        "description",
        "dropped_attributes",
        "dropped_events",
        "dropped_links",
        "duration_ns",
        "ended",
        "events",
        "kind",
        "links",
        "min_ns",
        "name",
        "needed",
        "parent",
        "parent_id",
        "parent_remote",
        "random_id",
        "sampled",
        "scope",
        "span_id",
        "started",
        "started_ns",
        "status",
        "trace_id",
        "trace_state",
        "withheld",
    )

    def __init__(self, *_: object) -> None:
        raise TypeError("spans are made by span(), @traced or a tracer")

    def set_up(self, state: State, name: str, sampled: bool) -> None:
        """A new span's fields. No ``__init__``: to call one costs more than all of these."""
        self._state = state
        self.name = name
        self.sampled = sampled
        self.trace_id: Any = 0
        self.span_id: Any = 0
        self.parent_id: Any = 0
        self.description = ""
        if cython.compiled:
            return  # the rest is zero and None from the start
        self._context: Any = None
        self.kind = 0  # as opentelemetry.trace.SpanKind: internal
        self.parent_remote = False
        #: The parent itself while it may yet turn out too short to be recorded.
        self.parent: Any = None
        self.trace_state: Any = None
        #: Wall clock at the start, nanoseconds since the Unix epoch; monotonic at the start.
        self.started_ns = 0
        self.started = 0
        self.duration_ns = 0
        self.min_ns = 0
        self.ended = False
        #: Somebody refers to it by its id: it is recorded however short it was.
        self.needed = False
        #: It ended below ``min_duration`` and was not recorded.
        self.withheld = False
        self.random_id = False
        self.attributes: Any = None
        self.events: Any = None
        self.links: Any = None
        self.status = _UNSET
        self.scope: Any = None
        self.dropped_attributes = 0
        self.dropped_events = 0
        self.dropped_links = 0

    # ----------------------------------------------------------- the interface of OpenTelemetry

    def is_recording(self) -> bool:
        return self.sampled and not self.ended

    def get_span_context(self) -> SpanContext:
        """The identity that others refer to; once asked for, the span is recorded if sampled."""
        self.needed = True
        context: Any = self._context
        if context is None:
            self._identify()
            context = self._context = SpanContext(
                self.trace_id,
                self.span_id,
                False,
                _FLAGS[(1 if self.sampled else 0) + (2 if self.random_id else 0)],
                self.trace_state if self.trace_state is not None else TraceState(),
            )
        found: SpanContext = context
        return found

    @property
    def context(self) -> SpanContext:
        """As the SDK's spans have it."""
        return self.get_span_context()

    def set_attribute(self, key: str, value: object) -> None:
        """Text, numbers, booleans and sequences of these; anything else as its ``repr``."""
        if not self.sampled or self.ended or value is None:
            return
        attributes = self.attributes
        if attributes is None:
            attributes = self.attributes = {}
        elif len(attributes) >= MAX_ATTRIBUTES and key not in attributes:
            self.dropped_attributes += 1
            return
        kind = type(value)
        if kind is str or kind is int or kind is float or kind is bool:
            attributes[key] = value
        else:
            attributes[key] = _settled(value)

    def set_attributes(self, attributes: Mapping[str, Any]) -> None:
        for key, value in attributes.items():
            self.set_attribute(key, value)

    def add_event(
        self,
        name: str,
        attributes: Mapping[str, Any] | None = None,
        timestamp: int | None = None,
    ) -> None:
        """``timestamp``: nanoseconds since the Unix epoch; default: now."""
        if not self.sampled or self.ended:
            return
        if self.events is None:
            self.events = []
        if len(self.events) >= MAX_EVENTS:
            self.dropped_events += 1
            return
        at = _wall() if timestamp is None else timestamp
        kept = {k: _settled(v) for k, v in (attributes or {}).items() if v is not None}
        self.events.append((name, at, kept))

    def add_link(self, context: SpanContext, attributes: Mapping[str, Any] | None = None) -> None:
        if not self.sampled or self.ended or not context.is_valid:
            return
        if self.links is None:
            self.links = []
        if len(self.links) >= MAX_LINKS:
            self.dropped_links += 1
            return
        kept = {k: _settled(v) for k, v in (attributes or {}).items() if v is not None}
        self.links.append((context, kept))

    def update_name(self, name: str) -> None:
        if not self.ended:
            self.name = name

    def set_status(self, status: Any, description: str | None = None) -> None:
        """A ``StatusCode``, or a ``Status`` with its description; OK is final."""
        if not self.sampled or self.ended or self.status == _OK:
            return
        code = getattr(status, "status_code", status)
        number = int(getattr(code, "value", code))
        if number == _UNSET:
            return
        self.status = number
        text = description or getattr(status, "description", None)
        self.description = text if number == _ERROR and text else ""

    def record_exception(
        self,
        exception: BaseException,
        attributes: Mapping[str, Any] | None = None,
        timestamp: int | None = None,
        escaped: bool = False,  # noqa: ARG002  (of the interface; deprecated there)
    ) -> None:
        if not self.sampled or self.ended:
            return
        stack = "".join(traceback.format_exception(exception))
        said = {
            "exception.type": _type_name(exception),
            "exception.message": str(exception),
            "exception.stacktrace": stack[-MAX_STACK:],
        }
        self.add_event("exception", {**said, **(attributes or {})}, timestamp)

    def end(self, end_time: int | None = None) -> None:
        """Over. ``end_time``: nanoseconds since the Unix epoch; later calls change nothing."""
        if self.ended:
            return
        self.ended = True
        if not self.sampled:
            return
        if end_time is None:
            self.duration_ns = _clock() - self.started
        else:
            self.duration_ns = max(0, end_time - self.started_ns)
        parent = self.parent
        if parent is not None and parent.ended:
            # Or a chain of tasks, each started by the one before, would be kept for ever.
            self.parent_id = visible_parent(self)
            self.parent = None
        if self.duration_ns < self.min_ns and self.status != _ERROR and not self.needed:
            self.withheld = True
            return
        self._state.push(self)

    def __enter__(self) -> Span:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc_val: BaseException | None,
        exc_tb: TracebackType | None,
    ) -> None:
        self.failed(exc_val)
        self.end()

    # --------------------------------------------------------------------------------- our own

    def failed(self, error: BaseException | None) -> None:
        """What became of the operation, by the exception that left it."""
        if error is None or not self.sampled or self.ended or isinstance(error, _ENDINGS):
            return
        if isinstance(error, asyncio.CancelledError):
            self.set_attribute("nexus.outcome", "cancelled")
            return
        self.record_exception(error)
        self.set_attribute("error.type", _type_name(error))
        if self.status == _UNSET:
            self.status = _ERROR
            self.description = f"{type(error).__name__}: {error}"

    def _identify(self) -> None:
        """Ids of a span that nobody had asked for them yet: one that is not sampled."""
        if not self.trace_id:
            # Of those that ``decide`` says no to.
            bound: Any = self._state.bound
            low = bound + (_draw(64) * (_HALF + 1 - bound) >> 64)
            self.trace_id = (_draw(64) or 1) << 64 | low
        if not self.span_id:
            self.span_id = _draw(64) or 1


def visible_parent(span: Span) -> Any:
    """The id of the nearest ancestor that is recorded; 0 at a root."""
    parent = span.parent
    if parent is None:
        return span.parent_id
    if parent.withheld:
        return visible_parent(parent)
    # Recorded already, or from now on in any case.
    parent.needed = True
    return parent.span_id


def _type_name(error: BaseException) -> str:
    kind = type(error)
    module = kind.__module__
    return kind.__qualname__ if module == "builtins" else f"{module}.{kind.__qualname__}"


def _settled(value: Any) -> Any:
    """A value that does not change any more and keeps nothing alive."""
    if value is None or isinstance(value, str | bool | int | float | bytes):
        return value
    if isinstance(value, list | tuple) and all(
        isinstance(item, str | bool | int | float) for item in value[:MAX_ATTRIBUTES]
    ):
        return tuple(value[:MAX_ATTRIBUTES])
    try:
        return repr(value)[:MAX_REPR]
    except Exception as error:  # noqa: BLE001  (any class may have any __repr__)
        return f"<{type(value).__name__}: no repr, {type(error).__name__}>"


# ---------------------------------------------------------------------------- start and context


def start(state: State, name: str, context: Any = None) -> Any:
    """A new span under the span of ``context`` (default: the current one); not yet current.

    ``None``: its parent is not sampled, and so neither is it; nothing has to be done for it.
    """
    if context is None:
        context = _get()
    parent: Any = context.get(_key) if context else None
    if type(parent) is Span:
        return _child(state, name, parent)
    if parent is not None:
        given = parent.get_span_context()
        if given.is_valid:
            return _under(state, name, given)
    span: Any = Span.__new__(Span)
    if state.always:
        span.set_up(state, name, True)
        span.trace_id = _draw(128) or 1
    elif state.never:
        span.set_up(state, name, False)
        return span
    else:
        # The decision first, then an id that gives the same one to whoever decides by the id: most
        # are not sampled, and few of these are asked for theirs.
        sampled = _uniform() < state.ratio
        span.set_up(state, name, sampled)
        if not sampled:
            return span
        bound: Any = state.bound
        span.trace_id = (_draw(64) or 1) << 64 | (_draw(64) * bound >> 64)
    span.span_id = _draw(64) or 1
    span.started_ns = _wall()
    span.started = _clock()
    return span


def _child(state: State, name: str, parent: Span) -> Any:
    if not parent.sampled:
        return None
    span: Any = Span.__new__(Span)
    span.set_up(state, name, True)
    span.trace_id = parent.trace_id
    span.span_id = _draw(64) or 1
    span.parent_id = parent.span_id
    if parent.min_ns:
        span.parent = parent
    span.random_id = parent.random_id
    span.trace_state = parent.trace_state
    span.started_ns = _wall()
    span.started = _clock()
    return span


def _under(state: State, name: str, given: Any) -> Any:
    """Below a span that is not ours: of another process, or of the SDK."""
    if state.parent_based:
        sampled = bool(given.trace_flags & 1)
    else:
        sampled = state.decide(given.trace_id)
    span: Any = Span.__new__(Span)
    span.set_up(state, name, sampled)
    span.trace_id = given.trace_id
    span.random_id = bool(given.trace_flags & 2)
    span.span_id = _draw(64) or 1
    span.parent_id = given.span_id
    span.parent_remote = bool(given.is_remote)
    span.trace_state = given.trace_state
    span.started_ns = _wall()
    span.started = _clock()
    return span


def enter(span: Any) -> Any:
    """Make ``span`` the current one; the token is for :func:`leave`."""
    context = _get()
    # OpenTelemetry's Context is a dict that refuses to be written to, which nobody does; to make
    # one costs as much as the rest of an unsampled call.
    merged: Any = {**context, _key: span} if context else {_key: span}
    return _attach(merged)


def leave(token: Any) -> None:
    """What was current before :func:`enter` is so again."""
    try:  # noqa: SIM105  (a context manager would cost as much as all of this)
        _detach(token)
    except (ValueError, RuntimeError):
        # A coroutine or generator that was abandoned is closed by whoever collects it, in another
        # context: there is nothing to be put back there.
        pass


def begin(traced: Traced, args: Any, kwargs: Any) -> Any:
    """The span of one call of ``traced``, not yet current; ``None``: there is none."""
    state = traced.state
    if state.sdk is not None:
        span = state.sdk.start_span(traced.span_name)
        if span.is_recording():
            span.set_attributes(traced.describe(args, kwargs))
        return span
    ours = start(state, traced.span_name)
    if ours is not None and ours.sampled:
        ours.min_ns = traced.min_ns
        if traced.captured is not None:
            ours.attributes = traced.describe(args, kwargs)
        elif traced.attributes is not None:
            ours.attributes = traced.attributes.copy()
    return ours


def finish(traced: Traced, span: Any, error: BaseException | None) -> None:
    """The call is over, by ``error`` or without."""
    if type(span) is Span:
        ours = span
        if error is not None:
            ours.failed(error)
        ours.end()
        return
    traced.finish_foreign(span, error)


class Traced:
    """A callable whose calls are spans. It stands where the function stood.

    ``inspect``, ``asyncio`` and the frameworks that ask them see the function's own kind (it has
    the function's ``__code__``), signature, name and documentation. As an attribute of a class it
    binds like the function itself.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        state: State,
        form: int,
        span_name: str,
        attributes: dict[str, Any] | None,
        captured: tuple[tuple[str, int, str, bool], ...] | None,
        min_ns: int,
        drive: Callable[..., Any],
    ) -> None:
        """``form``: FUNCTION, COROUTINE, …; ``captured``: (parameter, position or -1, attribute,
        whether its value is a secret) of each argument that is recorded; ``drive(traced, args,
        kwargs)``: what runs a call while tracing is on."""
        self.function = function
        self.state = state
        self.form = form
        self.span_name = span_name
        self.attributes = attributes
        self.captured = captured
        self.min_ns = min_ns
        self.drive = drive
        functools.update_wrapper(self, function)

    def __call__(self, /, *args: Any, **kwargs: Any) -> Any:
        if not self.state.on:
            return self.function(*args, **kwargs)
        return self.drive(self, args, kwargs)

    def __get__(self, instance: Any, owner: Any) -> Any:
        function: Any = self.function
        if isinstance(function, MethodType) or not hasattr(type(function), "__get__"):
            return self
        if instance is None:
            return self
        return MethodType(self, instance)

    def __repr__(self) -> str:
        return f"<traced {self.function!r}>"

    def __reduce__(self) -> str:
        name: str = self.__qualname__
        return name

    def __getattr__(self, name: str) -> Any:
        if name in ("__code__", "__defaults__", "__kwdefaults__", "__globals__", "__closure__"):
            return getattr(self.function, name)
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    def describe(self, args: Any, kwargs: Any) -> dict[str, Any]:
        """The attributes of one call."""
        found: dict[str, Any] = {} if self.attributes is None else self.attributes.copy()
        if self.captured is None:
            return found
        given = len(args)
        for parameter, position, attribute, secret in self.captured:
            if 0 <= position < given:
                value = args[position]
            elif parameter in kwargs:
                value = kwargs[parameter]
            else:
                continue
            if secret:
                found[attribute] = "********"
            elif value is None:
                found[attribute] = "None"
            else:
                kind = type(value)
                if kind is str or kind is int or kind is float or kind is bool:
                    found[attribute] = value
                else:
                    found[attribute] = _settled(value)
        return found

    def finish_foreign(self, span: Any, error: BaseException | None) -> None:
        """The same for a span of the SDK's."""
        if span.is_recording():
            if isinstance(error, asyncio.CancelledError):
                span.set_attribute("nexus.outcome", "cancelled")
            elif error is not None and not isinstance(error, _ENDINGS):
                from opentelemetry.trace import Status, StatusCode

                span.record_exception(error)
                span.set_attribute("error.type", _type_name(error))
                text = f"{type(error).__name__}: {error}"
                span.set_status(Status(StatusCode.ERROR, text))
            elif self.min_ns and _wall() - getattr(span, "start_time", 0) < self.min_ns:
                return  # the SDK exports what has ended: this one never does
        span.end()
