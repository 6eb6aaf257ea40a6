"""Changes to a message on its way: header fields, query, path. Off the path of routes without any.

Values may hold placeholders, ``{client_id}`` or a parameter of the path; ``{{`` is a brace. What
could end a field or begin another one, CR, LF, NUL and the other control characters, is refused
twice: in the configuration when it is loaded, and in what placeholders bring when it is used.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote_from_bytes

from nexus.errors import NexusError
from nexus.gateway.patterns import PathPattern, check_field_name, check_field_value, decoded
from nexus.wire.http1 import FIELDS, FRAMING, HOP, OURS, SECRET, TRACE

if TYPE_CHECKING:
    from nexus.gateway.settings_routes import HeaderRulesSettings, QueryRulesSettings

__all__ = ["HeaderRules", "QueryRules", "Rewrite", "TransformError"]

_PIECES: Final = re.compile(r"\{\{|\}\}|\{([^{}]*)\}|([^{}]+)|([{}])")
_BAD: Final = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")
#: Fields whose meaning the gateway keeps; in responses it also replaces `Location`'s prefix.
_REQUEST_KEPT: Final = HOP | FRAMING | OURS | SECRET | TRACE
_RESPONSE_KEPT: Final = HOP | FRAMING | OURS

#: What the request has by then; ``exchange`` is the one being served.
_VALUES: Final[dict[str, Callable[[Any], bytes]]] = {
    "client_id": lambda exchange: exchange.client_id.encode("utf-8"),
    "host": lambda exchange: exchange.host,
    "ip": lambda exchange: exchange.ip.encode(),
    "method": lambda exchange: exchange.method,
    "request_id": lambda exchange: exchange.request_id,
    "route": lambda exchange: exchange.route.template.encode("utf-8"),
}


class TransformError(NexusError):
    """A value that came with the request cannot stand in a header field."""


class Text:
    """A value with placeholders. Raises ``ValueError`` for those that nobody knows."""

    __slots__ = ("_fixed", "_pieces")

    def __init__(self, text: str, parameters: Mapping[str, int] | None) -> None:
        """``parameters``: of the path; ``None`` where there is no path any more."""
        self._pieces: Final[list[bytes | int | Callable[[Any], bytes]]] = []
        for match in _PIECES.finditer(text):
            if match[0] in ("{{", "}}"):
                self._pieces.append(match[0][:1].encode())
            elif match[2] is not None:
                self._pieces.append(match[2].encode("utf-8"))
            elif match[3] is not None:
                raise ValueError(f"expected {{name}}, or {{{{ for a brace, got {text!r}")
            else:
                self._pieces.append(_piece(match[1], parameters))
        fixed = [piece for piece in self._pieces if isinstance(piece, bytes)]
        self._fixed: Final = b"".join(fixed) if len(fixed) == len(self._pieces) else None

    def render(self, exchange: Any, path: bytes) -> bytes:
        """The bytes for one request; its normalised ``path`` gives the parameters."""
        if self._fixed is not None:
            return self._fixed
        out: list[bytes] = []
        for piece in self._pieces:
            if isinstance(piece, bytes):
                out.append(piece)
            elif isinstance(piece, int):
                out.append(path.split(b"/")[piece + 1])
            else:
                out.append(piece(exchange))
        return b"".join(out)


def _piece(name: str, parameters: Mapping[str, int] | None) -> int | Callable[[Any], bytes]:
    if parameters is not None and name in parameters:
        return parameters[name]
    if name in _VALUES:
        return _VALUES[name]
    known = ", ".join([*(parameters or ()), *_VALUES])
    raise ValueError(f"there is no placeholder {{{name}}} here; known: {known}")


class HeaderRules:
    """First ``remove``, then ``set`` in place of what was there, then ``add``.

    Raises ``ValueError`` for names that the gateway writes itself and for values that are no field
    values. ``parameters`` as in :class:`Text`; ``None`` also says that these are response fields.
    """

    __slots__ = ("_dropped", "_fixed", "_written")

    def __init__(self, settings: HeaderRulesSettings, parameters: Mapping[str, int] | None) -> None:
        kept = _RESPONSE_KEPT if parameters is None else _REQUEST_KEPT
        remove = [_name(name, kept) for name in settings.remove]
        self._written: Final = [
            (_name(name, kept).encode(), Text(check_field_value(value), parameters))
            for rules in (settings.set, settings.add)
            for name, value in rules.items()
        ]
        self._dropped: Final = frozenset(
            name.encode() for name in (*remove, *(_name(name, kept) for name in settings.set))
        )

    def __bool__(self) -> bool:
        return bool(self._dropped or self._written)

    def apply(self, block: bytes, exchange: Any, path: bytes = b"") -> bytes:
        """``Name: value CRLF`` lines (a status line may be the first) → the same, changed.

        Raises :class:`TransformError`; nothing is sent then.
        """
        lines = block.split(b"\r\n")
        lines.pop()
        if self._dropped:
            lines = [line for line in lines if _name_of(line) not in self._dropped]
        for name, text in self._written:
            value = text.render(exchange, path)
            if _BAD.search(value) is not None:
                raise TransformError(f"the value for {name.decode()} holds a control character")
            lines.append(b"%b: %b" % (name, value.strip(b" \t")))
        lines.append(b"")
        return b"\r\n".join(lines)


def _name_of(line: bytes) -> bytes:
    return line.partition(b":")[0].lower()


def _name(name: str, kept: int) -> str:
    checked = check_field_name(name)
    if FIELDS.get(checked.replace("_", "-").encode(), 0) & kept:
        raise ValueError(f"{name}: the gateway itself decides about this header")
    return checked


class QueryRules:
    """First ``remove``, then ``set`` in place of what was there, then ``add``.

    Names are compared decoded; what stays keeps its bytes. Raises ``ValueError``.
    """

    __slots__ = ("_dropped", "_written")

    def __init__(self, settings: QueryRulesSettings, parameters: Mapping[str, int]) -> None:
        names = (*settings.remove, *settings.set, *settings.add)
        if "" in names:
            raise ValueError("expected the name of a query parameter, got ''")
        self._dropped: Final = frozenset(
            name.encode() for name in (*settings.remove, *settings.set)
        )
        self._written: Final = [
            (name.encode(), Text(value, parameters))
            for rules in (settings.set, settings.add)
            for name, value in rules.items()
        ]

    def __bool__(self) -> bool:
        return bool(self._dropped or self._written)

    def apply(self, query: bytes, exchange: Any, path: bytes) -> bytes:
        """``?a=1`` or nothing → the same, changed."""
        parts = [
            part
            for part in query.removeprefix(b"?").split(b"&")
            if part and decoded(part.partition(b"=")[0]) not in self._dropped
        ]
        for name, text in self._written:
            value = text.render(exchange, path)
            parts.append(f"{quote_from_bytes(name, '')}={quote_from_bytes(value, '')}".encode())
        return b"?" + b"&".join(parts) if parts else b""


class Rewrite:
    """``/shop/{id}/*`` seen as ``/v2/{id}/*``. Raises ``ValueError`` where the two do not fit."""

    __slots__ = ("_back", "_depth", "_pieces", "_rest", "template")

    def __init__(self, template: str, pattern: PathPattern) -> None:
        target = PathPattern(template)
        for name in target.parameters:
            if name not in pattern.parameters:
                raise ValueError(f"the path {pattern.text} has no parameter {{{name}}}")
        if target.rest and not pattern.rest:
            raise ValueError(f"the path {pattern.text} does not end in /*, so there is no rest")
        self.template: Final = template
        names = {number: name for name, number in target.parameters.items()}
        self._pieces: Final[list[bytes | int]] = [
            pattern.parameters[names[number]] + 1 if segment is None else segment
            for number, segment in enumerate(target.segments)
        ]
        self._depth: Final = len(pattern.segments)
        self._rest: Final = target.rest
        #: Prefixes (the upstream's, ours) by which a ``Location`` finds back, where both are known.
        self._back: Final = (
            (target.prefix, pattern.prefix)
            if target.rest and not target.parameters and not pattern.parameters
            else None
        )

    def __call__(self, path: bytes) -> bytes:
        """The path that the upstream gets; ``path`` matches the pattern."""
        found = path.split(b"/", self._depth + 1)
        out = [b""]
        out += [found[piece] if isinstance(piece, int) else piece for piece in self._pieces]
        if self._rest and len(found) > self._depth + 1:
            out.append(found[-1])
        return b"/".join(out) or b"/"

    def back(self, location: bytes) -> bytes:
        """A path-absolute ``Location`` of the upstream as clients see it; empty: leave it."""
        if self._back is None:
            return b""
        theirs, ours = self._back
        if location != theirs and not location.startswith(theirs + b"/"):
            return b""
        return ours + location[len(theirs) :] or b"/"
