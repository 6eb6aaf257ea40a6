"""Coverage-guided fuzzing of the RESP decoders; see ``harness.py``.

Invariants, for requests and for replies, with default and with tight limits:

* the compiled and the pure decoder give the same messages, error text, ``consumed``, ``pending``;
* so does the same stream fed byte by byte, and cut at places taken from the input;
* nothing but ``RespError`` is ever raised;
* a reply that was decoded encodes, and decodes again to itself.
"""

from __future__ import annotations

from collections.abc import Iterator

import harness

with harness.instrumented():
    from resp_backends import available, cut, exact, one_by_one, replies, requests
    from resp_mutations import mutate

    from nexus._speedups.resp_values import INCOMPLETE
    from nexus.errors import RespError

TIGHT_REQUEST = {"max_inline_bytes": 32, "max_bulk_bytes": 40, "max_arguments": 5}
TIGHT_REPLY = {"max_line_bytes": 32, "max_bulk_bytes": 8, "max_elements": 4, "max_depth": 2}


def check(data: bytes) -> None:
    """Raise ``AssertionError`` when an invariant is broken; the first three bytes choose cuts."""
    stream = data[3:]
    ways = [[stream], cut(stream, [byte * 7 for byte in data[:3]])]
    if harness.thorough(data):
        ways.append(one_by_one(stream))
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


def seeds() -> Iterator[bytes]:
    from test_resp_replies import BAD, GOOD
    from test_resp_requests import BAD as BAD_REQUESTS
    from test_resp_requests import GOOD as GOOD_REQUESTS

    for rows in (GOOD, BAD, GOOD_REQUESTS, BAD_REQUESTS):
        for row in rows:
            yield row[0][:1500]


if __name__ == "__main__":
    harness.main(check, seeds, mutate)
