"""A RESP3 reply as RESP2 clients get it: Redis's own mapping, on bytes."""

from __future__ import annotations

from nexus.errors import RespError

__all__ = ["downgrade"]

#: One-line types that both protocols have.
_SAME = b"+-:"


def downgrade(reply: bytes) -> bytes:
    """The RESP2 form of one complete RESP3 reply.

    Maps become flat arrays, sets arrays, null the null bulk, doubles and big numbers bulk strings,
    booleans 1 and 0. Raises ``RespError`` for what is not a complete reply, or a push.
    """
    if reply[:1] == b"$" or reply[:1] in (b"+", b"-", b":"):
        return reply
    parts: list[bytes] = []
    left, position = 1, 0
    while left:
        left -= 1
        end = reply.find(b"\r\n", position)
        if end < 0:
            raise RespError("Protocol error: the reply is not complete")
        kind, text = reply[position : position + 1], reply[position + 1 : end]
        position = end + 2
        if kind in (b"$", b"=", b"!"):
            size = int(text)
            if size < 0:
                parts.append(b"$-1\r\n")
                continue
            payload = reply[position : position + size]
            position += size + 2
            if kind == b"!":
                parts.append(b"-%b\r\n" % payload)
                continue
            if kind == b"=":
                payload = payload[4:]
            parts.append(b"$%d\r\n%b\r\n" % (len(payload), payload))
        elif kind in (b"*", b"~", b"%"):
            count = int(text) * (2 if kind == b"%" else 1)
            parts.append(b"*%d\r\n" % count)
            left += max(count, 0)
        elif kind == b"_":
            parts.append(b"$-1\r\n")
        elif kind in (b",", b"("):
            parts.append(b"$%d\r\n%b\r\n" % (len(text), text))
        elif kind == b"#":
            parts.append(b":1\r\n" if text == b"t" else b":0\r\n")
        elif kind and kind in _SAME:
            parts.append(kind + text + b"\r\n")
        else:
            raise RespError(f"Protocol error: {kind!r} does not begin a value")
    if position != len(reply):
        raise RespError("Protocol error: more than one reply")
    return b"".join(parts)
