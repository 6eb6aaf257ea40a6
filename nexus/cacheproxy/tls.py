"""TLS towards clients: the settings' files made into a context."""

from __future__ import annotations

import ssl
from typing import TYPE_CHECKING

from nexus.errors import ConfigError

if TYPE_CHECKING:
    from nexus.cacheproxy.settings import ListenTlsSettings

__all__ = ["server_context"]


def server_context(settings: ListenTlsSettings) -> ssl.SSLContext | None:
    """The context of the listener, ``None`` where TLS is off; raises :class:`ConfigError`.

    TLS 1.2 and later. With ``client_ca_file`` clients must show a certificate that it signed, as
    with Redis's ``tls-auth-clients yes``.
    """
    if not settings.cert_file and not settings.key_file:
        if settings.client_ca_file:
            raise ConfigError("needs tls.cert_file and tls.key_file", path="tls.client_ca_file")
        return None
    if not settings.cert_file:
        raise ConfigError("needs tls.cert_file", path="tls.key_file")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_cert_chain(
            settings.cert_file, settings.key_file or None, password=_no_password
        )
    except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
        raise ConfigError(f"cannot be used: {error}", path="tls.cert_file") from None
    if settings.client_ca_file:
        try:
            context.load_verify_locations(settings.client_ca_file)
        except OSError as error:
            raise ConfigError(f"cannot be used: {error}", path="tls.client_ca_file") from None
        context.verify_mode = ssl.CERT_REQUIRED
    return context


def _no_password() -> str:
    """OpenSSL would ask on the terminal instead."""
    raise ValueError("the key is encrypted; give one without a password")
