"""RESP2 and RESP3, written: the pure-Python twin of ``_respencode_c``."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from nexus._speedups.resp_values import (
    MAX_DEPTH,
    Attributed,
    BigNumber,
    BulkError,
    Map,
    Push,
    Set,
    SimpleError,
    SimpleString,
    VerbatimString,
)

if TYPE_CHECKING:
    from nexus._speedups.resp_values import Protocol, Value

__all__ = ["encode_command", "encode_reply"]

_LF: Final = 0x0A
_CR: Final = 0x0D
_INT64_MAX: Final = 2**63 - 1
_BIG_NUMBER: Final = re.compile(rb"-?[0-9]+")
_LINE_BREAKS_TO_BLANKS: Final = bytes.maketrans(b"\r\n", b"  ")


def encode_command(arguments: Sequence[bytes | bytearray | memoryview | str | int]) -> bytes:
    """A request as an array of bulk strings; ``str`` goes as UTF-8, ``int`` in decimal.

    Raises ``ValueError`` for no argument and ``TypeError`` for any other type of one.
    """
    if not arguments:
        raise ValueError("a command needs at least one argument")
    parts = [b"*%d\r\n" % len(arguments)]
    for argument in arguments:
        if isinstance(argument, str):
            argument = argument.encode()
        elif isinstance(argument, int) and not isinstance(argument, bool):
            argument = b"%d" % argument
        elif not isinstance(argument, bytes):
            if not isinstance(argument, bytearray | memoryview):
                raise TypeError(
                    f"a command's argument must be bytes, str or int, not {type(argument).__name__}"
                )
            argument = bytes(argument)
        parts.append(b"$%d\r\n%b\r\n" % (len(argument), argument))
    return b"".join(parts)


def encode_reply(value: Value, protocol: Protocol = 3) -> bytes:
    """A value as a server sends it in the given protocol version.

    RESP2 has fewer types; the others are sent as Redis sends them to RESP2 clients: maps, sets and
    pushes as arrays, doubles and big numbers as bulk strings, booleans as 1 and 0, nulls as
    ``$-1``: only the type is lost. Verbatim strings lose their format, bulk errors (as simple
    errors) their line breaks, and attributes are left out.

    Raises ``ValueError`` for what the type cannot hold and ``TypeError`` for what is no value.
    """
    if protocol not in (2, 3):
        raise ValueError(f"protocol must be 2 or 3, not {protocol!r}")
    out: list[bytes] = []
    _encode(value, protocol == 3, 0, out)
    return b"".join(out)


def _encode(value: object, resp3: bool, depth: int, out: list[bytes]) -> None:
    if isinstance(value, bytes):
        _encode_text(value, resp3, out)
    elif value is None:
        out.append(b"_\r\n" if resp3 else b"$-1\r\n")
    elif isinstance(value, bool):
        out.append((b"#t\r\n" if value else b"#f\r\n") if resp3 else b":%d\r\n" % value)
    elif isinstance(value, int):
        if -_INT64_MAX - 1 <= value <= _INT64_MAX:
            out.append(b":%d\r\n" % value)
        else:
            raise ValueError("an integer must fit in 64 bits; use BigNumber")
    elif isinstance(value, float):
        text = repr(value).encode()
        out.append(b",%b\r\n" % text if resp3 else b"$%d\r\n%b\r\n" % (len(text), text))
    elif isinstance(value, list | Attributed):
        if depth == MAX_DEPTH:
            raise ValueError(f"a value may nest at most {MAX_DEPTH} levels")
        _encode_aggregate(value, resp3, depth, out)
    else:
        raise TypeError(f"not a RESP value: {type(value).__name__}")


def _encode_text(value: bytes, resp3: bool, out: list[bytes]) -> None:
    kind = type(value)
    if kind is bytes:
        out.append(b"$%d\r\n%b\r\n" % (len(value), value))
    elif kind is SimpleString or kind is SimpleError:
        if _CR in value or _LF in value:
            raise ValueError(f"a simple string or error cannot hold CR or LF: {value!r}")
        out.append((b"+%b\r\n" if kind is SimpleString else b"-%b\r\n") % value)
    elif kind is BulkError:
        if resp3:
            out.append(b"!%d\r\n%b\r\n" % (len(value), value))
        else:
            out.append(b"-%b\r\n" % value.translate(_LINE_BREAKS_TO_BLANKS))
    elif kind is BigNumber:
        if _BIG_NUMBER.fullmatch(value) is None:
            raise ValueError(f"a big number must be decimal digits: {value!r}")
        out.append(b"(%b\r\n" % value if resp3 else b"$%d\r\n%b\r\n" % (len(value), value))
    elif kind is VerbatimString:
        if len(value) < 4 or value[3] != 0x3A:
            raise ValueError(f"a verbatim string must begin with three letters and ':': {value!r}")
        if resp3:
            out.append(b"=%d\r\n%b\r\n" % (len(value), value))
        else:
            out.append(b"$%d\r\n%b\r\n" % (len(value) - 4, value[4:]))
    else:
        raise TypeError(f"not a RESP value: {kind.__name__}")


def _encode_aggregate(
    value: list[Value] | Attributed, resp3: bool, depth: int, out: list[bytes]
) -> None:
    if isinstance(value, Attributed):
        if resp3:
            out.append(b"|%d\r\n" % _pair_count(value.attributes))
            for item in value.attributes:
                _encode(item, resp3, depth + 1, out)
        _encode(value.value, resp3, depth + 1, out)
        return
    kind = type(value)
    count = _pair_count(value) if kind is Map else len(value)
    if kind is Push and depth:
        raise ValueError("a push can only be sent at the top level")
    if kind is list or not resp3:
        out.append(b"*%d\r\n" % len(value))
    elif kind is Map:
        out.append(b"%%%d\r\n" % count)
    elif kind is Set:
        out.append(b"~%d\r\n" % count)
    elif kind is Push:
        out.append(b">%d\r\n" % count)
    else:
        raise TypeError(f"not a RESP value: {kind.__name__}")
    for item in value:
        _encode(item, resp3, depth + 1, out)


def _pair_count(items: Map | list[Value]) -> int:
    if len(items) % 2:
        raise ValueError("a map needs a value for every key")
    return len(items) // 2
