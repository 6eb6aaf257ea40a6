"""Everything about authentication that a worker keeps: keys of providers, sessions, denylist."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterable
from typing import TYPE_CHECKING, Final

from nexus.gateway.auth import Authenticator
from nexus.gateway.authendpoints import AuthEndpoints
from nexus.gateway.denylist import Denylist
from nexus.gateway.providers import Providers
from nexus.gateway.sessions import Sessions

if TYPE_CHECKING:
    from nexus.gateway.settings import GatewaySettings
    from nexus.net.filememory import FileMemory
    from nexus.observability.registry import LocalMetrics

__all__ = ["AuthService"]

#: Seconds that a start waits for keys and denylist; who is away then does not keep us from serving.
_START_SECONDS: Final = 2.0


class AuthService:
    """Lives as long as the worker; :meth:`apply` follows its settings."""

    def __init__(
        self, metrics: LocalMetrics, rng: random.Random, keys: FileMemory, worker: int
    ) -> None:
        """``keys``: what the workers fetched of providers, in shared memory."""
        self._metrics: Final = metrics
        self._providers: Final = Providers(metrics, rng, keys, worker)
        self.endpoints: Final = AuthEndpoints(metrics)
        self._denylist: Denylist | None = None
        #: Kept while refresh tokens are off, until the worker ends.
        self._sessions: Sessions | None = None
        self._following: asyncio.Task[None] | None = None

    def apply(self, settings: GatewaySettings) -> Authenticator | None:
        """A new authenticator, so that nobody is known whom the settings do not know any more;
        ``None`` where authentication is off. Needs a running loop."""
        auth = settings.auth
        providers = self._providers.apply(auth.providers if auth.enabled else ())
        authenticator: Authenticator | None = None
        if auth.enabled:
            if self._denylist is None:
                self._denylist = Denylist(settings.redis.url, self._metrics, self._forget)
                self._following = asyncio.get_running_loop().create_task(self._denylist.run())
                self.endpoints.denylist = self._denylist
            metrics = self._metrics if settings.metrics.enabled else None
            authenticator = Authenticator(auth, metrics, providers, self._denylist)
        if auth.enabled and auth.refresh.enabled:
            if self._sessions is None:
                self._sessions = Sessions(settings.redis.url)
            self.endpoints.sessions = self._sessions
        else:
            self.endpoints.sessions = None
        if self.endpoints.authenticator is not None:
            self.endpoints.authenticator.retire()
        self.endpoints.apply(auth, authenticator)
        return authenticator

    @property
    def denylist(self) -> Denylist | None:
        """``None`` while authentication was never on."""
        return self._denylist

    async def ready(self) -> None:
        """Until tokens can be checked, but not for long."""
        denylist = self._denylist
        if denylist is not None:
            await denylist.ready(_START_SECONDS)
        await self._providers.ready(_START_SECONDS)

    async def close(self) -> None:
        """End all tasks and connections."""
        if self._following is not None:
            self._following.cancel()
            await asyncio.gather(self._following, return_exceptions=True)
        await self._providers.close()
        await self.endpoints.close()
        if self._sessions is not None:
            await self._sessions.close()
        if self._denylist is not None:
            await self._denylist.close()

    def _forget(self, entries: Iterable[str]) -> None:
        authenticator = self.endpoints.authenticator
        if authenticator is not None:
            authenticator.forget(entries)
