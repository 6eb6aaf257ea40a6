"""From argv to a running service: flags, settings, ``--check``, supervisor, exit code.

Exit codes: 0 stopped as asked, 1 could not run, 2 the configuration or the command line is wrong.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

from nexus import __version__
from nexus._speedups import BACKEND, COMPILED_MODULES, MISSING
from nexus.errors import BackendError, ConfigError, ListenError
from nexus.net.service import ServiceSpec
from nexus.net.settings import ServiceSettings
from nexus.net.supervisor import Supervisor
from nexus.observability import logs
from nexus.settings import dump, load, locate

__all__ = ["load_service_settings", "main", "version_line"]

S = TypeVar("S", bound=ServiceSettings)


def main(spec: ServiceSpec[S, Any], argv: Sequence[str] | None = None) -> int:
    """Run one service with the command line ``argv`` (default: ``sys.argv[1:]``)."""
    arguments = _parser(spec).parse_args(argv)
    flags = {
        dotted: getattr(arguments, dotted)
        for dotted in ("host", "port", "admin_port", "workers", "log.level")
    }
    flags |= {dotted: getattr(arguments, dotted) for dotted, _ in spec.flags.values()}

    def read() -> S:
        return load_service_settings(spec, arguments.config, flags)

    try:
        settings = read()
    except ConfigError as error:
        print(f"nexus {spec.name}: {error}", file=sys.stderr)
        return 2
    if arguments.check:
        print(dump(settings), end="")
        return 0
    try:
        logs.configure(settings.log.level, settings.log.format, spec.name, path=settings.log.path)
        return Supervisor(spec, settings, read).run()
    except (ListenError, BackendError, ConfigError) as error:
        print(f"nexus {spec.name}: {error}", file=sys.stderr)
        return 2 if isinstance(error, ConfigError) else 1
    finally:
        logs.flush()


def load_service_settings(
    spec: ServiceSpec[S, Any], file: Path | None, flags: dict[str, Any] | None = None
) -> S:
    """Settings of ``spec`` from file, environment and flags, checked as a whole.

    Raises :class:`~nexus.errors.ConfigError`.
    """
    try:
        settings = load(
            spec.settings, service=spec.name, file=file, environ=os.environ, flags=flags or {}
        )
        _check(spec, settings)
    except ConfigError as error:
        raise _located(error, file) from None
    return settings


def _check(spec: ServiceSpec[S, Any], settings: S) -> None:
    if settings.port and settings.port == settings.admin_port and spec.listens:
        raise ConfigError(f"the same as port ({settings.port})", path="admin_port")
    spec.validate(settings)


def _located(error: ConfigError, file: Path | None) -> ConfigError:
    """The same error with the line of the file that it is about, where it is about the file."""
    if file is None or not error.path or error.source not in ("", str(file)):
        return error
    line = locate(file, error.path)
    if not line:
        return error
    return ConfigError(error.reason, source=f"{file}:{line}", path=error.path)


def version_line() -> str:
    """``nexus 0.1.0 (compiled kernels, Python 3.11.7)``."""
    python = ".".join(str(part) for part in sys.version_info[:3])
    why = f"; {len(MISSING)} of {len(COMPILED_MODULES)} not compiled" if MISSING else ""
    return f"nexus {__version__} ({BACKEND} kernels, Python {python}{why})"


def _parser(spec: ServiceSpec[Any, Any]) -> argparse.ArgumentParser:
    variable = f"NEXUS_{spec.name.upper()}_…"
    parser = argparse.ArgumentParser(
        prog=f"python -m nexus.{spec.name}",
        description=spec.description,
        epilog=f"Every setting can also be given as {variable} in the environment or in --config; "
        "a flag beats the environment, the environment beats the file.",
    )
    parser.add_argument("--config", type=Path, metavar="FILE", help="settings, YAML")
    parser.add_argument("--host", dest="host", help="address to listen on")
    parser.add_argument("--port", dest="port", type=int, metavar="N", help="port to listen on")
    parser.add_argument(
        "--admin-port", dest="admin_port", type=int, metavar="N", help="health, metrics"
    )
    parser.add_argument("--workers", dest="workers", type=int, metavar="N", help="processes")
    parser.add_argument(
        "--log-level", dest="log.level", choices=("debug", "info", "warning", "error")
    )
    for flag, (dotted, text) in spec.flags.items():
        parser.add_argument(flag, dest=dotted, metavar=flag.strip("-").upper(), help=text)
    parser.add_argument(
        "--check", action="store_true", help="validate, print the settings, secrets masked; exit"
    )
    parser.add_argument("--version", action="version", version=version_line())
    return parser
