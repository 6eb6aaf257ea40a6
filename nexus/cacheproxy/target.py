"""Where Redis is and who we are there: the upstream URL."""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from typing import Final
from urllib.parse import parse_qs, unquote, urlsplit

from nexus.errors import ConfigError

__all__ = ["Target", "parse_target"]

_DEFAULT_PORT: Final = 6379
_OPTIONS: Final = frozenset({"db", "ssl_ca_certs", "ssl_cert_reqs", "ssl_certfile", "ssl_keyfile"})


@dataclass(frozen=True, slots=True)
class Target:
    """One Redis. ``path`` is set for a unix socket, ``host`` and ``port`` otherwise."""

    host: str
    port: int
    path: str
    db: int
    #: ``None``: clients that do not AUTH are the server's default user, unauthenticated.
    user: bytes | None
    password: bytes | None
    tls: ssl.SSLContext | None

    def __str__(self) -> str:
        """For people and logs; without credentials."""
        if self.path:
            return f"unix://{self.path}"
        return f"{'rediss' if self.tls else 'redis'}://{self.host}:{self.port}"


def parse_target(url: str) -> Target:
    """Read ``redis://``, ``rediss://`` or ``unix://``; raises :class:`ConfigError`.

    ``redis[s]://[[user]:password@]host[:port][/db]`` and ``unix://[[user]:password@]/path[?db=N]``.
    TLS options are redis-py's: ``ssl_cert_reqs`` (``required`` or ``none``), ``ssl_ca_certs``,
    ``ssl_certfile``, ``ssl_keyfile``.
    """
    parts = urlsplit(url)
    options = {key: values[-1] for key, values in parse_qs(parts.query).items()}
    unknown = sorted(set(options) - _OPTIONS)
    if unknown:
        raise _wrong(f"unknown option {unknown[0]!r}; known: {', '.join(sorted(_OPTIONS))}")
    try:
        port = parts.port or _DEFAULT_PORT
    except ValueError:
        raise _wrong("the port is not a number from 1 to 65535") from None
    user = unquote(parts.username).encode() if parts.username else None
    password = unquote(parts.password).encode() if parts.password else None
    if user and password is None:
        raise _wrong("a user without a password: write redis://user:password@host")
    tls = _tls(options) if parts.scheme == "rediss" else None
    if parts.scheme == "unix":
        path = unquote(parts.path)
        if not path:
            raise _wrong("expected unix:///path/of/the/socket")
        return Target("", 0, path, _db(options.get("db", "0")), user, password, tls)
    if not parts.hostname:
        raise _wrong("the host is missing: redis://host:port")
    db = _db(options.get("db") or parts.path.strip("/") or "0")
    return Target(parts.hostname, port, "", db, user, password, tls)


def _db(text: str) -> int:
    if not (text.isascii() and text.isdigit()) or len(text) > 6:
        raise _wrong(f"the database is not a number: {text!r}")
    return int(text)


def _tls(options: dict[str, str]) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=options.get("ssl_ca_certs"))
        certificate = options.get("ssl_certfile")
        if certificate:
            context.load_cert_chain(certificate, options.get("ssl_keyfile"))
    except (OSError, ssl.SSLError) as error:
        raise _wrong(f"TLS files cannot be used: {error}") from None
    wanted = options.get("ssl_cert_reqs", "required")
    if wanted not in ("required", "none"):
        raise _wrong(f"ssl_cert_reqs: expected 'required' or 'none', got {wanted!r}")
    if wanted == "none":
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


def _wrong(message: str) -> ConfigError:
    return ConfigError(message, path="redis.url")
