"""TLS towards clients and towards upstreams: the settings' files made into a context."""

from __future__ import annotations

import ssl
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from nexus.errors import ConfigError

if TYPE_CHECKING:
    from nexus.net.settings import DialTlsSettings, ListenTlsSettings

__all__ = ["client_context", "fingerprint", "server_context"]


def server_context(
    settings: ListenTlsSettings, *, path: str = "tls", alpn: Sequence[str] = ()
) -> ssl.SSLContext | None:
    """The context of a listener, ``None`` where TLS is off; raises :class:`ConfigError`.

    TLS 1.2 and later. With ``client_ca_file`` clients must show a certificate that it signed, as
    with Redis's ``tls-auth-clients yes``. ``path`` is where the settings stand, for errors.
    """
    if not settings.cert_file and not settings.key_file:
        if settings.client_ca_file:
            raise ConfigError(
                f"needs {path}.cert_file and {path}.key_file", path=f"{path}.client_ca_file"
            )
        return None
    if not settings.cert_file:
        raise ConfigError(f"needs {path}.cert_file", path=f"{path}.key_file")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if alpn:
        context.set_alpn_protocols(alpn)
    try:
        context.load_cert_chain(
            settings.cert_file, settings.key_file or None, password=_no_password
        )
    except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
        raise ConfigError(f"cannot be used: {error}", path=f"{path}.cert_file") from None
    if settings.client_ca_file:
        try:
            context.load_verify_locations(settings.client_ca_file)
        except OSError as error:
            raise ConfigError(f"cannot be used: {error}", path=f"{path}.client_ca_file") from None
        context.verify_mode = ssl.CERT_REQUIRED
    return context


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


def fingerprint(settings: ListenTlsSettings) -> tuple[tuple[int, int, int], ...]:
    """Changes whenever one of the files does; a file that is not there counts as such."""
    found = []
    for name in (settings.cert_file, settings.key_file, settings.client_ca_file):
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
