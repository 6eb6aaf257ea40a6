"""Settings of names whose addresses are upstreams."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta

from nexus.settings import Settings

__all__ = ["DiscoverySettings", "DnsNameSettings"]


class DnsNameSettings(Settings, frozen=True, omit_defaults=True):
    """A name in the DNS; each of its addresses is an upstream, beside the services file."""

    name: Annotated[str, Meta(min_length=1, max_length=253, description="absolute host name")]
    type: Annotated[
        Literal["A", "AAAA", "SRV"],
        Meta(
            description="`SRV`: port and weight come from the record; only the lowest priority "
            "number is used"
        ),
    ] = "A"
    port: Annotated[
        int, Meta(ge=0, le=65_535, description="of A and AAAA; 0: that of the scheme")
    ] = 0
    scheme: Annotated[Literal["http", "https"], Meta(description="how upstreams are spoken to")] = (
        "http"
    )
    group: Annotated[
        str, Meta(min_length=1, max_length=128, description="upstream group of all of them")
    ] = "default"
    weight: Annotated[int, Meta(ge=1, le=65_535, description="of each, for A and AAAA")] = 1


class DiscoverySettings(Settings, frozen=True):
    """Upstreams beside those of the services file."""

    dns: Annotated[tuple[DnsNameSettings, ...], Meta(description="names")] = ()
    dns_interval_seconds: Annotated[
        float,
        Meta(gt=0, le=3600, description="longest time between two questions; a shorter TTL holds"),
    ] = 30.0
    dns_timeout_seconds: Annotated[
        float, Meta(gt=0, le=60, description="for one answer, all name servers together")
    ] = 2.0
    nameservers: Annotated[
        tuple[str, ...], Meta(description="`address` or `address:port`; none: /etc/resolv.conf")
    ] = ()
