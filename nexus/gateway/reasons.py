"""Why the gateway answered a request itself, or broke one off: every reason code of its own.

A reason is in the reply's JSON, a field of the access log and a label of
``nexus_rejections_total``. Those of the HTTP/1.1 parser are in ``_speedups/http1_table.py``; both
make ``docs/errors.md``.
"""

from __future__ import annotations

from typing import Final

from nexus._speedups import http1_table

__all__ = ["REASONS", "cause_named", "cause_of"]

#: reason → (status, when). Status 0: the head of a response was out already, so the connection was
#: closed; 499: the client was gone (in logs and metrics only).
REASONS: Final[dict[str, tuple[int, str]]] = {
    # The request itself
    "head_timeout": (408, "the request head was not complete within `timeouts.head`"),
    "body_timeout": (408, "the request body stood still for `timeouts.body_idle`"),
    "body_too_slow": (408, "the request body came below the least rate"),
    "response_too_slow": (0, "the client took the response below the least rate"),
    "body_too_large": (413, "the request body is above `limits.body_bytes`"),
    "too_many_connections": (503, "`limits.connections` of this worker are open"),
    "client_disconnected": (499, "the client closed before the response was complete"),
    # Policies
    "blocked": (403, "the client's address is on the block list"),
    "denied_network": (403, "`networks` keeps the client's address out"),
    "rate_limited": (429, "the client's address has used up its bucket"),
    "limit_exceeded": (429, "a limit of `rate_limits`, named in the message, is used up"),
    "limit_unavailable": (503, "Redis is away, and the limit has `on_redis_failure: closed`"),
    "no_route": (404, "no route has this path"),
    "method_not_allowed": (405, "the route has this path, but not for this method"),
    "insufficient_scope": (403, "the token lacks a scope that the route asks for"),
    "insufficient_role": (403, "the token has none of the roles that the route asks for"),
    "cors_origin": (403, "a preflight from an origin that `cors.origins` does not name"),
    "cors_method": (403, "a preflight for a method that `cors.methods` does not name"),
    "cors_headers": (403, "a preflight for a header that `cors.headers` does not name"),
    "bad_transform": (400, "a value for a header of `request.headers` holds a control character"),
    # POST /auth/token, /auth/refresh, /auth/revoke
    "auth_disabled": (
        404,
        "`auth.enabled` is false, or `auth.jwt_secret` is empty",
    ),
    "bad_json": (400, "the body is not a JSON object"),
    "missing_field": (400, "`client_id`, `client_secret`, `refresh_token` or `token` is missing"),
    "bad_field": (400, "one of them, or `scope`, is not text, or empty"),
    "refresh_disabled": (404, "`auth.refresh.enabled` is false"),
    "bad_refresh_token": (401, "the refresh token was not made here"),
    "refresh_reused": (401, "the refresh token was used before, so its whole session was revoked"),
    "session_ended": (
        401,
        "the session is over, or its client's rights have changed",
    ),
    "sessions_unavailable": (503, "Redis is away, which keeps sessions and the denylist"),
    "auth_busy": (503, "too many answers of `/auth/…` are under way"),
    "bad_credentials": (401, "no such client, or a wrong secret"),
    "may_not_revoke": (403, "the client ends all tokens of others without `may_revoke`"),
    "bad_scope": (400, "the client asks for a scope that it does not have"),
    # Tokens
    "missing_token": (401, "no Authorization field"),
    "bad_scheme": (401, "the Authorization field is not `Bearer <token>`"),
    "malformed_token": (401, "the token is not a JSON Web Token"),
    "bad_algorithm": (401, "the token is signed by an algorithm that is not allowed"),
    "bad_signature": (401, "the token's signature is wrong"),
    "bad_issuer": (401, "`iss` is neither `auth.issuer` nor that of a provider"),
    "bad_audience": (401, "`aud` names somebody else"),
    "unknown_key": (
        401,
        "the token's `kid` is not in its provider's key set (which is then fetched)",
    ),
    "keys_unavailable": (503, "a provider's keys could not be fetched, or not for too long"),
    "revoked": (401, "the token, or the session it came from, was revoked"),
    "expired": (401, "the token has expired"),
    "not_yet_valid": (401, "the token is not valid yet"),
    "missing_claim": (401, "the token lacks `exp` or its client"),
    "bad_claim": (401, "a claim of the token has the wrong type, or cannot stand in a header"),
    "unknown_client": (401, "`auth.clients` has clients, and the token's is none of them"),
    # Upstreams
    "no_healthy_upstream": (503, "no upstream is in rotation, or every breaker is open"),
    "no_upstream_left": (502, "the attempt failed, and no other upstream is left to try"),
    "upstream_queue_full": (503, "`upstream.queue_size` requests or uploads wait for a connection"),
    "bulkhead_full": (503, "`bulkhead` has no place free for the route's upstream group"),
    "queue_timeout": (504, "no upstream connection became free in time"),
    "pool_full": (503, "the pool has neither a connection nor a place in its queue"),
    "connect_refused": (502, "the upstream refused the connection"),
    "connect_failed": (502, "the upstream cannot be reached (no route, reset, …)"),
    "name_not_resolved": (502, "the upstream's host name has no address"),
    "out_of_descriptors": (503, "no file descriptor is left for an upstream connection"),
    "connect_timeout": (504, "the upstream did not accept within `timeouts.connect`"),
    "tls_untrusted": (502, "nobody in `upstream.tls.ca_file` signed the upstream's certificate"),
    "tls_wrong_name": (502, "the upstream's certificate is for another host"),
    "tls_expired": (502, "the upstream's certificate has expired, or is not valid yet"),
    "tls_error": (502, "the TLS handshake with the upstream failed"),
    "upstream_timeout": (504, "no response head within `breaker.timeout_ms`"),
    "upstream_stalled": (504, "the upstream stopped reading the request"),
    "upstream_closed": (502, "the upstream closed before the response head was complete"),
    "upstream_reset": (502, "the upstream reset the connection before the response head"),
    "upstream_too_many_1xx": (502, "the upstream sent informational responses without end"),
    "upstream_truncated": (0, "the upstream broke off within the response body"),
    "stream_idle": (0, "the response body stood still for `timeouts.stream_idle`"),
}

_CAUSES: Final = (*REASONS, *(f"upstream_{reason}" for reason in http1_table.REASONS))
_NUMBERS: Final = {reason: -1 - i for i, reason in enumerate(_CAUSES)}
_OTHER: Final = -1 - len(_CAUSES)


def cause_of(reason: str) -> int:
    """A reason as a number, for a word of shared memory; statuses are themselves."""
    return _NUMBERS.get(reason, _OTHER)


def cause_named(cause: int) -> str:
    """What :func:`cause_of` was given, or ``status 503``."""
    if cause > 0:
        return f"status {cause}"
    return "other" if cause == _OTHER else _CAUSES[-1 - cause]
