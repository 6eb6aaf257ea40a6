"""A small HTTP service to put behind the gateway, with switches to be slow, to fail and to hang.

::

    python -m nexus.demo.upstream --port 3001 --name a

Paths: ``/products``, ``/products/{id}``, ``/health``, ``/echo`` (any method), ``/slow?ms=``,
``/fail?status=&ratio=``, ``/hang``, ``/stream?n=&interval_ms=`` (server-sent events) and
``/bytes/{n}``. ``GET /_switch`` shows the switches, ``PUT /_switch`` changes some of them; they
apply to every other path, ``/health`` included, as they would in a service that is in trouble.

It listens on the loopback address only and keeps no state but its switches.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import contextlib
import logging
import signal
import sys
from typing import TYPE_CHECKING, Annotated, Any, Final

import msgspec
import uvloop
from aiohttp import web
from aiohttp.abc import AbstractAccessLogger
from msgspec import Meta

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

__all__ = ["Switches", "Upstream", "main"]

#: Never anything else: what a demo answers is nobody's business but this machine's.
HOST: Final = "127.0.0.1"

#: Seconds an idle connection is kept: uvicorn's default, the shortest of the usual servers, so
#: that a gateway which reuses connections too late is noticed here.
KEEP_ALIVE_SECONDS: Final = 5.0

#: Bytes of one ``/echo`` body; the gateway's own default limit is 10 MiB.
MAX_BODY: Final = 16 * 1024 * 1024

#: Bytes of one ``/bytes/{n}`` reply: the size that the streaming tests need.
MAX_BYTES: Final = 1 << 30

#: Bytes per write of ``/bytes/{n}``: one socket buffer's worth.
CHUNK: Final = bytes(range(256)) * 256

PRODUCTS: Final[tuple[dict[str, Any], ...]] = (
    {"id": 1, "name": "Espresso machine", "price": 349.0},
    {"id": 2, "name": "Burr grinder", "price": 129.5},
    {"id": 3, "name": "Gooseneck kettle", "price": 74.9},
    {"id": 4, "name": "Digital scale", "price": 39.0},
    {"id": 5, "name": "Milk pitcher", "price": 18.75},
)

Milliseconds = Annotated[int, Meta(ge=0, le=600_000)]
Ratio = Annotated[float, Meta(ge=0, le=1)]
ErrorStatus = Annotated[int, Meta(ge=400, le=599)]


class Switches(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How the whole service misbehaves.

    ``slow_ms`` delays every answer, ``fail_ratio`` is the share of requests answered with
    ``fail_status``, ``hang`` answers nothing until it is switched off again.
    """

    slow_ms: Milliseconds = 0
    fail_ratio: Ratio = 0.0
    fail_status: ErrorStatus = 503
    hang: bool = False


class Upstream:
    """The service; ``app`` is ready to be run by aiohttp."""

    def __init__(self, name: str) -> None:
        #: Shown as ``server`` in every answer, so that one sees who answered.
        self.name = name
        self.switches = Switches()
        self._released = asyncio.Event()
        self._failures: dict[str, float] = {}
        self.app = web.Application(middlewares=[self._apply_switches], client_max_size=MAX_BODY)
        self.app.add_routes(
            [
                web.get("/products", self._products),
                web.get("/products/{id}", self._product),
                web.get("/health", self._health),
                web.route("*", "/echo", self._echo),
                web.get("/slow", self._slow),
                web.get("/fail", self._fail),
                web.get("/hang", self._hang),
                web.get("/stream", self._stream),
                web.get(r"/bytes/{n:\d{1,12}}", self._bytes),
                web.get("/_switch", self._show_switches),
                web.put("/_switch", self._set_switches),
            ]
        )

    @web.middleware
    async def _apply_switches(
        self,
        request: web.Request,
        handler: Callable[[web.Request], Awaitable[web.StreamResponse]],
    ) -> web.StreamResponse:
        if request.path == "/_switch":
            return await handler(request)
        switches = self.switches
        if switches.slow_ms:
            await asyncio.sleep(switches.slow_ms / 1000)
        if switches.hang:
            await self._released.wait()
        if self._due("switch", switches.fail_ratio):
            return self._error(switches.fail_status, "failing on purpose: /_switch")
        return await handler(request)

    def _due(self, what: str, ratio: float) -> bool:
        """True for exactly ``ratio`` of the calls, evenly spread.

        Not random, so that a demonstration and a test see the share that they asked for.
        """
        total = self._failures.get(what, 0.0) + ratio
        # The tolerance keeps ten times 0.1 from being 0.9999999999999999.
        due = total >= 1.0 - 1e-9
        self._failures[what] = total - 1.0 if due else total
        return due

    def _error(self, status: int, message: str) -> web.Response:
        return web.json_response({"error": message, "server": self.name}, status=status)

    async def _products(self, _request: web.Request) -> web.Response:
        return web.json_response({"products": PRODUCTS, "server": self.name})

    async def _product(self, request: web.Request) -> web.Response:
        wanted = request.match_info["id"]
        for product in PRODUCTS:
            if str(product["id"]) == wanted:
                return web.json_response({**product, "server": self.name})
        return self._error(404, f"no product {wanted!r}")

    async def _health(self, _request: web.Request) -> web.Response:
        return web.json_response({"status": "ok", "server": self.name})

    async def _echo(self, request: web.Request) -> web.Response:
        body = await request.read()
        answer: dict[str, Any] = {
            "method": request.method,
            "target": request.raw_path,
            # Pairs, not a mapping: a gateway must keep the order and the number of fields.
            "headers": [
                [name.decode("latin-1"), value.decode("latin-1")]
                for name, value in request.raw_headers
            ],
            "server": self.name,
        }
        try:
            answer["body"] = body.decode()
        except UnicodeDecodeError:
            answer["body_base64"] = base64.b64encode(body).decode()
        return web.json_response(answer)

    async def _slow(self, request: web.Request) -> web.Response:
        milliseconds = _number(request, "ms", default=1000, least=0, most=600_000)
        await asyncio.sleep(milliseconds / 1000)
        return web.json_response({"slept_ms": milliseconds, "server": self.name})

    async def _fail(self, request: web.Request) -> web.Response:
        status = int(_number(request, "status", default=503, least=400, most=599))
        ratio = _number(request, "ratio", default=1.0, least=0, most=1)
        if self._due("path", ratio):
            return self._error(status, "failing on purpose: /fail")
        return web.json_response({"status": "ok", "server": self.name})

    async def _hang(self, _request: web.Request) -> web.Response:
        # Ends when the client goes away: the server then cancels this handler.
        await asyncio.Event().wait()
        raise AssertionError("unreachable")

    async def _stream(self, request: web.Request) -> web.StreamResponse:
        count = int(_number(request, "n", default=10, least=0, most=100_000))
        interval = _number(request, "interval_ms", default=200, least=0, most=60_000) / 1000
        response = web.StreamResponse(
            headers={"Content-Type": "text/event-stream", "Cache-Control": "no-store"}
        )
        await response.prepare(request)
        for number in range(count):
            await response.write(f"id: {number}\ndata: event {number} of {self.name}\n\n".encode())
            await asyncio.sleep(interval)
        await response.write_eof()
        return response

    async def _bytes(self, request: web.Request) -> web.StreamResponse:
        size = int(request.match_info["n"])
        if size > MAX_BYTES:
            return self._error(400, f"at most {MAX_BYTES} bytes, not {size}")
        response = web.StreamResponse(
            headers={"Content-Type": "application/octet-stream", "Content-Length": str(size)}
        )
        await response.prepare(request)
        if request.method == "HEAD":
            return response
        for _ in range(size // len(CHUNK)):
            await response.write(CHUNK)
        await response.write(CHUNK[: size % len(CHUNK)])
        await response.write_eof()
        return response

    async def _show_switches(self, _request: web.Request) -> web.Response:
        return web.json_response(msgspec.to_builtins(self.switches))

    async def _set_switches(self, request: web.Request) -> web.Response:
        try:
            wanted = msgspec.json.decode(await request.read(), type=dict[str, Any])
            self.switches = msgspec.convert(
                {**msgspec.to_builtins(self.switches), **wanted}, Switches
            )
        except msgspec.DecodeError as error:
            known = ", ".join(field.name for field in msgspec.structs.fields(Switches))
            return self._error(400, f"{error} (the switches are {known})")
        if not self.switches.hang:
            self._released.set()
            self._released = asyncio.Event()
        return await self._show_switches(request)


def _number(request: web.Request, name: str, *, default: float, least: float, most: float) -> float:
    text = request.query.get(name)
    if text is None:
        return default
    with contextlib.suppress(ValueError):
        value = float(text)
        if least <= value <= most:
            return value
    message = f"{name}: expected a number from {least:g} to {most:g}, got {text!r}"
    raise web.HTTPBadRequest(
        text=msgspec.json.encode({"error": message}).decode(), content_type="application/json"
    )


class _AccessLine(AbstractAccessLogger):
    """``GET /products 200 0.4 ms``"""

    def log(self, request: web.BaseRequest, response: web.StreamResponse, time: float) -> None:
        line = f"{request.method} {request.path_qs} {response.status} {time * 1000:.1f} ms"
        print(line, flush=True)


@contextlib.asynccontextmanager
async def serve(
    port: int,
    name: str,
    *,
    keep_alive_seconds: float = KEEP_ALIVE_SECONDS,
    access_log: bool = True,
) -> AsyncIterator[tuple[Upstream, int]]:
    """Listen on ``127.0.0.1:port`` (0: a free one); yields the service and its real port.

    Raises ``OSError`` where the port is taken.
    """
    upstream = Upstream(name or "upstream")
    runner = web.AppRunner(
        upstream.app,
        access_log_class=_AccessLine,
        access_log=logging.getLogger(__name__) if access_log else None,
        keepalive_timeout=keep_alive_seconds,
        shutdown_timeout=0.5,
        handler_cancellation=True,
    )
    await runner.setup()
    try:
        site = web.TCPSite(runner, HOST, port, reuse_port=False)
        await site.start()
        real: int = runner.addresses[0][1]
        if not name:
            upstream.name = str(real)
        yield upstream, real
    finally:
        await runner.cleanup()


async def _run(arguments: argparse.Namespace) -> int:
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    try:
        async with serve(
            arguments.port,
            arguments.name,
            keep_alive_seconds=arguments.keep_alive_seconds,
            access_log=not arguments.no_access_log,
        ) as (_, port):
            print(f"listening on http://{HOST}:{port}", flush=True)
            await stop.wait()
    except OSError as error:
        reason = error.strerror or error
        print(f"demo upstream: port {arguments.port}: {reason} (change --port)", file=sys.stderr)
        return 1
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Serve until SIGTERM or SIGINT; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m nexus.demo.upstream", description="A demo service behind the gateway."
    )
    parser.add_argument("--port", type=int, default=3001, help="0: a free one (default: 3001)")
    parser.add_argument(
        "--name", default="", help="shown as `server` in the answers (default: the port)"
    )
    parser.add_argument(
        "--keep-alive-seconds",
        type=float,
        default=KEEP_ALIVE_SECONDS,
        help="idle connections are closed after this (default: %(default)g)",
    )
    parser.add_argument("--no-access-log", action="store_true", help="no line per request")
    return uvloop.run(_run(parser.parse_args(argv)))


if __name__ == "__main__":
    sys.exit(main())
