"""Cross-origin requests of browsers, as the Fetch standard has them; one :class:`Cors` per route.

A preflight is answered here, before authentication, because it carries no credentials. An allowed
origin is echoed, never ``*`` where credentials are allowed; and whatever depends on the origin
says ``Vary: Origin``, so that no cache gives one site's answer to another.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from nexus.gateway.patterns import check_field_name

if TYPE_CHECKING:
    from nexus.gateway.settings_routes import CorsSettings

__all__ = ["RESPONSE_FIELDS", "Cors"]

#: ``scheme "://" host [":" port]`` (RFC 6454 §6.1); ``null`` is what sandboxed pages send.
_ORIGIN: Final = re.compile(r"[a-z][a-z0-9+.-]*://(?:\*\.)?[a-z0-9._-]+(?::[0-9]{1,5})?")
_BRACKETED: Final = re.compile(r"[a-z][a-z0-9+.-]*://\[[0-9a-f:.]+\](?::[0-9]{1,5})?")
#: What a ``*`` stands for.
_LABELS: Final = re.compile(rb"[a-z0-9-]+(?:\.[a-z0-9-]+)*")
_ASKED: Final = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z, \t]*")
_MAX_ASKED: Final = 4096

_VARY: Final = b"Vary: Origin\r\n"
_VARY_PREFLIGHT: Final = (
    b"Vary: Origin, Access-Control-Request-Method, Access-Control-Request-Headers\r\n"
)
#: What an upstream says about it is replaced: two answers are none to a browser.
RESPONSE_FIELDS: Final = frozenset(
    (
        b"access-control-allow-origin",
        b"access-control-allow-credentials",
        b"access-control-expose-headers",
        b"access-control-allow-methods",
        b"access-control-allow-headers",
        b"access-control-max-age",
    )
)


class Cors:
    """Raises ``ValueError`` for settings that no browser would accept, or none should."""

    __slots__ = (
        "_any",
        "_any_header",
        "_credentials",
        "_exact",
        "_exposed",
        "_headers",
        "_headers_field",
        "_max_age",
        "_methods",
        "_wildcards",
    )

    def __init__(self, settings: CorsSettings, methods: frozenset[bytes]) -> None:
        """``methods``: of the route."""
        self._any: Final = "*" in settings.origins
        if self._any and settings.credentials:
            raise ValueError(
                "expected the origins by name where credentials are allowed: with `*` every site "
                "could act for its visitors"
            )
        self._exact: Final[set[bytes]] = set()
        self._wildcards: Final[list[tuple[bytes, bytes]]] = []
        for origin in settings.origins:
            self._learn(origin)
        offered = [_token(method) for method in settings.methods] or sorted(
            method.decode() for method in methods
        )
        self._methods: Final = frozenset(method.encode() for method in offered)
        names = [check_field_name(name) for name in settings.headers if name != "*"]
        self._any_header: Final = "*" in settings.headers
        self._headers: Final = frozenset(name.encode() for name in names)
        self._headers_field: Final = ", ".join(names).encode()
        exposed = ", ".join(check_field_name(name) for name in settings.expose).encode()
        self._exposed: Final = (
            b"Access-Control-Expose-Headers: " + exposed + b"\r\n" if exposed else b""
        )
        self._credentials: Final = (
            b"Access-Control-Allow-Credentials: true\r\n" if settings.credentials else b""
        )
        self._max_age: Final = b"Access-Control-Max-Age: %d\r\n" % settings.max_age_seconds

    def _learn(self, origin: str) -> None:
        if origin == "*":
            return
        known = origin == "null" or _ORIGIN.fullmatch(origin) or _BRACKETED.fullmatch(origin)
        if not known:
            raise ValueError(
                f"expected an origin like https://app.example (lower case, no path), got {origin!r}"
            )
        scheme, star, rest = origin.partition("://*.")
        if star:
            self._wildcards.append((f"{scheme}://".encode(), f".{rest}".encode()))
        else:
            self._exact.add(origin.encode())

    def allows(self, origin: bytes) -> bool:
        """Whether scripts of this origin may read the answers."""
        if self._any or origin in self._exact:
            return True
        return any(
            origin.startswith(scheme)
            and origin.endswith(suffix)
            and _LABELS.fullmatch(origin[len(scheme) : -len(suffix)]) is not None
            for scheme, suffix in self._wildcards
        )

    def _origin_fields(self, origin: bytes) -> bytes:
        shown = b"*" if self._any else origin
        return b"Access-Control-Allow-Origin: " + shown + b"\r\n" + self._credentials

    def fields(self, origin: bytes | None) -> bytes:
        """Field lines of every response of the route, our own refusals included."""
        vary = b"" if self._any else _VARY
        if origin is None or not self.allows(origin):
            return vary
        return self._origin_fields(origin) + self._exposed + vary

    @staticmethod
    def cleaned(block: bytes) -> bytes:
        """Response field lines without what the upstream says about it."""
        if b"access-control-" not in block.lower():
            return block
        lines = block.split(b"\r\n")
        return b"\r\n".join(
            line for line in lines if line.partition(b":")[0].lower() not in RESPONSE_FIELDS
        )

    def preflight(self, origin: bytes, method: bytes, asked: bytes | None) -> tuple[bytes, str]:
        """Field lines of the answer, and why not (empty: granted).

        ``method`` and ``asked`` are ``Access-Control-Request-Method`` and ``-Headers``.
        """
        if not self.allows(origin):
            return _VARY_PREFLIGHT, "cors_origin"
        if method not in self._methods:
            return _VARY_PREFLIGHT, "cors_method"
        headers = self._granted(asked)
        if headers is None:
            return _VARY_PREFLIGHT, "cors_headers"
        allowed = b"Access-Control-Allow-Headers: " + headers + b"\r\n" if headers else b""
        return (
            b"".join(
                (
                    self._origin_fields(origin),
                    b"Access-Control-Allow-Methods: ",
                    b", ".join(sorted(self._methods)),
                    b"\r\n",
                    allowed,
                    self._max_age,
                    _VARY_PREFLIGHT,
                )
            ),
            "",
        )

    def _granted(self, asked: bytes | None) -> bytes | None:
        """The list of headers to answer with; ``None``: not all that was asked for."""
        if asked is None:
            return self._headers_field
        if len(asked) > _MAX_ASKED or _ASKED.fullmatch(asked) is None:
            return None
        names = {name.strip(b" \t").lower() for name in asked.split(b",")} - {b""}
        if self._any_header:
            return b", ".join(sorted(names | self._headers))
        return self._headers_field if names <= self._headers else None


def _token(method: str) -> str:
    check_field_name(method)  # both are tokens
    return method
