"""The list of upstreams: ``services.json``, read at start and looked at every few seconds.

.. code-block:: json

    {"services": [{"url": "http://127.0.0.1:3001", "weight": 2}]}

A file that is half written, broken, empty or gone changes nothing: the last good list stays in
force, and the trouble is logged and counted once per change of the file. That list is in shared
memory too: a worker that is replaced while the file is broken serves what the others serve.
"""

from __future__ import annotations

import ipaddress
import logging
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Final, NamedTuple
from urllib.parse import urlsplit

import msgspec
from msgspec import Meta

from nexus.errors import ConfigError
from nexus.net.filememory import MAX_FILE_BYTES, FileMemory
from nexus.settings import Settings, decode

__all__ = [
    "DEFAULT_GROUP",
    "MAX_SERVICES",
    "Changes",
    "ServiceEntry",
    "ServicesFile",
    "diff",
    "normalise_url",
]

logger = logging.getLogger("nexus.gateway.discovery")

#: Least-conn looks at every server for every request, and each has a pool and a breaker.
MAX_SERVICES: Final = 256
#: Where routes lead to that name no other group.
DEFAULT_GROUP: Final = "default"
_DEFAULT_PORTS: Final = {"http": 80, "https": 443}

#: RFC 1123 §2.1 names, and the underscore that container networks use.
_LABEL: Final = re.compile(r"(?!-)[a-z0-9_-]{1,63}(?<!-)")

#: RFC 3986 §3.3 segments without percent-encoding, none of them empty.
_PATH: Final = re.compile(r"(?:/[A-Za-z0-9._~!$&'()*+,;=:-]+)*")


class ServiceEntry(Settings, frozen=True):
    """One upstream: where it is, its share under ``weighted``, and which routes lead to it."""

    url: str
    weight: Annotated[int, Meta(ge=1, le=65_535)] = 1
    group: Annotated[str, Meta(min_length=1, max_length=128)] = DEFAULT_GROUP


class _Document(Settings, frozen=True):
    services: tuple[ServiceEntry, ...]


class Changes(NamedTuple):
    """From one list to the next; ``reweighted`` holds new entries of another weight or group."""

    added: tuple[ServiceEntry, ...]
    removed: tuple[ServiceEntry, ...]
    reweighted: tuple[ServiceEntry, ...]


class ServicesFile:
    """The file at ``path``; one per worker."""

    __slots__ = ("_good", "_path", "_seen", "_services", "_stamp", "failures")

    def __init__(self, path: str | Path) -> None:
        self._path = Path(path)
        #: What the file held at the last look: its bytes, or why it could not be read.
        self._seen: bytes | str | None = None
        self._services: tuple[ServiceEntry, ...] | None = None
        self._good = b""
        self._stamp = (0, 0, 0)
        #: Broken states of the file that :meth:`poll` or :meth:`recover` met.
        self.failures = 0

    @property
    def good(self) -> bytes:
        """What the file held when its list was good for the last time; empty before that."""
        return self._good

    def read(self) -> tuple[ServiceEntry, ...]:
        """The list as it is now, in the file's order; raises ``ConfigError``."""
        self._seen = None
        content = self._load()
        self._seen = content
        self._services = self._parse(content)
        self._good = content
        return self._services

    def recover(self, memory: FileMemory) -> tuple[ServiceEntry, ...]:
        """:meth:`read`, but for a file that broke after the service had started: the list that the
        other workers serve. Raises ``ConfigError`` where there is none."""
        try:
            return self.read()
        except ConfigError as error:
            content = memory.newest()
            if content is None:
                raise
            self._services = self._parse(content)
            self._good = content
            if self._seen is None:  # it could not be read at all
                self._seen = str(error)
            self._report(error)
            return self._services

    def touched(self) -> bool:
        """Whether the file looks different from the last time this was asked: one stat(2)."""
        try:
            found = self._path.stat()
            stamp = (found.st_mtime_ns, found.st_size, found.st_ino)
        except OSError:
            stamp = (0, 0, 0)
        before, self._stamp = self._stamp, stamp
        return stamp != before

    def poll(self) -> tuple[ServiceEntry, ...] | None:
        """The new list if it changed and is good; ``None`` when there is nothing to do.

        It reads the whole file, which is small, instead of trusting its time stamp: two writes
        within one tick of the file system's clock look alike.
        """
        try:
            content = self._load()
        except ConfigError as error:
            if self._seen != str(error):
                self._seen = str(error)
                self._report(error)
            return None
        if content == self._seen:
            return None
        was_broken = self._services is not None and not self._is_good(self._seen)
        self._seen = content
        try:
            services = self._parse(content)
        except ConfigError as error:
            self._report(error)
            return None
        self._good = content
        if was_broken:
            logger.info("services file is good again", extra={"file": str(self._path)})
        if services == self._services:
            return None
        self._services = services
        return services

    @property
    def is_good(self) -> bool:
        """Whether the file was good at the last look."""
        return self._is_good(self._seen)

    def _is_good(self, seen: bytes | str | None) -> bool:
        if not isinstance(seen, bytes):
            return False
        try:
            self._parse(seen)
        except ConfigError:
            return False
        return True

    def _report(self, error: ConfigError) -> None:
        self.failures += 1
        logger.warning(
            "services file is broken, the last good list stays in force",
            extra={"file": str(self._path), "cause": str(error)},
        )

    def _load(self) -> bytes:
        try:
            with self._path.open("rb") as file:
                content = file.read(MAX_FILE_BYTES + 1)
        except OSError as error:
            raise ConfigError(f"cannot be read: {error.strerror}", source=str(self._path)) from None
        if len(content) > MAX_FILE_BYTES:
            raise ConfigError(f"is larger than {MAX_FILE_BYTES} bytes", source=str(self._path))
        return content

    def _parse(self, content: bytes) -> tuple[ServiceEntry, ...]:
        source = str(self._path)
        try:
            tree = msgspec.json.decode(content)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            what = f"not JSON: {error}" if content.strip() else "is empty"
            raise ConfigError(what, source=source) from None
        document = decode(_Document, tree, source=source)
        if not document.services:
            raise ConfigError("expected at least one service", source=source, path="services")
        if len(document.services) > MAX_SERVICES:
            raise ConfigError(
                f"expected at most {MAX_SERVICES} services, got {len(document.services)}",
                source=source,
                path="services",
            )
        return _checked(document.services, source)


def _checked(entries: Sequence[ServiceEntry], source: str) -> tuple[ServiceEntry, ...]:
    checked: dict[str, ServiceEntry] = {}
    for i, entry in enumerate(entries):
        path = f"services[{i}].url"
        try:
            url = normalise_url(entry.url)
        except ValueError as error:
            raise ConfigError(str(error), source=source, path=path) from None
        if url in checked:
            raise ConfigError(f"{url} is listed twice", source=source, path=path)
        checked[url] = ServiceEntry(url=url, weight=entry.weight, group=entry.group)
    return tuple(checked.values())


def normalise_url(url: str) -> str:
    """``http[s]://host[:port][/path]``, without the default port or a trailing slash.

    The path is put before that of each request. Scheme and host come out in lower case. Raises
    ``ValueError`` for anything else: user information, query, fragment, dot segments. Or
    ``unix:///path`` of a socket, to which requests go without a prefix.
    """
    if url.startswith("unix:"):
        return _unix_url(url)
    if "@" in url:
        # Not in the message: it may hold a password.
        raise ValueError("expected http[s]://host[:port][/path], got a URL with user information")
    expected = f"expected http[s]://host[:port][/path], got {url!r}"
    if not url.isascii() or any(c <= " " or c == "\x7f" for c in url):
        raise ValueError(f"{expected}: only visible ASCII characters")
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise ValueError(f"{expected}: {error}") from None
    scheme = parts.scheme
    if scheme not in _DEFAULT_PORTS:
        raise ValueError(f"{expected}: the scheme must be http or https")
    if "?" in url or "#" in url:
        raise ValueError(f"{expected}: no query or fragment")
    path = parts.path.rstrip("/")
    if not _PATH.fullmatch(path) or any(s in (".", "..") for s in path.split("/")):
        raise ValueError(f"{expected}: the path is not in its plain form")
    if not host:
        raise ValueError(f"{expected}: the host is missing")
    if port == 0 or parts.netloc.endswith(":"):
        raise ValueError(f"{expected}: the port must be from 1 to 65535")
    shown = _host(host, bracketed="[" in parts.netloc, expected=expected)
    shown_port = "" if port in (None, _DEFAULT_PORTS[scheme]) else f":{port}"
    return f"{scheme}://{shown}{shown_port}{path}"


def _unix_url(url: str) -> str:
    path = url.removeprefix("unix:")
    path = path.removeprefix("//")
    plain = path.startswith("/") and not path.endswith("/") and path.isascii()
    if not plain or "//" in path or any(c <= " " or c in "?#%\x7f" for c in path):
        raise ValueError(f"expected unix:///path, got {url!r}")
    return f"unix://{path}"


def _host(host: str, *, bracketed: bool, expected: str) -> str:
    if bracketed:
        try:
            address = ipaddress.IPv6Address(host)
        except ValueError:
            raise ValueError(f"{expected}: not an IPv6 address") from None
        if address.scope_id:
            raise ValueError(f"{expected}: an IPv6 address with a zone")
        return f"[{address.compressed}]"
    labels = host.removesuffix(".").split(".")
    if len(host) > 253 or not all(_LABEL.fullmatch(label) for label in labels):
        raise ValueError(f"{expected}: not a host name")
    if labels[-1].isdigit():
        # A name that ends in a number is an IPv4 address or nothing (WHATWG URL, 3.5).
        try:
            return ipaddress.IPv4Address(host).compressed
        except ValueError:
            raise ValueError(f"{expected}: not an IPv4 address") from None
    return host


def diff(old: Sequence[ServiceEntry], new: Sequence[ServiceEntry]) -> Changes:
    """What to add, what to drain and then remove, and whose weight to change."""
    before = {entry.url: entry for entry in old}
    after = {entry.url: entry for entry in new}
    return Changes(
        added=tuple(entry for entry in new if entry.url not in before),
        removed=tuple(entry for entry in old if entry.url not in after),
        reweighted=tuple(
            entry for entry in new if entry.url in before and before[entry.url] != entry
        ),
    )
