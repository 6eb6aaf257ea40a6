"""What a verified token says about its bearer."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

__all__ = ["Identity"]


class Identity:
    """A client with its rights; ``fields`` are the header lines that tell the upstream.

    What goes in has been checked: no text in it holds a control character, a comma in a role or a
    space in a scope.
    """

    __slots__ = (
        "client_id",
        "end",
        "everything",
        "fields",
        "issued",
        "issuer",
        "known_by",
        "revocable",
        "roles",
        "scopes",
        "subject",
    )

    def __init__(
        self,
        client_id: str,
        end: float,
        *,
        subject: str = "",
        issuer: str = "",
        roles: Iterable[str] = (),
        scopes: Iterable[str] = (),
        revocable: tuple[str, ...] = (),
        issued: float = 0.0,
        everything: tuple[str, ...] = (),
    ) -> None:
        self.client_id: Final = client_id
        #: Unix time, seconds, from which it counts no more.
        self.end: Final = end
        self.subject: Final = subject
        self.issuer: Final = issuer
        self.roles: Final = frozenset(roles)
        self.scopes: Final = frozenset(scopes)
        #: Entries of the denylist that end it: ``tok:…``, ``sid:…``.
        self.revocable: Final = revocable
        #: Unix time, seconds; 0, which is before everything, of a token that does not say.
        self.issued: Final = issued
        #: Entries of the denylist that end it if it was issued before they were made: ``all:…``.
        self.everything: Final = everything
        #: The ``Authorization`` field by which it is remembered; ``None``: it is not, or no more.
        self.known_by: bytes | None = None
        lines = [("x-auth-client", client_id)]
        if subject:
            lines.append(("x-auth-subject", subject))
        if issuer:
            lines.append(("x-auth-issuer", issuer))
        if self.roles:
            lines.append(("x-auth-roles", ",".join(sorted(self.roles))))
        if self.scopes:
            lines.append(("x-auth-scopes", " ".join(sorted(self.scopes))))
        self.fields: Final = "".join(f"{name}: {value}\r\n" for name, value in lines).encode()

    def __repr__(self) -> str:
        return f"<Identity {self.client_id}>"
