"""Coverage-guided fuzzing of the boundary scanners of the cacheproxy; see ``harness.py``.

Invariants, for commands and for replies:

* the compiled and the pure scanner find the same ends, kinds and errors in the same reads;
* so do they for the same bytes cut anywhere into reads: the same commands and replies end at the
  same places;
* nothing but ``RespError`` is ever raised.
"""

from __future__ import annotations

from collections.abc import Iterator

import harness

with harness.instrumented():
    from resp_mutations import mutate
    from test_respscan import BACKENDS, REPLIES, ends, merged, stretches, walk

    SIDES = [param.values[0] for param in BACKENDS if param.values[0] is not None]


def check(data: bytes) -> None:
    """Raise ``AssertionError`` when an invariant is broken; the first three bytes choose cuts."""
    stream = data[3:]
    ways = [[], [byte + 1 for byte in data[:3]]]
    if harness.thorough(data):
        ways.append([1] * len(stream))
    whole = merged(walk(SIDES[0], stream, []))
    ended = ends(SIDES[0], stream, [])
    for way in ways:
        # What is too big to be held depends on how much has come: the same only read by read.
        found = [walk(side, stream, list(way), 100) for side in SIDES]
        assert all(one == found[0] for one in found), (stream, way, found)
        found = [stretches(side, stream, list(way), 100) for side in SIDES]
        assert all(one == found[0] for one in found), (stream, way, found)
        for side in SIDES:
            assert merged(walk(side, stream, list(way))) == whole, (stream, way, whole)
            assert ends(side, stream, list(way)) == ended, (stream, way, ended)


def seeds() -> Iterator[bytes]:
    from fuzz_resp import seeds as others

    yield from others()
    yield from REPLIES
    yield b"*2\r\n$3\r\nGET\r\n$1\r\nk\r\n*3\r\n$3\r\nset\r\n$1\r\nk\r\n$200\r\n" + b"v" * 150
    yield b"PING x\r\n*1\r\n$5\r\nmulti\r\n*0\r\n"


if __name__ == "__main__":
    harness.main(check, seeds, mutate)
