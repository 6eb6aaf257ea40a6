"""The same bytes through nginx, HAProxy and ours: what the upstream is told, and where we differ.

A difference is allowed only where the tables below give its reason. The reasons were written with
nginx 1.22 and HAProxy 2.6; other versions may be stricter, so a row that no longer applies fails
only on those two.
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from gateway_process import GatewayProcess
from proxy_peers import NAMES, executable, running, version
from recording_upstream import RecordingUpstream, Request
from smuggling_corpus import ATTACKS, HIDDEN, VALID, Valid
from support.requirements import missing

from nexus._speedups import BACKEND

WRITTEN_WITH = {"nginx": (1, 22), "haproxy": (2, 6)}

#: (proxy, our reason) → why it passes on some of what we refuse for that reason.
STRICTER: dict[tuple[str, str], str] = {
    ("nginx", "bare_lf"): "takes LF for CRLF, which RFC 9112 §2.2 permits; we do not guess",
    ("haproxy", "bare_lf"): "as nginx",
    ("nginx", "bare_cr"): "ignores several empty lines, and a CR before CRLF",
    ("haproxy", "bare_cr"): "ignores several empty lines",
    ("nginx", "nul_byte"): "does not look into the trailers that it drops",
    ("haproxy", "nul_byte"): "passes NUL in values on; RFC 9110 §5.5 calls that dangerous",
    ("nginx", "bad_start_line"): "takes several spaces, and bytes above 0x7f in a target",
    ("haproxy", "bad_start_line"): "takes tabs and several spaces between the parts",
    ("nginx", "bad_version"): "takes several spaces, and 1.10 for 1.1",
    ("haproxy", "bad_version"): "takes several spaces",
    ("nginx", "unsupported_version"): "takes any 1.x for 1.1",
    ("haproxy", "unsupported_version"): "takes any x.y; 0.9 is passed on as it came",
    ("nginx", "bad_method"): "no limit of its own for a method",
    ("haproxy", "bad_method"): "as nginx",
    ("haproxy", "connect_unsupported"): "passes CONNECT on as a tunnel",
    ("haproxy", "uri_too_long"): "one buffer of 16 KiB for the whole head",
    ("haproxy", "obs_fold"): "unfolds, which RFC 9112 §5.2 permits; others may read it otherwise",
    ("nginx", "bad_field_name"): "drops fields with odd names and goes on (ignore_invalid_headers)",
    ("nginx", "bad_field_value"): "passes control characters on",
    ("haproxy", "bad_field_value"): "as nginx",
    ("nginx", "too_many_fields"): "limits bytes, not fields",
    ("haproxy", "host_missing"): "does not ask for Host",
    ("haproxy", "host_repeated"): "takes Host twice where the values are the same",
    ("nginx", "bad_host"): "cuts Host at what is no host, or leaves it to the upstream",
    ("haproxy", "bad_host"): "does not look into Host",
    ("nginx", "host_mismatch"): "lets the target's authority win (RFC 9112 §3.2.2)",
    ("haproxy", "length_and_encoding"): "an empty field beside chunked changes nothing for it",
    ("haproxy", "bad_encoding"): "takes empty list members around chunked",
    ("haproxy", "unsupported_encoding"): "an empty field before chunked changes nothing for it",
    ("haproxy", "encoding_in_http10"): "takes chunked from HTTP/1.0",
    ("haproxy", "length_repeated"): "takes equal lengths for one (RFC 9110 §8.6 permits both)",
    ("nginx", "bad_length"): "takes 19 digits",
    ("haproxy", "bad_length"): "takes `6, 6` for 6, and 19 digits",
    ("nginx", "bad_connection"): "looks for keep-alive, close and upgrade only",
    ("haproxy", "bad_connection"): "as nginx",
    ("nginx", "nominates_end_to_end"): "ignores nominations",
    ("haproxy", "nominates_end_to_end"): "removes what is nominated, whatever it is",
    ("haproxy", "authorization_repeated"): "leaves it to the upstream",
    ("nginx", "expectation_failed"): "ignores expectations that it does not know",
    ("haproxy", "expectation_failed"): "as nginx",
    ("nginx", "bad_path"): "decodes an encoded slash, then matches; backslashes are literal",
    ("haproxy", "bad_path"): "does not decode paths",
    ("haproxy", "path_escapes_root"): "does not resolve dot segments",
    ("nginx", "bad_target"): "takes any scheme, drops fragments",
    ("haproxy", "bad_target"): "does not look into the target",
    ("nginx", "bad_chunk_size"): "takes white space behind a size, and any number of zeros",
    ("haproxy", "bad_chunk_size"): "as nginx",
    ("nginx", "bad_chunk_end"): "takes LF for the CRLF behind a chunk",
    ("haproxy", "bad_chunk_end"): "as nginx",
    ("nginx", "bad_trailer"): "drops trailers without a look",
    ("haproxy", "bad_trailer"): "passes trailers on, folded ones and control characters too",
}

#: (proxy, name of a valid stream) → what it does otherwise than we do.
OTHERWISE: dict[tuple[str, str], str] = {
    ("nginx", "length with white space"): "refuses a tab around a length, which §5.5 allows",
    ("nginx", "chunked in other case"): "refuses a tab before the value, as above",
    ("nginx", "methods are case-sensitive"): "refuses lower case with 400, we with 405",
    ("nginx", "server-wide OPTIONS"): "refuses the asterisk with 400, we with 404",
    ("nginx", "TRACE is not passed on"): "refuses it and closes, we go on",
    ("haproxy", "chunked in other case"): "passes the coding's name on as it was written",
    ("haproxy", "trailers"): "passes trailers on, we drop them (RFC 9112 §7.1.2)",
    ("haproxy", "trailer that names an encoding"): "passes even this one on",
    ("haproxy", "nothing is read behind 1.0"): "passes the client's version on",
    ("haproxy", "1.0 that is kept"): "passes the client's version on",
    ("haproxy", "an upgrade that is not accepted"): "asks for Sec-WebSocket-Key itself",
    ("haproxy", "absolute-form"): "passes the absolute form on",
    ("haproxy", "absolute-form in other case"): "passes the absolute form on",
    ("haproxy", "dots inside"): "does not resolve dot segments",
    ("haproxy", "dots that leave the route"): "matches one path and passes another on",
    ("haproxy", "encoded dots that leave the route"): "as with plain dots",
    ("haproxy", "TRACE is not passed on"): "passes TRACE on",
    ("haproxy", "methods are case-sensitive"): "passes unknown methods on",
}

#: Fields that each proxy writes for itself, or that only concern one hop.
OWN = {"host", "via", "connection", "content-length", "transfer-encoding", "x-request-id",
       "x-gateway-version", "x-gateway-timestamp", "x-forwarded-for", "x-forwarded-host",
       "x-forwarded-proto", "traceparent", "tracestate"}  # fmt: skip


@dataclass
class Passed:
    """What one stream became: the requests that arrived whole, and what was no HTTP."""

    requests: list[Request] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)

    @property
    def semantics(self) -> list[tuple[str, str, bytes]]:
        return [(r.method, r.target, r.body) for r in self.requests]


@dataclass(frozen=True)
class Proxy:
    name: str
    port: int
    upstream: RecordingUpstream

    def pass_on(
        self, data: bytes, *, answers: int = 0, patience: float = 0, deadline: float = 5
    ) -> Passed:
        """Send a stream and wait for so many answers, or for ``patience`` seconds of silence.

        Then end it with FIN, which the gateway takes for a disconnect, and see it through. HAProxy
        passes on or lets go of what it has not passed on when a FIN comes, whichever is first:
        what is to be known is waited for before. Whoever waits for more of a stream that is no
        request answers nothing, so the wait ends after ``deadline`` seconds.
        """
        upstream = self.upstream
        requests, errors = len(upstream.requests), len(upstream.errors)
        with (
            contextlib.suppress(ConnectionError),
            socket.create_connection(("127.0.0.1", self.port), 5) as sock,
        ):
            sock.sendall(data)
            received = b""
            sock.settimeout(deadline)
            with contextlib.suppress(TimeoutError):
                while received.count(b"HTTP/1.1 ") < answers and (block := sock.recv(65536)):
                    received += block
            sock.settimeout(5)
            if patience:
                sock.settimeout(patience)
                with contextlib.suppress(TimeoutError):
                    while sock.recv(65536):
                        pass
                sock.settimeout(5)
            with contextlib.suppress(OSError):  # closed already
                sock.shutdown(socket.SHUT_WR)
            while sock.recv(65536):
                pass
        return Passed(upstream.requests[requests:], upstream.errors[errors:])


@pytest.fixture(scope="module", params=NAMES)
def peer(request: pytest.FixtureRequest) -> Iterator[Proxy]:
    name = request.param
    if executable(name) is None:
        missing(f"no {name} on PATH")
    upstream = RecordingUpstream().start()
    with running(name, upstream.port) as port:
        yield Proxy(name, port, upstream)
    upstream.stop()


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    upstream = RecordingUpstream().start()
    directory: Path = tmp_path_factory.mktemp("differential")
    backend = "py" if BACKEND == "pure" else "c"
    gateway = GatewayProcess(directory, backend, [upstream.url]).start()
    yield Proxy("nexus", gateway.port, upstream)
    assert gateway.stop() == 0
    upstream.stop()
    assert upstream.errors == []


def test_what_they_pass_on_and_we_refuse_has_a_reason(peer: Proxy) -> None:
    found: dict[tuple[str, str], list[str]] = {}
    agreed = 0
    for attack in ATTACKS:
        passed = peer.pass_on(attack.data + HIDDEN, answers=1, deadline=0.5)
        if passed.requests or passed.errors:
            found.setdefault((peer.name, attack.reason), []).append(attack.name)
        else:
            agreed += 1
    unexplained = {key: names for key, names in found.items() if key not in STRICTER}
    assert not unexplained
    assert agreed > len(ATTACKS) // 2, "else the proxy is not configured as it should be"
    if version(peer.name) == WRITTEN_WITH[peer.name]:
        stale = {key for key in STRICTER if key[0] == peer.name} - set(found)
        assert not stale


def test_we_refuse_all_of_it(ours: Proxy) -> None:
    streams = [(attack.name, attack.data + HIDDEN) for attack in ATTACKS]
    passed_on = [name for name, data in streams if ours.pass_on(data, answers=1).requests]
    assert not passed_on


@pytest.mark.parametrize("valid", VALID, ids=lambda valid: valid.name)
def test_what_is_right_means_the_same_to_all(peer: Proxy, ours: Proxy, valid: Valid) -> None:
    answers = len(valid.statuses or valid.reached)
    here = ours.pass_on(valid.data, answers=answers)
    there = peer.pass_on(valid.data, answers=answers, patience=0.06, deadline=1)
    same = here.semantics == there.semantics and not there.errors
    listed = (peer.name, valid.name) in OTHERWISE
    if version(peer.name) == WRITTEN_WITH[peer.name]:
        assert same is not listed, (here, there)
    else:
        assert same or listed, (here, there)


FIELDS = (
    b"GET /api/fields HTTP/1.1\r\nHost: a\r\nAccept: */*\r\naccept: text/html\r\nX-Empty:\r\n"
    b"X-Spaces: \t a  b \t\r\nCookie: a=1; b=2\r\nAuthorization: Bearer t\r\nX-Bytes: \xe4\xff\r\n"
    b'X-Twice: 1\r\nX-Between: 2\r\nX-Twice: 3\r\nIf-None-Match: "x", W/"y"\r\nRange: bytes=0-1\r\n'
    b"User-Agent: t\r\nX-Colons: a:b:c\r\nAccept-Encoding: gzip;q=0\r\n\r\n"
)


def test_end_to_end_fields_arrive_alike(peer: Proxy, ours: Proxy) -> None:
    [here] = ours.pass_on(FIELDS, answers=1).requests
    [there] = peer.pass_on(FIELDS, answers=1).requests

    def end_to_end(request: Request) -> list[tuple[str, str]]:
        return [(name, value) for name, value in request.fields if name not in OWN]

    assert end_to_end(here) == end_to_end(there)
    assert len(end_to_end(here)) == 15


HOPS = (
    b"GET /api/hops HTTP/1.1\r\nHost: a\r\nConnection: X-Hop\r\nX-Hop: 1\r\nKeep-Alive: 5\r\n"
    b"TE: trailers\r\nUpgrade: h2c\r\nX-Stays: 1\r\n\r\n"
)
#: What else than the field that must stay each of them lets through.
LETS_THROUGH = {
    "nginx": {"x-hop", "te"},
    "haproxy": {"x-hop", "te", "upgrade", "keep-alive"},
}


def test_fields_of_one_hop_end_there(peer: Proxy, ours: Proxy) -> None:
    [here] = ours.pass_on(HOPS, answers=1).requests
    [there] = peer.pass_on(HOPS, answers=1).requests
    assert {name for name, _ in here.fields} - OWN == {"x-stays"}
    assert {name for name, _ in there.fields} - OWN - {"x-stays"} <= LETS_THROUGH[peer.name]
