"""What a route matches, read and checked: paths, hosts, conditions on headers and query.

A path is a list of segments: literal text, a parameter ``{name}`` (one segment that is not empty),
and at the end perhaps ``*`` (nothing, or anything below). It is matched on the normalised path
(RFC 3986 §6.2.2), so it is brought to that form here.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Final
from urllib.parse import unquote_to_bytes

from nexus.errors import HttpError
from nexus.wire.http1 import normalise_path

if TYPE_CHECKING:
    from nexus.wire.http1 import RequestHead

__all__ = ["Conditions", "PathPattern", "check_host", "query_pairs"]

#: A parameter's name, as in most programming languages.
_PARAMETER: Final = re.compile(r"\{([A-Za-z_][A-Za-z0-9_]*)\}")
#: RFC 9110 §5.1
_TOKEN: Final = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_HOST: Final = re.compile(
    r"(?:\*\.)?(?:(?!-)[a-z0-9_-]{1,63}(?<!-)\.)*(?!-)[a-z0-9_-]{1,63}(?<!-)|\[[0-9a-f:.]+\]"
)
_MAX_PATH: Final = 1024
#: Value of a condition that only asks for presence.
PRESENT: Final = "*"


class PathPattern:
    """A route's path. Raises ``ValueError`` with what was expected."""

    __slots__ = ("parameters", "prefix", "rest", "segments", "text")

    def __init__(self, text: str) -> None:
        if not text.startswith("/"):
            raise ValueError(f"expected a path that begins with /, got {text!r}")
        if len(text) > _MAX_PATH:
            raise ValueError(f"expected at most {_MAX_PATH} characters, got {len(text)}")
        self.text: Final = text
        pieces = text[1:].split("/")
        #: Whether it ends in ``/*``.
        self.rest: Final = pieces[-1] == "*"
        if self.rest:
            pieces.pop()
        #: One entry per segment; ``None`` is a parameter.
        self.segments: Final[list[bytes | None]] = []
        #: Name → number of its segment.
        self.parameters: Final[dict[str, int]] = {}
        for number, piece in enumerate(pieces):
            self.segments.append(self._segment(piece, number, last=number == len(pieces) - 1))
        #: The literal part before ``/*``, without its slash; empty where there is a parameter.
        self.prefix: Final = self._literal() if self.rest else b""

    def _segment(self, piece: str, number: int, *, last: bool) -> bytes | None:
        match = _PARAMETER.fullmatch(piece)
        if match is not None:
            name = match[1]
            if name in self.parameters:
                raise ValueError(f"the parameter {{{name}}} is there twice")
            self.parameters[name] = number
            return None
        if "{" in piece or "}" in piece:
            raise ValueError(
                f"expected a parameter to be a whole segment, like /users/{{id}}, got {piece!r}"
            )
        if "*" in piece:
            raise ValueError(f"expected * only as the last segment, as in /api/*, got {piece!r}")
        if not piece and not (last and not self.rest):
            raise ValueError("expected no empty segment: repeated slashes are merged")
        if piece in (".", ".."):
            raise ValueError("expected no . or .. segment: they are resolved before matching")
        try:
            literal = normalise_path(b"/" + piece.encode())
        except HttpError:
            literal = b""
        if not piece.isascii() or not literal:
            raise ValueError(
                f"expected the segment {piece!r} percent-encoded (RFC 3986), "
                "and no encoded slash, backslash or NUL"
            )
        return literal[1:]

    def _literal(self) -> bytes:
        known = [segment for segment in self.segments if segment is not None]
        if len(known) < len(self.segments):
            return b""
        return b"".join(b"/" + segment for segment in known)

    @property
    def shape(self) -> tuple[bytes | None, ...]:
        """Equal for patterns that match the same paths; the last entry tells ``*``."""
        return (*self.segments, b"*" if self.rest else b"")

    def matches(self, path: bytes) -> bool:
        """Whether it matches a normalised path; the route table is quicker with many."""
        if not path.startswith(b"/"):
            return False
        pieces = path[1:].split(b"/")
        if len(pieces) < len(self.segments) or (len(pieces) > len(self.segments) and not self.rest):
            return False
        return all(
            piece if segment is None else piece == segment
            for piece, segment in zip(pieces, self.segments, strict=False)
        )

    def __repr__(self) -> str:
        return f"<PathPattern {self.text}>"


def check_host(text: str) -> bytes:
    """A host of a route in its one form; raises ``ValueError``."""
    host = text.lower().removesuffix(".")
    if _HOST.fullmatch(host) is None or len(host) > 253:
        raise ValueError(f"expected a host without port, or *.example, got {text!r}")
    return host.encode()


def check_field_name(name: str) -> str:
    """A header's name in lower case; raises ``ValueError``."""
    if _TOKEN.fullmatch(name) is None:
        raise ValueError(f"expected a header name (RFC 9110 §5.1), got {name!r}")
    return name.lower()


def check_field_value(value: str) -> str:
    """A header's value; raises ``ValueError`` for what could end the field."""
    if any((c < " " and c != "\t") or c == "\x7f" for c in value) or value != value.strip(" \t"):
        raise ValueError(
            f"expected a header value without control characters or white space around it, "
            f"got {value!r}"
        )
    try:
        value.encode("latin-1")
    except UnicodeEncodeError:
        raise ValueError(f"expected a header value in Latin-1, got {value!r}") from None
    return value


class Conditions:
    """What a request's headers and query must say besides the path. Raises ``ValueError``."""

    __slots__ = ("headers", "query")

    def __init__(self, headers: Mapping[str, str], query: Mapping[str, str]) -> None:
        #: Lower-case name → value; ``None``: any.
        self.headers: Final[dict[bytes, bytes | None]] = {}
        for name, value in headers.items():
            key = check_field_name(name).encode()
            if key == b"host":
                raise ValueError("expected the host under hosts, not under headers")
            if key in self.headers:
                raise ValueError(f"the header {name!r} is there twice")
            self.headers[key] = (
                None if value == PRESENT else check_field_value(value).encode("latin-1")
            )
        self.query: Final[dict[bytes, bytes | None]] = {
            name.encode(): None if value == PRESENT else value.encode()
            for name, value in query.items()
        }
        if b"" in self.query:
            raise ValueError("expected the name of a query parameter, got ''")

    def __len__(self) -> int:
        return len(self.headers) + len(self.query)

    def met(self, head: RequestHead, preflight: bool) -> bool:
        """Whether a request meets all of them.

        A header that is repeated counts as its values joined with ``", "``; a parameter that is
        repeated must have the value each time, so that it does not matter which of them the
        upstream believes. A preflight does not carry the headers of the request that follows.
        """
        if not preflight:
            for name, wanted in self.headers.items():
                value = head.named(name)
                if value is None or (wanted is not None and value != wanted):
                    return False
        if self.query:
            pairs = query_pairs(head.query)
            for name, wanted in self.query.items():
                values = [value for key, value in pairs if key == name]
                if not values or (wanted is not None and any(v != wanted for v in values)):
                    return False
        return True

    def excludes(self, other: Conditions) -> bool:
        """Whether no request can meet both."""
        return any(
            name in theirs and value is not None and theirs[name] not in (None, value)
            for ours, theirs in ((self.headers, other.headers), (self.query, other.query))
            for name, value in ours.items()
        )

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Conditions):
            return NotImplemented
        return self.headers == other.headers and self.query == other.query

    __hash__ = None  # type: ignore[assignment]


def query_pairs(query: bytes) -> list[tuple[bytes, bytes]]:
    """``?a=1&b=%20`` → decoded names and values, in order (WHATWG URL §5.1)."""
    pairs: list[tuple[bytes, bytes]] = []
    for part in query.removeprefix(b"?").split(b"&"):
        if part:
            name, _, value = part.partition(b"=")
            pairs.append((decoded(name), decoded(value)))
    return pairs


def decoded(text: bytes) -> bytes:
    """One name or value of a query: ``+`` is a space."""
    return unquote_to_bytes(text.replace(b"+", b" "))
