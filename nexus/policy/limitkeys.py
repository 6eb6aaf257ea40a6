"""What a rate limit counts by: the parts of its key, as the configuration writes them.

``address`` (IPv6 by /64), ``client`` (the token's client id), ``route`` (its template),
``header:<name>``; several together make one bucket for each combination.
"""

from __future__ import annotations

import re
from typing import Final, NamedTuple

__all__ = ["ADDRESS", "CLIENT", "HEADER", "ROUTE", "KeyPart", "parse_key"]

ADDRESS, CLIENT, ROUTE, HEADER = range(4)

_PLAIN: Final = {"address": ADDRESS, "client": CLIENT, "route": ROUTE}
#: RFC 9110 §5.1: a field name is a token.
_TOKEN: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,64}")
#: Credentials come as clients; these also change with every request or are dropped on the way.
_REFUSED: Final = frozenset((b"authorization", b"cookie", b"connection", b"content-length"))


class KeyPart(NamedTuple):
    """``header`` is the field's name in lower case, where ``kind`` is ``HEADER``."""

    kind: int
    header: bytes = b""


def parse_key(parts: tuple[str, ...]) -> tuple[KeyPart, ...]:
    """Raises ``ValueError`` for what is no part, for a part that is named twice, and for none."""
    if not parts:
        raise ValueError("expected at least one of address, client, route, header:<name>")
    found: list[KeyPart] = []
    for text in parts:
        part = _parse(text)
        if part in found:
            raise ValueError(f"{text!r} is named twice")
        found.append(part)
    return tuple(found)


def _parse(text: str) -> KeyPart:
    kind = _PLAIN.get(text)
    if kind is not None:
        return KeyPart(kind)
    word, colon, name = text.partition(":")
    if word != "header" or not colon:
        raise ValueError(f"expected address, client, route or header:<name>, got {text!r}")
    if not _TOKEN.fullmatch(name):
        raise ValueError(f"expected the name of a header after 'header:', got {name!r}")
    header = name.lower().encode()
    if header in _REFUSED:
        raise ValueError(f"{name} is no key: count by client instead")
    return KeyPart(HEADER, header)
