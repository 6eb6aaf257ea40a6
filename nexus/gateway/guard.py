"""What a token must allow besides being valid: roles and scopes of a route (403 otherwise)."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from nexus.gateway.identity import Identity

__all__ = ["Guard", "check_role", "check_scope"]

#: scope-token = 1*( %x21 / %x23-5B / %x5D-7E ), RFC 6749 §3.3
_SCOPE: Final = re.compile(r"[\x21\x23-\x5b\x5d-\x7e]{1,128}")


def check_scope(text: str) -> str:
    """A scope; raises ``ValueError``."""
    if _SCOPE.fullmatch(text) is None:
        raise ValueError(f"expected a scope (RFC 6749 §3.3), got {text!r}")
    return text


def check_role(text: str) -> str:
    """A role; raises ``ValueError``."""
    if not 0 < len(text) <= 128 or "," in text or not text.isprintable() or text != text.strip():
        # They travel in a list that commas separate.
        raise ValueError(
            f"expected a role: 1 to 128 printable characters without comma, got {text!r}"
        )
    return text


class Guard:
    """At least one of ``roles`` (if any) and all of ``scopes``. Raises ``ValueError``."""

    __slots__ = ("_challenge", "roles", "scopes")

    def __init__(self, roles: Iterable[str], scopes: Iterable[str]) -> None:
        self.roles: Final = frozenset(check_role(role) for role in roles)
        self.scopes: Final = frozenset(check_scope(scope) for scope in scopes)
        wanted = f', scope="{" ".join(sorted(self.scopes))}"' if self.scopes else ""
        # RFC 6750 §3.1: more privileges than the token has, whatever they are called here.
        self._challenge: Final = (
            f'WWW-Authenticate: Bearer realm="nexus", error="insufficient_scope"{wanted}\r\n'
        ).encode()

    def refusal(self, identity: Identity) -> tuple[str, str, bytes] | None:
        """Reason code, message and challenge for whom it does not let in; ``None``: come in."""
        if not self.scopes <= identity.scopes:
            missing = ", ".join(sorted(self.scopes - identity.scopes))
            return "insufficient_scope", f"The token lacks the scope {missing}.", self._challenge
        if self.roles and not self.roles & identity.roles:
            roles = ", ".join(sorted(self.roles))
            return (
                "insufficient_role",
                f"The token has none of the roles {roles}.",
                self._challenge,
            )
        return None
