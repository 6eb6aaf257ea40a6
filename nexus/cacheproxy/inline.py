"""Splitting an inline request (``SET key "a value"``) into arguments, as Redis does."""

from __future__ import annotations

from typing import Final

__all__ = ["split_inline"]

_BLANKS: Final = b" \n\r\t\x0b\x0c\x00"
_ESCAPES: Final = {ord("n"): 10, ord("r"): 13, ord("t"): 9, ord("b"): 8, ord("a"): 7}
_QUOTE: Final = ord('"')
_APOSTROPHE: Final = ord("'")
_BACKSLASH: Final = ord("\\")
_HEX: Final = b"0123456789abcdefABCDEF"


def split_inline(line: bytes) -> list[bytes] | None:
    """Arguments of one line, ``None`` for unbalanced quotes (Redis's ``sdssplitargs``).

    Double quotes know ``\\xHH``, ``\\n``, ``\\r``, ``\\t``, ``\\b``, ``\\a``; single quotes only
    ``\\'``. A closing quote must be followed by a blank. A NUL ends the line, as in C.
    """
    line = line.rstrip(b"\n").removesuffix(b"\r").split(b"\0", 1)[0]
    args: list[bytes] = []
    position = 0
    while True:
        while position < len(line) and line[position] in _BLANKS:
            position += 1
        if position >= len(line):
            return args
        argument = bytearray()
        end = _argument(line, position, argument)
        if end < 0:
            return None
        args.append(bytes(argument))
        position = end


def _argument(line: bytes, position: int, out: bytearray) -> int:
    """Read one argument into ``out``; where it ends, or -1."""
    while position < len(line):
        byte = line[position]
        if byte in _BLANKS:
            return position
        if byte in (_QUOTE, _APOSTROPHE):
            read = _double if byte == _QUOTE else _single
            return read(line, position + 1, out)
        out.append(byte)
        position += 1
    return position


def _closed(line: bytes, position: int) -> int:
    """``position`` is behind a closing quote: a blank or the end must follow."""
    if position < len(line) and line[position] not in _BLANKS:
        return -1
    return position


def _double(line: bytes, position: int, out: bytearray) -> int:
    while position < len(line):
        byte = line[position]
        if byte == _QUOTE:
            return _closed(line, position + 1)
        if byte == _BACKSLASH and position + 1 < len(line):
            digits = line[position + 2 : position + 4]
            hexadecimal = len(digits) == 2 and all(digit in _HEX for digit in digits)
            if line[position + 1] == ord("x") and hexadecimal:
                out.append(int(digits, 16))
                position += 4
                continue
            out.append(_ESCAPES.get(line[position + 1], line[position + 1]))
            position += 2
            continue
        out.append(byte)
        position += 1
    return -1


def _single(line: bytes, position: int, out: bytearray) -> int:
    while position < len(line):
        byte = line[position]
        if byte == _APOSTROPHE:
            return _closed(line, position + 1)
        if byte == _BACKSLASH and line[position + 1 : position + 2] == b"'":
            out.append(_APOSTROPHE)
            position += 2
            continue
        out.append(byte)
        position += 1
    return -1
