"""``nexus explain GET /path``: what a request would meet, and what it would get.

The request is led through the same parser, route table and phases that serve; only upstreams, Redis
and other gateways are not asked, and the output says so where it matters.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import mmap
import random
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from time import monotonic_ns, time_ns
from typing import TYPE_CHECKING, Any, Final

import aiohttp

from nexus._speedups.buckets import BucketTable
from nexus.errors import ConfigError, HttpError
from nexus.gateway.app import SPEC, configure
from nexus.gateway.auth import Authenticator
from nexus.gateway.core import Core
from nexus.gateway.discovery import ServiceEntry, ServicesFile
from nexus.gateway.endpoints import own_routes
from nexus.gateway.exchange import Exchange
from nexus.gateway.phases import Phases
from nexus.gateway.ports import ClientPort
from nexus.gateway.providers import Provider, fetch_keys
from nexus.gateway.routetable import build_router
from nexus.gateway.wheel import Wheel
from nexus.net.run import load_service_settings
from nexus.observability.registry import Registry
from nexus.settings import locate
from nexus.wire.http1 import RequestHead

if TYPE_CHECKING:
    from nexus.gateway.routes import Route
    from nexus.gateway.settings import GatewaySettings
    from nexus.gateway.settings_routes import HeaderRulesSettings, RouteSettings

__all__ = ["Explanation", "explain", "main"]

#: Buckets of the table that nobody else uses.
_SETS: Final = 8

Line = tuple[str, str]


class _Port(ClientPort):
    """A client that keeps what it is sent."""

    def __init__(self) -> None:
        super().__init__()
        self.sent: list[bytes] = []

    def send(self, data: bytes) -> None:
        self.sent.append(data)

    def response_done(self, keep: bool) -> None:
        """Nothing to close."""

    def pause_request(self) -> None:
        """Nothing to pause."""

    def resume_request(self) -> None:
        """Nothing to resume."""


class Explanation:
    """What became of one request: lines of (what, how), and the status that the client gets.

    ``status`` is 0 for a request that is passed on, or that the gateway would answer with success.
    """

    def __init__(self, lines: list[Line], status: int) -> None:
        self.lines: Final = lines
        self.status: Final = status

    def __str__(self) -> str:
        width = max(len(name) for name, _ in self.lines) + 2
        return "\n".join(f"{name:<{width}}{text}".rstrip() for name, text in self.lines)


def main(argv: Sequence[str]) -> int:
    """Run ``nexus explain``; the exit code: 0, or 2 for what cannot be explained."""
    parser = argparse.ArgumentParser(
        prog="nexus explain",
        description="What the gateway would do with a request: route, phases, upstreams, decision.",
    )
    parser.add_argument("method", metavar="METHOD")
    parser.add_argument("target", metavar="/path?query")
    parser.add_argument(
        *("-H", "--header"),
        action="append",
        default=[],
        metavar="'Name: value'",
        help="a header of the request; Host is `localhost` unless given",
    )
    parser.add_argument("--config", type=Path, metavar="FILE", help="gateway.yaml")
    parser.add_argument("--services", metavar="FILE", help="list of upstreams, JSON")
    parser.add_argument("--ip", default="127.0.0.1", help="the client's address")
    parser.add_argument("--json", action="store_true", help="the same for programs")
    arguments = parser.parse_args(argv)
    try:
        settings = load_service_settings(
            SPEC, arguments.config, {"services_file": arguments.services}
        )
        found = explain(
            settings,
            arguments.method,
            arguments.target,
            arguments.header,
            ip=arguments.ip,
            file=arguments.config,
        )
    except ConfigError as error:
        print(f"nexus explain: {error}", file=sys.stderr)
        return 2
    if arguments.json:
        document = {"status": found.status, "lines": [list(line) for line in found.lines]}
        print(json.dumps(document, ensure_ascii=False))
    else:
        print(found)
    return 0


def explain(
    settings: GatewaySettings,
    method: str,
    target: str,
    headers: Sequence[str] = (),
    *,
    ip: str = "127.0.0.1",
    file: Path | None = None,
) -> Explanation:
    """Lead one request through a configuration. Raises ``ConfigError``; must not be called from a
    running event loop, because keys of token providers may have to be fetched."""
    lines: list[Line] = [("request", f"{method} {target} from {ip}")]
    metrics: Any = Registry(workers=1).open(0)
    core = Core(Wheel(monotonic_ns()), metrics, random.Random())
    core.wall_offset = time_ns() - monotonic_ns()
    phases = Phases(core, BucketTable(mmap.mmap(-1, BucketTable.size(_SETS)), _SETS), 1)
    router = build_router(settings, own_routes(lambda _name: _answered))
    authenticator: Authenticator | None = None
    if settings.auth.enabled:
        authenticator = Authenticator(settings.auth, providers=_providers(settings, headers, lines))
    configure(settings, core, phases, router, authenticator)
    head = RequestHead(core.max_head, core.max_line, core.max_fields)
    data = _request(method, target, headers)
    try:
        if not head.parse(data, 0, len(data)):
            raise ConfigError("a header holds a line break: one -H per header")
    except HttpError as error:
        lines.append(("decision", f"{error.status} {error.reason}: {error.detail}"))
        return Explanation(lines, error.status)
    port = _Port()
    exchange: Any = Exchange(core, port)
    phases.identify(exchange, (ip, 0))
    exchange.begin(head, head.chunked or head.content_length > 0)
    phases.run(exchange, head)
    route = exchange.route
    entries = ServicesFile(settings.services_file).read()
    lines.extend(_matched(settings, route, file))
    lines.extend(_met(settings, route, exchange, authenticator))
    if exchange.proxied:
        lines.extend(_passed_on(settings, route, exchange, entries))
    return Explanation([*lines, ("decision", _decision(exchange, route, port))], _status(exchange))


def _answered(_exchange: Exchange, _body: bytes) -> None:
    """Stands for the gateway's own answers."""


def _request(method: str, target: str, headers: Sequence[str]) -> bytes:
    given = list(headers)
    if not any(field.partition(":")[0].strip().lower() == "host" for field in given):
        given.insert(0, "Host: localhost")
    try:
        return "\r\n".join([f"{method} {target} HTTP/1.1", *given, "", ""]).encode("latin-1")
    except UnicodeEncodeError:
        raise ConfigError("expected the request in Latin-1: percent-encode the path") from None


def _providers(
    settings: GatewaySettings, headers: Sequence[str], lines: list[Line]
) -> dict[str, Provider]:
    """Providers with their keys; fetched only if there is a token to check."""
    found = {each.issuer: Provider(each) for each in settings.auth.providers}
    if not any(field.lower().startswith("authorization:") for field in headers):
        return found

    async def fetch(provider: Provider) -> None:
        try:
            provider.take(await fetch_keys(provider.settings))
        except (aiohttp.ClientError, OSError, TimeoutError, ValueError) as error:
            why = str(error) or type(error).__name__
            lines.append(("keys", f"of {provider.settings.issuer} cannot be fetched: {why}"))

    async def fetch_all() -> None:
        await asyncio.gather(*(fetch(p) for p in found.values() if p.settings.jwks_url))

    asyncio.run(fetch_all())
    return found


# -------------------------------------------------------------------------------------- the parts


def _matched(settings: GatewaySettings, route: Route | None, file: Path | None) -> Iterator[Line]:
    if route is None:
        yield "route", "none has this path, host and conditions"
        return
    if route.index < 0:
        yield "route", f"{route.template}, answered by the gateway itself"
        return
    where = f"routes[{route.index}]"
    line = locate(file, where) if file is not None else 0
    given = f"{file}:{line}, " if line and file is not None else ""
    default = "" if line else ", the default"
    yield "route", f"{route.template} ({given}{where}{default})"
    rule = settings.routes[route.index]
    parts = [f"path {rule.path}"]
    parts += [f"host {' or '.join(rule.hosts)}"] if rule.hosts else []
    parts += [f"method {', '.join(rule.methods)}"] if rule.methods else []
    parts += [f"header {name}: {value}" for name, value in rule.headers.items()]
    parts += [f"query {name}={value}" for name, value in rule.query.items()]
    yield "matches", "; ".join(parts)


def _met(
    settings: GatewaySettings,
    route: Route | None,
    exchange: Any,
    authenticator: Authenticator | None,
) -> Iterator[Line]:
    """The phases in their order."""
    rule = settings.routes[route.index] if route is not None and route.index >= 0 else None
    networks = settings.networks
    if networks.allow or networks.deny:
        allowed = f"allow {', '.join(networks.allow)}; " if networks.allow else ""
        yield "1 networks", f"{allowed}deny {', '.join(networks.deny) or 'none'}"
    else:
        yield "1 networks", "all"
    yield "2 block list", "in Redis, not asked here" if settings.block_list.enabled else "off"
    yield "3 address limit", _address_limit(settings, route)
    yield "4 CORS", _cors(rule)
    yield "5 authentication", _authentication(route, exchange, authenticator)
    yield "6 limits", _limits(settings, rule)
    yield "7 authorization", _authorization(route)
    body = route.body_bytes if route is not None and route.handler is None else 0
    yield "8 body", f"at most {body} bytes" if body else "no limit of its own"


def _address_limit(settings: GatewaySettings, route: Route | None) -> str:
    limit = settings.rate_limit
    if not limit.enabled:
        return "off"
    if route is not None and not route.limited:
        return "not for this route"
    return f"{limit.capacity} requests at once, {limit.refill_per_second:g} per second"


def _cors(rule: RouteSettings | None) -> str:
    if rule is None or not rule.cors.origins:
        return "off"
    with_credentials = ", with credentials" if rule.cors.credentials else ""
    return f"origins {', '.join(rule.cors.origins)}{with_credentials}"


def _authentication(route: Route | None, exchange: Any, authenticator: Authenticator | None) -> str:
    if authenticator is None:
        return "off"
    if route is not None and not route.authenticated:
        return "not for this route"
    identity = exchange.identity
    if identity is None:
        return "a token is demanded"
    rights = "".join(
        f", {name} {', '.join(sorted(values))}"
        for name, values in (("roles", identity.roles), ("scopes", identity.scopes))
        if values
    )
    return f"the token is good: client {identity.client_id}{rights} (denylist not asked here)"


def _limits(settings: GatewaySettings, rule: RouteSettings | None) -> str:
    limits = [*settings.rate_limits, *(rule.rate_limits if rule is not None else ())]
    return (
        "; ".join(
            f"{limit.name}: {limit.capacity} at once, {limit.refill_per_second:g} per second and "
            f"{' and '.join(limit.key)}"
            + (", over all gateways" if limit.scope == "cluster" else "")
            + (", only counted" if limit.shadow else "")
            for limit in limits
        )
        or "none"
    )


def _authorization(route: Route | None) -> str:
    guard = route.guard if route is not None else None
    if guard is None:
        return "whoever may come in"
    parts = [f"one of the roles {', '.join(sorted(guard.roles))}"] if guard.roles else []
    parts += [f"all of the scopes {', '.join(sorted(guard.scopes))}"] if guard.scopes else []
    return " and ".join(parts)


def _passed_on(
    settings: GatewaySettings, route: Route, exchange: Any, entries: Sequence[ServiceEntry]
) -> Iterator[Line]:
    rule = settings.routes[route.index]
    members = [f"{e.url} (weight {e.weight})" for e in entries if e.group == route.group]
    yield (
        "upstream",
        (f"group {route.group}, {settings.balancer.algorithm}: {', '.join(members) or 'nobody'}"),
    )
    yield "sent as", f"{exchange.method.decode()} {exchange.target_out.decode()}"
    for name, rules in (
        ("request headers", rule.request.headers),
        ("response headers", rule.response.headers),
        ("query", rule.request.query),
    ):
        if text := _changes(rules):
            yield name, text
    yield (
        "timeouts",
        (
            f"response head {route.response_ns / 1e9:g} s, "
            f"all attempts {route.total_ns / 1e9:g} s, "
            f"silence in the response {route.stream_idle_ns / 1e9:g} s"
        ),
    )
    policy = route.retry_policy
    keyed = "; POST and PATCH with an Idempotency-Key too" if route.idempotency_key else ""
    yield "attempts", f"{policy.max_attempts}, {policy.base_delay_ns / 1e6:g} ms apart{keyed}"
    wrapped = settings.envelope.enabled and route.envelope
    yield "response", "JSON is wrapped as {data, _meta}" if wrapped else "as it is"


def _changes(rules: HeaderRulesSettings | Any) -> str:
    parts = [f"remove {', '.join(rules.remove)}"] if rules.remove else []
    for word, values in (("set", rules.set), ("add", rules.add)):
        parts += [f"{word} {name}: {value}" for name, value in values.items()]
    return "; ".join(parts)


def _status(exchange: Any) -> int:
    return 0 if exchange.proxied or exchange.active else int(exchange.status)


def _decision(exchange: Any, route: Route | None, port: _Port) -> str:
    if exchange.proxied and route is not None:
        return f"passed on to the group {route.group}"
    if exchange.active and route is not None:
        return f"answered by the gateway itself, {route.template}"
    if not exchange.reason:
        return f"{exchange.status}"
    body = b"".join(port.sent).partition(b"\r\n\r\n")[2]
    message = json.loads(body)["message"] if body else ""
    return f"{exchange.status} {exchange.reason}: {message}"
