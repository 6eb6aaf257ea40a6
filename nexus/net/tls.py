"""TLS towards clients and towards upstreams: the settings' files made into a context."""

from __future__ import annotations

import ssl
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from nexus.errors import ConfigError

if TYPE_CHECKING:
    from nexus.net.settings import DialTlsSettings, ListenTlsSettings

__all__ = ["ServerContexts", "Stamp", "client_context", "fingerprint", "server_context"]

#: Modification time, size and inode of each of some files.
Stamp = tuple[tuple[int, int, int], ...]
#: Where a certificate's settings stand, and its files.
_Place = tuple[str, str, str, str]


class ServerContexts:
    """The contexts of listeners, whose certificates are renewed one by one: of each the last good.

    One of these lives as long as its listeners. Contexts of open connections stay as they are.
    """

    def __init__(self) -> None:
        self._good: dict[_Place, tuple[Stamp, ssl.SSLContext]] = {}

    def make(
        self,
        settings: ListenTlsSettings,
        *,
        path: str = "tls",
        alpn: Sequence[str] = (),
        broken: list[ConfigError] | None = None,
    ) -> ssl.SSLContext | None:
        """The context of one listener, ``None`` where TLS is off; raises :class:`ConfigError`.

        TLS 1.2 and later. With ``client_ca_file`` clients must show a certificate that it signed,
        as with Redis's ``tls-auth-clients yes``. ``path`` is where the settings stand, for errors.
        Errors of files that once were good go to ``broken``, if that is given: then the last good
        certificate stays, and the others are renewed.
        """
        if not settings.enabled:
            _check_off(settings, path)
            return None
        if settings.key_file and not settings.cert_file:
            raise ConfigError(f"needs {path}.cert_file", path=f"{path}.key_file")
        ca_file = settings.client_ca_file
        context = self._one(path, settings.cert_file, settings.key_file, ca_file, alpn, broken)
        named: dict[str, ssl.SSLContext] = {}
        for i, one in enumerate(settings.certificates):
            place = f"{path}.certificates[{i}]"
            found = self._one(place, one.cert_file, one.key_file, ca_file, alpn, broken)
            for j, name in enumerate(one.names):
                if named.setdefault(name.lower(), found) is not found:
                    raise ConfigError(
                        f"another certificate has the name {name!r}", path=f"{place}.names[{j}]"
                    )
        _answer_names(context, named, refuse=not settings.cert_file)
        return context

    def _one(
        self,
        path: str,
        cert_file: str,
        key_file: str,
        ca_file: str,
        alpn: Sequence[str],
        broken: list[ConfigError] | None,
    ) -> ssl.SSLContext:
        place = (path, cert_file, key_file, ca_file)
        stamp = _stamp(cert_file, key_file, ca_file)
        good = self._good.get(place)
        if good is not None and good[0] == stamp:
            return good[1]
        try:
            context = _server_context(path, cert_file, key_file, ca_file, alpn)
        except ConfigError as error:
            if broken is None or good is None:
                raise
            broken.append(error)
            return good[1]
        self._good[place] = (stamp, context)
        return context


def server_context(
    settings: ListenTlsSettings, *, path: str = "tls", alpn: Sequence[str] = ()
) -> ssl.SSLContext | None:
    """As :meth:`ServerContexts.make`, where nothing is kept."""
    return ServerContexts().make(settings, path=path, alpn=alpn)


def _check_off(settings: ListenTlsSettings, path: str) -> None:
    for name in ("key_file", "client_ca_file"):
        if getattr(settings, name):
            raise ConfigError(f"needs {path}.cert_file", path=f"{path}.{name}")


def _server_context(
    path: str, cert_file: str, key_file: str, ca_file: str, alpn: Sequence[str]
) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if alpn:
        context.set_alpn_protocols(alpn)
    if cert_file:
        try:
            context.load_cert_chain(cert_file, key_file or None, password=_no_password)
        except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
            raise ConfigError(f"cannot be used: {error}", path=f"{path}.cert_file") from None
    if ca_file:
        try:
            context.load_verify_locations(ca_file)
        except OSError as error:
            raise ConfigError(
                f"cannot be used: {error}",
                path=f"{path.partition('.certificates')[0]}.client_ca_file",
            ) from None
        context.verify_mode = ssl.CERT_REQUIRED
    return context


def _answer_names(
    context: ssl.SSLContext, named: dict[str, ssl.SSLContext], *, refuse: bool
) -> None:
    """Choose the certificate by the name that a client asks for."""
    if not named:
        context.sni_callback = None
        return

    def choose(connection: ssl.SSLObject, name: str | None, _: ssl.SSLContext) -> int | None:
        wanted = (name or "").lower().removesuffix(".")
        found = named.get(wanted) or named.get("*." + wanted.partition(".")[2])
        if found is not None:
            connection.context = found
        elif refuse:
            return ssl.ALERT_DESCRIPTION_UNRECOGNIZED_NAME
        return None

    context.sni_callback = choose


def client_context(
    settings: DialTlsSettings, *, path: str, alpn: Sequence[str] = ()
) -> ssl.SSLContext:
    """The context of connections that we make; always verifies. Raises :class:`ConfigError`."""
    if settings.key_file and not settings.cert_file:
        raise ConfigError(f"needs {path}.cert_file", path=f"{path}.key_file")
    try:
        context = ssl.create_default_context(cafile=settings.ca_file or None)
    except OSError as error:
        raise ConfigError(f"cannot be used: {error}", path=f"{path}.ca_file") from None
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if alpn:
        context.set_alpn_protocols(alpn)
    if settings.cert_file:
        try:
            context.load_cert_chain(
                settings.cert_file, settings.key_file or None, password=_no_password
            )
        except (OSError, ValueError) as error:
            raise ConfigError(f"cannot be used: {error}", path=f"{path}.cert_file") from None
    return context


def fingerprint(settings: ListenTlsSettings) -> Stamp:
    """Changes whenever one of the files does; a file that is not there counts as such."""
    names = [settings.cert_file, settings.key_file, settings.client_ca_file]
    for one in settings.certificates:
        names += (one.cert_file, one.key_file)
    return _stamp(*names)


def _stamp(*names: str) -> Stamp:
    found = []
    for name in names:
        try:
            state = Path(name).stat()
        except OSError:
            found.append((0, 0, 0))
        else:
            found.append((state.st_mtime_ns, state.st_size, state.st_ino))
    return tuple(found)


def _no_password() -> str:
    """OpenSSL would ask on the terminal instead."""
    raise ValueError("the key is encrypted; give one without a password")
