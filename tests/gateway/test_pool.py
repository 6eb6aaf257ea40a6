"""The pool's promises about new connections, with real sockets, on the backend that runs here."""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import socket
import struct
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import uvloop

from nexus._speedups import BACKEND
from nexus.gateway.pool import Pool
from nexus.gateway.settings import TimeoutSettings, UpstreamSettings
from nexus.gateway.wheel import Wheel

_SIDE = "py" if BACKEND == "pure" else "c"
ResponseSink: Any = importlib.import_module(f"nexus.gateway._ports_{_SIDE}").ResponseSink


class Sink(ResponseSink):
    """One request: what the pool gave it."""

    def __init__(self) -> None:
        super().__init__()
        self.connection: Any = None
        self.failure = ""
        self.answered = asyncio.Event()

    def on_connected(self, connection: Any) -> None:
        self.connection = connection
        self.answered.set()

    def on_connect_failed(self, reason: str) -> None:
        self.failure = reason
        self.answered.set()

    def on_response(self, connection: Any, _head: Any, _body: bytes, _complete: bool) -> None:
        connection.release()

    def on_lost(self, connection: Any, reason: str) -> None:
        self.failure = reason

    async def within(self, seconds: float = 2) -> Sink:
        await asyncio.wait_for(self.answered.wait(), seconds)
        return self

    async def use(self, pool: Pool) -> Any:
        """Carry one request over whatever ``acquire`` gives."""
        self.connection = pool.acquire(self) or (await self.within()).connection
        self.connection.begin(self, b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", False)
        return self.connection


class Eager(Sink):
    """Begins at once, as an exchange does."""

    def on_connected(self, connection: Any) -> None:
        super().on_connected(connection)
        connection.begin(self, b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", False)


@contextlib.asynccontextmanager
async def upstream() -> AsyncIterator[int]:
    """Answers every request at once; gives its port."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while await reader.readuntil(b"\r\n\r\n"):
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    yield server.sockets[0].getsockname()[1]
    server.close()


def with_upstream(test: Callable[[int], Awaitable[None]]) -> Callable[[], None]:
    """Run ``test(port)`` on the loop that the protocols are made for."""

    async def run() -> None:
        async with upstream() as port:
            await test(port)

    # Without functools.wraps, which would show pytest a parameter that is no fixture.
    return lambda: uvloop.run(run())


def make(port: int, most: int = 4) -> Pool:
    upstream = UpstreamSettings(max_connections=most, queue_size=4)
    wheel = Wheel(time.monotonic_ns())
    return Pool(f"http://127.0.0.1:{port}", wheel, upstream, TimeoutSettings())


async def settled(pool: Pool, busy: int) -> None:
    end = time.monotonic() + 2
    while pool.busy != busy or pool.waiting:
        assert time.monotonic() < end, pool
        await asyncio.sleep(0.005)


@with_upstream
async def test_an_idle_connection_is_used_again_but_is_not_new(port: int) -> None:
    pool = make(port)
    first = await Sink().use(pool)
    await settled(pool, 0)
    assert not first.raced(), "it was made for its first request"
    second = await Sink().use(pool)
    assert second is first
    assert second.raced(), "it was at rest, and nothing has answered yet"
    await settled(pool, 0)
    assert not second.raced(), "it has answered"
    fresh = Sink()
    pool.acquire_new(fresh)
    assert (await fresh.within()).connection is not first
    pool.abort()


@with_upstream
async def test_who_wants_a_new_one_never_gets_one_that_is_given_back(port: int) -> None:
    pool = make(port, most=1)
    used = await Sink().use(pool)
    waits, fresh = Sink(), Sink()
    assert pool.acquire(waits) is None
    pool.acquire_new(fresh)
    # The only place is taken: the connection that comes back is given up for a new one.
    assert (await fresh.within()).connection is not used
    assert waits.connection is None
    fresh.connection.begin(fresh, b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", False)
    assert (await waits.within()).connection is fresh.connection
    pool.abort()


@with_upstream
async def test_in_a_full_pool_the_one_that_rests_makes_room_for_a_new_one(port: int) -> None:
    pool = make(port, most=1)
    rests = await Sink().use(pool)
    await settled(pool, 0)
    fresh = Sink()
    pool.acquire_new(fresh)
    assert (await fresh.within()).connection is not rests
    pool.abort()


@with_upstream
async def test_who_waits_no_longer_is_forgotten(port: int) -> None:
    pool = make(port, most=1)
    await Sink().use(pool)
    gone = Sink()
    pool.acquire_new(gone)
    assert pool.waiting == 1
    pool.cancel(gone)
    await settled(pool, 0)
    assert gone.connection is None
    pool.abort()


@with_upstream
async def test_connections_that_are_reset_on_arrival_take_no_place(port: int) -> None:
    listener = socket.create_server(("127.0.0.1", 0))
    listener.setblocking(False)
    loop = asyncio.get_running_loop()

    async def reset_all() -> None:
        while True:
            accepted, _ = await loop.sock_accept(listener)
            accepted.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            accepted.close()

    resetting = loop.create_task(reset_all())
    pool = make(listener.getsockname()[1], most=2)
    for _ in range(30):
        sink = Eager()
        assert pool.acquire(sink) is None
        end = time.monotonic() + 2
        while not sink.failure:
            assert time.monotonic() < end, "a request on a dead connection hears of it"
            await asyncio.sleep(0.002)
        assert sink.failure in {"connect_refused", "closed", "reset"}
    await settled(pool, 0)
    resetting.cancel()
    listener.close()
    pool.abort()


class Leaving(Sink):
    """Gives up when it is refused, as an exchange does: by a call back into the pool."""

    def __init__(self, pool: Pool) -> None:
        super().__init__()
        self.pool = pool

    def on_connect_failed(self, reason: str) -> None:
        super().on_connect_failed(reason)
        self.pool.cancel(self)


def waiting_uploads(pool: Pool, places: int, count: int) -> tuple[list[Leaving], list[Leaving]]:
    """``places`` uploads that have one, and ``count`` that wait; none has a connection yet."""
    placed, waiting = ([Leaving(pool) for _ in range(n)] for n in (places, count))
    for sink in (*placed, *waiting):
        pool.acquire_upload(sink, True)
    assert not any(sink.failure for sink in (*placed, *waiting))
    return placed, waiting


@with_upstream
async def test_an_upload_that_has_waited_is_not_refused_for_a_full_queue(port: int) -> None:
    pool = make(port, most=4)
    # All connections are in use, and the queue of those who want one is full.
    users = [Sink() for _ in range(4)]
    for user in users:
        assert pool.acquire(user) is None
        await user.within()
    placed, waiting = waiting_uploads(pool, 2, 600)
    others = [Sink() for _ in range(20)]
    for other in others:
        assert pool.acquire(other) is None
    assert others[-1].failure == "pool_full"
    pool.cancel(placed[0])  # its client left
    pool.body_complete(placed[1])
    pool.body_complete(waiting[1])
    assert not [sink.failure for sink in waiting if sink.failure]
    for sink in (*waiting, *placed):
        pool.cancel(sink)
    pool.abort()


@with_upstream
async def test_the_newest_of_too_many_uploads_is_the_one_too_many(port: int) -> None:
    pool = make(port, most=4)
    _, waiting = waiting_uploads(pool, 2, 4)
    assert not any(pool.crowded(sink) for sink in waiting)
    late = Leaving(pool)
    pool.acquire_upload(late, False)
    assert late.failure == "pool_full", "nothing of its body is here: it is refused at once"
    later = [Leaving(pool) for _ in range(2)]
    for sink in later:
        pool.acquire_upload(sink, True)
    assert [pool.crowded(sink) for sink in (*waiting, *later)] == [False] * 5 + [True]
    pool.abort()


@with_upstream
async def test_another_attempt_of_an_upload_still_counts(port: int) -> None:
    pool = make(port, most=4)
    placed, waiting = waiting_uploads(pool, 2, 1)
    pool.cancel(placed[0])  # its upstream broke off ...
    pool.acquire_new(placed[0], True)  # ... and it tries again, while the waiting one moved up
    pool.cancel(placed[1])
    late = Leaving(pool)
    pool.acquire_upload(late, True)
    assert pool.waits_for_place(late), "two have a place"
    pool.cancel(waiting[0])
    assert not pool.waits_for_place(late)
    pool.abort()


@with_upstream
async def test_more_places_are_given_at_once(port: int) -> None:
    pool = make(port, most=4)
    _, waiting = waiting_uploads(pool, 2, 3)
    assert pool.waits_for_place(waiting[0])
    pool.configure(UpstreamSettings(max_connections=8, queue_size=4), TimeoutSettings())
    assert [pool.waits_for_place(sink) for sink in waiting] == [False, False, True]
    pool.abort()
