"""Tags at Redis: which keys they are, the scripts that change them, and what invalidates them.

====================  ===========================================================================
``tag:<name>``        members of the tag: a sorted set (or a set that somebody else made). The
                      score says when to look next whether the member is still there, Unix ms:
                      at its expiry, or after a day; a member leaves only when its key is gone,
                      so a time to live that was prolonged meanwhile does no harm
``nexus:tags``        sorted set of the tags by the time of the next such look; each TAG looks at
                      one that is due, so tags that nobody writes to empty themselves, too
``nexus:gone:<name>`` list of renamed tags whose keys are still being deleted; a proxy that died
                      over it leaves it to the next INVALIDATE of the tag, or to any TAG of the
                      user who invalidated
====================  ===========================================================================

Everything runs as the client's own user, and nobody reaches others' keys through a tag: TAG and
UNTAG name the keys as ``KEYS`` of their script, so that Redis checks the right to read and write
all of them before it runs; INVALIDATE deletes by ``UNLINK``, which Redis checks for all keys of a
call before the first goes, and forgets members only behind that. What a refused INVALIDATE has
moved away carries the mark of its user, so nobody who may delete more finishes it unasked.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Final

from nexus.cacheproxy.flow import DOWN, Receiver
from nexus.wire.resp import encode_command

if TYPE_CHECKING:
    from nexus.cacheproxy.dial import Identity
    from nexus.cacheproxy.flow import Link

__all__ = ["PIECE", "Invalidation", "invalidate_request", "tag_request", "untag_request"]

#: Keys that one script deletes of a tag too big to go at once; Redis serves others in between.
#: See docs/tags.md for what a key costs Redis; ``make prove-tags`` measures it.
PIECE: Final = 200

_COMMON: Final = """
local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
local DAY = 86400000
local function wrong(key)
  local kind = redis.call('TYPE', key).ok
  if kind == 'none' or kind == 'zset' or kind == 'set' then return kind end
  local text = 'WRONGTYPE ' .. key .. ' holds a ' .. kind
  return kind, redis.error_reply(text .. '; a tag is a set or a sorted set')
end
local function shrink(gone, most)
  local moved = redis.call('LINDEX', gone, 0)
  if not moved then return 0 end
  local set, deleted, members = redis.call('TYPE', moved).ok == 'set', 0, nil
  if set then  -- costs twice as much
    members = redis.call('SRANDMEMBER', moved, math.ceil(most / 2))
  else
    members = redis.call('ZRANGE', moved, 0, most - 1)
  end
  if members[1] then
    deleted = redis.call('UNLINK', unpack(members))
    redis.call(set and 'SREM' or 'ZREM', moved, unpack(members))
  end
  if redis.call('EXISTS', moved) == 0 then redis.call('LPOP', gone) end
  return deleted
end
"""

#: KEYS: ``nexus:tags``, each tag, the keys of the first tag, of the second, …; ARGV: mark of the
#: user, number of tags, keys of a piece, then for each tag its name and the number of its keys. A
#: key that is not there yet stays for a minute.
_TAG: Final = (
    _COMMON
    + """
local function look(tag, most)
  local due = redis.call('ZRANGEBYSCORE', tag, '-inf', now, 'LIMIT', 0, most)
  for _, member in ipairs(due) do
    local left = redis.pcall('PTTL', member)
    if left == -2 then
      redis.call('ZREM', tag, member)
    else
      local wait = (type(left) ~= 'number' or left < 0 or left > DAY) and DAY or left + 1
      redis.call('ZADD', tag, 'XX', now + wait, member)
    end
  end
end
local tags, kinds = tonumber(ARGV[2]), {}
for i = 2, 1 + tags do
  local kind, failure = wrong(KEYS[i])
  if failure then return failure end
  kinds[i] = kind
end
local added, at = 0, 2 + tags
for i = 2, 1 + tags do
  local name, count = ARGV[2 * i], tonumber(ARGV[2 * i + 1])
  for j = at, at + count - 1 do
    if kinds[i] == 'set' then
      added = added + redis.call('SADD', KEYS[i], KEYS[j])
    else
      local left = redis.call('PTTL', KEYS[j])
      local wait = left == -2 and 60000 or ((left < 0 or left > DAY) and DAY or left + 1)
      added = added + redis.call('ZADD', KEYS[i], now + wait, KEYS[j])
    end
  end
  if kinds[i] ~= 'set' then
    look(KEYS[i], 16)
    redis.call('ZADD', KEYS[1], 'NX', now + 60000, name)
  end
  at = at + count
end
local name = redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', now, 'LIMIT', 0, 1)[1]
if name then
  local tag, gone, next = 'tag:' .. name, 'nexus:gone:' .. name, nil
  local ok = pcall(function()
    if redis.call('TYPE', tag).ok == 'zset' then
      look(tag, 64)
      local first = redis.call('ZRANGE', tag, 0, 0, 'WITHSCORES')
      if first[1] then next = math.max(tonumber(first[2]), now + 1000) end
    end
    local moved = redis.call('LINDEX', gone, 0)
    if moved then
      next = now + 3600000
      if string.sub(moved, -#ARGV[1]) == ARGV[1] then
        shrink(gone, tonumber(ARGV[3]))
        next = now
      end
    end
  end)
  if not ok then next = now + 3600000 end
  if next then redis.call('ZADD', KEYS[1], next, name) else redis.call('ZREM', KEYS[1], name) end
end
return added
"""
)

#: KEYS: the tag, keys that leave it. The number that did.
_UNTAG: Final = (
    _COMMON
    + """
local kind, failure = wrong(KEYS[1])
if failure then return failure end
local removed, command = 0, kind == 'set' and 'SREM' or 'ZREM'
for i = 2, #KEYS, 1000 do
  removed = removed + redis.call(command, KEYS[1], unpack(KEYS, i, math.min(i + 999, #KEYS)))
end
return removed
"""
)

#: KEYS: ``nexus:tags``, then for each tag the tag, its list of renamed ones, and the name that it
#: would get; ARGV: most members that go at once, then the names. Keys deleted, 1 if more is to do.
_INVALIDATE: Final = (
    _COMMON
    + """
local sizes, kinds, total, late = {}, {}, 0, false
for i = 2, #KEYS, 3 do
  local kind, failure = wrong(KEYS[i])
  if failure then return failure end
  kinds[i] = kind
  sizes[i] = kind == 'none' and 0 or redis.call(kind == 'set' and 'SCARD' or 'ZCARD', KEYS[i])
  total = total + sizes[i]
  late = late or redis.call('EXISTS', KEYS[i + 1]) == 1
end
if total <= tonumber(ARGV[1]) and not late then
  local members = {}
  for i = 2, #KEYS, 3 do
    local found = {}
    if kinds[i] == 'set' then
      found = redis.call('SMEMBERS', KEYS[i])
    elseif kinds[i] == 'zset' then
      found = redis.call('ZRANGE', KEYS[i], 0, -1)
    end
    for j = 1, #found do members[#members + 1] = found[j] end
  end
  local deleted = 0
  for i = 1, #members, 7000 do  -- Lua's stack holds 8000
    deleted = deleted + redis.call('UNLINK', unpack(members, i, math.min(i + 6999, #members)))
  end
  for i = 2, #KEYS, 3 do
    redis.call('UNLINK', KEYS[i])
    redis.call('ZREM', KEYS[1], ARGV[2 + (i - 2) / 3])
  end
  return {deleted, 0}
end
for i = 2, #KEYS, 3 do
  if sizes[i] > 0 then
    redis.call('RENAME', KEYS[i], KEYS[i + 2])
    redis.call('RPUSH', KEYS[i + 1], KEYS[i + 2])
    redis.call('ZADD', KEYS[1], now + 60000, ARGV[2 + (i - 2) / 3])
  end
end
return {0, 1}
"""
)

#: KEYS: one tag's list of renamed ones; ARGV: most keys. Keys deleted, and 1 if more is to do.
_SHRINK: Final = (
    _COMMON
    + """
local deleted = shrink(KEYS[1], tonumber(ARGV[1]))
return {deleted, redis.call('EXISTS', KEYS[1])}
"""
)

_INDEX: Final = b"nexus:tags"


def _mark(who: Identity) -> bytes:
    """Names a user in the name of a key, in 16 bytes."""
    return hashlib.sha256(who.user or b"default").hexdigest()[:16].encode()


def tag_request(members: Mapping[bytes, Sequence[bytes]], who: Identity) -> bytearray:
    """The command that adds keys to tags (tag → keys); its reply is how many are new."""
    keys = [_INDEX, *(b"tag:" + name for name in members)]
    for joining in members.values():
        keys += joining
    words: list[bytes | int] = [b"EVAL", _TAG.encode(), len(keys), *keys]
    words += [_mark(who), len(members), PIECE]
    for name, joining in members.items():
        words += [name, len(joining)]
    return bytearray(encode_command(words))


def untag_request(tag: bytes, keys: Sequence[bytes]) -> bytearray:
    """The command that takes keys out of a tag; its reply is how many were in it."""
    count = 1 + len(keys)
    return bytearray(encode_command([b"EVAL", _UNTAG.encode(), count, b"tag:" + tag, *keys]))


def invalidate_request(tags: Sequence[bytes], most: int, token: bytes, who: Identity) -> bytearray:
    """The first command of an invalidation; ``token`` is nobody else's.

    Replies ``[deleted, more]``.
    """
    words: list[bytes | int] = [b"EVAL", _INVALIDATE.encode(), 1 + 3 * len(tags), _INDEX]
    for tag in tags:
        gone = b"nexus:gone:" + tag
        words += [b"tag:" + tag, gone, b"%b:%b:%b" % (gone, token, _mark(who))]
    return bytearray(encode_command([*words, most, *tags]))


def _shrink_request(tag: bytes) -> bytearray:
    return bytearray(encode_command([b"EVAL", _SHRINK.encode(), 1, b"nexus:gone:" + tag, PIECE]))


class Invalidation(Receiver):
    """Deletes what tags hold; ``done`` is called once, with the reply or with ``None`` if lost.

    It goes on when the client that asked is gone: what is half done is finished.
    """

    __slots__ = ("_data", "_done", "_link", "_shrinking", "_tags", "_who", "deleted")

    def __init__(
        self,
        link: Link,
        tags: Sequence[bytes],
        who: Identity,
        done: Callable[[bytes | None], None],
    ) -> None:
        super().__init__()
        self._link = link
        self._tags = list(dict.fromkeys(tags))
        self._who = who
        self._done = done
        self._data = b""
        #: Whether the first command is answered.
        self._shrinking = False
        self.deleted = 0

    def start(self, most: int, token: bytes) -> None:
        """Send the first command."""
        self._send(invalidate_request(self._tags, most, token, self._who))

    def _send(self, request: bytearray) -> None:
        if self._link.state == DOWN:
            self._done(None)
            return
        self.split = True
        self._link.send(self, request, 0, len(request), 1)

    def deliver(self, data: bytearray, start: int, end: int, done: int) -> None:
        self._data += bytes(data[start:end])
        if not done:
            return
        reply, self._data = self._data, b""
        if not reply.startswith(b"*2\r\n:"):
            self._done(reply)
            return
        _count, deleted, more, _end = reply.split(b"\r\n")
        self.deleted += int(deleted[1:])
        if more == b":0":
            # The first reply has no rest to any tag; a later one speaks of the first in the list.
            self._tags = self._tags[1:] if self._shrinking else []
        self._shrinking = True
        if self._tags:
            self._send(_shrink_request(self._tags[0]))
        else:
            self._done(b":%d\r\n" % self.deleted)

    def lost(self, _count: int, _partial: bool, _error: bytes) -> None:
        self._done(None)
