"""What a service makes of its file, its flags and the environment, asked of the service itself.

``nexus up`` writes the files, but the user's environment has the last word
(``NEXUS_GATEWAY_AUTH__ENABLED=false``), so what may be expected of a service is known only to the
service: it is run once with ``--check``. What it refuses is refused before anything is started.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import yaml

from nexus.errors import NexusError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = ["GatewayFacts", "RefusedError", "gateway_facts", "resolve"]

#: A check reads files and opens nothing; a machine that is just starting is slow.
CHECK_SECONDS: Final = 60.0


class RefusedError(NexusError):
    """A service does not accept its configuration; the message is the service's own."""


@dataclass(frozen=True, slots=True)
class GatewayFacts:
    """What of the gateway's settings decides how it is asked and what is printed."""

    #: A request needs a token, and ``/auth/token`` gives one for this many seconds.
    auth: bool = True
    token_seconds: int = 3600
    enveloped: bool = True
    #: Requests that a full bucket holds; 0: nothing is limited.
    capacity: int = 10
    #: Whether it sends events.
    events: bool = True


async def resolve(argv: Sequence[str], environ: Mapping[str, str], name: str) -> dict[str, Any]:
    """The settings that the service ``name`` would run with; secrets are masked in them.

    ``argv`` is its command line, ``environ`` is added to our own environment. Raises
    :class:`RefusedError`.
    """
    process = await asyncio.create_subprocess_exec(
        *argv,
        "--check",
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, **environ},
    )
    try:
        async with asyncio.timeout(CHECK_SECONDS):
            shown, said = await process.communicate()
    except TimeoutError:
        raise RefusedError(f"{name} --check did not end within {CHECK_SECONDS:g} s") from None
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode != 0:
        reason = said.decode("utf-8", "replace").strip().removeprefix(f"nexus {name}: ")
        raise RefusedError(f"{name} refuses its configuration: {reason}")
    settings = yaml.safe_load(shown)
    if not isinstance(settings, dict):
        raise RefusedError(f"{name} --check printed no settings: {shown[:200]!r}")
    return settings


def gateway_facts(settings: Mapping[str, Any]) -> GatewayFacts:
    """From what ``nexus gateway --check`` printed."""
    limit = settings["rate_limit"]
    return GatewayFacts(
        auth=settings["auth"]["enabled"],
        token_seconds=settings["auth"]["token_ttl_seconds"],
        enveloped=settings["envelope"]["enabled"],
        capacity=limit["capacity"] if limit["enabled"] else 0,
        events=settings["kafka"]["enabled"],
    )
