"""Masking the password of a URL, in one way, wherever a URL is printed, logged or sent on."""

from __future__ import annotations

import re
from typing import Final

__all__ = ["MASK", "mask_password"]

#: What is shown in a secret's place.
MASK: Final = "********"

# RFC 3986 §3.2: the authority ends at the first "/", "?" or "#", its user information at the last
# "@" in it, and the user's name at the first ":". A password in which a "/", "?" or "#" was left
# unescaped ends the authority early; where what follows the ":" is no port either, everything up
# to the word's last "@" goes.
_PASSWORD: Final = re.compile(r"(?<=://)(?!\[)([^\s/?#:]*):(?:[^\s/?#]+@|(?!\d*(?:[/?#\s]|$))\S+@)")


def mask_password(text: str) -> str:
    """``redis://user:p@ss@host/0`` → ``redis://user:********@host/0``, wherever it is in ``text``.

    The user's name stays. Where the end of a password is in doubt, more is masked rather than less.
    """
    return _PASSWORD.sub(rf"\1:{MASK}@", text) if "://" in text else text
