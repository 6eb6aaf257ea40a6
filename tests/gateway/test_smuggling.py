"""Smuggling, over the wire: what is refused never reaches the upstream, and what is right does.

The gateway is the real process, the client a raw socket, the upstream one that records each byte.
The running backend is tested (the whole suite runs on both); the kernels are compared with each
other in ``tests/http1``.
"""

# ruff: noqa: E501  (tables read better by the row)

from __future__ import annotations

import contextlib
import random
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
from gateway_process import Client, GatewayProcess
from recording_upstream import OK, Answer, RecordingUpstream, wait_until
from smuggling_corpus import ATTACKS, BAD_ANSWERS, BEFORE, HIDDEN, VALID, Attack, BadAnswer, Valid

from nexus._speedups import BACKEND

pytestmark = pytest.mark.evidence

#: Streams above this are not sent byte by byte: one packet each would take the suite's time.
BYTEWISE = 260


@dataclass(frozen=True)
class Rig:
    gateway: GatewayProcess
    upstream: RecordingUpstream


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    upstream = RecordingUpstream().start()
    gateway = GatewayProcess(
        tmp_path_factory.mktemp("smuggling"),
        "py" if BACKEND == "pure" else "c",
        [upstream.url],
        {
            # One attempt: a bad answer is judged by what it is, not by its repetition.
            "retry": {"max_attempts": 1},
            # What is tested waits for none of these; a busy machine may take its time.
            "breaker": {"enabled": False, "timeout_ms": 25_000},
            "timeouts": {"head": 20, "body_idle": 20, "keep_alive": 20, "connect": 20, "total": 60},
            "upstream": {"keep_alive_seconds": 20},
        },
    ).start()
    yield Rig(gateway, upstream)
    assert gateway.stop() == 0
    upstream.stop()
    assert "Traceback" not in gateway.output(), gateway.output()
    assert upstream.errors == [], "the gateway itself sent what is no HTTP"
    # Also whatever may have arrived after the test that sent it had looked.
    assert not [request for request in upstream.requests if "hidden" in request.target]
    assert not [request for request in upstream.requests if "bad" in request.target]


def cuts_of(data: bytes) -> list[list[bytes]]:
    """The ways in which a stream is sent: at once, in a few pieces, byte by byte."""
    rng = random.Random(data)  # the same cuts every time
    ways = [[data]]
    for pieces in (2, 5):
        at = sorted(rng.randrange(1, len(data)) for _ in range(pieces - 1))
        ways.append([data[a:b] for a, b in zip([0, *at], [*at, len(data)], strict=True) if b > a])
    if len(data) <= BYTEWISE:
        ways.append([data[i : i + 1] for i in range(len(data))])
    return ways


def send(gateway: GatewayProcess, pieces: list[bytes]) -> Client:
    client = Client(gateway.port, 30)
    client.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    # The gateway may have hung up on an attack before it was all sent.
    with contextlib.suppress(ConnectionError):
        for index, piece in enumerate(pieces):
            if index and len(pieces) <= 8:
                time.sleep(0.001)  # or the kernel joins what belongs to different reads
            client.send(piece)
    return client


def test_the_corpus_is_as_large_as_promised() -> None:
    assert len({attack.data for attack in ATTACKS}) + len(BAD_ANSWERS) >= 300
    assert len({attack.name for attack in ATTACKS}) == len(ATTACKS)


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.name[:60])
def test_refused_and_nothing_reaches_the_upstream(rig: Rig, attack: Attack) -> None:
    upstream = rig.upstream
    for pieces in cuts_of(attack.data + HIDDEN):
        before, bytes_before = len(upstream.requests), upstream.received
        client = send(rig.gateway, pieces)
        response = client.read()
        assert (response.status, response.json["reason"]) == (attack.status, attack.reason)
        assert response.value("connection") == "close"
        assert client.closed(), "the connection must not be used again"
        client.close()
        assert len(upstream.requests) == before
        if attack.partial:
            assert wait_until(lambda: not upstream.unfinished()), "what was begun is broken off"
        else:
            assert upstream.received == bytes_before


@pytest.mark.parametrize("attack", ATTACKS[::7], ids=lambda attack: attack.name[:60])
def test_refused_behind_a_good_request(rig: Rig, attack: Attack) -> None:
    upstream = rig.upstream
    before = len(upstream.requests)
    client = send(rig.gateway, [BEFORE + attack.data + HIDDEN])
    assert client.read().status == 200
    response = client.read()
    assert (response.status, response.json["reason"]) == (attack.status, attack.reason)
    assert client.closed()
    client.close()
    assert [request.target for request in upstream.requests[before:]] == ["/before"]


@pytest.mark.parametrize("valid", VALID, ids=lambda valid: valid.name)
def test_what_looks_alike_and_is_right_passes(rig: Rig, valid: Valid) -> None:
    upstream = rig.upstream
    for pieces in cuts_of(valid.data):
        before = len(upstream.requests)
        client = send(rig.gateway, pieces)
        for status in valid.statuses or (200,) * len(valid.reached):
            assert client.read().status == status
        assert not client.buffer
        if valid.closes:
            assert client.closed()
        client.close()
        seen = [(r.method, r.target, r.body) for r in upstream.requests[before:]]
        assert seen == list(valid.reached)


def fetch(rig: Rig, answer: Answer, method: str = "GET") -> tuple[Client, int]:
    """Ask for a path that is answered so; the connection number that the upstream saw."""
    target = f"/answer-{len(rig.upstream.answers)}"
    rig.upstream.answers[target] = answer
    client = Client(rig.gateway.port, 30)
    client.send(f"{method} /api{target} HTTP/1.1\r\nHost: a\r\n\r\n".encode())
    return client, len(rig.upstream.requests)


@pytest.mark.parametrize("bad", BAD_ANSWERS, ids=lambda bad: bad.name[:60])
def test_an_answer_that_cannot_be_believed(rig: Rig, bad: BadAnswer) -> None:
    upstream = rig.upstream
    data = b"".join(bad.pieces)
    ways = 1 if bad.at_once else 4 if len(data) < 120 else 3
    for pieces in cuts_of(data)[:ways]:
        before = len(upstream.requests)
        client, _ = fetch(rig, Answer(tuple(pieces), pause=0.001 if len(pieces) < 8 else 0))
        response = client.read(bad.method)
        assert (response.status, response.json["reason"]) == (502, bad.reason)
        assert response.value("connection") == "close"
        assert client.closed(), "neither connection is used again"
        client.close()
        used = upstream.connections[upstream.requests[before].connection]
        assert wait_until(lambda c=used: c.closed), "neither connection is used again"


#: Answers that are right for the client, but leave bytes that must not answer the next request.
POISON = b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\npoison"
LEAVES_MORE: list[tuple[str, str, tuple[bytes, ...]]] = [
    ("behind a length", "GET", (OK + POISON,)),
    ("a moment later", "GET", (OK, POISON)),
    ("behind chunks", "GET", (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n" + POISON,)),
    ("body of 204", "GET", (b"HTTP/1.1 204 X\r\nContent-Length: %d\r\n\r\n" % len(POISON), POISON)),
    ("chunks of 204", "GET", (b"HTTP/1.1 204 X\r\nTransfer-Encoding: chunked\r\n\r\n", POISON)),
    ("body of 304", "GET", (b"HTTP/1.1 304 X\r\nContent-Length: %d\r\n\r\n" % len(POISON), POISON)),
    ("body to HEAD", "HEAD", (b"HTTP/1.1 200 X\r\nContent-Length: %d\r\n\r\n" % len(POISON), POISON)),
    ("more than the length", "GET", (b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", POISON)),
]  # fmt: skip


@pytest.mark.parametrize(("name", "method", "pieces"), LEAVES_MORE, ids=[c[0] for c in LEAVES_MORE])
def test_bytes_that_nobody_asked_for_answer_nobody(
    rig: Rig, name: str, method: str, pieces: tuple[bytes, ...]
) -> None:
    for _ in range(3):
        before = len(rig.upstream.requests)
        client, _ = fetch(rig, Answer(pieces), method)
        assert client.read(method).status < 400
        # A client that asks before the bytes are there cannot be told from one whom they answer;
        # once they have been seen, their connection is gone.
        used = rig.upstream.connections[rig.upstream.requests[before].connection]
        assert wait_until(lambda c=used: c.closed)
        for _ in range(3):
            client.send(b"GET /api/plain HTTP/1.1\r\nHost: a\r\n\r\n")
            assert client.read().body == b"ok"
        client.close()


#: Status and length say that a body follows where none may: never wait to see it, never reuse.
@pytest.mark.parametrize("fields", [b"Content-Length: 45", b"Transfer-Encoding: chunked"])
def test_a_connection_behind_a_204_with_a_body_is_not_used_again(rig: Rig, fields: bytes) -> None:
    before = len(rig.upstream.requests)
    client, _ = fetch(rig, Answer((b"HTTP/1.1 204 No Content\r\n" + fields + b"\r\n\r\n",)))
    assert client.read().status == 204
    client.close()
    used = rig.upstream.connections[rig.upstream.requests[before].connection]
    assert wait_until(lambda: used.closed)


def test_an_upgrade_to_something_else_than_was_asked_for(rig: Rig) -> None:
    rig.upstream.answers["/h2c"] = Answer(
        (b"HTTP/1.1 101 X\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n",)
    )
    client = Client(rig.gateway.port, 30)
    client.send(
        b"GET /api/h2c HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
    )
    response = client.read()
    assert (response.status, response.json["reason"]) == (502, "upstream_unasked_upgrade")
    assert client.closed()


def test_a_request_inside_a_body_that_was_answered_early_stays_a_body(rig: Rig) -> None:
    """0.CL: the upstream answers before it has read the body, which looks like a request."""
    rig.upstream.answers["/early"] = Answer((OK,), early=True, close=True)
    for delay in (0, 0.02):
        client = Client(rig.gateway.port, 30)
        client.send(
            b"POST /api/early HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % len(HIDDEN)
        )
        time.sleep(delay)
        client.send(HIDDEN)
        response = client.read()
        assert response.status in (200, 502)
        time.sleep(0.05)
        assert not client.buffer
        client.close()
    assert not [request for request in rig.upstream.requests if "hidden" in request.target]


def test_what_is_nominated_or_hop_by_hop_goes_no_further(rig: Rig) -> None:
    client = Client(rig.gateway.port, 30)
    client.send(
        b"POST /api/hop HTTP/1.1\r\nHost: a\r\nConnection: X-One, x-two\r\nX-One: 1\r\nX-TWO: 2\r\n"
        b"X-Three: 3\r\nTE: trailers\r\nTrailer: A\r\nKeep-Alive: 5\r\nProxy-Connection: x\r\n"
        b"Upgrade: h2c\r\nProxy-Authorization: p\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
    )
    assert client.read().status == 200
    client.close()
    names = {name for name, _ in rig.upstream.requests[-1].fields}
    assert "x-three" in names
    gone = {"x-one", "x-two", "te", "trailer", "keep-alive", "proxy-connection", "upgrade"}
    assert not names & (gone | {"proxy-authorization", "connection"})
