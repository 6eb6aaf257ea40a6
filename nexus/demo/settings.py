"""Settings of ``nexus up``: each one is a flag, and ``NEXUS_UP_<NAME>`` in the environment."""

from __future__ import annotations

import argparse
import os
import typing
from typing import TYPE_CHECKING, Annotated, Any, Final

import msgspec
from msgspec import Meta

from nexus.errors import ConfigError
from nexus.net.settings import REDIS_FORM, REDIS_PATTERN, Port
from nexus.settings import Settings, load

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = ["UpSettings", "flag_of", "read_settings", "variable_of"]

Workers = Annotated[int, Meta(ge=1, le=64, description="worker processes")]


class UpSettings(Settings, frozen=True):
    """``nexus up``. A port of 0 takes a free one."""

    gateway_host: Annotated[str, Meta(description="address the gateway listens on")] = "0.0.0.0"
    gateway_port: Annotated[Port, Meta(description="gateway")] = 3000
    upstream_a_port: Annotated[Port, Meta(description="first demo upstream")] = 3001
    upstream_b_port: Annotated[Port, Meta(description="second demo upstream")] = 3002
    gateway_admin_port: Annotated[Port, Meta(description="gateway's health and metrics")] = 3900
    consumer_admin_port: Annotated[Port, Meta(description="consumer's health and metrics")] = 3901
    redis_port: Annotated[Port, Meta(description="Redis, where it is started here")] = 6379
    cacheproxy_port: Annotated[Port, Meta(description="cacheproxy")] = 6380
    cacheproxy_admin_port: Annotated[Port, Meta(description="cacheproxy's health and metrics")] = (
        6390
    )
    gateway_workers: Annotated[Workers, Meta(description="worker processes")] = 1
    cacheproxy_workers: Annotated[Workers, Meta(description="worker processes")] = 1
    redis_url: Annotated[
        str,
        Meta(
            pattern=rf"^$|{REDIS_PATTERN}",
            extra={"form": REDIS_FORM},
            description="use this Redis instead of starting one (also NEXUS_REDIS_URL)",
        ),
    ] = ""
    kafka: Annotated[
        str,
        Meta(
            description="use this Kafka, host:port, instead of the in-memory development broker "
            "(also NEXUS_KAFKA)"
        ),
    ] = ""
    otlp_endpoint: Annotated[
        str, Meta(description="send traces there, e.g. http://127.0.0.1:4318; empty: no tracing")
    ] = ""
    state_dir: Annotated[
        str, Meta(min_length=1, description="configuration written for this run, Redis' directory")
    ] = ".nexus"
    start_seconds: Annotated[
        float, Meta(gt=0, le=600, description="longest wait for one part to become healthy")
    ] = 90.0
    stop_seconds: Annotated[
        float, Meta(gt=0, le=600, description="longest wait for one part to end by itself")
    ] = 6.0


#: Setting → the older, shorter name that it may also have in the environment.
_ALIASES: Final = {"redis_url": "NEXUS_REDIS_URL", "kafka": "NEXUS_KAFKA"}

_PREFIX: Final = "NEXUS_UP_"


def flag_of(name: str) -> str:
    """``gateway_port`` → ``--gateway-port``"""
    return "--" + name.replace("_", "-")


def variable_of(name: str) -> str:
    """``gateway_port`` → ``NEXUS_UP_GATEWAY_PORT``"""
    return _ALIASES.get(name, _PREFIX + name.upper())


def read_settings(
    argv: Sequence[str], environ: Mapping[str, str] = os.environ
) -> tuple[UpSettings, argparse.Namespace]:
    """Flags over environment over defaults.

    The namespace carries what is no setting: ``once`` and ``free_ports``. Raises
    :class:`~nexus.errors.ConfigError`; argparse ends the process for ``--help`` and for flags that
    do not exist.
    """
    arguments = _parser().parse_args(argv)
    flags: dict[str, Any] = {
        field.name: getattr(arguments, field.name) for field in msgspec.structs.fields(UpSettings)
    }
    given, environ = environ, dict(environ)
    for name, alias in _ALIASES.items():
        if alias in environ:
            environ.setdefault(_PREFIX + name.upper(), environ[alias])
    if arguments.free_ports:
        for name in _port_names():
            if flags[name] is None and _PREFIX + name.upper() not in environ:
                flags[name] = 0
    try:
        settings = load(UpSettings, service="up", environ=environ, flags=flags)
    except ConfigError as error:
        raise _by_its_alias(error, given) from None
    _reject_shared_ports(settings)
    return settings, arguments


def _by_its_alias(error: ConfigError, environ: Mapping[str, str]) -> ConfigError:
    """The same error, naming the variable that the user has set."""
    alias = _ALIASES.get(error.path, "")
    full = _PREFIX + error.path.upper()
    if alias in environ and full not in environ:
        source = error.source.replace(full, alias)
        return ConfigError(error.reason, source=source, path=error.path)
    return error


def _port_names() -> list[str]:
    return [f.name for f in msgspec.structs.fields(UpSettings) if f.name.endswith("_port")]


def _reject_shared_ports(settings: UpSettings) -> None:
    users: dict[int, str] = {}
    for name in _port_names():
        if name == "redis_port" and settings.redis_url:
            continue  # no Redis is started
        port = getattr(settings, name)
        if port and port in users:
            raise ConfigError(f"{port} is also {users[port]}; each needs its own", path=name)
        users[port] = name


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="nexus up",
        description="Run the whole system on this machine: Redis, Kafka, two demo upstreams, "
        "cacheproxy, gateway and consumer. Ctrl-C stops it.",
        epilog="Every flag also exists in the environment as NEXUS_UP_<NAME>.",
    )
    parser.add_argument(
        "--once", action="store_true", help="start, check every path, print, stop, exit"
    )
    parser.add_argument(
        "--free-ports", action="store_true", help="take free ports where none is named"
    )
    hints = typing.get_type_hints(UpSettings, include_extras=True)
    for field in msgspec.structs.fields(UpSettings):
        meta = hints[field.name].__metadata__[-1]
        default = f" (default: {field.default})" if field.default != "" else ""
        kind = next(t for t in (int, float, str) if isinstance(field.default, t))
        parser.add_argument(
            flag_of(field.name),
            dest=field.name,
            type=kind,
            metavar={int: "N", float: "SECONDS", str: "TEXT"}[kind],
            help=meta.description + default,
        )
    return parser
