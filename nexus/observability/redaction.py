"""What must not reach a log, a span or a telemetry page: secrets by key and by pattern.

By key: a field whose name says that it is a secret loses its value, whatever that is. By pattern:
text that looks like a credential loses that part, wherever it stands. Redaction errs towards
hiding: a masked word in a log is a nuisance, a token in it is an incident.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

from nexus.settings import MASK

__all__ = ["redact_fields", "redact_text", "redact_url", "secret_key"]

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

_PATTERNS: Final[tuple[tuple[re.Pattern[str], str], ...]] = (
    # JSON Web Tokens: three base64url parts, the first of which opens a JSON object ("eyJ").
    (re.compile(r"\beyJ[\w-]{5,}\.[\w-]{2,}\.[\w-]*"), MASK),
    # Credentials of an Authorization header: RFC 9110 §11.4.
    (re.compile(r"(?i)\b(bearer|basic)\s+[\w.~+/=-]{6,}"), rf"\1 {MASK}"),
    # user:password@ in a URL: RFC 3986 §3.2.1. The user's name stays.
    (re.compile(r"(?i)\b([a-z][a-z0-9+.-]*://[^\s:/@]*):[^\s/@]+@"), rf"\1:{MASK}@"),
    # key=value, key: value and "key": "value", as in query strings, forms and JSON.
    (
        re.compile(
            r"(?i)([\"']?[\w-]*(?:password|passwd|secret|token|api[_-]?key|access[_-]?key"
            r"|signature|authorization|credential|session[_-]?id)[\w-]*[\"']?\s*[=:]\s*)"
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
    for pattern, replacement in _PATTERNS:
        text = pattern.sub(replacement, text)
    return text


def redact_url(target: str) -> str:
    """A URL or request target without credentials."""
    if "?" not in target and "@" not in target:
        return target
    return redact_text(target)


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
