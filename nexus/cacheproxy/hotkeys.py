"""Hot keys: which they are, over all workers, and a longer life for them at Redis.

A key is hot when a rule's ``hot.threshold`` reads came within ``hot.window_seconds``. Reads that
Redis answers are counted in the near-cache's sketch, hits in its entries. Then one Lua script, on a
connection of the proxy's own, prolongs the key's life: once in a window over all workers and
proxies, only where the key has a time to live, and never beyond ``hot.max_total_seconds`` since the
first time, so no key becomes immortal.
"""

from __future__ import annotations

import logging
import mmap
import struct
import zlib
from typing import TYPE_CHECKING, Final, NamedTuple

import msgspec

from nexus.cacheproxy.flow import UP, Receiver
from nexus.cacheproxy.leases import key_of
from nexus.wire.resp import encode_command

if TYPE_CHECKING:
    from nexus.cacheproxy.counts import Stats
    from nexus.cacheproxy.dial import Identity
    from nexus.cacheproxy.pools import Pools
    from nexus.policy.rules import Rule

__all__ = ["HotBoard", "HotKey", "HotKeys"]

log = logging.getLogger("nexus.cacheproxy")

#: Hot keys that one worker remembers; the least read gives way.
MOST_KEYS: Final = 512
#: Of them, those that other workers see, and the longest key that they see.
MOST_SHOWN: Final = 64
MOST_KEY_BYTES: Final = 512
#: Windows for which a key that had no time to live is not asked about again, unless a fill finds
#: that it has one.
ETERNAL_WINDOWS: Final = 6
#: Scripts of one worker in a second.
MOST_EXTENSIONS: Final = 200
#: Seconds until a refused user is tried again.
REFUSED_SECONDS: Final = 60
_LOG_SECONDS: Final = 60

#: KEYS: the key, its marker; ARGV: milliseconds of growth, of the window, of the longest life.
#: The marker says when the life was first and last prolonged and when it ends, so that an owner's
#: new time to live starts afresh. 1: prolonged; 0: not now; -1: no time to live.
_EXTEND: Final = b"""
local left = redis.call('PTTL', KEYS[1])
if left < 1 then return -1 end
local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
local first = now
local mark = redis.call('GET', KEYS[2])
if mark then
  local begun, last, ends = string.match(mark, '^(%d+) (%d+) (%d+)$')
  if begun then
    if now - last < tonumber(ARGV[2]) then return 0 end
    if math.abs(now + left - ends) < 50 then first = tonumber(begun) end
  end
end
local life = math.min(left + ARGV[1], first + ARGV[3] - now)
if life <= left then return 0 end
redis.call('PEXPIRE', KEYS[1], life)
local text = string.format('%.0f %.0f %.0f', first, now, now + life)
redis.call('SET', KEYS[2], text, 'PX', life + ARGV[2])
return 1
"""

_HEAD: Final = struct.Struct("<II")
_REGION: Final = 65_536


class HotKey(NamedTuple):
    """One hot key as shown. ``reads``: lately, of the workers that know it as hot."""

    db: int
    key: bytes
    reads: int
    #: How often its life was prolonged by these workers.
    extended: int


class HotBoard:
    """What each worker holds hot, in memory that all share; made before the first fork."""

    def __init__(self, workers: int) -> None:
        self._workers: Final = workers
        self._map: Final = mmap.mmap(-1, workers * _REGION)

    def publish(self, worker: int, keys: list[HotKey]) -> None:
        """Replace what a worker shows."""
        content = msgspec.msgpack.encode(keys)
        at = worker * _REGION
        self._map[at + _HEAD.size : at + _HEAD.size + len(content)] = content
        _HEAD.pack_into(self._map, at, len(content), zlib.crc32(content))

    def read(self) -> list[HotKey]:
        """All workers' keys together, the most read first."""
        merged: dict[tuple[int, bytes], HotKey] = {}
        for worker in range(self._workers):
            for found in self._of(worker):
                name = (found.db, found.key)
                known = merged.get(name, HotKey(found.db, found.key, 0, 0))
                merged[name] = known._replace(
                    reads=known.reads + found.reads, extended=known.extended + found.extended
                )
        return sorted(merged.values(), key=lambda k: (-k.reads, k.db, k.key))

    def _of(self, worker: int) -> list[HotKey]:
        at = worker * _REGION
        for _attempt in range(3):  # it may be writing just now
            size, checksum = _HEAD.unpack_from(self._map, at)
            content = self._map[at + _HEAD.size : at + _HEAD.size + min(size, _REGION)]
            if size and zlib.crc32(content) == checksum:
                return msgspec.msgpack.decode(content, type=list[HotKey])
        return []


class _Entry:
    """A hot key of this worker."""

    __slots__ = ("extended", "reads", "since", "tried")

    def __init__(self, now: float) -> None:
        #: Halved with each window.
        self.reads = 0.0
        self.since = now
        self.tried = float("-inf")
        self.extended = 0

    def add(self, reads: float, window: float, now: float) -> None:
        self.reads = self.reads * 0.5 ** ((now - self.since) / window) + reads
        self.since = now


class HotKeys:
    """One worker's hot keys."""

    def __init__(self, pools: Pools, board: HotBoard, worker: int, stats: Stats) -> None:
        self._pools: Final = pools
        self._board: Final = board
        self._worker: Final = worker
        self._stats: Final = stats
        self._entries: Final[dict[tuple[int, bytes], _Entry]] = {}
        #: Keys without a time to live, and until when they are left alone, seconds; a subset of
        #: the hot ones.
        self.eternal: Final[dict[tuple[int, bytes], float]] = {}
        self._budget = MOST_EXTENSIONS
        self._window = 10.0
        #: Monotonic seconds until which the proxy's own user is not asked again.
        self._refused_until = float("-inf")
        self._logged = float("-inf")
        board.publish(worker, [])

    def read(
        self, rule: Rule, key: bytes, db: int, identity: Identity, reads: int, now: float
    ) -> None:
        """A key is hot: ``reads`` more of it were seen, or so many for the first time."""
        name = (db, key)
        entry = self._entries.get(name)
        if entry is None:
            if len(self._entries) >= MOST_KEYS:
                self._make_room(now)
            entry = self._entries[name] = _Entry(now)
        else:
            reads = 1 if reads == rule.hot_threshold else reads
        self._window = rule.hot_window
        entry.add(reads, rule.hot_window, now)
        if rule.extend > 0 and now - entry.tried >= rule.hot_window and self._budget > 0:
            entry.tried = now
            if not self.eternal or self.eternal.get(name, now) <= now:
                self._extend(rule, name, identity, now)

    def lives(self, db: int, request: bytes, milliseconds: int) -> None:
        """A fill tells how long the key of a command's arguments lives; -1: for ever."""
        if milliseconds >= 0:
            name = (db, key_of(request))
            if self.eternal.pop(name, None) is not None:
                self._entries[name].tried = float("-inf")

    def _make_room(self, now: float) -> None:
        """Forget the quarter that is read least."""
        entries = self._entries
        for entry in entries.values():
            entry.add(0, self._window, now)
        for name in sorted(entries, key=lambda n: entries[n].reads)[: MOST_KEYS // 4]:
            self._forget(name)

    def _forget(self, name: tuple[int, bytes]) -> None:
        del self._entries[name]
        self.eternal.pop(name, None)

    def _extend(self, rule: Rule, name: tuple[int, bytes], identity: Identity, now: float) -> None:
        db, key = name
        base = self._pools.base
        who = base if now >= self._refused_until else identity
        shared = self._pools.shared(who, 2, db)
        self._pools.leave(shared)  # it stays open for a while
        if shared.link.state != UP:
            return
        self._budget -= 1
        growth = [int(1000 * s) for s in (rule.extend, rule.hot_window, rule.max_total)]
        request = bytearray(
            encode_command([b"EVAL", _EXTEND, 2, key, b"nexus:hot:{%b}" % key, *growth])
        )
        shared.link.send(Extension(self, name, who is base, now), request, 0, len(request), 1)

    def answered(self, name: tuple[int, bytes], reply: bytes, own_user: bool, now: float) -> None:
        """Redis has run the script."""
        if reply.startswith(b":1"):
            self._stats.extended += 1
            entry = self._entries.get(name)
            if entry is not None:
                entry.extended += 1
        elif reply.startswith(b":-1"):
            if name in self._entries:
                self.eternal[name] = now + ETERNAL_WINDOWS * self._window
        elif reply.startswith(b"-"):
            self._stats.extensions_refused += 1
            if own_user and reply.startswith((b"-NOAUTH", b"-NOPERM")):
                # Clients log in themselves, say: then as the client that reads the key.
                self._refused_until = now + REFUSED_SECONDS
            if now - self._logged >= _LOG_SECONDS:
                self._logged = now
                text = reply[1:200].strip().decode("utf-8", "replace")
                log.warning("redis refuses to prolong a hot key", extra={"error": text})

    def tick(self, now: float) -> None:
        """Once a second: show what is hot, forget what no longer is."""
        self._budget = MOST_EXTENSIONS
        for name, entry in list(self._entries.items()):
            entry.add(0, self._window, now)
            if entry.reads < 0.5:
                self._forget(name)
        shown = [
            HotKey(db, key, max(1, round(entry.reads)), entry.extended)
            for (db, key), entry in self._entries.items()
            if len(key) <= MOST_KEY_BYTES
        ]
        shown.sort(key=lambda k: -k.reads)
        self._board.publish(self._worker, shown[:MOST_SHOWN])

    @property
    def count(self) -> int:
        """Keys that are hot in this worker."""
        return len(self._entries)


class Extension(Receiver):
    """The reply to the script."""

    __slots__ = ("_data", "_hot", "_name", "_now", "_own_user")

    def __init__(self, hot: HotKeys, name: tuple[int, bytes], own_user: bool, now: float) -> None:
        super().__init__()
        self._hot = hot
        self._name = name
        self._own_user = own_user
        self._now = now
        self._data = b""

    def deliver(self, data: bytearray, start: int, end: int, done: int) -> None:
        if len(self._data) < 200:
            self._data += bytes(data[start:end])
        if done:
            self._hot.answered(self._name, self._data, self._own_user, self._now)

    def lost(self, _count: int, _partial: bool, _error: bytes) -> None:
        """The next window tries again."""
