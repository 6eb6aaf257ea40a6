"""The admin listener: health, readiness, metrics and a service's own pages.

Served by aiohttp on one socket that all workers accept on; whichever worker answers, it answers
for all of them, because counters and states are in shared memory. Loopback by default.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final

from aiohttp import web

from nexus.net.service import WorkerContext
from nexus.observability import exposition, health

__all__ = ["AdminServer", "Handler", "start_admin"]

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

log = logging.getLogger("nexus.admin")


class AdminServer:
    """The running admin listener of one worker."""

    def __init__(self, runner: web.AppRunner) -> None:
        self._runner: Final = runner

    async def stop(self) -> None:
        """Close it; requests under way get a second to finish."""
        await self._runner.cleanup()


async def start_admin(
    context: WorkerContext[Any, Any],
    routes: Mapping[str, Handler] | None = None,
    *,
    actions: Mapping[str, Handler] | None = None,
    why_not_ready: Callable[[], str] = str,
) -> AdminServer:
    """Serve ``/health``, ``/ready``, ``/metrics`` and ``routes`` (path → GET handler),
    ``actions`` (path → POST handler).

    ``why_not_ready`` says what this worker lacks to do its work, although its process serves;
    empty: nothing.
    """
    app = web.Application()

    async def get_health(_request: web.Request) -> web.Response:
        return web.json_response(health.health_payload(context.service, context.states.all()))

    async def get_ready(_request: web.Request) -> web.Response:
        reason = why_not_ready()
        ready = context.states.serving() and not reason
        payload = health.ready_payload(context.service, ready, context.states.all(), reason=reason)
        return web.json_response(payload, status=200 if ready else 503)

    async def get_metrics(request: web.Request) -> web.Response:
        render, content_type = exposition.render, exposition.CONTENT_TYPE
        if exposition.wants_openmetrics(request.headers.get("Accept", "")):
            render, content_type = exposition.render_openmetrics, exposition.OPENMETRICS_TYPE
        # In a thread: thousands of series take milliseconds, in which requests go on.
        body = await asyncio.to_thread(render, context.registry)
        return web.Response(body=body, headers={"Content-Type": content_type})

    app.router.add_get("/health", get_health)
    app.router.add_get("/ready", get_ready)
    app.router.add_get("/metrics", get_metrics)
    for path, handler in (routes or {}).items():
        app.router.add_get(path, handler)
    for path, handler in (actions or {}).items():
        app.router.add_post(path, handler)
    runner = web.AppRunner(app, access_log=None, handle_signals=False, shutdown_timeout=1.0)
    await runner.setup()
    # aiohttp closes the socket that it is given; the supervisor's own must outlive this worker.
    await web.SockSite(runner, context.admin_listener.dup()).start()
    return AdminServer(runner)
