"""Redis's glob patterns (``KEYS``, ACL): ``*``, ``?``, ``[ab]``, ``[^a]``, ``[a-z]``, ``\\x``.

A pattern is read once, into the cheapest test that answers it: everything, one key, a prefix, or a
regular expression that never backtracks over a ``*`` (every part between two stars has a fixed
length, so the first place where it fits is as good as any later one).
"""

from __future__ import annotations

import re
from typing import Final

__all__ = ["ALL", "EXACT", "PATTERN", "PREFIX", "Glob"]

#: Shapes of a pattern, cheapest test first.
ALL: Final = 0
EXACT: Final = 1
PREFIX: Final = 2
PATTERN: Final = 3

_STAR: Final = None
#: One byte of a key: the values it may have.
_Class = frozenset[int]
_ANY: Final[_Class] = frozenset(range(256))


class Glob:
    """One pattern. Raises ``ValueError`` for one that Redis would read as nobody meant it."""

    __slots__ = ("_regex", "literal", "pattern", "shape", "stars")

    def __init__(self, pattern: str) -> None:
        if not pattern:
            raise ValueError("the pattern is empty; for every key leave it out or write '*'")
        self.pattern: Final = pattern
        tokens = _tokens(pattern.encode())
        #: Number of ``*``; runs of them count as one.
        self.stars: Final = tokens.count(_STAR)
        literal = bytearray()
        for token in tokens:
            if token is None or len(token) != 1:
                break
            literal += bytes(token)
        #: What every matching key begins with.
        self.literal: Final = bytes(literal)
        rest = tokens[len(literal) :]
        if rest == [_STAR]:
            self.shape = PREFIX if literal else ALL
        else:
            self.shape = PATTERN if rest else EXACT
        self._regex: Final = re.compile(_regex(tokens), re.DOTALL)

    def matches(self, key: bytes) -> bool:
        """Whether ``key`` fits."""
        return self._regex.fullmatch(key) is not None

    def parts(self, key: bytes) -> tuple[bytes, ...] | None:
        """What each ``*`` stands for in ``key``; ``None`` where it does not fit."""
        found = self._regex.fullmatch(key)
        return None if found is None else found.groups()

    @property
    def regex(self) -> re.Pattern[bytes]:
        """For ``fullmatch``; one group for each ``*``."""
        return self._regex

    def covers(self, other: Glob) -> bool:
        """Whether every key of ``other`` is certainly a key of this pattern, too."""
        if self.shape == ALL or self.pattern == other.pattern:
            return True
        if other.shape == EXACT:
            return self.matches(other.literal)
        return self.shape == PREFIX and other.literal.startswith(self.literal)


def _tokens(pattern: bytes) -> list[_Class | None]:
    tokens: list[_Class | None] = []
    position = 0
    while position < len(pattern):
        byte = pattern[position : position + 1]
        position += 1
        if byte == b"*":
            if not tokens or tokens[-1] is not _STAR:
                tokens.append(_STAR)
        elif byte == b"?":
            tokens.append(_ANY)
        elif byte == b"[":
            members, position = _class(pattern, position)
            tokens.append(members)
        elif byte == b"\\":
            if position == len(pattern):
                raise ValueError("a backslash at the end escapes nothing")
            tokens.append(frozenset(pattern[position : position + 1]))
            position += 1
        else:
            tokens.append(frozenset(byte))
    return tokens


def _class(pattern: bytes, position: int) -> tuple[_Class, int]:
    """Members of ``[…]`` and where it ends; as in Redis a reversed range is read forwards."""
    begin = position
    negated = pattern[position : position + 1] == b"^"
    position += negated
    members: set[int] = set()
    while True:
        if position >= len(pattern):
            shown = pattern[begin - 1 :].decode("utf-8", "replace")
            raise ValueError(f"the {shown!r} is not closed with ']'")
        byte = pattern[position]
        if byte == 93:  # ']'
            break
        if byte == 92 and position + 1 < len(pattern):  # backslash
            position += 1
            members.add(pattern[position])
        elif pattern[position + 1 : position + 2] == b"-" and position + 2 < len(pattern):
            low, high = sorted((byte, pattern[position + 2]))
            members.update(range(low, high + 1))
            position += 2
        else:
            members.add(byte)
        position += 1
    found = _ANY - members if negated else frozenset(members)
    if not found:
        raise ValueError("'[]' fits no byte at all")
    return found, position + 1


def _regex(tokens: list[_Class | None]) -> bytes:
    parts: list[bytes] = []
    last = max((i for i, token in enumerate(tokens) if token is _STAR), default=-1)
    in_star = False
    for index, token in enumerate(tokens):
        if token is not _STAR:
            parts.append(_one(token))
            continue
        if in_star:
            parts.append(b")")
            in_star = False
        if index == last:
            # What follows is anchored at the key's end.
            parts.append(b"(.*)")
        else:
            # Atomic: the shortest stretch up to where the next part fits, and never a longer one.
            parts.append(b"(?>(.*?)")
            in_star = True
    return b"".join(parts)


def _one(members: _Class) -> bytes:
    if len(members) == 256:
        return b"."
    if len(members) == 1:
        return b"\\x%02x" % next(iter(members))
    return b"[" + b"".join(b"\\x%02x" % byte for byte in sorted(members)) + b"]"
