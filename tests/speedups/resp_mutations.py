"""Mutations of RESP streams, for the small seeded loop in the suite and for ``tests/fuzz``."""

from __future__ import annotations

import random

TOKENS = [
    b"\r\n",
    b"\r",
    b"\n",
    b"\x00",
    b"$-1\r\n",
    b"*-1\r\n",
    b"*2\r\n",
    b"$3\r\nabc\r\n",
    b"%1\r\n",
]
TOKENS += [b"|1\r\n", b">1\r\n", b"_\r\n", b"#t\r\n", b",1.5e3\r\n", b"(12\r\n", b"=5\r\ntxt:a\r\n"]
TOKENS += [b"9" * 19, b"-", b"+", b'"', b"'", b"\\x", b"?", b"!2\r\nab\r\n", b"~1\r\n", b":7\r\n"]


def mutate(rng: random.Random, stream: bytes) -> bytes:
    """One to four random edits: a byte changed, cut out, a token put in, a stretch doubled."""
    data = bytearray(stream)
    for _ in range(rng.randint(1, 4)):
        at = rng.randint(0, len(data))
        choice = rng.randrange(4)
        if choice == 0 and at < len(data):
            data[at] = rng.randrange(256)
        elif choice == 1:
            del data[at : at + rng.randint(1, 4)]
        elif choice == 2:
            data[at:at] = rng.choice(TOKENS)
        else:
            data[at:at] = data[max(0, at - rng.randint(1, 12)) : at]
    return bytes(data)
