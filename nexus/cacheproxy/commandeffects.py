"""What each command of the table does to keys: what the near-cache must know of it."""

from __future__ import annotations

from enum import IntEnum
from typing import Final

from nexus.cacheproxy.commands import COMMANDS, Command

__all__ = ["Effect", "effect_of", "effects"]


class Effect(IntEnum):
    """What a command that travels shared does to keys: what the near-cache must know of it."""

    #: Nothing: no keys, or only their names.
    NONE = 0
    #: A pure read of one key, on the allow-list: its reply may be kept. With more keys: ``READS``.
    CACHED = 1
    #: Reads keys whose places are known.
    READS = 2
    #: Changes keys whose places are known.
    WRITES = 3
    #: May read or change keys that its arguments do not tell.
    UNKNOWN = 4
    #: Changes everything: ``FLUSHALL``, ``SWAPDB``, another primary, another ACL.
    FLUSHES = 5


#: Pure reads of one key: no random, time-relative, blocking or cursor reply, nothing that the
#: server counts or remembers. In RESP3 and RESP2 each reply is the
#: same value but for its framing.
_CACHEABLE: Final = """
    bitcount bitfield_ro bitpos exists geodist geohash get getbit getrange hexists hget hgetall
    hkeys hlen hmget hstrlen hvals lindex llen lpos lrange scard sismember smembers smismember
    strlen substr type xlen xrange xrevrange zcard zcount zlexcount zmscore zrange zrangebylex
    zrangebyscore zrank zrevrange zrevrangebylex zrevrangebyscore zrevrank zscore
"""
CACHEABLE: Final = frozenset(_CACHEABLE.split())

#: Containers that travel shared: key positions of their subcommands, or what they change.
_CONTAINERS: Final = {
    "acl": (Effect.FLUSHES, 0, 0, 0),
    "memory": (Effect.READS, 2, 2, 1),
    "object": (Effect.READS, 2, 2, 1),
    "xgroup": (Effect.WRITES, 2, 2, 1),
    "xinfo": (Effect.READS, 2, 2, 1),
}
_FLUSHING: Final = frozenset({"flushall", "flushdb", "replicaof", "slaveof", "swapdb"})
#: Tell names, not values.
_NAMES_ONLY: Final = frozenset({"dbsize", "keys", "randomkey", "scan"})


def effect_of(command: Command) -> tuple[Effect, int, int, int]:
    """Effect and key positions (first, last, step) of a command without a parent."""
    if command.name in _CONTAINERS:
        return _CONTAINERS[command.name]
    if command.name in _FLUSHING:
        return Effect.FLUSHES, 0, 0, 0
    if command.name in _NAMES_ONLY:
        return Effect.NONE, 0, 0, 0
    keys = (command.first_key, command.last_key, command.key_step)
    if command.name in CACHEABLE:
        return Effect.CACHED, *keys
    if "movablekeys" in command.flags or (not command.first_key and "write" in command.flags):
        return Effect.UNKNOWN, 0, 0, 0
    if not command.first_key:
        return Effect.NONE, 0, 0, 0
    return Effect.WRITES if "write" in command.flags else Effect.READS, *keys


def effects() -> dict[bytes, tuple[int, int, int, int]]:
    """Name → effect and key positions, for the scanner's table."""
    found: dict[bytes, tuple[int, int, int, int]] = {}
    for name, command in COMMANDS.items():
        effect, first, last, step = effect_of(command)
        if "|" not in name and effect:
            found[name.encode()] = (int(effect), first, last, step)
    return found
