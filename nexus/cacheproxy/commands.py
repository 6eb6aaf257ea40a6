"""The command table: what the cacheproxy knows about each Redis command, in one place.

Everything that depends on the command derives from here: how it travels (:class:`Kind`), the
scanner's table, what it means to the near-cache (:mod:`nexus.cacheproxy.commandeffects`) and to the
metrics (:mod:`nexus.cacheproxy.commandgroups`), ``docs/commands.md`` (``make docs``). A test
compares name, arity, flags and key positions with ``COMMAND`` of the server it runs on (Redis 7.0;
the names that only 6.2 has are marked so in :data:`ONLY_6_2`). A command that is not here still
works: it is forwarded on a connection of its own (:attr:`Kind.PROBE`).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import Final

__all__ = [
    "COMMANDS",
    "ONLY_6_2",
    "ONLY_NEWER",
    "Command",
    "Kind",
    "kinds",
]


class Kind(IntEnum):
    """How a command travels; one bit each, so that sets of kinds are masks."""

    #: Down the multiplexed connection of the client's pool; one reply, no connection state.
    SHARED = 1 << 0
    #: One reply, but it may take long or must overtake a running script: on a connection of the
    #: client's own, until nothing is outstanding.
    DEDICATED = 1 << 1
    #: ``XREAD``: dedicated with the option ``BLOCK``, else shared.
    BLOCK_OPTION = 1 << 2
    #: Dedicated, behind a hidden ``PING`` there: that lifts the connection's replication offset
    #: above all that the client wrote before, wherever it wrote it.
    WAIT = 1 << 3
    #: ``MULTI``, ``WATCH``: a connection of the client's own until the transaction is over. A
    #: transaction that is wholly in the buffer goes down the shared connection, contiguously.
    TRANSACTION = 1 << 4
    #: Changes what the connection is (user, db, protocol, name): executed by Redis on a dedicated
    #: connection, remembered, replayed on every later connection of the client.
    SESSION = 1 << 5
    #: Decided by the subcommand.
    CONTAINER = 1 << 6
    #: From here on raw bytes both ways, for the rest of the client's life: subscriptions, MONITOR,
    #: replication, CLIENT commands whose effect stays or that speak of this very connection.
    SPLICED = 1 << 7
    #: Unknown: dedicated; when Redis accepts it, spliced from there on, as nobody knows what it
    #: changed; an error changes nothing.
    PROBE = 1 << 8
    #: Answered by the proxy.
    LOCAL = 1 << 9
    #: Must get through while a script keeps Redis busy, when Redis refuses even ``SELECT``: on a
    #: dedicated connection in whatever db it is; nothing else is sent there before its reply.
    RESCUE = 1 << 10
    #: ``CLIENT PAUSE``, ``UNPAUSE``: dedicated; while clients are paused, everything is, because a
    #: command that waits on a shared connection would hold up what may run behind it.
    PAUSE = 1 << 11


@dataclass(frozen=True, slots=True)
class Command:
    """One row; ``arity`` and key positions as in the reply of ``COMMAND``."""

    name: str
    #: Number of arguments, the name included; negative: at least so many.
    arity: int
    first_key: int
    last_key: int
    key_step: int
    kind: Kind
    flags: frozenset[str]


#: Names that Redis 7.0 does not have any more.
ONLY_6_2: Final = frozenset({"host:", "post", "stralgo"})

#: Names that only newer servers have (7.2 and later).
ONLY_NEWER: Final = frozenset({"client|no-touch", "client|setinfo", "waitaof"})

#: name, arity, first key, last key, key step, kind, flags
_ROWS: Final = """\
acl -2 0 0 0 shared
acl|cat -2 0 0 0 shared loading noscript stale
acl|deluser -3 0 0 0 shared admin loading noscript stale
acl|dryrun -4 0 0 0 shared admin loading noscript stale
acl|genpass -2 0 0 0 shared loading noscript stale
acl|getuser 3 0 0 0 shared admin loading noscript stale
acl|help 2 0 0 0 shared loading stale
acl|list 2 0 0 0 shared admin loading noscript stale
acl|load 2 0 0 0 shared admin loading noscript stale
acl|log -2 0 0 0 shared admin loading noscript stale
acl|save 2 0 0 0 shared admin loading noscript stale
acl|setuser -3 0 0 0 shared admin loading noscript stale
acl|users 2 0 0 0 shared admin loading noscript stale
acl|whoami 2 0 0 0 shared loading noscript stale
append 3 1 1 1 shared denyoom fast write
asking 1 0 0 0 probe fast
auth -2 0 0 0 session allow_busy fast loading no_auth noscript stale
bgrewriteaof 1 0 0 0 shared admin no_async_loading noscript
bgsave -1 0 0 0 shared admin no_async_loading noscript
bitcount -2 1 1 1 shared readonly
bitfield -2 1 1 1 shared denyoom write
bitfield_ro -2 1 1 1 shared fast readonly
bitop -4 2 -1 1 shared denyoom write
bitpos -3 1 1 1 shared readonly
blmove 6 1 2 1 dedicated blocking denyoom noscript write
blmpop -5 0 0 0 dedicated blocking movablekeys write
blpop -3 1 -2 1 dedicated blocking noscript write
brpop -3 1 -2 1 dedicated blocking noscript write
brpoplpush 4 1 2 1 dedicated blocking denyoom noscript write
bzmpop -5 0 0 0 dedicated blocking movablekeys write
bzpopmax -3 1 -2 1 dedicated blocking fast noscript write
bzpopmin -3 1 -2 1 dedicated blocking fast noscript write
client -2 0 0 0 container
client|caching 3 0 0 0 spliced loading noscript stale
client|getname 2 0 0 0 dedicated loading noscript stale
client|getredir 2 0 0 0 spliced loading noscript stale
client|help 2 0 0 0 dedicated loading stale
client|id 2 0 0 0 spliced loading noscript stale
client|info 2 0 0 0 spliced loading noscript stale
client|kill -3 0 0 0 spliced admin loading noscript stale
client|list -2 0 0 0 spliced admin loading noscript stale
client|no-evict 3 0 0 0 spliced admin loading noscript stale
client|no-touch 3 0 0 0 spliced loading noscript stale
client|pause -3 0 0 0 pause admin loading noscript stale
client|reply 3 0 0 0 spliced loading noscript stale
client|setname 3 0 0 0 session loading noscript stale
client|setinfo 4 0 0 0 session loading noscript stale
client|tracking -3 0 0 0 spliced loading noscript stale
client|trackinginfo 2 0 0 0 spliced loading noscript stale
client|unblock -3 0 0 0 spliced admin loading noscript stale
client|unpause 2 0 0 0 pause admin loading noscript stale
cluster -2 0 0 0 shared
cluster|addslots -3 0 0 0 shared admin no_async_loading stale
cluster|addslotsrange -4 0 0 0 shared admin no_async_loading stale
cluster|bumpepoch 2 0 0 0 shared admin no_async_loading stale
cluster|count-failure-reports 3 0 0 0 shared admin stale
cluster|countkeysinslot 3 0 0 0 shared stale
cluster|delslots -3 0 0 0 shared admin no_async_loading stale
cluster|delslotsrange -4 0 0 0 shared admin no_async_loading stale
cluster|failover -2 0 0 0 shared admin no_async_loading stale
cluster|flushslots 2 0 0 0 shared admin no_async_loading stale
cluster|forget 3 0 0 0 shared admin no_async_loading stale
cluster|getkeysinslot 4 0 0 0 shared stale
cluster|help 2 0 0 0 shared loading stale
cluster|info 2 0 0 0 shared stale
cluster|keyslot 3 0 0 0 shared stale
cluster|links 2 0 0 0 shared stale
cluster|meet -4 0 0 0 shared admin no_async_loading stale
cluster|myid 2 0 0 0 shared stale
cluster|nodes 2 0 0 0 shared stale
cluster|replicas 3 0 0 0 shared admin stale
cluster|replicate 3 0 0 0 shared admin no_async_loading stale
cluster|reset -2 0 0 0 shared admin noscript stale
cluster|saveconfig 2 0 0 0 shared admin no_async_loading stale
cluster|set-config-epoch 3 0 0 0 shared admin no_async_loading stale
cluster|setslot -4 0 0 0 shared admin no_async_loading stale
cluster|shards 2 0 0 0 shared stale
cluster|slaves 3 0 0 0 shared admin stale
cluster|slots 2 0 0 0 shared stale
command -1 0 0 0 shared loading stale
command|count 2 0 0 0 shared loading stale
command|docs -2 0 0 0 shared loading stale
command|getkeys -4 0 0 0 shared loading stale
command|getkeysandflags -4 0 0 0 shared loading stale
command|help 2 0 0 0 shared loading stale
command|info -2 0 0 0 shared loading stale
command|list -2 0 0 0 shared loading stale
config -2 0 0 0 shared
config|get -3 0 0 0 shared admin loading noscript stale
config|help 2 0 0 0 shared loading stale
config|resetstat 2 0 0 0 shared admin loading noscript stale
config|rewrite 2 0 0 0 shared admin loading noscript stale
config|set -4 0 0 0 shared admin loading noscript stale
copy -3 1 2 1 shared denyoom write
dbsize 1 0 0 0 shared fast readonly
debug -2 0 0 0 dedicated admin loading noscript stale
decr 2 1 1 1 shared denyoom fast write
decrby 3 1 1 1 shared denyoom fast write
del -2 1 -1 1 shared write
discard 1 0 0 0 transaction allow_busy fast loading noscript stale
dump 2 1 1 1 shared readonly
echo 2 0 0 0 shared fast loading stale
eval -3 0 0 0 dedicated movablekeys no_mandatory_keys noscript skip_monitor stale
eval_ro -3 0 0 0 dedicated movablekeys no_mandatory_keys noscript readonly skip_monitor stale
evalsha -3 0 0 0 dedicated movablekeys no_mandatory_keys noscript skip_monitor stale
evalsha_ro -3 0 0 0 dedicated movablekeys no_mandatory_keys noscript readonly skip_monitor stale
exec 1 0 0 0 transaction loading noscript skip_slowlog stale
exists -2 1 -1 1 shared fast readonly
expire -3 1 1 1 shared fast write
expireat -3 1 1 1 shared fast write
expiretime 2 1 1 1 shared fast readonly
failover -1 0 0 0 spliced admin noscript stale
fcall -3 0 0 0 dedicated movablekeys no_mandatory_keys noscript skip_monitor stale
fcall_ro -3 0 0 0 dedicated movablekeys no_mandatory_keys noscript readonly skip_monitor stale
flushall -1 0 0 0 shared write
flushdb -1 0 0 0 shared write
function -2 0 0 0 container
function|delete 3 0 0 0 dedicated noscript write
function|dump 2 0 0 0 dedicated noscript
function|flush -2 0 0 0 dedicated noscript write
function|help 2 0 0 0 dedicated loading stale
function|kill 2 0 0 0 rescue allow_busy noscript
function|list -2 0 0 0 dedicated noscript
function|load -3 0 0 0 dedicated denyoom noscript write
function|restore -3 0 0 0 dedicated denyoom noscript write
function|stats 2 0 0 0 rescue allow_busy noscript
geoadd -5 1 1 1 shared denyoom write
geodist -4 1 1 1 shared readonly
geohash -2 1 1 1 shared readonly
geopos -2 1 1 1 shared readonly
georadius -6 1 1 1 shared denyoom movablekeys write
georadius_ro -6 1 1 1 shared readonly
georadiusbymember -5 1 1 1 shared denyoom movablekeys write
georadiusbymember_ro -5 1 1 1 shared readonly
geosearch -7 1 1 1 shared readonly
geosearchstore -8 1 2 1 shared denyoom write
get 2 1 1 1 shared fast readonly
getbit 3 1 1 1 shared fast readonly
getdel 2 1 1 1 shared fast write
getex -2 1 1 1 shared fast write
getrange 4 1 1 1 shared readonly
getset 3 1 1 1 shared denyoom fast write
hdel -3 1 1 1 shared fast write
hello -1 0 0 0 session allow_busy fast loading no_auth noscript stale
hexists 3 1 1 1 shared fast readonly
hget 3 1 1 1 shared fast readonly
hgetall 2 1 1 1 shared readonly
hincrby 4 1 1 1 shared denyoom fast write
hincrbyfloat 4 1 1 1 shared denyoom fast write
hkeys 2 1 1 1 shared readonly
hlen 2 1 1 1 shared fast readonly
hmget -3 1 1 1 shared fast readonly
hmset -4 1 1 1 shared denyoom fast write
host: -1 0 0 0 probe loading readonly stale
hrandfield -2 1 1 1 shared readonly
hscan -3 1 1 1 shared readonly
hset -4 1 1 1 shared denyoom fast write
hsetnx 4 1 1 1 shared denyoom fast write
hstrlen 3 1 1 1 shared fast readonly
hvals 2 1 1 1 shared readonly
incr 2 1 1 1 shared denyoom fast write
incrby 3 1 1 1 shared denyoom fast write
incrbyfloat 3 1 1 1 shared denyoom fast write
info -1 0 0 0 shared loading stale
keys 2 0 0 0 shared readonly
lastsave 1 0 0 0 shared fast loading stale
latency -2 0 0 0 shared
latency|doctor 2 0 0 0 shared admin loading noscript stale
latency|graph 3 0 0 0 shared admin loading noscript stale
latency|help 2 0 0 0 shared loading stale
latency|histogram -2 0 0 0 shared admin loading noscript stale
latency|history 3 0 0 0 shared admin loading noscript stale
latency|latest 2 0 0 0 shared admin loading noscript stale
latency|reset -2 0 0 0 shared admin loading noscript stale
lcs -3 1 2 1 shared readonly
lindex 3 1 1 1 shared readonly
linsert 5 1 1 1 shared denyoom write
llen 2 1 1 1 shared fast readonly
lmove 5 1 2 1 shared denyoom write
lmpop -4 0 0 0 shared movablekeys write
lolwut -1 0 0 0 shared fast readonly
lpop -2 1 1 1 shared fast write
lpos -3 1 1 1 shared readonly
lpush -3 1 1 1 shared denyoom fast write
lpushx -3 1 1 1 shared denyoom fast write
lrange 4 1 1 1 shared readonly
lrem 4 1 1 1 shared write
lset 4 1 1 1 shared denyoom write
ltrim 4 1 1 1 shared write
memory -2 0 0 0 shared
memory|doctor 2 0 0 0 shared
memory|help 2 0 0 0 shared loading stale
memory|malloc-stats 2 0 0 0 shared
memory|purge 2 0 0 0 shared
memory|stats 2 0 0 0 shared
memory|usage -3 2 2 1 shared readonly
mget -2 1 -1 1 shared fast readonly
migrate -6 3 3 1 shared movablekeys write
module -2 0 0 0 shared
module|help 2 0 0 0 shared loading stale
module|list 2 0 0 0 shared admin noscript
module|load -3 0 0 0 shared admin no_async_loading noscript
module|loadex -3 0 0 0 shared admin no_async_loading noscript
module|unload 3 0 0 0 shared admin no_async_loading noscript
monitor 1 0 0 0 spliced admin loading noscript stale
move 3 1 1 1 shared fast write
mset -3 1 -1 2 shared denyoom write
msetnx -3 1 -1 2 shared denyoom write
multi 1 0 0 0 transaction allow_busy fast loading noscript stale
object -2 0 0 0 shared
object|encoding 3 2 2 1 shared readonly
object|freq 3 2 2 1 shared readonly
object|help 2 0 0 0 shared loading stale
object|idletime 3 2 2 1 shared readonly
object|refcount 3 2 2 1 shared readonly
persist 2 1 1 1 shared fast write
pexpire -3 1 1 1 shared fast write
pexpireat -3 1 1 1 shared fast write
pexpiretime 2 1 1 1 shared fast readonly
pfadd -2 1 1 1 shared denyoom fast write
pfcount -2 1 -1 1 shared readonly
pfdebug 3 2 2 1 shared admin denyoom write
pfmerge -2 1 -1 1 shared denyoom write
pfselftest 1 0 0 0 shared admin
ping -1 0 0 0 shared fast
post -1 0 0 0 probe loading readonly stale
psetex 4 1 1 1 shared denyoom write
psubscribe -2 0 0 0 spliced loading noscript pubsub stale
psync -3 0 0 0 spliced admin no_async_loading no_multi noscript
pttl 2 1 1 1 shared fast readonly
publish 3 0 0 0 shared fast loading pubsub stale
pubsub -2 0 0 0 shared
pubsub|channels -2 0 0 0 shared loading pubsub stale
pubsub|help 2 0 0 0 shared loading stale
pubsub|numpat 2 0 0 0 shared loading pubsub stale
pubsub|numsub -2 0 0 0 shared loading pubsub stale
pubsub|shardchannels -2 0 0 0 shared loading pubsub stale
pubsub|shardnumsub -2 0 0 0 shared loading pubsub stale
punsubscribe -1 0 0 0 spliced loading noscript pubsub stale
quit -1 0 0 0 local allow_busy fast loading no_auth noscript stale
randomkey 1 0 0 0 shared readonly
readonly 1 0 0 0 probe fast loading stale
readwrite 1 0 0 0 probe fast loading stale
rename 3 1 2 1 shared write
renamenx 3 1 2 1 shared fast write
replconf -1 0 0 0 spliced admin allow_busy loading noscript stale
replicaof 3 0 0 0 shared admin no_async_loading noscript stale
reset 1 0 0 0 local allow_busy fast loading no_auth noscript stale
restore -4 1 1 1 shared denyoom write
restore-asking -4 1 1 1 probe asking denyoom write
role 1 0 0 0 shared fast loading noscript stale
rpop -2 1 1 1 shared fast write
rpoplpush 3 1 2 1 shared denyoom write
rpush -3 1 1 1 shared denyoom fast write
rpushx -3 1 1 1 shared denyoom fast write
sadd -3 1 1 1 shared denyoom fast write
save 1 0 0 0 shared admin no_async_loading no_multi noscript
scan -2 0 0 0 shared readonly
scard 2 1 1 1 shared fast readonly
script -2 0 0 0 container
script|debug 3 0 0 0 spliced noscript
script|exists -3 0 0 0 dedicated noscript
script|flush -2 0 0 0 dedicated noscript
script|help 2 0 0 0 dedicated loading stale
script|kill 2 0 0 0 rescue allow_busy noscript
script|load 3 0 0 0 dedicated noscript stale
sdiff -2 1 -1 1 shared readonly
sdiffstore -3 1 -1 1 shared denyoom write
select 2 0 0 0 session fast loading stale
set -3 1 1 1 shared denyoom write
setbit 4 1 1 1 shared denyoom write
setex 4 1 1 1 shared denyoom write
setnx 3 1 1 1 shared denyoom fast write
setrange 4 1 1 1 shared denyoom write
shutdown -1 0 0 0 rescue admin allow_busy loading no_multi noscript stale
sinter -2 1 -1 1 shared readonly
sintercard -3 0 0 0 shared movablekeys readonly
sinterstore -3 1 -1 1 shared denyoom write
sismember 3 1 1 1 shared fast readonly
slaveof 3 0 0 0 shared admin no_async_loading noscript stale
slowlog -2 0 0 0 shared
slowlog|get -2 0 0 0 shared admin loading stale
slowlog|help 2 0 0 0 shared loading stale
slowlog|len 2 0 0 0 shared admin loading stale
slowlog|reset 2 0 0 0 shared admin loading stale
smembers 2 1 1 1 shared readonly
smismember -3 1 1 1 shared fast readonly
smove 4 1 2 1 shared fast write
sort -2 1 1 1 shared denyoom movablekeys write
sort_ro -2 1 1 1 shared movablekeys readonly
spop -2 1 1 1 shared fast write
spublish 3 1 1 1 shared fast loading pubsub stale
srandmember -2 1 1 1 shared readonly
srem -3 1 1 1 shared fast write
sscan -3 1 1 1 shared readonly
ssubscribe -2 1 -1 1 spliced loading noscript pubsub stale
stralgo -2 0 0 0 shared movablekeys readonly
strlen 2 1 1 1 shared fast readonly
subscribe -2 0 0 0 spliced loading noscript pubsub stale
substr 4 1 1 1 shared readonly
sunion -2 1 -1 1 shared readonly
sunionstore -3 1 -1 1 shared denyoom write
sunsubscribe -1 1 -1 1 spliced loading noscript pubsub stale
swapdb 3 0 0 0 shared fast write
sync 1 0 0 0 spliced admin no_async_loading no_multi noscript
time 1 0 0 0 shared fast loading stale
touch -2 1 -1 1 shared fast readonly
ttl 2 1 1 1 shared fast readonly
type 2 1 1 1 shared fast readonly
unlink -2 1 -1 1 shared fast write
unsubscribe -1 0 0 0 spliced loading noscript pubsub stale
unwatch 1 0 0 0 transaction allow_busy fast loading noscript stale
wait 3 0 0 0 wait noscript
waitaof 4 0 0 0 wait blocking noscript
watch -2 1 -1 1 transaction allow_busy fast loading noscript stale
xack -4 1 1 1 shared fast write
xadd -5 1 1 1 shared denyoom fast write
xautoclaim -6 1 1 1 shared fast write
xclaim -6 1 1 1 shared fast write
xdel -3 1 1 1 shared fast write
xgroup -2 0 0 0 shared
xgroup|create -5 2 2 1 shared denyoom write
xgroup|createconsumer 5 2 2 1 shared denyoom write
xgroup|delconsumer 5 2 2 1 shared write
xgroup|destroy 4 2 2 1 shared write
xgroup|help 2 0 0 0 shared loading stale
xgroup|setid -5 2 2 1 shared write
xinfo -2 0 0 0 shared
xinfo|consumers 4 2 2 1 shared readonly
xinfo|groups 3 2 2 1 shared readonly
xinfo|help 2 0 0 0 shared loading stale
xinfo|stream -3 2 2 1 shared readonly
xlen 2 1 1 1 shared fast readonly
xpending -3 1 1 1 shared readonly
xrange -4 1 1 1 shared readonly
xread -4 0 0 0 block-option blocking movablekeys readonly
xreadgroup -7 0 0 0 block-option blocking movablekeys write
xrevrange -4 1 1 1 shared readonly
xsetid -3 1 1 1 shared denyoom fast write
xtrim -4 1 1 1 shared write
zadd -4 1 1 1 shared denyoom fast write
zcard 2 1 1 1 shared fast readonly
zcount 4 1 1 1 shared fast readonly
zdiff -3 0 0 0 shared movablekeys readonly
zdiffstore -4 1 1 1 shared denyoom movablekeys write
zincrby 4 1 1 1 shared denyoom fast write
zinter -3 0 0 0 shared movablekeys readonly
zintercard -3 0 0 0 shared movablekeys readonly
zinterstore -4 1 1 1 shared denyoom movablekeys write
zlexcount 4 1 1 1 shared fast readonly
zmpop -4 0 0 0 shared movablekeys write
zmscore -3 1 1 1 shared fast readonly
zpopmax -2 1 1 1 shared fast write
zpopmin -2 1 1 1 shared fast write
zrandmember -2 1 1 1 shared readonly
zrange -4 1 1 1 shared readonly
zrangebylex -4 1 1 1 shared readonly
zrangebyscore -4 1 1 1 shared readonly
zrangestore -5 1 2 1 shared denyoom write
zrank 3 1 1 1 shared fast readonly
zrem -3 1 1 1 shared fast write
zremrangebylex 4 1 1 1 shared write
zremrangebyrank 4 1 1 1 shared write
zremrangebyscore 4 1 1 1 shared write
zrevrange -4 1 1 1 shared readonly
zrevrangebylex -4 1 1 1 shared readonly
zrevrangebyscore -4 1 1 1 shared readonly
zrevrank 3 1 1 1 shared fast readonly
zscan -3 1 1 1 shared readonly
zscore 3 1 1 1 shared fast readonly
zunion -3 0 0 0 shared movablekeys readonly
zunionstore -4 1 1 1 shared denyoom movablekeys write
"""


def _parse(rows: str) -> dict[str, Command]:
    table: dict[str, Command] = {}
    for row in rows.splitlines():
        name, arity, first, last, step, kind, *flags = row.split()
        table[name] = Command(
            name,
            int(arity),
            int(first),
            int(last),
            int(step),
            Kind[kind.upper().replace("-", "_")],
            frozenset(flags),
        )
    return table


#: Lower-case name (``client|setname`` for a subcommand) → command.
COMMANDS: Final = _parse(_ROWS)


def kinds() -> dict[bytes, int]:
    """Name → kind of everything that has no parent, for the scanner."""
    table = {name.encode(): int(c.kind) for name, c in COMMANDS.items() if "|" not in name}
    table[b"nexus"] = int(Kind.LOCAL)
    return table
