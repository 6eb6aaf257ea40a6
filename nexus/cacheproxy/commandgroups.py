"""The group of each command, by which metrics are counted."""

from __future__ import annotations

from typing import Final

__all__ = ["GROUPS", "group_of", "groups"]

#: Redis's own grouping of commands (``COMMAND DOCS``); what metrics are counted by.
_MEMBERS: Final = {
    "bitmap": """
        bitcount bitfield bitfield_ro bitop bitpos getbit setbit
    """,
    "cluster": """
        asking cluster readonly readwrite
    """,
    "connection": """
        auth client echo hello ping quit reset select
    """,
    "generic": """
        copy del dump exists expire expireat expiretime keys migrate move object
        persist pexpire pexpireat pexpiretime pttl randomkey rename renamenx restore
        scan sort sort_ro touch ttl type unlink wait waitaof
    """,
    "geo": """
        geoadd geodist geohash geopos georadius georadius_ro georadiusbymember
        georadiusbymember_ro geosearch geosearchstore
    """,
    "hash": """
        hdel hexists hget hgetall hincrby hincrbyfloat hkeys hlen hmget hmset
        hrandfield hscan hset hsetnx hstrlen hvals
    """,
    "hyperloglog": """
        pfadd pfcount pfdebug pfmerge pfselftest
    """,
    "list": """
        blmove blmpop blpop brpop brpoplpush lindex linsert llen lmove lmpop lpop lpos
        lpush lpushx lrange lrem lset ltrim rpop rpoplpush rpush rpushx
    """,
    "pubsub": """
        psubscribe publish pubsub punsubscribe spublish ssubscribe subscribe
        sunsubscribe unsubscribe
    """,
    "scripting": """
        eval eval_ro evalsha evalsha_ro fcall fcall_ro function script
    """,
    "server": """
        acl bgrewriteaof bgsave command config dbsize debug failover flushall flushdb
        host: info lastsave latency lolwut memory module monitor post psync replconf
        replicaof restore-asking role save shutdown slaveof slowlog swapdb sync time
    """,
    "set": """
        sadd scard sdiff sdiffstore sinter sintercard sinterstore sismember smembers
        smismember smove spop srandmember srem sscan sunion sunionstore
    """,
    "sorted-set": """
        bzmpop bzpopmax bzpopmin zadd zcard zcount zdiff zdiffstore zincrby zinter
        zintercard zinterstore zlexcount zmpop zmscore zpopmax zpopmin zrandmember
        zrange zrangebylex zrangebyscore zrangestore zrank zrem zremrangebylex
        zremrangebyrank zremrangebyscore zrevrange zrevrangebylex zrevrangebyscore
        zrevrank zscan zscore zunion zunionstore
    """,
    "stream": """
        xack xadd xautoclaim xclaim xdel xgroup xinfo xlen xpending xrange xread
        xreadgroup xrevrange xsetid xtrim
    """,
    "string": """
        append decr decrby get getdel getex getrange getset incr incrby incrbyfloat
        lcs mget mset msetnx psetex set setex setnx setrange stralgo strlen substr
    """,
    "transactions": """
        discard exec multi unwatch watch
    """,
}

#: Groups by number; 0 is everything that is not in the table.
GROUPS: Final = ("other", "nexus", *_MEMBERS)


def groups() -> dict[bytes, int]:
    """Name → number of its group of everything that has no parent, for the scanner."""
    numbers = {
        name.encode(): GROUPS.index(group)
        for group, row in _MEMBERS.items()
        for name in row.split()
    }
    numbers[b"nexus"] = GROUPS.index("nexus")
    return numbers


def group_of(name: str) -> str:
    """Group of a command, a subcommand's being its parent's."""
    return GROUPS[groups().get(name.partition("|")[0].encode(), 0)]
