"""Every kernel that is measured, once: what is run, on which backends, beside what else.

A case is one line in :data:`CASES`. ``make(module)`` gets the compiled or the pure module and
returns the function that is timed; ``others`` are foreign implementations of the same work. The
gate and the microbenchmarks both read this table, so a new kernel is added here and nowhere else.
"""

from __future__ import annotations

import importlib
import importlib.util
import mmap
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import hiredis
import prometheus_client

from bench import kernels_services as services

__all__ = ["CASES", "Case", "Work", "variants"]

Work = Callable[[], object]


@dataclass(frozen=True)
class Case:
    """One piece of work that a kernel does."""

    #: ``kernel.work``; the kernel is the module's name between ``_`` and ``_py``.
    name: str
    #: Operations in one call of the function, for times per operation.
    operations: int
    make: Callable[[Any], Work]
    others: Mapping[str, Callable[[], Work]] = field(default_factory=dict)
    #: Where the kernel's modules are.
    package: str = "nexus._speedups"

    @property
    def kernel(self) -> str:
        """The kernel's name: ``resp``, ``buckets``, …"""
        return self.name.split(".", 1)[0]


class NotBuiltError(Exception):
    """A kernel's compiled side is not built."""


def variants(case: Case) -> dict[str, Work]:
    """``compiled``, ``pure`` and the others, ready to be called."""
    compiled = f"{case.package}._{case.kernel}_c"
    if importlib.util.find_spec(compiled) is None:
        raise NotBuiltError(f"{compiled} is not built: python setup.py build_ext --inplace")
    works = {
        "compiled": case.make(importlib.import_module(compiled)),
        "pure": case.make(importlib.import_module(f"{case.package}._{case.kernel}_py")),
    }
    return works | {name: make() for name, make in case.others.items()}


# ------------------------------------------------------------------------------------- RESP

_BULK = b"$64\r\n" + b"x" * 64 + b"\r\n"
_ARGUMENTS = (b"SET", b"key:000000001234", b"x" * 64)
#: Its annotations allow one argument only.
_pack_command: Callable[[tuple[bytes, ...]], bytes] = hiredis.pack_command  # type: ignore[assignment]
_COMMAND = _pack_command(_ARGUMENTS)
_COMMANDS = _COMMAND * 100
_BULKS = _BULK * 100
_ARRAY = b"*100\r\n" + _BULK * 100
_HASH = b"%50\r\n" + (b"$5\r\nfield\r\n,1.25\r\n") * 50


def _decoder(name: str, stream: bytes, messages: int) -> Callable[[Any], Work]:
    def make(module: Any) -> Work:
        decoder = getattr(module, name)()
        feed, read = decoder.feed, decoder.read

        def work() -> None:
            feed(stream)
            for _ in range(messages):
                read()

        return work

    return make


def _hiredis(stream: bytes, messages: int) -> Callable[[], Work]:
    def make() -> Work:
        reader = hiredis.Reader()
        feed, gets = reader.feed, reader.gets

        def work() -> None:
            feed(stream)
            for _ in range(messages):
                gets()

        return work

    return make


def _split_decoder(module: Any) -> Work:
    decoder = module.ReplyDecoder()
    pieces = [_ARRAY[start : start + 100] for start in range(0, len(_ARRAY), 100)]

    def work() -> None:
        for piece in pieces:
            decoder.feed(piece)
            decoder.read()

    return work


def _split_hiredis() -> Work:
    reader = hiredis.Reader()
    pieces = [_ARRAY[start : start + 100] for start in range(0, len(_ARRAY), 100)]

    def work() -> None:
        for piece in pieces:
            reader.feed(piece)
            reader.gets()

    return work


_ITEMS = [b"x" * 64] * 100

# ---------------------------------------------------------------------------- RESP boundaries


def _scan_commands(module: Any) -> Work:
    table = module.CommandTable({b"SET": 1, b"GET": 1}, 2)
    scanner = module.CommandScanner(table, 1 << 29, 1 << 16)
    data = bytearray(_COMMANDS)
    return lambda: scanner.scan(data, 0, len(data), 1)


def _scan_replies(module: Any) -> Work:
    scanner = module.ReplyScanner()
    data = bytearray(_BULKS)
    return lambda: scanner.scan(data, 0, len(data), 100)


# --------------------------------------------------------------------------- limits, balance


def _take(module: Any) -> Work:
    # Small enough for the first-level cache, wherever it lies, and every call the same: a table of
    # 128 KiB whose keys were admitted and refused in phases moved by 15 % between processes.
    sets = 64
    table = module.BucketTable(mmap.mmap(-1, module.BucketTable.size(sets)), sets)
    take = table.take
    keys = [module.hash_key(b"10.0.0.%d" % n, 7) for n in range(100)]
    admitted, refused = keys[:50], keys[50:]
    step, forever = 10**6, 1 << 60
    clock = iter(range(10**9, 1 << 59, step))
    for key in refused:
        take(key, 0, forever, 1)

    def work() -> None:
        now = next(clock)
        for key in admitted:
            take(key, now, step, 10)
        for key in refused:
            take(key, now, forever, 1)

    return work


def _hash(module: Any) -> Work:
    hash_key = module.hash_key
    addresses = [b"10.0.%d.%d" % divmod(n, 250) for n in range(100)]

    def work() -> None:
        for address in addresses:
            hash_key(address, 7)

    return work


# ----------------------------------------------------------------------------------- metrics


def _count(module: Any) -> Work:
    inc = module.Counter(memoryview(bytearray(64)).cast("d"), 0).inc

    def work() -> None:
        for _ in range(100):
            inc()

    return work


def _observe(module: Any) -> Work:
    bounds = (1.0, 5.0, 10.0, 25.0, 50.0, 100.0, 250.0, 500.0, 1000.0, 2000.0)
    limits = memoryview(bytearray(8 * len(bounds))).cast("d")
    for index, bound in enumerate(bounds):
        limits[index] = bound
    slots = memoryview(bytearray(8 * 32)).cast("d")
    observe = module.Histogram(slots, 0, limits).observe

    def work() -> None:
        for _ in range(50):
            observe(0.7)
            observe(42.0)

    return work


def _prometheus_count() -> Work:
    inc = prometheus_client.Counter("bench", "", registry=None).inc

    def work() -> None:
        for _ in range(100):
            inc()

    return work


def _prometheus_observe() -> Work:
    buckets = (1.0, 5.0, 10.0, 25.0, 50.0, 100.0, 250.0, 500.0, 1000.0, 2000.0)
    observe = prometheus_client.Histogram("bench", "", buckets=buckets, registry=None).observe

    def work() -> None:
        for _ in range(50):
            observe(0.7)
            observe(42.0)

    return work


# -------------------------------------------------------------------------------------- HTTP

_REQUEST = (
    b"GET /api/products/42?currency=EUR HTTP/1.1\r\nHost: shop.example:3000\r\n"
    b"User-Agent: bench/1.0\r\nAccept: application/json\r\nAccept-Encoding: gzip\r\n"
    b"Authorization: Bearer " + b"a" * 180 + b"\r\nCookie: session=0123456789abcdef\r\n\r\n"
)
_RESPONSE = (
    b"HTTP/1.1 200 OK\r\nServer: nginx/1.22.1\r\nDate: Sat, 21 Nov 2026 10:00:00 GMT\r\n"
    b"Content-Type: application/json\r\nContent-Length: 107\r\nConnection: keep-alive\r\n\r\n"
)


def _request_head(module: Any) -> Work:
    head = module.RequestHead(32_768, 8192, 100)
    data = bytearray(_REQUEST)

    def work() -> None:
        for _ in range(20):
            head.reset()
            head.parse(data, 0, len(data))

    return work


def _response_head(module: Any) -> Work:
    head = module.ResponseHead(32_768, 100)
    data = bytearray(_RESPONSE)

    def work() -> None:
        for _ in range(20):
            head.reset()
            head.parse(data, 0, len(data))

    return work


_NEAR_KEYS = 1000
_NEAR_REQUESTS = [bytearray(b"$14\r\nkey:%010d\r\n" % number) for number in range(_NEAR_KEYS)]


def _near_hits(module: Any) -> Work:
    table = module.NearTable(1 << 24)
    for request in _NEAR_REQUESTS:
        token = table.begin(2, 1, bytes(request))
        table.commit(2, 1, bytes(request), token, _BULK, 9.0, 0)
    probe = table.probe

    def work() -> None:
        for request in _NEAR_REQUESTS:
            probe(2, 1, request, 0, 21, 1.0, 1.0, 0.0, 0, False)
            table.used = 0

    return work


def _near_fills(module: Any) -> Work:
    requests = [bytes(request) for request in _NEAR_REQUESTS]

    def work() -> None:
        # Room for a quarter: three of four fills evict.
        table = module.NearTable(65_536, 4096)
        for request in requests:
            table.commit(2, 1, request, table.begin(2, 1, request), _BULK, 9.0, 0)

    return work


def _lru_hits() -> Work:
    kept = OrderedDict((bytes(request), _BULK) for request in _NEAR_REQUESTS)
    buffer = bytearray(4096)

    def work() -> None:
        for request in _NEAR_REQUESTS:
            key = bytes(request)
            reply = kept[key]
            kept.move_to_end(key)
            buffer[: len(reply)] = reply

    return work


def _lru_fills() -> Work:
    requests = [bytes(request) for request in _NEAR_REQUESTS]

    def work() -> None:
        kept: OrderedDict[bytes, bytes] = OrderedDict()
        for request in requests:
            kept[request] = bytes(_BULK)
            if len(kept) > 250:
                kept.popitem(last=False)

    return work


# ---------------------------------------------------------------------------- decorated calls

_CALLS = 100
_FIVE: dict[str, Any] = {
    "order.id": "o-1234",
    "order.items": 3,
    "order.total": 19.99,
    "customer.gold": True,
    "warehouse": "north",
}


def _plain(first: int, second: int) -> int:
    return first + second


def _plain_calls() -> Work:
    def work() -> None:
        for _ in range(_CALLS):
            _plain(1, second=2)

    return work


def _decorated_calls(ratio: float | None) -> Callable[[Any], Work]:
    """``ratio``: share of the calls that are sampled; ``None``: tracing is off."""

    def make(module: Any) -> Work:
        kernel = importlib.import_module(module.__name__.replace("._call_", "._kernel_"))
        state = kernel.State()
        traced = kernel.Traced(_plain, state, kernel.FUNCTION, "plain", _FIVE, None, 0, None)
        called = module.as_function(traced)
        state.limit, state.batch, state.on = _CALLS, 1 << 40, ratio is not None
        state.sample(ratio or 0.0, True)

        def work() -> None:
            state.queue.clear()
            for _ in range(_CALLS):
                called(1, second=2)

        return work

    return make


def _sdk_calls() -> Work:
    from opentelemetry.sdk.trace import TracerProvider

    tracer = TracerProvider().get_tracer("bench")

    def work() -> None:
        for _ in range(_CALLS):
            with tracer.start_as_current_span("plain", attributes=_FIVE):
                _plain(1, second=2)

    return work


#: Weights of the contract's example and of a long list.
_WEIGHTS = [2, 1, 5, 3, 10, 7, 1, 1]

_OBSERVABILITY, _POLICY, _GATEWAY = "nexus.observability", "nexus.policy", "nexus.gateway"

CASES: tuple[Case, ...] = (
    Case("accessline.encode", 32, services.lines, package=_OBSERVABILITY),
    Case("balance.least_conn", 100, services.balance("least-conn"), package=_POLICY),
    Case("balance.round_robin", 100, services.balance("round-robin"), package=_POLICY),
    Case("breaker.success", 100, services.breaker, package=_POLICY),
    Case("budget.request", 100, services.budget, package=_POLICY),
    Case("envelope.suffix", 100, services.suffix, package=_GATEWAY),
    Case("rules.find", 100, services.rules, package=_POLICY),
    Case(
        "spans.encode",
        32,
        services.spans,
        {"opentelemetry_sdk": services.sdk_spans},
        package=_OBSERVABILITY,
    ),
    Case("buckets.take", 100, _take),
    Case("buckets.hash_key", 100, _hash),
    Case("call.off", _CALLS, _decorated_calls(None), {"plain": _plain_calls}, "nexus.tracing"),
    Case("call.unsampled", _CALLS, _decorated_calls(0.0), package="nexus.tracing"),
    Case("call.sampled", _CALLS, _decorated_calls(1.0), {"sdk": _sdk_calls}, "nexus.tracing"),
    Case("counters.inc", 100, _count, {"prometheus_client": _prometheus_count}),
    Case("counters.observe", 100, _observe, {"prometheus_client": _prometheus_observe}),
    Case("http1.request_head", 20, _request_head),
    Case("http1.response_head", 20, _response_head),
    Case("nearcache.fill", _NEAR_KEYS, _near_fills, {"dict_lru": _lru_fills}),
    Case("nearcache.hit", _NEAR_KEYS, _near_hits, {"dict_lru": _lru_hits}),
    Case(
        "resp.requests",
        100,
        _decoder("RequestDecoder", _COMMANDS, 100),
        {"hiredis": _hiredis(_COMMANDS, 100)},
    ),
    Case(
        "resp.bulk_replies",
        100,
        _decoder("ReplyDecoder", _BULKS, 100),
        {"hiredis": _hiredis(_BULKS, 100)},
    ),
    Case(
        "resp.array_reply",
        1000,
        _decoder("ReplyDecoder", _ARRAY * 10, 10),
        {"hiredis": _hiredis(_ARRAY * 10, 10)},
    ),
    Case("resp.array_in_pieces", 100, _split_decoder, {"hiredis": _split_hiredis}),
    Case(
        "resp.map_of_doubles",
        500,
        _decoder("ReplyDecoder", _HASH * 10, 10),
        {"hiredis": _hiredis(_HASH * 10, 10)},
    ),
    Case(
        "respencode.command",
        1,
        lambda module: lambda: module.encode_command(_ARGUMENTS),
        {"hiredis": lambda: lambda: _pack_command(_ARGUMENTS)},
    ),
    Case("respencode.reply", 100, lambda module: lambda: module.encode_reply(_ITEMS)),
    Case("respscan.commands", 100, _scan_commands),
    Case("respscan.replies", 100, _scan_replies),
    Case("wrr.sequence", 1, lambda module: lambda: module.build_sequence(_WEIGHTS)),
    Case("wrr.smooth_sequence", 1, lambda module: lambda: module.build_smooth_sequence(_WEIGHTS)),
)
