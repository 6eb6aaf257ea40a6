"""What a service is to the process machinery: the seam between ``net`` and the services.

::

    argv ──► net.run ──► Supervisor ── fork ──► worker process (uvloop)
                           │  owns: listening sockets, shared memory     │
                           │  SIGTERM → drain, SIGHUP → reload           ▼
                           └───────────────────────────── ServiceApp.start / reload / drain

The supervisor never runs an event loop and holds no connection; all traffic lives in workers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from socket import socket
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

from nexus.net.listeners import Endpoint
from nexus.net.settings import ServiceSettings
from nexus.net.states import WorkerStates

if TYPE_CHECKING:
    from nexus.observability.registry import LocalMetrics, Registry

__all__ = ["ServiceApp", "ServiceSpec", "WorkerContext"]

S = TypeVar("S", bound=ServiceSettings)
T = TypeVar("T")
S_contra = TypeVar("S_contra", bound=ServiceSettings, contravariant=True)


def _not_running(reason: str) -> None:
    raise RuntimeError(f"no worker is running: {reason}")


@dataclass(slots=True)
class WorkerContext(Generic[S, T]):
    """What one worker process is given.

    ``listeners`` are this slot's own listening sockets, the one of host and port first
    (bound and listening, non-blocking; TCP ones ``SO_REUSEPORT`` with the other slots'; serve a
    ``dup()`` of each). ``admin_listener`` is one socket that all workers accept
    on. ``shared`` is what :attr:`ServiceSpec.make_shared` returned before the fork: maps of
    shared memory.
    """

    index: int
    settings: S
    registry: Registry
    #: This worker's own block of the registry: what it counts into.
    metrics: LocalMetrics
    shared: T
    listeners: tuple[socket, ...]
    admin_listener: socket
    #: Name of the service, for payloads and logs.
    service: str
    #: Every slot's state; ``states.serving()`` is what ``/ready`` answers.
    states: WorkerStates
    #: Sets this slot's state; used by ``net`` around start and drain.
    set_state: Callable[[str], None]
    #: Ends this worker with an error message; the supervisor restarts it.
    fail: Callable[[str], None] = _not_running

    @property
    def listener(self) -> socket | None:
        """The first one; ``None`` for a service that serves only its admin listener."""
        return self.listeners[0] if self.listeners else None


class ServiceApp(Protocol[S_contra]):
    """One worker of a service; lives on that worker's event loop."""

    async def start(self) -> None:
        """Open everything; the worker is ready when this returns."""

    async def reload(self, settings: S_contra) -> None:
        """Apply new settings without dropping a connection; keep the old ones on error."""

    async def drain(self, seconds: float) -> None:
        """Stop accepting, finish what is open within ``seconds``, release everything."""


@dataclass(frozen=True, slots=True)
class ServiceSpec(Generic[S, T]):
    """A service as ``net.run`` sees it."""

    name: str
    description: str
    settings: type[S]
    #: Runs once in the supervisor, before the first fork.
    make_shared: Callable[[S], T]
    #: Runs in the worker, inside its event loop.
    make_app: Callable[[WorkerContext[S, T]], ServiceApp[S]]
    #: Whether workers serve ``settings.port``; the consumer has only its admin listener.
    listens: bool = True
    #: Addresses beside ``settings.host`` and ``settings.port``.
    more_endpoints: Callable[[S], Sequence[Endpoint]] = lambda _settings: ()
    #: Extra command-line flags: flag → dotted setting (``--redis`` → ``redis.url``).
    flags: dict[str, tuple[str, str]] = field(default_factory=dict)
    #: Most series of single metrics, where a setting decides it: metric name → series.
    max_series: Callable[[S], dict[str, int]] = lambda _settings: {}
    #: Checks that need more than one field; raises ``ConfigError``. Also run by ``--check``.
    validate: Callable[[S], None] = lambda _settings: None
