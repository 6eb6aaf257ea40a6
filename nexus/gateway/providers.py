"""Where the keys of token providers come from: fetched, renewed in the background, kept.

::

    start ─► fetch ─► keys ── every refresh_seconds, ± 10 % ──► fetch ─► new keys
                        │                                          └─ failed: the old ones hold,
                        │                                             up to max_stale_seconds
                        └─ a token names a key that is not there ─► fetch, at most once per
                                unknown_key_seconds; the requests wait for it ─► looked at again
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from time import monotonic, monotonic_ns
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

import aiohttp

from nexus.errors import ConfigError
from nexus.gateway.keys import MAX_DOCUMENT_BYTES, KeySet
from nexus.net.filememory import MAX_FILE_BYTES, FileMemory
from nexus.net.tls import client_context

if TYPE_CHECKING:
    from nexus.gateway.settings_auth import ProviderSettings
    from nexus.observability.registry import LocalMetrics

__all__ = ["Provider", "Providers", "check_providers", "fetch_keys"]

log = logging.getLogger("nexus.gateway.auth")

#: Seconds for one fetch; requests do not wait for it.
_TIMEOUT: Final = aiohttp.ClientTimeout(total=5.0)
#: Requests of one worker that wait for a key; more are refused at once.
MAX_WAITING: Final = 1000
#: Seconds between attempts at a provider that is away: doubled up to the cap, with full jitter.
_RETRY_BASE: Final = 0.5
_RETRY_CAP: Final = 30.0


def check_providers(providers: Sequence[ProviderSettings]) -> None:
    """What one field cannot tell; raises ``ConfigError``."""
    seen: set[str] = set()
    for i, provider in enumerate(providers):
        path = f"auth.providers[{i}]"
        if provider.issuer in seen:
            raise ConfigError(
                f"the issuer {provider.issuer!r} is given twice", path=f"{path}.issuer"
            )
        seen.add(provider.issuer)
        if bool(provider.jwks_url) == bool(provider.keys_file):
            raise ConfigError("expected either jwks_url or keys_file", path=path)
        if provider.keys_file:
            _read(provider, path)
            continue
        parts = urlsplit(provider.jwks_url)
        if parts.scheme not in ("https", "http") or not parts.hostname or parts.username:
            raise ConfigError(
                "expected https://host/path, without user information", path=f"{path}.jwks_url"
            )
        if parts.scheme == "https":
            client_context(provider.tls, path=f"{path}.tls")


def _read(provider: ProviderSettings, path: str) -> KeySet:
    try:
        return KeySet.parse(Path(provider.keys_file).read_bytes())
    except OSError as error:
        why = f"cannot be read: {error.strerror}"
    except ValueError as error:
        why = str(error)
    raise ConfigError(why, path=f"{path}.keys_file")


class Provider:
    """One provider with the keys of the moment."""

    __slots__ = ("_asked_at", "_pending", "_waiting", "_wanted", "fetched_at", "keys", "settings")

    def __init__(self, settings: ProviderSettings) -> None:
        self.settings: Final = settings
        self.keys: KeySet | None = None
        self.fetched_at = 0.0
        self._asked_at = float("-inf")
        self._wanted = asyncio.Event()
        #: Whether somebody wanted keys that have not come yet, and who waits for them.
        self._pending = False
        self._waiting: list[Callable[[], None]] = []
        if settings.keys_file:
            self.take(_read(settings, "auth.providers"))

    def take(self, keys: KeySet, fetched_at: float | None = None) -> None:
        """These are its keys now, or were at ``fetched_at`` (monotonic, seconds)."""
        self.keys = keys
        self.fetched_at = monotonic() if fetched_at is None else fetched_at

    @property
    def current(self) -> KeySet | None:
        """Its keys, unless they are too old to be believed."""
        if self.keys is None or self.settings.keys_file:
            return self.keys
        stale = monotonic() - self.fetched_at > self.settings.max_stale_seconds
        return None if stale else self.keys

    def want(self) -> bool:
        """A token names a key that is not there: look again, but not for everybody's nonsense.

        Whether it is worth while to :meth:`join` those who wait.
        """
        now = monotonic()
        known = self.settings.jwks_url and now - self._asked_at >= self.settings.unknown_key_seconds
        if known and not self._pending:
            self._asked_at = now
            self._pending = True
            self._wanted.set()
        return self._pending and len(self._waiting) < MAX_WAITING

    def join(self, then: Callable[[], None]) -> None:
        """Call ``then`` once the keys have been looked at again, found or not."""
        self._waiting.append(then)

    def settled(self) -> None:
        """They have been: whoever waited goes on."""
        waiting, self._waiting = self._waiting, []
        self._pending = False
        for then in waiting:
            then()

    async def pause(self, seconds: float) -> None:
        """Sleep, or until somebody wants keys."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._wanted.wait(), seconds)
        self._wanted.clear()


class Providers:
    """All providers of a worker, each followed by a task of its own."""

    def __init__(
        self,
        metrics: LocalMetrics,
        rng: random.Random,
        memory: FileMemory | None = None,
        worker: int = 0,
    ) -> None:
        """``memory``: what the workers fetched, for one that begins while a provider is away."""
        self._memory: Final = memory
        self._worker: Final = worker
        self._fetches: Final = metrics.counters("nexus_auth_key_fetches_total")
        self._rng: Final = rng
        self._known: dict[str, Provider] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}

    def apply(self, settings: Sequence[ProviderSettings]) -> dict[str, Provider]:
        """Issuer → provider; who stays as it was keeps its keys."""
        wanted = {each.issuer: each for each in settings}
        for issuer, provider in list(self._known.items()):
            if wanted.get(issuer) != provider.settings or provider.settings.keys_file:
                del self._known[issuer]
                provider.settled()
                if (task := self._tasks.pop(issuer, None)) is not None:
                    task.cancel()
        for issuer, each in wanted.items():
            if issuer in self._known:
                continue
            provider = self._known[issuer] = Provider(each)
            if each.jwks_url:
                self._recall(provider)
                self._tasks[issuer] = asyncio.get_running_loop().create_task(self._follow(provider))
        return dict(self._known)

    async def ready(self, seconds: float) -> None:
        """Until every provider has keys, but no longer than ``seconds``."""
        end = monotonic() + seconds
        while monotonic() < end and any(p.keys is None for p in self._known.values()):  # noqa: ASYNC110
            await asyncio.sleep(0.02)

    async def close(self) -> None:
        """Stop following."""
        for provider in self._known.values():
            provider.settled()
        for task in self._tasks.values():
            task.cancel()
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)
        self._tasks.clear()

    def _remember(self) -> None:
        """Leave the keys to workers that come later."""
        kept = {
            issuer: [p.settings.jwks_url, p.fetched_at, p.keys.document.decode("latin-1")]
            for issuer, p in self._known.items()
            if p.keys is not None and p.settings.jwks_url
        }
        content = json.dumps(kept).encode()
        if self._memory is not None and len(content) <= MAX_FILE_BYTES:
            self._memory.write(content, monotonic_ns(), self._worker)

    def _recall(self, provider: Provider) -> None:
        """The keys that another worker, or the one before, fetched."""
        content = self._memory.newest() if self._memory is not None else None
        if content is None:
            return
        url, fetched_at, document = json.loads(content).get(provider.settings.issuer, ["", 0, ""])
        if url == provider.settings.jwks_url:
            provider.take(KeySet.parse(document.encode("latin-1")), fetched_at)

    async def _follow(self, provider: Provider) -> None:
        settings = provider.settings
        context = _context(settings)
        failures = 0
        async with aiohttp.ClientSession(timeout=_TIMEOUT) as session:
            while True:
                try:
                    keys = await _fetch(session, settings.jwks_url, context)
                except (aiohttp.ClientError, OSError, TimeoutError, ValueError) as error:
                    failures += 1
                    self._fetches.labels(settings.issuer, "failed").inc()
                    if failures == 1:
                        log.warning(
                            "keys of a token provider cannot be fetched, the last ones hold: %s",
                            str(error) or type(error).__name__,
                            extra={"issuer": settings.issuer},
                        )
                    provider.settled()
                    limit = min(_RETRY_CAP, _RETRY_BASE * 2 ** min(failures, 10))
                    await provider.pause(self._rng.uniform(0.1, limit))
                    continue
                if failures or provider.keys is None:
                    log.info(
                        "keys of a token provider",
                        extra={"issuer": settings.issuer, "keys": len(keys.keys)},
                    )
                failures = 0
                self._fetches.labels(settings.issuer, "fetched").inc()
                provider.take(keys)
                self._remember()
                provider.settled()
                await provider.pause(settings.refresh_seconds * self._rng.uniform(0.9, 1.1))


def _context(settings: ProviderSettings) -> Any:
    if not settings.jwks_url.startswith("https"):
        return None
    return client_context(settings.tls, path="auth.providers.tls")


async def fetch_keys(settings: ProviderSettings) -> KeySet:
    """The key set as it is now; raises ``ClientError``, ``OSError``, ``TimeoutError`` or
    ``ValueError``."""
    async with aiohttp.ClientSession(timeout=_TIMEOUT) as session:
        return await _fetch(session, settings.jwks_url, _context(settings))


async def _fetch(session: aiohttp.ClientSession, url: str, context: Any) -> KeySet:
    headers = {"Accept": "application/jwk-set+json, application/json"}
    # A redirect would let whoever can make one choose whose keys we believe.
    async with session.get(
        url, ssl=context or True, headers=headers, allow_redirects=False
    ) as response:
        if response.status != 200:
            raise ValueError(f"expected status 200 from {url}, got {response.status}")
        document = await response.content.read(MAX_DOCUMENT_BYTES + 1)
        while len(document) <= MAX_DOCUMENT_BYTES:
            more = await response.content.read(MAX_DOCUMENT_BYTES + 1 - len(document))
            if not more:
                break
            document += more
        return KeySet.parse(document)
