"""The facts of the HTTP/1.1 kernel: which fields are known, and what is refused for which reason.

Both backends of the kernel read these tables, so that they cannot disagree about them; the rare
paths (percent-encoding, dot segments, absolute-form targets) are one implementation here for both.
"""

from __future__ import annotations

import re
from typing import Final

from nexus.errors import HttpError

__all__ = [
    "ABSENT",
    "FIELDS",
    "FIELD_NAMES",
    "MAX_CHUNK_DIGITS",
    "MAX_CHUNK_LINE",
    "MAX_EXTENSION_BYTES",
    "MAX_LENGTH_DIGITS",
    "MAX_METHOD",
    "MAX_NOMINATIONS",
    "MAX_TRAILER_BYTES",
    "METHODS",
    "REASONS",
    "UNDERSCORED",
    "field",
    "host_is_valid",
    "normalise_path",
    "refuse",
    "refuse_response",
    "split_absolute",
]

#: ``content_length`` of a message that declares none.
ABSENT: Final = -1

# ---------------------------------------------------------------------------------- categories
# A field is left out of a forward block when `category & drop` is not zero.

#: Hop-by-hop (RFC 9110 §7.6.1), and what only concerns this hop.
HOP: Final = 1
#: Says how the message is framed or addressed; written anew for the next hop.
FRAMING: Final = 2
#: Fields that the gateway sets itself.
OURS: Final = 4
#: Never passed on: a client must not be able to speak for the inside.
SECRET: Final = 8
#: W3C trace context; ours replaces it while tracing is on.
TRACE: Final = 16
#: Statements about the client that only a trusted proxy may make.
PROXYING: Final = 32
#: A name with an underscore: WSGI and CGI upstreams cannot tell it from the one with a hyphen.
UNDERSCORE: Final = 64
#: Where names with underscores are passed, these categories of the form with hyphens still hold:
#: nobody forges through ``X_Internal_Secret`` what ``X-Internal-Secret`` may not say.
UNDERSCORED: Final = HOP | FRAMING | OURS | SECRET | TRACE | PROXYING
#: Says something about the exact bytes of a response body; untrue once the body is wrapped.
REPRESENTATION: Final = 128
#: A redirect target, rewritten when the route strips a prefix.
LOCATION_CATEGORY: Final = 256
#: The request's `Expect`, which a retry of a buffered body does not repeat.
EXPECTATION: Final = 512

#: name → category; the position in the table + 1 is the field's id, 0 is "unknown".
FIELDS: Final[dict[bytes, int]] = {
    b"host": FRAMING,
    b"content-length": FRAMING,
    b"transfer-encoding": HOP | FRAMING,
    b"connection": HOP,
    b"keep-alive": HOP,
    b"proxy-connection": HOP,
    b"proxy-authenticate": HOP,
    b"proxy-authorization": HOP,
    b"te": HOP,
    b"trailer": HOP,
    b"upgrade": HOP,
    b"http2-settings": HOP,
    b"expect": EXPECTATION,
    b"authorization": 0,
    b"cookie": 0,
    b"set-cookie": 0,
    b"content-type": 0,
    b"content-encoding": 0,
    b"cache-control": 0,
    b"location": LOCATION_CATEGORY,
    b"etag": REPRESENTATION,
    b"accept-ranges": REPRESENTATION,
    b"content-digest": REPRESENTATION,
    b"repr-digest": REPRESENTATION,
    b"digest": REPRESENTATION,
    b"content-md5": REPRESENTATION,
    b"x-request-id": OURS,
    b"x-gateway-version": OURS,
    b"x-gateway-timestamp": OURS,
    b"x-forwarded-for": OURS,
    b"x-forwarded-host": OURS,
    b"x-forwarded-proto": OURS,
    b"x-forwarded-port": PROXYING,
    b"x-real-ip": PROXYING,
    b"forwarded": PROXYING,
    b"x-internal-secret": SECRET,
    b"x-admin-override": SECRET,
    b"x-auth-client": SECRET,
    b"x-auth-subject": SECRET,
    b"x-auth-issuer": SECRET,
    b"x-auth-roles": SECRET,
    b"x-auth-scopes": SECRET,
    b"traceparent": TRACE,
    b"tracestate": TRACE,
    b"user-agent": 0,
    b"x-correlation-id": 0,
    b"idempotency-key": 0,
    b"accept": 0,
    b"accept-encoding": 0,
    b"range": 0,
    b"origin": 0,
    b"via": 0,
    b"date": 0,
    b"server": 0,
    b"sec-websocket-key": 0,
    b"sec-websocket-accept": 0,
}
FIELD_NAMES: Final[tuple[bytes, ...]] = tuple(FIELDS)
_IDS: Final = {name: index + 1 for index, name in enumerate(FIELDS)}


def field(name: bytes) -> int:
    """The id of a known field, by its lower-case name. Raises ``KeyError``."""
    return _IDS[name]


#: Methods whose ``bytes`` object is shared instead of made anew for every request.
METHODS: Final = (b"GET", b"HEAD", b"POST", b"PUT", b"PATCH", b"DELETE", b"OPTIONS", b"TRACE")

# -------------------------------------------------------------------------------------- limits
#: Bytes of a method token; the longest registered one (UPDATEREDIRECTREF) has 17.
MAX_METHOD: Final = 32
#: Digits of a Content-Length: 18 digits always fit in 63 bits, and 10¹⁸ bytes are an exabyte.
MAX_LENGTH_DIGITS: Final = 18
#: Options that one message may list in ``Connection``.
MAX_NOMINATIONS: Final = 16
#: Hexadecimal digits of a chunk size: 15 digits always fit in 63 bits.
MAX_CHUNK_DIGITS: Final = 15
#: Bytes of one chunk-size line with its extensions (RFC 9112 §7.1.1 asks for a limit).
MAX_CHUNK_LINE: Final = 1024
#: Bytes of chunk extensions over a whole body (Go's net/http has the same 16 KiB).
MAX_EXTENSION_BYTES: Final = 16_384
#: Bytes of the trailer section, which is read and dropped.
MAX_TRAILER_BYTES: Final = 8192

# ------------------------------------------------------------------------------------- reasons
#: reason → (status for a request, detail with the rule). Bad responses are all 502.
REASONS: Final[dict[str, tuple[int, str]]] = {
    "bare_lf": (400, "a line ends with LF alone; expected CRLF (RFC 9112 §2.2)"),
    "bare_cr": (400, "CR that is not followed by LF (RFC 9112 §2.2)"),
    "nul_byte": (400, "NUL in the message head (RFC 9110 §5.5)"),
    "bad_start_line": (
        400,
        "expected METHOD SP target SP HTTP-version with single spaces (RFC 9112 §3)",
    ),
    "bad_method": (400, "the method is not a token of at most 32 bytes (RFC 9110 §9.1)"),
    "bad_version": (400, "expected HTTP/1.1 or HTTP/1.0 (RFC 9112 §2.3)"),
    "unsupported_version": (505, "only HTTP/1.1 and HTTP/1.0 are spoken here (RFC 9110 §15.6.6)"),
    "bad_target": (400, "the request target is not a valid origin-form (RFC 9112 §3.2)"),
    "bad_path": (400, "the path holds an invalid or forbidden percent-encoding (RFC 3986 §2.1)"),
    "path_escapes_root": (400, "the path's dot segments leave the root (RFC 3986 §5.2.4)"),
    "connect_unsupported": (501, "CONNECT is not supported here (RFC 9110 §9.3.6)"),
    "uri_too_long": (414, "the request line is too long (RFC 9112 §3)"),
    "head_too_large": (431, "the message head is too large (RFC 6585 §5)"),
    "too_many_fields": (431, "too many header fields (RFC 6585 §5)"),
    "obs_fold": (400, "a field line starts with white space: obs-fold (RFC 9112 §5.2)"),
    "space_before_colon": (400, "white space between field name and colon (RFC 9112 §5.1)"),
    "bad_field_name": (400, "a field name is not a token (RFC 9110 §5.1)"),
    "bad_field_value": (400, "a control character in a field value (RFC 9110 §5.5)"),
    "host_missing": (400, "an HTTP/1.1 request without Host (RFC 9112 §3.2)"),
    "host_repeated": (400, "more than one Host field (RFC 9112 §3.2)"),
    "bad_host": (400, "the Host field is not host[:port] (RFC 9110 §7.2)"),
    "host_mismatch": (400, "Host differs from the authority of the target (RFC 9112 §3.2.2)"),
    "length_repeated": (400, "more than one Content-Length (RFC 9112 §6.3)"),
    "bad_length": (400, "Content-Length is not 1*DIGIT of at most 18 digits (RFC 9110 §8.6)"),
    "length_and_encoding": (400, "Content-Length and Transfer-Encoding together (RFC 9112 §6.1)"),
    "encoding_in_http10": (400, "Transfer-Encoding in an HTTP/1.0 message (RFC 9112 §6.1)"),
    "bad_encoding": (
        400,
        "Transfer-Encoding does not end in exactly one chunked (RFC 9112 §6.3)",
    ),
    "unsupported_encoding": (501, "a transfer coding other than chunked (RFC 9112 §6.1)"),
    "bad_connection": (400, "Connection is not a list of tokens (RFC 9110 §7.6.1)"),
    "nominates_end_to_end": (400, "Connection nominates an end-to-end field (RFC 9110 §7.6.1)"),
    "authorization_repeated": (400, "more than one Authorization field (RFC 9110 §5.3)"),
    "expectation_failed": (417, "the only expectation known is 100-continue (RFC 9110 §10.1.1)"),
    "bad_chunk_size": (400, "a chunk size is not 1*HEXDIG of at most 15 digits (RFC 9112 §7.1)"),
    "bad_chunk_extension": (400, "a chunk extension is malformed or too long (RFC 9112 §7.1.1)"),
    "bad_chunk_end": (400, "chunk data is not followed by CRLF (RFC 9112 §7.1)"),
    "bad_trailer": (400, "the trailer section is malformed or too long (RFC 9112 §7.1.2)"),
    "bad_status_line": (502, "expected HTTP-version SP status-code SP reason (RFC 9112 §4)"),
}


def refuse(reason: str) -> HttpError:
    """The error for a refused request."""
    status, detail = REASONS[reason]
    return HttpError(status, reason, detail)


def refuse_response(reason: str) -> HttpError:
    """The error for a response that must not be believed: 502, ``upstream_`` before the reason."""
    return HttpError(502, f"upstream_{reason}", REASONS[reason][1])


# ------------------------------------------------------------------------------ the rare paths
# RFC 3986: unreserved = ALPHA / DIGIT / "-" / "." / "_" / "~"
_UNRESERVED: Final = frozenset(
    b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~"
)
# pchar = unreserved / pct-encoded / sub-delims / ":" / "@"
_PCHAR: Final = _UNRESERVED | frozenset(b"!$&'()*+,;=:@")
# Not allowed in a path but sent by real clients without harm: written percent-encoded.
_ENCODED: Final = frozenset(b'"<>^`{|}[]')
_PERCENT: Final = re.compile(rb"%([0-9A-Fa-f]{2})?")
# reg-name and IPv4address, or an IP-literal; then an optional port. RFC 3986 §3.2.2.
_HOST: Final = re.compile(
    rb"(?:\[[0-9A-Fa-f:.]{2,45}\]|(?:[A-Za-z0-9\-._~!$&'()*+,;=]|%[0-9A-Fa-f]{2}){1,255})"
    rb"(?::([0-9]{0,5}))?"
)
_ABSOLUTE: Final = re.compile(rb"[Hh][Tt][Tt][Pp][Ss]?://([^/?]+)(.*)", re.DOTALL)


def normalise_path(path: bytes) -> bytes:
    """The one form of an absolute path that is matched and forwarded.

    Percent-encoded unreserved characters are decoded, the other encodings written in upper case
    (RFC 3986 §6.2.2), repeated slashes merged, dot segments removed. An encoded slash, backslash
    or NUL, a broken encoding and a literal backslash raise ``bad_path``; dot segments that leave
    the root raise ``path_escapes_root``.
    """
    segments: list[bytes] = []
    pieces = _decode(path).split(b"/")
    for piece in pieces[1:]:
        if piece == b"..":
            if not segments:
                raise refuse("path_escapes_root")
            segments.pop()
        elif piece not in (b"", b"."):
            segments.append(piece)
    trailing = pieces[-1] in (b"", b".", b"..")
    joined = b"/" + b"/".join(segments)
    return joined + b"/" if trailing and segments else joined


def _decode(path: bytes) -> bytes:
    out = bytearray()
    position = 0
    while position < len(path):
        byte = path[position]
        if byte == 0x25:  # %
            match = _PERCENT.match(path, position)
            if match is None or match[1] is None:
                raise refuse("bad_path")
            byte = int(match[1], 16)
            if byte in b"/\\\0":
                raise refuse("bad_path")
            if byte in _UNRESERVED:
                out.append(byte)
            else:
                out += b"%%%02X" % byte
            position += 3
            continue
        if byte == 0x2F or byte in _PCHAR:
            out.append(byte)
        elif byte in _ENCODED:
            out += b"%%%02X" % byte
        else:
            raise refuse("bad_path")
        position += 1
    return bytes(out)


def split_absolute(target: bytes) -> tuple[bytes, bytes]:
    """``http://host/path?query`` → ``(b"host", b"/path?query")`` (RFC 9112 §3.2.2)."""
    match = _ABSOLUTE.fullmatch(target)
    if match is None or b"@" in match[1]:
        raise refuse("bad_target")
    if not host_is_valid(match[1]):
        raise refuse("bad_host")
    rest = match[2]
    return match[1], rest if rest.startswith(b"/") else b"/" + rest


def host_is_valid(value: bytes) -> bool:
    """``uri-host [ ":" port ]`` with a port of at most 65535 (RFC 9110 §7.2)."""
    match = _HOST.fullmatch(value)
    if match is None:
        return False
    return not match[1] or int(match[1]) <= 65535
