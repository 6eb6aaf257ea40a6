"""What must not reach a log, a span or a telemetry page: secrets by key and by pattern.

By key: a field whose name says that it is a secret loses its value, whatever that is. By pattern:
text that looks like a credential loses that part, wherever it stands. Redaction errs towards
hiding: a masked word in a log is a nuisance, a token in it is an incident.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, Final

from nexus.redact import MASK, mask_password

__all__ = [
    "is_plain",
    "redact_fields",
    "redact_target",
    "redact_text",
    "redact_url",
    "secret_key",
    "wire_text",
]

#: Parts of a field's name (lower case, ``-`` and ``_`` left out) that make its value a secret.
_SECRET_PARTS: Final = (
    "accesskey",
    "apikey",
    "authorization",
    "cookie",
    "credential",
    "passphrase",
    "passwd",
    "password",
    "privatekey",
    "secret",
    "sessionid",
    "signature",
    "token",
)
#: Names that contain one of these parts and are no secret.
_HARMLESS: Final = frozenset(("tokentype", "tokensleft", "tokens", "tokenttlseconds"))

#: Levels of nested values that are looked into; below, a value is shown as its type.
_MAX_DEPTH: Final = 6

# JSON Web Tokens: base64url parts, the first of which opens a JSON object ("eyJ"), however many of
# them are left of a text that was cut. The run is taken in one bite, or a hostile run of "eyJeyJ…"
# would be searched again from each of its letters.
_JWT: Final = re.compile(r"(?:(?<![A-Za-z0-9])|(?<=%[0-9A-Fa-f]{2}))eyJ[\w-]{5,}+(?:\.[\w-]*)*")

_PATTERNS: Final[tuple[tuple[re.Pattern[str], str], ...]] = (
    # Credentials of an Authorization header: RFC 9110 §11.4.
    (re.compile(r"(?i)\b(bearer|basic)\s+[\w.~+/=-]{6,}"), rf"\1 {MASK}"),
    # key=value, key: value and "key": "value", as in query strings, forms and JSON.
    (
        re.compile(
            # Looked for once for each word that a separator follows, and never tried again: a
            # hostile "tokentokentoken…" must cost no more than its length.
            r"(?i)((?>(?<![\w-])(?=[\w-]++[\"']?\s*[=:])"
            r"[\w-]*(?:password|passwd|secret|token|api[_-]?key|access[_-]?key"
            r"|signature|authorization|credential|session[_-]?id)[\w-]*[\"']?\s*[=:]\s*))"
            r"(?:\"[^\"]*\"|'[^']*'|(?!\*{8})[^\s&;,\"'}\])]+)"
        ),
        rf"\1{MASK}",
    ),
    # PEM private keys: RFC 7468 §10.
    (
        re.compile(
            r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|$)",
            re.DOTALL,
        ),
        MASK,
    ),
)

#: Names of query parameters whose value goes: the names above, and short ones that are secrets in
#: a URL (signed links, OAuth's ``code``, API keys) but mean other things in prose.
_PARAMETER: Final = (
    r"[\w.%-]*(?:passw|passphrase|secret|token|credential|signature|session_?id|authorization"
    r"|key)[\w.%-]*"
    r"|(?:[\w.%-]*[_.-])?(?:sig|pwd|pass|jwt|otp|pin|sid|auth|assertion)|code"
)
_is_parameter: Final = re.compile(_PARAMETER, re.IGNORECASE).fullmatch
_PARAMETERS: Final = re.compile(rf"(?i)([?&;#](?=[\w.%-]++=)(?:{_PARAMETER})=)[^&;#\s]+")

#: What makes a query more than a list of ``name=value&…``: it is then searched by every pattern.
_UNUSUAL: Final = re.compile(r"[;#?\"'\s]")

#: Characters of a parameter's name for which the answer is remembered.
_MAX_NAME: Final = 64

#: Every pattern needs one of these (lower case); most lines have none, and then none is tried.
#: Twelve searches for plain text cost a tenth of one case-insensitive alternation.
_HINTS: Final = (
    "eyj",
    "bearer",
    "basic",
    "://",
    "pass",
    "secret",
    "token",
    "key",
    "signature",
    "authorization",
    "credential",
    "session",
)


def secret_key(name: str) -> bool:
    """Whether the value of a field called ``name`` is a secret."""
    plain = name.lower().replace("-", "").replace("_", "")
    return plain not in _HARMLESS and any(part in plain for part in _SECRET_PARTS)


def redact_text(text: str) -> str:
    """``text`` without what looks like a credential."""
    lower = text.lower()
    for hint in _HINTS:
        if hint in lower:
            break
    else:
        return text
    text = mask_password(_JWT.sub(MASK, text))
    for pattern, replacement in _PATTERNS:
        text = pattern.sub(replacement, text)
    return text


def redact_url(target: str) -> str:
    """A URL or request target without credentials, in its path, its query and its authority.

    Most targets have nothing to look into, and cost three searches for plain text.
    """
    path, mark, query = target.partition("?")
    if mark:
        if _UNUSUAL.search(query):
            return redact_text(_PARAMETERS.sub(rf"\1{MASK}", target))
        target = f"{path}?{_redact_query(query)}"
    if "eyJ" in target:
        target = _JWT.sub(MASK, target)
    return mask_password(target) if "@" in target else target


def _redact_query(query: str) -> str:
    pairs = query.split("&")
    for index, pair in enumerate(pairs):
        name, mark, value = pair.partition("=")
        if value and (_remembered if len(name) <= _MAX_NAME else _secret_parameter)(name):
            pairs[index] = f"{name}{mark}{MASK}"
    return "&".join(pairs)


def _secret_parameter(name: str) -> bool:
    return _is_parameter(name) is not None


# Clients send few different names; a million made-up ones push each other out.
_remembered: Final = lru_cache(maxsize=4096)(_secret_parameter)


def wire_text(wire: bytes, limit: int) -> str:
    """Bytes of a request as text of at most ``limit`` characters.

    UTF-8 where it is UTF-8; any other byte is shown as ``\\xNN``.
    """
    return wire[:limit].decode("utf-8", "backslashreplace")[:limit] if wire else ""


def is_plain(wire: bytes) -> bool:
    """Whether a request target is ASCII in which nothing of what is looked for can be."""
    # Not `in`, which first tries whether the needle is a number, and fails by an exception.
    find = wire.find
    return find(b"?") < 0 and find(b"@") < 0 and find(b"eyJ") < 0 and wire.isascii()


def redact_target(wire: bytes, limit: int) -> str:
    """A request target as everything that leaves us shows it: logs, spans, telemetry, events."""
    if is_plain(wire):
        return wire[:limit].decode()  # most targets
    return redact_url(wire_text(wire, limit))[:limit]


def redact_fields(fields: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of ``fields`` without secrets, by key and by pattern, nested values included."""
    return {key: _redact(str(key), value, 0) for key, value in fields.items()}


def _redact(key: str, value: Any, depth: int) -> Any:
    if secret_key(key) and value is not None and not isinstance(value, bool):
        return MASK
    if isinstance(value, str):
        return redact_text(value)
    if isinstance(value, bytes):
        return redact_text(value.decode("utf-8", "backslashreplace"))
    if depth >= _MAX_DEPTH and isinstance(value, Mapping | list | tuple):
        return f"<{type(value).__name__}>"
    if isinstance(value, Mapping):
        return {str(k): _redact(str(k), v, depth + 1) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_redact("", item, depth + 1) for item in value]
    return value
