"""Coverage-guided fuzzing of the RESP decoders; not part of the suite or of CI.

    pip install atheris && python tests/fuzz/fuzz_resp.py [corpus directory] [libFuzzer options]
    python tests/fuzz/fuzz_resp.py --random SECONDS        # no atheris: seeded random mutations

Invariants, for requests and for replies, with default and with tight limits:

* the compiled and the pure decoder give the same messages, error text, ``consumed``, ``pending``;
* so does the same stream fed byte by byte, and cut at places taken from the input;
* nothing but ``RespError`` is ever raised;
* a reply that was decoded encodes, and decodes again to itself.
"""

from __future__ import annotations

import random
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "speedups"))

from resp_backends import available, cut, exact, one_by_one, replies, requests
from resp_mutations import mutate

from nexus._speedups.resp_values import INCOMPLETE
from nexus.errors import RespError

TIGHT_REQUEST = {"max_inline_bytes": 32, "max_bulk_bytes": 40, "max_arguments": 5}
TIGHT_REPLY = {"max_line_bytes": 32, "max_bulk_bytes": 8, "max_elements": 4, "max_depth": 2}


def check(data: bytes) -> None:
    """Raise ``AssertionError`` when an invariant is broken; the first three bytes choose cuts."""
    stream = data[3:]
    ways = ([stream], one_by_one(stream), cut(stream, [byte * 7 for byte in data[:3]]))
    for decode, tight in ((requests, TIGHT_REQUEST), (replies, TIGHT_REPLY)):
        for limits in ({}, tight):
            outcomes = [decode(b, pieces, **limits) for b in available() for pieces in ways]
            assert all(outcome == outcomes[0] for outcome in outcomes), (stream, outcomes)
    for backend in available():
        decoder = backend.ReplyDecoder()
        decoder.feed(stream)
        try:
            while (value := decoder.read()) is not INCOMPLETE:
                encoded = backend.encode_reply(value)
                assert replies(backend, [encoded])[:2] == ([exact(value)], None), (stream, value)
        except RespError:
            pass


def run_random(seconds: float) -> None:
    from test_resp_replies import BAD, GOOD
    from test_resp_requests import BAD as BAD_REQUESTS
    from test_resp_requests import GOOD as GOOD_REQUESTS

    seed = time.time_ns()
    print(f"seed {seed}; backends: {', '.join(b.name for b in available())}")
    rng = random.Random(seed)
    tables = (GOOD, BAD, GOOD_REQUESTS, BAD_REQUESTS)
    seeds = [row[0][:300] for table in tables for row in table]
    deadline = time.monotonic() + seconds
    count = 0
    while time.monotonic() < deadline:
        check(rng.randbytes(3) + mutate(rng, rng.choice(seeds) + rng.choice(seeds)))
        count += 1
    print(f"{count} streams, no difference")


def main() -> None:
    if sys.argv[1:2] == ["--random"]:
        run_random(float(sys.argv[2]))
        return
    try:
        import atheris
    except ImportError:
        sys.exit("atheris is not installed: pip install atheris, or use --random SECONDS")
    atheris.Setup(sys.argv, check)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
