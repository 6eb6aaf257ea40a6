"""What a RESP reply becomes in Python, and the errors and limits both backends of the codec share.

===================  =======================  ============================================
on the wire          in Python                note
===================  =======================  ============================================
``+`` simple string  :class:`SimpleString`    a ``bytes``
``-`` simple error   :class:`SimpleError`     a ``bytes``; a value, never raised
``:`` integer        ``int``                  64 bits, signed
``$`` bulk string    ``bytes``                ``$-1`` is ``None``
``*`` array          ``list``                 ``*-1`` is ``None``
``_`` null           ``None``
``#`` boolean        ``bool``
``,`` double         ``float``                ``inf``, ``-inf``, ``nan``
``(`` big number     :class:`BigNumber`       its digits; ``int(value)`` may be quadratic
``!`` bulk error     :class:`BulkError`       a ``bytes``
``=`` verbatim       :class:`VerbatimString`  a ``bytes`` with its ``txt:`` in front
``%`` map            :class:`Map`             flat: key, value, key, value; any key, any order
``~`` set            :class:`Set`             a ``list``: members may be unhashable
``>`` push           :class:`Push`            a ``list``; only at the top level
``|`` attribute      :class:`Attributed`      wraps the value that it precedes
===================  =======================  ============================================

Specification: https://redis.io/docs/latest/develop/reference/protocol-spec/ and the RESP3 text by
antirez. Streamed strings and aggregates (``$?``, ``*?``) are refused: Redis has never sent one.
"""

from __future__ import annotations

import enum
from collections.abc import Iterator
from typing import TYPE_CHECKING, Final, Literal, TypeAlias

from nexus.errors import RespError

__all__ = [
    "INCOMPLETE",
    "MAX_ARGUMENTS",
    "MAX_BULK_BYTES",
    "MAX_DEPTH",
    "MAX_ELEMENTS",
    "MAX_INLINE_BYTES",
    "MAX_LINE_BYTES",
    "MAX_REQUEST_BYTES",
    "MIN_LINE_BYTES",
    "UNAUTHENTICATED_ARGUMENTS",
    "UNAUTHENTICATED_BULK_BYTES",
    "Attributed",
    "BigNumber",
    "BulkError",
    "Incomplete",
    "Map",
    "Push",
    "Set",
    "SimpleError",
    "SimpleString",
    "Value",
    "VerbatimString",
    "bad_reply",
    "expected_count",
    "expected_length",
    "require_line_limit",
]

#: One bulk string: Redis's ``proto-max-bulk-len`` default, 512 MiB.
MAX_BULK_BYTES: Final = 512 * 1024 * 1024
#: One inline request, and one length header, in bytes: Redis's ``PROTO_INLINE_MAX_SIZE``.
MAX_INLINE_BYTES: Final = 64 * 1024
#: Arguments of one request: Redis ≥ 7.0 accepts up to ``INT_MAX`` (earlier: 1024 · 1024). Nothing
#: is reserved for announced arguments, so this costs what was really sent.
MAX_ARGUMENTS: Final = 2**31 - 1
#: One whole request: Redis's ``client-query-buffer-limit`` default, 1 GiB.
MAX_REQUEST_BYTES: Final = 1024 * 1024 * 1024
#: What a client may send before it has authenticated (Redis ≥ 6.2.6, CVE-2021-32675).
UNAUTHENTICATED_ARGUMENTS: Final = 10
UNAUTHENTICATED_BULK_BYTES: Final = 16_384
#: One line of a reply (simple string, error, number), 1 MiB: Lua may return long status replies.
MAX_LINE_BYTES: Final = 1024 * 1024
#: Least limit of a line, in bytes: a header with a 64-bit number must always fit.
MIN_LINE_BYTES: Final = 32
#: Elements of one aggregate: 16 Mi, 128 MiB of references. A map's pair counts twice.
MAX_ELEMENTS: Final = 16 * 1024 * 1024
#: Aggregates inside one another. Redis's deepest own reply (COMMAND DOCS) has fewer than 10.
MAX_DEPTH: Final = 128


class Incomplete(enum.Enum):
    """The type of :data:`INCOMPLETE`."""

    INCOMPLETE = enum.auto()


#: ``read()`` returns it when more bytes are needed; ``None`` is a value of its own (null).
INCOMPLETE: Final = Incomplete.INCOMPLETE


class _Text(bytes):
    """A string whose RESP type is not the plain bulk string."""

    __slots__ = ()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({bytes(self)!r})"


class SimpleString(_Text):
    """``+OK``: without CR and LF."""

    __slots__ = ()


class SimpleError(_Text):
    """``-ERR unknown command``: without CR and LF."""

    __slots__ = ()

    @property
    def code(self) -> bytes:
        """The first word: ``ERR``, ``WRONGTYPE``, ``MOVED``, …"""
        return self.split(b" ", 1)[0]


class BulkError(SimpleError):
    """``!21``: an error that may hold any bytes."""

    __slots__ = ()


class BigNumber(_Text):
    """``(3492890328409238509324850943850943825024385``: decimal digits, of any length.

    Kept as digits, because converting costs time quadratic in their number (Python refuses more
    than 4 300 by itself); ``int(value)`` does it.
    """

    __slots__ = ()


class VerbatimString(_Text):
    """``=15``: three letters of format, a colon, and the text."""

    __slots__ = ()

    @property
    def format(self) -> bytes:
        """``txt`` or ``mkd``."""
        return self[:3]

    @property
    def text(self) -> bytes:
        """The string without its format."""
        return self[4:]


class _Aggregate(list["Value"]):
    """A list whose RESP type is not the plain array."""

    __slots__ = ()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({super().__repr__()})"


class Map(_Aggregate):
    """``%2``: keys and values in turn, as sent. RESP2 sends the same items as an array."""

    __slots__ = ()

    def pairs(self) -> Iterator[tuple[Value, Value]]:
        """Key and value, pair by pair."""
        return zip(self[::2], self[1::2], strict=True)


class Set(_Aggregate):
    """``~3``: members in the order sent."""

    __slots__ = ()


class Push(_Aggregate):
    """``>3``: out-of-band data (pub/sub messages, invalidations); no command's reply."""

    __slots__ = ()


class Attributed:
    """``|1`` before a value: the value with what the server said about it."""

    __slots__ = ("attributes", "value")

    def __init__(self, value: Value, attributes: Map) -> None:
        self.value: Final = value
        self.attributes: Final = attributes

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Attributed):
            return NotImplemented
        return self.value == other.value and self.attributes == other.attributes

    __hash__ = None  # type: ignore[assignment]  # holds lists

    def __repr__(self) -> str:
        return f"Attributed({self.value!r}, {self.attributes!r})"


if TYPE_CHECKING:
    Value: TypeAlias = bool | int | float | bytes | list["Value"] | Attributed | None
    Protocol: TypeAlias = Literal[2, 3]
else:
    Value = object


def require_line_limit(name: str, value: int) -> None:
    """Raise ``ValueError`` for a limit under which no length header fits."""
    if value < MIN_LINE_BYTES:
        raise ValueError(f"{name} must be at least {MIN_LINE_BYTES}, not {value}")


def expected_length(lowest: int, highest: int) -> str:
    """What :func:`bad_reply` says of a wrong length."""
    return f"a length from {lowest} to {highest} (streamed strings are not supported)"


def expected_count(lowest: int, highest: int) -> str:
    """What :func:`bad_reply` says of a wrong number of elements."""
    return f"a count from {lowest} to {highest} (streamed aggregates are not supported)"


def bad_reply(offset: int, expected: str, got: bytes) -> RespError:
    """The error for a reply that is not RESP: where (bytes since the stream began), what, found."""
    shown = got[:32] + (b"..." if len(got) > 32 else b"")
    return RespError(
        f"Protocol error in reply at byte {offset}: expected {expected}, got {shown!r}"
    )
