"""The command ``nexus``: a word that says what to run, then that part's own flags.

Each part is imported when it is asked for, so that ``nexus --version`` needs none of them and a
gateway never loads the consumer.
"""

from __future__ import annotations

import argparse
import difflib
import importlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from nexus.errors import BackendError, ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from nexus.net.service import ServiceSpec
    from nexus.settings import Settings

__all__ = ["main"]

#: Service → what it does, in the words of the usage.
_SERVICES: Final = {
    "gateway": "HTTP API gateway",
    "cacheproxy": "transparent Redis proxy",
    "consumer": "consumer of the gateway's events",
}

_OTHERS: Final = {
    "up": "run the whole system on this machine, with demo upstreams",
    "block": "list, add or remove addresses that every gateway refuses",
    "events": "read the gateway's events, replay them, look at dead letters",
    "admin": "look into a running gateway; drain upstreams, set weights, open and close breakers",
    "hash-secret": "hash a client secret for the gateway's configuration",
    "explain": "what the gateway would do with a request: route, phases, upstreams, decision",
    "check": "validate a configuration file and print it resolved, secrets masked",
}

#: Exit code of a wrong command line or configuration, as argparse has it.
MISUSED: Final = 2


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``nexus <argv>`` (default: ``sys.argv[1:]``); returns the exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        return _dispatch(words)
    except BackendError as error:
        print(f"nexus: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        # Ctrl-C while still importing; what runs handles the signal itself.
        return 130


def _dispatch(words: list[str]) -> int:
    if not words:
        print(_usage(), file=sys.stderr)
        return MISUSED
    command, *rest = words
    if command in ("-h", "--help", "help"):
        print(_usage())
        return 0
    if command in ("-V", "--version", "version"):
        from nexus.net.run import version_line

        print(version_line())
        return 0
    if command == "up":
        from nexus.demo.up import main as up

        return up(rest)
    if command == "block":
        from nexus.consumer.blockcommand import main as block

        return block(rest)
    if command == "events":
        from nexus.consumer.eventscommand import main as events

        return events(rest)
    if command == "admin":
        from nexus.gateway.admincommand import main as admin

        return admin(rest)
    if command == "hash-secret":
        from nexus.gateway.hashcommand import main as hash_secret

        return hash_secret(rest)
    if command == "explain":
        from nexus.gateway.explain import main as explain

        return explain(rest)
    if command == "check":
        return _check(rest)
    if command in _SERVICES:
        return _run_service(command, rest)
    close = difflib.get_close_matches(command, [*_OTHERS, *_SERVICES], n=1, cutoff=0.5)
    hint = f"; did you mean 'nexus {close[0]}'?" if close else ""
    print(f"nexus: there is no command {command!r}{hint}\n\n{_usage()}", file=sys.stderr)
    return MISUSED


def _usage() -> str:
    commands = {"up": _OTHERS["up"], **_SERVICES, **_OTHERS}
    commands["check"] = f"FILE: {_OTHERS['check']}"
    lines = [f"  nexus {name:<11} {what}" for name, what in commands.items()]
    lines.append("  nexus --version   version, kernels, Python")
    return "\n".join(
        ["usage: nexus COMMAND [OPTION…]", "", *lines, "", "nexus COMMAND --help says more."]
    )


def _spec(service: str) -> ServiceSpec[Any, Any]:
    spec: ServiceSpec[Any, Any] = importlib.import_module(f"nexus.{service}.app").SPEC
    return spec


def _settings(service: str) -> type[Settings]:
    module = importlib.import_module(f"nexus.{service}.settings")
    settings: type[Settings] = getattr(module, f"{service.capitalize()}Settings")
    return settings


def _run_service(service: str, argv: Sequence[str]) -> int:
    from nexus.net.run import main as run

    return run(_spec(service), argv)


# -- nexus check -----------------------------------------------------------------------------------


def _check(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="nexus check", description=_OTHERS["check"])
    parser.add_argument(
        "file", type=Path, metavar="FILE", help="settings or policy, YAML; or services.json"
    )
    parser.add_argument(
        "--service",
        choices=tuple(_SERVICES),
        help="whose configuration it is (default: found from its keys, then from its name)",
    )
    arguments = parser.parse_args(argv)
    try:
        check = _check_for(arguments.file, arguments.service)
    except ConfigError as error:
        print(f"nexus check: {error}", file=sys.stderr)
        return MISUSED
    return check()


def _check_for(file: Path, service: str | None) -> Callable[[], int]:
    """How to check ``file``. Raises ``ConfigError`` where it cannot be told whose it is."""
    from nexus.settings import read_yaml

    if service is None:
        tree = read_yaml(file)
        if set(tree) == {"services"}:
            return lambda: _check_services(file)
        if "policies" in tree:
            return lambda: _check_policy(file)
        service = _guess_service(file, set(tree))
    found = service
    return lambda: _run_service(found, ["--config", str(file), "--check"])


def _guess_service(file: Path, keys: set[str]) -> str:
    """The service that knows most of ``keys``; among equals, the one that the file is named for."""
    import msgspec

    known = {
        service: len(keys & {field.encode_name for field in msgspec.structs.fields(settings)})
        for service, settings in ((name, _settings(name)) for name in _SERVICES)
    }
    most = max(known.values())
    likely = [service for service, count in known.items() if count == most]
    named = [service for service in likely if service in file.stem]
    if len(likely) == 1:
        return likely[0]
    if len(named) == 1:
        return named[0]
    if not most:
        found = ", ".join(sorted(map(str, keys))) or "none"
        raise ConfigError(
            f"no service knows any of its keys ({found}): say whose it is with --service",
            source=str(file),
        )
    raise ConfigError(
        f"its keys fit {', '.join(likely)}: say which with --service", source=str(file)
    )


def _check_services(file: Path) -> int:
    from nexus.gateway.discovery import ServicesFile

    try:
        entries = ServicesFile(file).read()
    except ConfigError as error:
        print(f"nexus check: {error}", file=sys.stderr)
        return MISUSED
    for entry in entries:
        print(f"{entry.url} weight {entry.weight}")
    return 0


def _check_policy(file: Path) -> int:
    from nexus.cacheproxy.policies import check_policy
    from nexus.cacheproxy.policycommand import rule_lines
    from nexus.cacheproxy.settings import CacheproxySettings

    try:
        book = check_policy(CacheproxySettings(policy_file=str(file)))
    except ConfigError as error:
        print(f"nexus check: {error}", file=sys.stderr)
        return MISUSED
    for line in rule_lines(book) if book is not None else ():
        print(line)
    return 0
