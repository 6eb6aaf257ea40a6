"""What ``@traced`` records, for every kind of callable; decoded by opentelemetry-proto."""

from __future__ import annotations

import asyncio
import functools
import gc
import inspect
import logging
import os
import pickle
import weakref

import pytest
from opentelemetry.proto.trace.v1.trace_pb2 import Status
from support.collector import values

from nexus import tracing
from nexus.observability import logs
from nexus.tracing import instrument, traced


@traced
def module_function(a, b=2):
    """Adds."""
    return a + b


def test_off_changes_nothing(current):
    seen = []

    @traced(args=True)
    def work(x, *, y=1):
        seen.append(current())
        return x + y

    assert work(1, y=2) == 3
    assert seen == [None]
    with pytest.raises(TypeError):
        work()


def test_stands_where_the_function_stood():
    assert module_function.__name__ == "module_function"
    assert module_function.__doc__ == "Adds."
    assert str(inspect.signature(module_function)) == "(a, b=2)"
    assert pickle.loads(pickle.dumps(module_function)) is module_function  # noqa: S301

    @traced
    async def coroutine():
        pass

    @traced
    def generator():
        yield

    @traced
    async def stream():
        yield

    assert inspect.iscoroutinefunction(coroutine)
    assert asyncio.iscoroutinefunction(coroutine)
    assert inspect.isgeneratorfunction(generator)
    assert inspect.isasyncgenfunction(stream)
    assert inspect.iscoroutinefunction(functools.partial(coroutine))


@pytest.mark.parametrize("switched", ["off", "on", "unsampled"])
def test_arguments_come_as_they_were_given(on, switched):
    """By every way in which the interpreter calls."""

    class Shop:
        @traced
        def method(self, *args, **kwargs):
            return self, args, kwargs

        @classmethod
        @traced
        def of_class(cls, *args, **kwargs):
            return cls, args, kwargs

    @traced
    def work(*args, **kwargs):
        return args, kwargs

    if switched != "off":
        on(ratio=1.0 if switched == "on" else 0.0)
    names = {f"name{number}": number for number in range(20)}
    assert work() == ((), {})
    assert work(1, b=2) == ((1,), {"b": 2})
    assert work(*range(30), **names) == (tuple(range(30)), names)
    assert functools.partial(work, 1, a=2)(3, b=4) == ((1, 3), {"a": 2, "b": 4})
    assert type(work).__call__(work, 1, b=2) == ((1,), {"b": 2})
    assert list(map(work, "ab")) == [(("a",), {}), (("b",), {})]
    assert sorted([3, 1, 2], key=traced(lambda number: -number)) == [3, 2, 1]
    shop = Shop()
    assert shop.method(1, b=2) == (shop, (1,), {"b": 2})
    assert Shop.method(shop, b=2) == (shop, (), {"b": 2})
    bound = shop.method
    assert bound(*range(3)) == (shop, (0, 1, 2), {})
    assert Shop.of_class(1, b=2) == shop.of_class(1, b=2) == (Shop, (1,), {"b": 2})
    with pytest.raises(TypeError, match=r"unexpected keyword argument 'wrong'"):
        module_function(1, wrong=2)
    assert len(inspect.signature(module_function).parameters) == 2


def test_function_start_end_parent_and_arguments(on, sent):
    @traced(name="inner", args=["item", "api_token", "when"], attributes={"tier": "gold", "n": 1})
    def inner(item, api_token, *, when=None, other=5):
        return item

    @traced
    def outer():
        return inner("book", "s3cr3t-value", when=[1, 2])

    on()
    assert outer() == "book"
    spans = sent()
    child = spans["inner"]
    parent = spans[f"{__name__}.{outer.__qualname__}"]
    assert child.parent_span_id == parent.span_id
    assert child.trace_id == parent.trace_id
    assert parent.parent_span_id == b""
    assert values(child) == {
        "tier": "gold",
        "n": 1,
        "arg.item": "book",
        "arg.api_token": "********",
        "arg.when": [1, 2],
    }
    assert parent.start_time_unix_nano <= child.start_time_unix_nano
    assert child.end_time_unix_nano <= parent.end_time_unix_nano + 1_000_000
    assert child.flags & 0x101 == 0x101


def test_values_are_settled_at_the_call_and_redacted(on, sent):
    class Odd:
        def __repr__(self):
            raise RuntimeError

    @traced(name="f", args=True)
    def f(self, text, number, flag, nothing, odd, big, wire):
        pass

    on()
    f(None, "Bearer abcdefghijklmnop", 1.5, True, None, Odd(), 1 << 80, b"\xff")
    found = values(sent()["f"])
    assert "self" not in str(found)
    assert found["arg.text"] == "Bearer ********"
    assert found["arg.number"] == 1.5
    assert found["arg.flag"] is True
    assert found["arg.nothing"] == "None"
    assert "no repr" in found["arg.odd"]
    assert found["arg.big"] == str(1 << 80)
    assert found["arg.wire"] == "\\xff"


def test_error_is_recorded_and_goes_on(on, sent):
    @traced(name="fails")
    def fails():
        raise LookupError("password=hunter22 is wrong")

    on()
    with pytest.raises(LookupError):
        fails()
    span = sent()["fails"]
    assert span.status.code == Status.STATUS_CODE_ERROR
    assert span.status.message == "LookupError: password=******** is wrong"
    assert values(span)["error.type"] == "LookupError"
    (event,) = span.events
    assert event.name == "exception"
    assert values(event)["exception.type"] == "LookupError"
    assert "in fails" in values(event)["exception.stacktrace"]
    assert "hunter22" not in str(span)


def test_min_duration_keeps_slow_failed_and_referred_to(on, sent):
    @traced(name="quick", min_duration=5)
    def quick():
        leaf()

    @traced(name="leaf")
    def leaf():
        pass

    @traced(name="failing", min_duration=5)
    def failing():
        raise ValueError

    @traced(name="sending", min_duration=5)
    def sending():
        return tracing.inject()

    @traced(name="top")
    def top():
        quick()
        with pytest.raises(ValueError, match=r"^$"):
            failing()
        return sending()

    on()
    carrier = top()
    spans = sent()
    assert sorted(spans) == ["failing", "leaf", "sending", "top"]
    # The child of a span that is not recorded hangs below the one above it.
    assert spans["leaf"].parent_span_id == spans["top"].span_id
    assert spans["sending"].span_id.hex() in carrier["traceparent"]


def test_chains_of_short_spans_are_not_kept(on):
    alive = weakref.WeakSet()

    class Mark:
        pass

    @traced(name="link", min_duration=5)
    async def link(left):
        mark = Mark()
        alive.add(mark)
        tracing.current_span().set_attribute("n", left)
        if left:
            tasks.append(asyncio.get_running_loop().create_task(link(left - 1)))

    tasks = []

    async def main():
        tasks.append(asyncio.get_running_loop().create_task(link(50)))
        while not all(t.done() for t in tasks):
            await asyncio.sleep(0)

    on()
    asyncio.run(main())
    tasks.clear()
    gc.collect()
    assert not alive
    kernel = [o for o in gc.get_objects() if type(o).__name__ == "Span" and hasattr(o, "withheld")]
    assert len(kernel) < 10


async def test_coroutines_keep_their_span_over_awaits(on, sent, current):
    @traced(name="child")
    async def child(delay):
        before = current()
        await asyncio.sleep(delay)
        assert current() is before
        return before.name

    @traced(name="parent")
    async def parent():
        assert await asyncio.gather(child(0.02), child(0.01)) == ["child", "child"]
        assert current().name == "parent"

    on()
    await parent()
    assert current() is None
    tracing.flush()
    spans = sent()
    assert spans["child"].parent_span_id == spans["parent"].span_id
    assert spans["child"].end_time_unix_nano - spans["child"].start_time_unix_nano >= 9_000_000


async def test_wrong_arguments_and_cancellation(on, sent):
    @traced(name="waits")
    async def waits():
        await asyncio.sleep(10)

    on()
    with pytest.raises(TypeError):
        waits(1)
    task = asyncio.create_task(waits())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    span = sent()["waits"]
    assert values(span) == {"nexus.outcome": "cancelled"}
    assert span.status.code == Status.STATUS_CODE_UNSET


def test_generator_gives_the_span_up_at_every_yield(on, sent, current):
    @traced(name="numbers")
    def numbers(n):
        got = []
        for i in range(n):
            assert current().name == "numbers"
            try:
                got.append((yield i))
            except KeyError:
                got.append("thrown")
        return got

    on()
    steps = numbers(3)
    assert current() is None
    assert next(steps) == 0
    assert current() is None
    assert steps.send("a") == 1
    assert steps.throw(KeyError()) == 2
    with pytest.raises(StopIteration) as stop:
        steps.send("c")
    assert stop.value.value == ["a", "thrown", "c"]
    assert sent()["numbers"].status.code == Status.STATUS_CODE_UNSET


def test_abandoned_generators_leave_nothing(on, sent, current):
    closed = []

    @traced(name="abandoned")
    def abandoned():
        try:
            yield 1
            yield 2
        finally:
            closed.append(current().name)

    on()
    steps = abandoned()
    next(steps)
    unstarted = abandoned()
    inner = weakref.ref(unstarted)
    del steps, unstarted
    gc.collect()
    assert closed == ["abandoned"]
    assert inner() is None
    assert current() is None
    assert sent()["abandoned"].status.code == Status.STATUS_CODE_UNSET
    assert tracing.counts()["made"] == 1


async def test_async_generators(on, sent, current):
    closed = []

    @traced(name="stream")
    async def stream(n):
        try:
            for i in range(n):
                await asyncio.sleep(0)
                assert current().name == "stream"
                got = yield i
                assert got in (None, "x")
        finally:
            closed.append(current().name)

    on()
    assert [i async for i in stream(3)] == [0, 1, 2]
    steps = stream(5)
    assert await anext(steps) == 0
    assert await steps.asend("x") == 1
    assert current() is None
    await steps.aclose()
    abandoned = stream(5)
    await anext(abandoned)
    del abandoned
    gc.collect()
    await asyncio.sleep(0.01)  # the loop closes it in a task of its own
    assert closed == ["stream"] * 3
    tracing.flush()
    assert tracing.counts()["exported"] == 3
    failing = stream(1)
    await anext(failing)
    with pytest.raises(ZeroDivisionError):
        await failing.athrow(ZeroDivisionError())
    assert sent()
    assert tracing.counts()["exported"] == 4


def test_methods_partials_callables_and_properties(on, sent):
    class Shop:
        @traced(name="method", args=True)
        def method(self, n):
            return n

        @traced(name="static")
        @staticmethod
        def static(n):
            return n

        @traced(name="of class")
        @classmethod
        def of_class(cls, n):
            return cls, n

        @property
        @traced(name="property")
        def owner(self):
            return "me"

        @traced(name="async method")
        async def later(self, n):
            return n

        def plain(self, n):
            return n

        def __call__(self, n):
            return n

    on()
    shop = Shop()
    assert shop.method(1) == 1
    assert shop.static(2) == 2
    assert Shop.of_class(3) == (Shop, 3)
    assert shop.owner == "me"
    assert asyncio.run(shop.later(4)) == 4
    assert traced(functools.partial(shop.method, 5), name="partial")() == 5
    assert traced(shop, name="callable")(6) == 6
    assert traced(len, name="builtin")("abc") == 3
    assert traced(shop.plain, name="bound")(7) == 7
    assert traced(shop.method, name="twice")(8) == 8  # is traced already
    assert set(sent()) == {
        *("method", "static", "of class", "property", "async method"),
        *("partial", "callable", "builtin", "bound"),
    }


@pytest.mark.parametrize("wrong", [3, "x", int])
def test_what_cannot_be_traced(wrong):
    with pytest.raises(TypeError, match="expected a function"):
        traced(wrong)


def test_wrong_options():
    with pytest.raises(ValueError, match="has no parameter c; it has a, b"):
        traced(args=["c"])(lambda a, b: a)
    with pytest.raises(ValueError, match="at least 0"):
        traced(min_duration=-1)(lambda: 0)


def test_sampling_is_decided_once_for_a_trace(on, sent, current):
    @traced(name="root")
    def root():
        assert not current().is_recording()
        first = tracing.inject()["traceparent"]
        return first, below()

    @traced(name="below")
    def below():
        return tracing.inject()["traceparent"]

    on(0.0)
    here, there = root()
    assert here == there  # the same trace, and the flag says so to the next service
    assert here.endswith("-00")
    on(0.5)
    for _ in range(400):
        root() if False else below()
    tracing.flush()
    made = tracing.counts()["made"]
    assert 120 < made < 280
    assert sent()["below"]


def test_the_share_is_drawn_as_opentelemetry_draws_it(on):
    from opentelemetry.sdk.trace.sampling import Decision, TraceIdRatioBased

    from nexus.tracing.state import STATE

    on(0.3)
    sdk = TraceIdRatioBased(0.3)
    for trace_id in (1, 1 << 63, (1 << 64) - 1, int(0.3 * 2**64), int(0.29 * 2**64), 0xABC << 100):
        theirs = sdk.should_sample(None, trace_id, "x").decision is Decision.RECORD_AND_SAMPLE
        assert STATE.decide(trace_id) is theirs


def test_ids_tell_what_was_decided(on):
    """To a service below that goes by the id alone, as OpenTelemetry's ratio sampler does."""
    from nexus.tracing.kernel import start
    from nexus.tracing.state import STATE

    on(0.3)
    contexts = [start(STATE, "root").get_span_context() for _ in range(1000)]
    sampled = [bool(context.trace_flags & 1) for context in contexts]
    assert sampled == [STATE.decide(context.trace_id) for context in contexts]
    assert 180 < sum(sampled) < 420
    assert len({context.trace_id >> 64 for context in contexts}) == 1000
    assert len({context.trace_id & (1 << 64) - 1 for context in contexts}) == 1000
    assert all(context.is_valid for context in contexts)


def test_instrument_class_instance_and_module(on, sent):
    class Store:
        def get(self, key):
            return self._load(key)

        def _load(self, key):
            return key

        async def get_later(self, key):
            return key

        @staticmethod
        def size():
            return 1

    original = vars(Store)["get"]
    on()
    with instrument(Store, include=["get*", "size"], args=True) as done:
        assert sorted(done.names) == ["get", "get_later", "size"]
        assert instrument(Store, include="get").names == ()  # once is enough
        store = Store()
        assert store.get("a") == "a"
        assert asyncio.run(store.get_later("b")) == "b"
        assert Store.size() == 1
    assert vars(Store)["get"] is original
    one, other = Store(), Store()
    done = instrument(one)
    assert one.get(1) == other.get(1) == 1
    done.undo()
    assert vars(one) == {}
    assert sent()
    assert tracing.counts()["exported"] == 4
    with pytest.raises(LookupError, match="'nothing' fits no function of"):
        instrument(Store, include="nothing")
    with pytest.raises(TypeError, match="cannot be replaced"):
        instrument(dict, include="get")
    assert instrument(len)("ab") == 2


def test_instrument_by_name(on, sent):
    from nexus.errors import ConfigError
    from nexus.tracing import instrument_named

    on()
    with instrument_named("nexus.clock:iso_*"):
        import nexus.clock

        nexus.clock.iso_utc(0)
    assert "nexus.clock.iso_utc" in sent()
    for wrong, why in (
        ("nexus.clock", "expected package.module:function"),
        ("nexus.nothing:x", "cannot be imported"),
        ("nexus.clock:nothing", "fits no function"),
    ):
        with pytest.raises(ConfigError, match=why):
            instrument_named(wrong)


def test_log_lines_say_under_which_span(on, request):
    read, write = os.pipe()
    level = logging.getLogger().level
    request.addfinalizer(lambda: (os.close(read), os.close(write)))
    request.addfinalizer(lambda: logging.getLogger().setLevel(level))
    request.addfinalizer(logs.unconfigure)
    logs.configure("info", "json", "test", fd=write)

    @traced
    def says():
        logging.getLogger("shop").info("here")
        return tracing.current_span().get_span_context()

    on()
    context = says()
    logging.getLogger("shop").info("outside")
    logs.flush()
    first, second = os.read(read, 65536).decode().splitlines()
    assert f'"trace_id":"{context.trace_id:032x}"' in first
    assert f'"span_id":"{context.span_id:016x}"' in first
    assert "trace_id" not in second


@pytest.mark.parametrize(
    "value",
    [True, False, 0, 3, -3, 1 << 40, 1.5, -0.0, float("inf"), float("nan"), "x", b"y", (1, 2)],
)
def test_attributes_are_encoded_as_protobuf_encodes_them(value):
    from opentelemetry.proto.trace.v1.trace_pb2 import Span as Message

    from nexus.tracing import encode

    theirs = Message(attributes=[encode._pair("key", value)])
    ours = Message.FromString(encode._attribute("key", value))
    assert ours.SerializeToString() == theirs.SerializeToString()
