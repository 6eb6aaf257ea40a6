"""The near-cache's table; twin of ``_nearcache_c.pyx``, the map is in ``nearcache.py``."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Final

from nexus.errors import RespError

if TYPE_CHECKING:
    from nexus._speedups._respscan_py import CommandTable

__all__ = ["NearTable", "Notes", "Rate"]

MISS: Final = 0
HIT: Final = 1
PENDING: Final = 2
LATE: Final = 3
BUSY: Final = 4
FULL: Final = 5

READ: Final = 1
WRITE: Final = 2
UNKNOWN: Final = 3
FLUSH: Final = 4

CHANGED: Final = 0
COMMITTED: Final = 1
TOO_BIG: Final = 2

#: ``Notes.at`` where there is no note.
NEVER: Final = 1 << 62
#: Bytes of an entry beside its request and reply: the C twin's, so that budgets mean the same.
OVERHEAD: Final = 160
#: An entry may take this part of the budget.
_LARGEST: Final = 8
#: Rows of a :class:`Rate`.
_ROWS: Final = 4

_Name = tuple[int, int, bytes]


class Notes:
    """What is outstanding on one link and matters to the table, oldest first.

    ``at`` is the sequence number of the oldest, the link's count of commands sent with it.
    """

    __slots__ = ("_notes", "at")

    def __init__(self) -> None:
        self._notes: deque[tuple[int, int, bytes]] = deque()
        self.at = NEVER

    def __len__(self) -> int:
        return len(self._notes)

    def push(self, seq: int, kind: int, key: bytes) -> None:
        if not self._notes:
            self.at = seq
        self._notes.append((seq, kind, key))

    def next(self) -> tuple[int, int, bytes]:
        note = self._notes.popleft()
        self.at = self._notes[0][0] if self._notes else NEVER
        return note


class _Entry:
    """One reply, or (``pending`` 1: may be joined; 2: not any more) its place."""

    __slots__ = (
        "cost",
        "expiry",
        "hits",
        "key",
        "name",
        "newer",
        "older",
        "pending",
        "reply",
        "ripe",
        "seq",
        "token",
        "visited",
    )

    def __init__(self, name: _Name, key: bytes, token: int) -> None:
        self.name = name
        self.key = key
        self.token = token
        self.pending = 1
        self.reply = b""
        self.expiry = 0.0
        self.ripe = 0.0
        self.seq = 0
        self.cost = OVERHEAD + len(name[2])
        self.visited = False
        self.hits = 0
        self.newer: _Entry | None = None
        self.older: _Entry | None = None


def _bulk(data: bytes | bytearray, position: int, stop: int) -> tuple[int, int]:
    """Payload and end of the bulk string at ``position``; (-1, -1): it is none, or cut off."""
    line = data.find(b"\r", position, stop)
    if line < 0 or data[position] != 36 or not data[position + 1 : line].isdigit():
        return -1, -1
    payload = line + 2
    end = payload + int(data[position + 1 : line])
    return (payload, end) if end + 2 <= stop else (-1, -1)


class NearTable:
    """See ``nearcache.py``. Times are seconds of one monotonic clock.

    ``bytes`` is what entries cost, overhead included, and at most ``max_bytes``; ``entries`` and
    ``pending`` are their numbers. Replies are appended to ``buffer`` up to ``used``.
    """

    def __init__(self, max_bytes: int, buffer_bytes: int = 262_144, seed: int = 0) -> None:
        self.max_bytes = max_bytes
        self.buffer = bytearray(buffer_bytes)
        self.used = 0
        self.bytes = 0
        self.entries = 0
        self.pending = 0
        self.evictions = 0
        self.expired = 0
        #: Set by ``probe`` at HIT and LATE: the earliest fence that the entry accepts.
        self.ripe = 0.0
        #: Set by ``locate``.
        self.key_begin = 0
        self.key_stop = 0
        self.seed = seed
        self._token = 0
        self._table: dict[_Name, _Entry] = {}
        self._keys: dict[bytes, list[_Entry]] = {}
        self._newest: _Entry | None = None
        self._oldest: _Entry | None = None
        self._hand: _Entry | None = None
        self._cursor: _Entry | None = None

    # -- reading

    def probe(
        self,
        space: int,
        number: int,
        data: bytearray,
        begin: int,
        stop: int,
        now: float,
        fresh: float,
        floor: float,
        received: int,
        reading: bool,
    ) -> int:
        """Look up the command ``number`` with the arguments ``data[begin:stop]``.

        ``fresh``: when the last answered fence was sent; ``floor``: the oldest that the caller
        accepts. ``received``, ``reading``: replies that the caller's link has brought, and whether
        the caller waits for one of a read.
        """
        if not 0 <= begin <= stop <= len(data):
            raise ValueError(f"[{begin}:{stop}] is not within {len(data)} bytes")
        entry = self._table.get((space, number, bytes(data[begin:stop])))
        if entry is None:
            return MISS
        if entry.pending:
            return PENDING if entry.pending == 1 else MISS
        if now >= entry.expiry:
            self.expired += 1
            self._remove(entry)
            return MISS
        self.ripe = entry.ripe
        if reading and received < entry.seq:
            return BUSY
        if fresh < floor or fresh < entry.ripe:
            return LATE
        end = self.used + len(entry.reply)
        if end > len(self.buffer):
            return FULL
        self.buffer[self.used : end] = entry.reply
        self.used = end
        entry.visited = True
        entry.hits += 1
        return HIT

    def alive(self, space: int, number: int, request: bytes, token: int) -> bool:
        """Whether nothing has touched the key since :meth:`begin` gave ``token``."""
        entry = self._table.get((space, number, request))
        return entry is not None and entry.token == token

    def facts(
        self, space: int, number: int, request: bytes
    ) -> tuple[int, bytes, float, int] | None:
        """(token, reply, expiry, hits) of a committed entry; for looking, not for serving."""
        entry = self._table.get((space, number, request))
        if entry is None or entry.pending:
            return None
        return entry.token, entry.reply, entry.expiry, entry.hits

    def token(self, space: int, number: int, request: bytes) -> int:
        """Token of the entry, pending or not; 0: there is none."""
        entry = self._table.get((space, number, request))
        return 0 if entry is None else entry.token

    # -- filling

    def begin(self, space: int, number: int, request: bytes) -> int:
        """Make a place for a reply that is being asked for; returns its token.

        A place that is closed is replaced. Raises ``RespError`` for a request without a key.
        """
        payload, end = _bulk(request, 0, len(request))
        if payload < 0:
            raise RespError("Protocol error: a request without a key")
        name = (space, number, request)
        old = self._table.get(name)
        if old is not None:
            self._remove(old)
        self._token += 1
        entry = _Entry(name, request[payload:end], self._token)
        self._table[name] = entry
        self._keys.setdefault(entry.key, []).append(entry)
        self.pending += 1
        self.bytes += entry.cost
        return self._token

    def close(self, space: int, number: int, request: bytes, token: int) -> None:
        """Nobody may join the pending entry any more; it still says whether the key changed."""
        entry = self._table.get((space, number, request))
        if entry is not None and entry.token == token and entry.pending:
            entry.pending = 2

    def abandon(self, space: int, number: int, request: bytes, token: int) -> None:
        """Nothing comes for ``token``."""
        entry = self._table.get((space, number, request))
        if entry is not None and entry.token == token and entry.pending:
            self._remove(entry)

    def commit(
        self,
        space: int,
        number: int,
        request: bytes,
        token: int,
        reply: bytes,
        expiry: float,
        seq: int,
    ) -> int:
        """Keep ``reply``, unless the key changed since :meth:`begin`.

        ``seq``: commands sent so far on the link of the space's clients.
        """
        entry = self._table.get((space, number, request))
        if entry is None or entry.token != token or not entry.pending:
            return CHANGED
        cost = OVERHEAD + len(request) + len(reply)
        if cost > self.max_bytes // _LARGEST or len(reply) > len(self.buffer):
            self._remove(entry)
            return TOO_BIG
        self.pending -= 1
        self.bytes += cost - entry.cost
        self.entries += 1
        entry.pending = 0
        entry.cost = cost
        entry.reply = reply
        entry.expiry = expiry
        entry.seq = seq
        entry.older = self._newest
        if self._newest is not None:
            self._newest.newer = entry
        self._newest = entry
        if self._oldest is None:
            self._oldest = entry
        while self.bytes > self.max_bytes and self.entries > 1:
            self._evict()
        return COMMITTED

    def locate(self, data: bytearray, begin: int, stop: int) -> None:
        """Find the key, the first of the arguments ``data[begin:stop]``. Raises ``RespError``."""
        if not 0 <= begin <= stop <= len(data):
            raise ValueError(f"[{begin}:{stop}] is not within {len(data)} bytes")
        self.key_begin, self.key_stop = _bulk(data, begin, stop)
        if self.key_begin < 0:
            raise RespError("Protocol error: a request without a key")

    # -- what changes keys

    def note(
        self,
        notes: Notes,
        kind: int,
        seq: int,
        table: CommandTable,
        number: int,
        argc: int,
        data: bytearray,
        begin: int,
        stop: int,
    ) -> int:
        """A command is being sent as number ``seq``; note what it does until it is answered.

        A write drops its keys now, too; ``data[begin:stop]`` are the arguments behind the name.
        Returns the number of entries dropped, or, of a read, of replies kept. Raises ``RespError``
        for what is not a request.
        """
        if not 0 <= begin <= stop <= len(data):
            raise ValueError(f"[{begin}:{stop}] is not within {len(data)} bytes")
        if kind in (FLUSH, UNKNOWN):
            notes.push(seq, kind, b"")
            return self.clear(-1) if kind == FLUSH else 0
        first, last, step = table.keys(number)
        if last < 0:
            last += argc
        dropped = 0
        position = begin
        index = 1
        while index < argc and index <= last and step > 0:
            payload, end = _bulk(data, position, stop)
            if payload < 0:
                raise RespError("Protocol error: invalid bulk length")
            if index >= first and (index - first) % step == 0:
                key = bytes(data[payload:end])
                if kind == WRITE:
                    dropped += self.drop(key)
                else:
                    dropped += sum(not entry.pending for entry in self._keys.get(key, ()))
                notes.push(seq, kind, key)
            position = end + 2
            index += 1
        return dropped

    def answered(self, notes: Notes, received: int, now: float) -> tuple[int, int]:
        """Settle the notes of everything up to reply ``received``.

        Returns the number of ``UNKNOWN`` notes among them, and of entries dropped.
        """
        unknown = dropped = 0
        while notes.at <= received:
            _seq, kind, key = notes.next()
            if kind == WRITE:
                dropped += self.drop(key)
            elif kind == READ:
                for entry in self._keys.get(key, ()):
                    entry.ripe = now
            elif kind == FLUSH:
                dropped += self.clear(-1)
            else:
                unknown += 1
        return unknown, dropped

    def invalidate(self, data: bytes) -> int:
        """Take a tracking push; returns the entries that it dropped, -1: not such a push."""
        if not data.startswith(b">2\r\n$10\r\ninvalidate\r\n"):
            return -1
        position = 21
        if data[position : position + 1] != b"*" or data.startswith(b"*-1", position):
            return self.clear(-1)
        line = data.find(b"\r", position)
        digits = data[position + 1 : line] if line > 0 else b"0"
        if not digits.isdigit():
            return self.clear(-1)
        count = int(digits)
        position = line + 2
        dropped = 0
        for _ in range(count):
            payload, end = _bulk(data, position, len(data))
            if payload < 0:
                return self.clear(-1)  # not what it should be: drop on doubt
            dropped += self.drop(data[payload:end])
            position = end + 2
        return dropped

    def drop(self, key: bytes) -> int:
        """Drop what is known, or asked for, of a Redis key; returns the number of entries."""
        entries = self._keys.get(key)
        if entries is None:
            return 0
        count = len(entries)
        for entry in list(entries):
            self._remove(entry)
        return count

    def clear(self, source: int) -> int:
        """Drop all entries of the spaces ``2 · source`` and ``2 · source + 1``; -1: of all."""
        gone = [e for e in self._table.values() if source < 0 or e.name[0] >> 1 == source]
        for entry in gone:
            self._remove(entry)
        return len(gone)

    def touched(self, limit: int, now: float) -> list[tuple[int, bytes, int]]:
        """(space, key, hits) of entries that were hit since they were last looked at.

        Looks at ``limit`` entries, going round; those past their expiry are removed.
        """
        found = []
        entry = self._cursor
        for _ in range(min(limit, self.entries)):
            entry = entry or self._newest
            if entry is None:
                break
            older = entry.older
            if now >= entry.expiry:
                self.expired += 1
                self._remove(entry)
            elif entry.hits:
                found.append((entry.name[0], entry.key, entry.hits))
                entry.hits = 0
            entry = older
        self._cursor = entry
        return found

    # -- inside

    def _evict(self) -> None:
        entry = self._hand or self._oldest
        while entry is not None and entry.visited:
            entry.visited = False
            entry = entry.newer or self._oldest
        if entry is None:
            return
        self._hand = entry.newer
        self.evictions += 1
        self._remove(entry)

    def _remove(self, entry: _Entry) -> None:
        del self._table[entry.name]
        chain = self._keys[entry.key]
        if len(chain) == 1:
            del self._keys[entry.key]
        else:
            chain.remove(entry)
        self.bytes -= entry.cost
        if entry.pending:
            self.pending -= 1
            return
        self.entries -= 1
        if self._hand is entry:
            self._hand = entry.newer
        if self._cursor is entry:
            self._cursor = entry.older
        if entry.newer is None:
            self._newest = entry.older
        else:
            entry.newer.older = entry.older
        if entry.older is None:
            self._oldest = entry.newer
        else:
            entry.older.newer = entry.newer


class Rate:
    """How often keys were read lately: what is worth keeping.

    Counts of this window and of the last one, of which the part that still is in the window counts.
    A count-min sketch with conservative update (Estan, Varghese 2002): 8 · ``counters`` bytes,
    however many keys there are; a count is never too low, and too high only where there are many
    more keys in the window than ``counters``.
    """

    def __init__(self, window: float, counters: int = 1 << 18) -> None:
        size = 1024
        while size < counters:
            size *= 2
        self.window = window
        self._mask = size - 1
        self._since = 0.0
        self._now = bytearray(_ROWS * size)
        self._before = bytearray(_ROWS * size)

    def touch(self, data: bytearray, begin: int, stop: int, now: float) -> int:
        """Count one read of the key ``data[begin:stop]``; its reads in the window that ends now."""
        if not 0 <= begin <= stop <= len(data):
            raise ValueError(f"[{begin}:{stop}] is not within {len(data)} bytes")
        if now - self._since >= self.window:
            fresh = now - self._since < 2 * self.window
            self._before = self._now if fresh else bytearray(len(self._now))
            self._now = bytearray(len(self._now))
            self._since = self._since + self.window if fresh else now
        hashed = hash(bytes(data[begin:stop])) & 0xFFFF_FFFF_FFFF_FFFF
        step = hashed >> 32 | 1
        mask, counts, before = self._mask, self._now, self._before
        slots = [row * (mask + 1) + (hashed + row * step & mask) for row in range(_ROWS)]
        lowest = min([counts[slot] for slot in slots])
        if lowest < 255:
            lowest += 1
            for slot in slots:
                if counts[slot] < lowest:
                    counts[slot] = lowest
        part = 1.0 - (now - self._since) / self.window
        return lowest + int(min([before[slot] for slot in slots]) * part)
