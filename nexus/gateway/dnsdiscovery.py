"""Upstreams from the DNS (A, AAAA, SRV: RFC 1035, RFC 3596, RFC 2782), beside the services file.

A name that cannot be resolved, or has no addresses, keeps its last good ones; that is logged and
counted once per change. Every worker asks for itself, so none depends on another.
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
from collections.abc import Awaitable, Callable, Iterable
from time import time
from typing import TYPE_CHECKING, Any, Final

from nexus.errors import ConfigError
from nexus.gateway.discovery import ServiceEntry, normalise_url

if TYPE_CHECKING:
    import dns.nameserver

    from nexus.gateway.settings_discovery import DiscoverySettings, DnsNameSettings
    from nexus.observability.registry import LocalMetrics

__all__ = ["DnsSource", "check_discovery"]

log = logging.getLogger("nexus.gateway.dns")

#: Whatever the TTL says, a name is not asked for more often, seconds.
LEAST_SECONDS: Final = 1.0

#: (addresses as upstreams, seconds that they hold)
Answer = tuple[tuple[ServiceEntry, ...], float]


def check_discovery(settings: DiscoverySettings) -> None:
    """Raises ``ConfigError`` for a name or a name server that cannot be one."""
    for i, entry in enumerate(settings.dns):
        try:
            normalise_url(f"{entry.scheme}://{entry.name}")
        except ValueError as error:
            raise ConfigError(str(error), path=f"discovery.dns[{i}].name") from None
        if len({(one.name, one.type) for one in settings.dns[: i + 1]}) <= i:
            raise ConfigError(f"{entry.name} is listed twice", path=f"discovery.dns[{i}]")
    for i, text in enumerate(settings.nameservers):
        try:
            _nameserver(text)
        except ValueError as error:
            raise ConfigError(
                f"expected address or address:port, got {text!r} ({error})",
                path=f"discovery.nameservers[{i}]",
            ) from None


def _nameserver(text: str) -> dns.nameserver.Do53Nameserver:
    import dns.nameserver

    address, colon, port = text.rpartition(":")
    if not colon or (":" in address and not address.startswith("[")):
        address, port = text, "53"
    host = str(ipaddress.ip_address(address.strip("[]")))
    if not port.isdigit() or not 1 <= int(port) <= 65_535:
        raise ValueError("the port must be from 1 to 65535")
    return dns.nameserver.Do53Nameserver(host, int(port))


class _Name:
    __slots__ = ("due", "entries", "trouble")

    def __init__(self) -> None:
        self.entries: tuple[ServiceEntry, ...] = ()
        self.due = 0.0
        self.trouble = ""


class DnsSource:
    """The names of one worker; ``changed()`` is called when :attr:`entries` are others."""

    def __init__(self, metrics: LocalMetrics, changed: Callable[[], None]) -> None:
        self._names: dict[DnsNameSettings, _Name] = {}
        self._changed: Final = changed
        self._results: Final = metrics.counters("nexus_discovery_dns_total")
        self._success: Final = metrics.gauges("nexus_discovery_last_success_timestamp_seconds")

    @property
    def entries(self) -> tuple[ServiceEntry, ...]:
        """What all names led to last."""
        return tuple(entry for name in self._names.values() for entry in name.entries)

    async def run(self, current: Callable[[], DiscoverySettings]) -> None:
        """Ask until cancelled."""
        while True:
            await self.refresh(current())
            now = asyncio.get_running_loop().time()
            due = min((name.due for name in self._names.values()), default=now + LEAST_SECONDS)
            # Not longer, so that a reload's new names are asked for soon.
            await asyncio.sleep(min(max(due - now, 0.05), LEAST_SECONDS))

    async def refresh(self, settings: DiscoverySettings) -> None:
        """Ask for every name whose time has come."""
        before = self.entries
        known = self._names
        self._names = {name: known.get(name) or _Name() for name in settings.dns}
        now = asyncio.get_running_loop().time()
        waiting: list[Awaitable[None]] = [
            self._ask(one, name, settings) for one, name in self._names.items() if name.due <= now
        ]
        if waiting:
            await asyncio.gather(*waiting)
        if self.entries != before:
            self._changed()

    async def _ask(self, one: DnsNameSettings, name: _Name, settings: DiscoverySettings) -> None:
        from dns.exception import DNSException

        try:
            entries, ttl = await _resolve(one, settings)
        except (DNSException, OSError, ValueError) as error:
            self._results.labels("failed").inc()
            name.due = asyncio.get_running_loop().time() + LEAST_SECONDS
            if name.trouble != type(error).__name__:
                name.trouble = type(error).__name__
                log.warning(
                    "name cannot be resolved, its last good addresses stay in force",
                    extra={"dns_name": one.name, "dns_type": one.type, "cause": str(error)},
                )
            return
        if name.trouble:
            name.trouble = ""
            log.info("name is resolved again", extra={"dns_name": one.name})
        self._results.labels("resolved").inc()
        self._success.labels(f"dns:{one.name}").set(time())
        name.entries = entries
        wait = max(LEAST_SECONDS, min(ttl, settings.dns_interval_seconds))
        name.due = asyncio.get_running_loop().time() + min(wait, settings.dns_interval_seconds)


async def _resolve(one: DnsNameSettings, settings: DiscoverySettings) -> Answer:
    import dns.asyncresolver

    if settings.nameservers:
        resolver = dns.asyncresolver.Resolver(configure=False)
        resolver.nameservers = [_nameserver(text) for text in settings.nameservers]
    else:
        resolver = dns.asyncresolver.Resolver()
    answer = await resolver.resolve(
        one.name, one.type, search=False, lifetime=settings.dns_timeout_seconds
    )
    ttl = float(answer.rrset.ttl) if answer.rrset is not None else 0.0
    found = _services(answer, one) if one.type == "SRV" else _addresses(answer, one)
    # Servers turn the order of their answers; the list is to be the same for every worker.
    entries = {entry.url: entry for entry in sorted(found, key=lambda entry: entry.url)}
    if not entries:
        raise ValueError("the answer holds no address")
    return tuple(entries.values()), ttl


def _addresses(answer: Iterable[Any], one: DnsNameSettings) -> list[ServiceEntry]:
    port = f":{one.port}" if one.port else ""
    found = []
    for record in answer:
        host = f"[{record.address}]" if one.type == "AAAA" else record.address
        url = normalise_url(f"{one.scheme}://{host}{port}")
        found.append(ServiceEntry(url=url, weight=one.weight, group=one.group))
    return found


def _services(answer: Iterable[Any], one: DnsNameSettings) -> list[ServiceEntry]:
    records = list(answer)
    first = min(record.priority for record in records)
    found = []
    for record in records:
        host = record.target.to_text(omit_final_dot=True)
        if record.priority != first or host in ("", "."):  # ".": decidedly not available here
            continue
        url = normalise_url(f"{one.scheme}://{host}:{record.port}")
        found.append(ServiceEntry(url=url, weight=max(1, record.weight), group=one.group))
    return found
