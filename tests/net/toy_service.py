"""A service that is as small as can be: what the process machinery is tested with.

Answers each connection with ``<worker index> <pid> <greeting>`` and closes. Environment:
``TOY_FAIL_START=1`` cannot start; a connection that sends ``die`` kills its worker.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from typing import Annotated

from msgspec import Meta

from nexus.errors import ConfigError, NexusError
from nexus.net.admin import AdminServer, start_admin
from nexus.net.run import main
from nexus.net.service import ServiceSpec, WorkerContext
from nexus.net.settings import ServiceSettings


class ToySettings(ServiceSettings, frozen=True):
    greeting: Annotated[str, Meta(description="said to everybody")] = "hello"
    slow_seconds: float = 0.0


class ToyApp:
    def __init__(self, context: WorkerContext[ToySettings, None]) -> None:
        self._context = context
        self._settings = context.settings
        self._open = 0

    async def start(self) -> None:
        if os.environ.get("TOY_FAIL_START"):
            raise NexusError("told to fail")
        assert self._context.listener is not None
        self._server = await asyncio.start_server(self._serve, sock=self._context.listener.dup())
        self._admin: AdminServer = await start_admin(self._context)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._open += 1
        said = await reader.readline()
        if said == b"die\n":
            os.kill(os.getpid(), signal.SIGKILL)
        await asyncio.sleep(self._settings.slow_seconds)
        writer.write(f"{self._context.index} {os.getpid()} {self._settings.greeting}\n".encode())
        await writer.drain()
        writer.close()
        self._open -= 1

    async def reload(self, settings: ToySettings) -> None:
        if settings.greeting == "refused":
            raise ConfigError("this greeting is refused", path="greeting")
        self._settings = settings

    async def drain(self, seconds: float) -> None:
        self._server.close()
        deadline = asyncio.get_running_loop().time() + seconds
        while self._open and asyncio.get_running_loop().time() < deadline:
            await asyncio.sleep(0.01)
        await self._admin.stop()


def check(settings: ToySettings) -> None:
    if settings.greeting == "":
        raise ConfigError("the greeting is empty", path="greeting")


SPEC = ServiceSpec(
    name="toy",
    description="A service for tests.",
    settings=ToySettings,
    make_shared=lambda _settings: None,
    make_app=ToyApp,
    flags={"--greeting": ("greeting", "said to everybody")},
    validate=check,
)

if __name__ == "__main__":
    sys.exit(main(SPEC))
