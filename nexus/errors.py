"""Every error that Nexus raises on purpose, typed by what the caller must do.

::

    NexusError
    ├── ConfigError        a human must mend a file, a flag or a variable; says which
    ├── BackendError       the compiled kernels were demanded and are not there
    ├── ListenError        an address cannot be bound; names the setting that changes it
    ├── ProtocolError      the peer broke a protocol; its bytes must not be believed any further
    │   ├── RespError          RESP; carries the text that Redis would answer
    │   ├── HttpError          HTTP/1.1; carries status and reason code to answer with
    │   ├── ProxyHeaderError   not a PROXY protocol header; the connection is closed
    │   └── EventError         an event that does not follow its schema: dead-letter topic
    └── UpstreamError      the other side of us failed; says whether the request was sent
"""

from __future__ import annotations

from typing import Final

__all__ = [
    "BackendError",
    "ConfigError",
    "EventError",
    "HttpError",
    "ListenError",
    "NexusError",
    "ProtocolError",
    "ProxyHeaderError",
    "RespError",
    "UpstreamError",
]


class NexusError(Exception):
    """Base of all errors raised on purpose by Nexus."""


class ConfigError(NexusError):
    """A setting is wrong.

    ``source`` says where it was read (a file, ``environment``, ``command line``), ``path`` which
    setting it is (dotted), and the message what was found and what was expected.
    """

    def __init__(self, message: str, *, source: str = "", path: str = "") -> None:
        self.source: Final = source
        self.path: Final = path
        self.reason: Final = message
        where = ": ".join(part for part in (source, path) if part)
        super().__init__(f"{where}: {message}" if where else message)


class BackendError(NexusError):
    """``NEXUS_REQUIRE_EXTENSIONS`` cannot be met."""


class ListenError(NexusError):
    """An address cannot be bound; the message names the setting to change."""


class ProtocolError(NexusError):
    """The peer broke the protocol."""


class RespError(ProtocolError):
    """Malformed RESP; ``str(error)`` is what Redis itself would answer behind ``-ERR ``."""


class HttpError(ProtocolError):
    """A malformed or refused HTTP message: ``status`` to answer with, ``reason`` as metric label.

    ``reason`` is a short snake_case code (``bad_request_line``, ``head_too_large``, …), listed in
    ``docs/errors.md``; ``detail`` is for people.
    """

    def __init__(self, status: int, reason: str, detail: str) -> None:
        self.status: Final = status
        self.reason: Final = reason
        self.detail: Final = detail
        super().__init__(f"{status} {reason}: {detail}")


class ProxyHeaderError(ProtocolError):
    """No PROXY protocol header where there must be one."""


class EventError(ProtocolError):
    """An event that its schema refuses; it goes to the dead-letter topic."""


class UpstreamError(NexusError):
    """The upstream failed. ``sent`` tells whether any byte of the request may have reached it."""

    def __init__(self, message: str, *, sent: bool) -> None:
        self.sent: Final = sent
        super().__init__(message)
