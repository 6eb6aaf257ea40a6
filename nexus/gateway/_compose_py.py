# cython: annotation_typing=False
"""Heads as they leave: a request's fields for the upstream, a response's for the client.

Everything is re-serialised from what was parsed; ours come last. One source, compiled as
``_compose_c``.
"""

from __future__ import annotations

from typing import Final

import cython  # type: ignore[import-untyped]

from nexus.gateway.transforms import TransformError
from nexus.wire.http1 import FRAMING, HOP, LOCATION_CATEGORY, OURS, REPRESENTATION, field

if not cython.compiled:
    from nexus._speedups._http1_py import RequestHead, ResponseHead
    from nexus.gateway._envelope_py import is_wrappable
    from nexus.gateway._request_py import ServedRequest
    from nexus.gateway._routes_py import Route
    from nexus.gateway.buffers import joined, length_field

__all__ = ["RESPONSE_DROP", "bodiless_length", "request_fields", "response_fields"]

_CONTENT_TYPE: Final = field(b"content-type")
_CONTENT_ENCODING: Final = field(b"content-encoding")
_CACHE_CONTROL: Final = field(b"cache-control")
_ETAG: Final = field(b"etag")
_LOCATION: Final = field(b"location")
_FORWARDED_FOR: Final = field(b"x-forwarded-for")
_FORWARDED_PROTO: Final = field(b"x-forwarded-proto")

#: Fields of a response that are never passed on as they are.
RESPONSE_DROP: Final = HOP | FRAMING | OURS


def request_fields(request: ServedRequest, head: RequestHead) -> bytes:
    """The field lines for an upstream, without Host, and the empty line behind them."""
    core = request.core
    drop = core.request_drop
    if not request.trusted:
        drop |= core.spoofable
    trace = b""
    if core.tracer is not None:
        trace = core.tracer.outgoing(request)
    fields = head.fields(drop)
    if request.route.request_rules is not None:
        fields = request.route.request_rules.apply(fields, request, head.path)
    return joined(
        (
            fields,
            b"" if request.identity is None else request.identity.fields,
            b"x-request-id: ",
            request.request_id,
            b"\r\n",
            core.version_field,
            _forwarding(request, head),
            request.stamp,
            b"\r\n",
            trace,
            core.via,
            _framing(head),
            b"\r\n",
        )
    )


def _forwarding(request: ServedRequest, head: RequestHead) -> bytes:
    """Who asked for what, up to our timestamp's value; kept while a client asks one host."""
    host = head.host
    if host == request.forwarded_host and not request.trusted:
        return request.forwarded
    before = head.joined(_FORWARDED_FOR) if request.trusted else b""
    chain = before + b", " + request.peer.encode() if before else request.ip.encode()
    request.forwarded_host = host
    request.forwarded = b"".join(
        (
            b"x-forwarded-for: ",
            chain,
            b"\r\nx-forwarded-host: ",
            host,
            b"\r\nx-forwarded-proto: ",
            _scheme(request, head),
            b"\r\nx-gateway-timestamp: ",
        )
    )
    return request.forwarded


def _scheme(request: ServedRequest, head: RequestHead) -> bytes:
    """What the client spoke: a trusted proxy in front of us may know better."""
    if request.trusted:
        scheme = (head.value(_FORWARDED_PROTO) or b"").lower()
        if scheme in (b"http", b"https"):
            return scheme
    return request.scheme


def _framing(head: RequestHead) -> bytes:
    if head.upgrade:
        return b"Connection: Upgrade\r\nUpgrade: websocket\r\n"
    if head.content_length >= 0:
        return length_field(head.content_length)
    if head.chunked:
        return b"Transfer-Encoding: chunked\r\n"
    return b""


def response_fields(
    request: ServedRequest, head: ResponseHead, empty: bool
) -> tuple[bytes, bytes, bool]:
    """The upstream's fields, ours in place of some of them, and whether the body is wrapped."""
    drop = RESPONSE_DROP
    extra = b""
    route = request.route
    if (route.prefix or route.rewrite is not None) and head.count(_LOCATION):
        location = _location(head.value(_LOCATION) or b"", route)
        if location:
            extra = b"Location: " + location + b"\r\n"
            drop |= LOCATION_CATEGORY
    wraps = (
        request.core.envelope
        and route.envelope
        and head.content_length != 0
        and (request.bodiless or not empty)
        and is_wrappable(
            head.status,
            head.value(_CONTENT_TYPE),
            head.value(_CONTENT_ENCODING),
            head.value(_CACHE_CONTROL),
        )
    )
    if wraps:
        drop |= REPRESENTATION
        etag = head.value(_ETAG)
        if etag is not None:
            weak = etag if etag.startswith(b"W/") else b"W/" + etag
            extra += b"ETag: " + weak + b"\r\n"
    block = head.block(drop)
    if route.cors is not None:
        block = route.cors.cleaned(block)
    if route.response_rules is not None:
        try:
            block = route.response_rules.apply(block, request)
        except TransformError:  # the response as it came, and a count of those
            request.core.count("nexus_rejections_total", "bad_transform")
    if request.shared:
        extra += request.shared
    return block, extra, wraps


def bodiless_length(status: int, length: int, wraps: bool) -> bytes:
    """The length of the body that a GET would have had, where it still is that one."""
    if wraps or length < 0 or status == 204:
        return b""
    return length_field(length)


def _location(value: bytes, route: Route) -> bytes:
    """A path-absolute ``Location`` gets the route's prefix back; empty: it stays as it is."""
    if not value.startswith(b"/") or value.startswith(b"//"):
        return b""
    if route.rewrite is not None:
        back: bytes = route.rewrite.back(value)
        return back
    return route.prefix + value
