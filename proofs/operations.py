"""Tagged operations: each reply says which request it belongs to, or the checker complains.

Keys, values, list names and increments are unique to one owner and one moment, so a reply that
reaches the wrong client, or the right client one position too early or too late, cannot pass.

What may be assumed of a write depends on how it ended:

- answered: it has run;
- ``-LOADING``: the proxy says that it was never sent, and is held to it: it has not run;
- ``-NEXUSDOWN`` or closed connection: it may have run, now or later; its key is *uncertain* from
  then on and its owner takes a new one;
- Redis was killed since it was sent (``World.epoch``): nothing is persisted, so it may be gone.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from typing import Any, Final

import hiredis

from proofs.client import encode

__all__ = ["Operation", "Owner", "World"]

#: Databases that are selected; 0 is where every connection begins.
DATABASES: Final = 4
#: Bytes of big values: above the proxy's streaming threshold (64 KiB), and above the one from
#: which replies are read with back-pressure (1 MiB).
BIG: Final = (70_000, 400_000)
BIGGER: Final = (1_100_000, 3_000_000)


class World:
    """What all owners share: how often data was lost, and what was counted."""

    def __init__(self, *, faults: bool) -> None:
        self.faults = faults
        #: Number of times that Redis was killed, and with it everything it knew.
        self.epoch = 0
        self.verified = 0
        self.failed: Counter[str] = Counter()
        self.violations = 0
        self.samples: list[str] = []

    def violation(self, text: str) -> None:
        self.violations += 1
        if len(self.samples) < 20:
            self.samples.append(text)


class Operation:
    """One request and the judge of its reply."""

    __slots__ = ("epoch", "request")

    def __init__(self, world: World, *args: bytes) -> None:
        self.request = encode(*args)
        self.epoch = world.epoch

    def accept(self, reply: Any) -> str | None:
        """What is wrong with ``reply``; ``None``: nothing."""
        raise NotImplementedError

    def failed(self, *, may_have_run: bool) -> None:
        """There was no answer, or only the proxy's apology."""


class Exactly(Operation):
    """The reply is known in advance and nothing is changed."""

    __slots__ = ("wanted",)

    def __init__(self, world: World, wanted: Any, *args: bytes) -> None:
        super().__init__(world, *args)
        self.wanted = wanted

    def accept(self, reply: Any) -> str | None:
        return None if reply == self.wanted else f"wanted {self.wanted!r:.80}, got {reply!r:.80}"


class Refused(Operation):
    """An error whose text carries the tag."""

    __slots__ = ("tag",)

    def __init__(self, world: World, tag: bytes, *args: bytes) -> None:
        super().__init__(world, *args)
        self.tag = tag.decode()

    def accept(self, reply: Any) -> str | None:
        if isinstance(reply, hiredis.ReplyError) and self.tag in str(reply):
            return None
        return f"wanted an error that names {self.tag}, got {reply!r:.80}"


class Key:
    """A key of one owner, and what may be in it."""

    __slots__ = ("certain", "db", "epoch", "name", "value")

    def __init__(self, world: World, name: bytes, db: int) -> None:
        self.name = name
        self.db = db
        self.value: bytes | None = None
        self.certain = True
        #: ``World.epoch`` when the command was sent that made ``value``.
        self.epoch = world.epoch

    def check(self, world: World, got: Any) -> str | None:
        if got == self.value:
            return None
        if got is None and (not self.certain or self.epoch < world.epoch):
            self.value = None
            return None
        if not self.certain and isinstance(got, bytes) and got.startswith(self.name + b"="):
            return None
        return f"{self.name!r} holds {self.value!r:.60}, got {got!r:.60}"


class Get(Operation):
    __slots__ = ("key", "world")

    def __init__(self, world: World, key: Key) -> None:
        super().__init__(world, b"GET", key.name)
        self.world, self.key = world, key

    def accept(self, reply: Any) -> str | None:
        return self.key.check(self.world, reply)


class Set(Operation):
    """``SET``, plain or with ``GET`` (then the reply is the value before)."""

    __slots__ = ("key", "value", "with_get", "world")

    def __init__(self, world: World, key: Key, value: bytes, *, with_get: bool = False) -> None:
        super().__init__(world, b"SET", key.name, value, *([b"GET"] if with_get else []))
        self.world, self.key, self.value, self.with_get = world, key, value, with_get

    def accept(self, reply: Any) -> str | None:
        wrong = None
        if self.with_get:
            wrong = self.key.check(self.world, reply)
        elif reply != b"OK":
            wrong = f"SET {self.key.name!r} answered {reply!r:.80}"
        self.key.value, self.key.epoch = self.value, self.epoch
        return wrong

    def failed(self, *, may_have_run: bool) -> None:
        self.key.certain &= not may_have_run


class MGet(Operation):
    __slots__ = ("keys", "world")

    def __init__(self, world: World, keys: list[Key]) -> None:
        super().__init__(world, b"MGET", *(key.name for key in keys))
        self.world, self.keys = world, keys

    def accept(self, reply: Any) -> str | None:
        if not isinstance(reply, list) or len(reply) != len(self.keys):
            return f"MGET of {len(self.keys)} keys answered {reply!r:.80}"
        for key, got in zip(self.keys, reply, strict=True):
            wrong = key.check(self.world, got)
            if wrong:
                return wrong
        return None


class Count:
    """A counter of one owner."""

    __slots__ = ("certain", "epoch", "name", "value")

    def __init__(self, world: World, name: bytes) -> None:
        self.name = name
        self.value = 0
        self.certain = True
        self.epoch = world.epoch


class IncrBy(Operation):
    """By a random number, so that counters of two owners never agree."""

    __slots__ = ("by", "count", "world")

    def __init__(self, world: World, count: Count, by: int) -> None:
        super().__init__(world, b"INCRBY", count.name, b"%d" % by)
        self.world, self.count, self.by = world, count, by

    def accept(self, reply: Any) -> str | None:
        count = self.count
        right = reply == count.value + self.by
        if count.epoch < self.world.epoch:
            right = right or reply == self.by
        if not count.certain:
            right = isinstance(reply, int) and reply >= self.by
        if not right:
            return f"{count.name!r} was {count.value}, plus {self.by}, got {reply!r:.80}"
        count.value, count.epoch = reply, self.epoch
        return None

    def failed(self, *, may_have_run: bool) -> None:
        self.count.certain &= not may_have_run


class Temporary:
    """A key that lives for one group of operations."""

    __slots__ = ("certain", "epoch", "world")

    def __init__(self, world: World) -> None:
        self.world = world
        self.epoch = world.epoch
        self.certain = True

    @property
    def sure(self) -> bool:
        return self.certain and self.epoch == self.world.epoch


class OnTemporary(Operation):
    """Answered as wanted, or as if the key were not there where that may be."""

    __slots__ = ("absent", "flat", "key", "wanted", "writes")

    def __init__(
        self, key: Temporary, wanted: Any, absent: Any, *args: bytes, writes: bool = True
    ) -> None:
        super().__init__(key.world, *args)
        self.key, self.wanted, self.absent, self.writes = key, wanted, absent, writes

    def accept(self, reply: Any) -> str | None:
        if isinstance(reply, dict):  # RESP3 has a type for what RESP2 sends flat
            reply = [part for pair in reply.items() for part in pair]
        if reply == self.wanted or (reply in self.absent and not self.key.sure):
            return None
        return f"wanted {self.wanted!r:.80}, got {reply!r:.80}"

    def failed(self, *, may_have_run: bool) -> None:  # noqa: ARG002
        if self.writes:
            self.key.certain = False


class Transaction:
    """What is known of a MULTI … EXEC on its way."""

    __slots__ = ("broken", "opened")

    def __init__(self) -> None:
        #: MULTI was accepted.
        self.opened = False
        #: Some part of it was answered with an error.
        self.broken = False


class Multi(Operation):
    __slots__ = ("transaction",)

    def __init__(self, world: World, transaction: Transaction) -> None:
        super().__init__(world, b"MULTI")
        self.transaction = transaction

    def accept(self, reply: Any) -> str | None:
        self.transaction.opened = reply == b"OK"
        return None if self.transaction.opened else f"MULTI answered {reply!r:.80}"

    def failed(self, *, may_have_run: bool) -> None:  # noqa: ARG002
        self.transaction.broken = True


class Queued(Operation):
    """Inside MULTI. One that runs although its MULTI was refused tears the transaction apart."""

    __slots__ = ("effect", "transaction")

    def __init__(
        self,
        world: World,
        transaction: Transaction,
        *args: bytes,
        effect: Set | None = None,
    ) -> None:
        super().__init__(world, *args)
        self.transaction, self.effect = transaction, effect

    def accept(self, reply: Any) -> str | None:
        if reply == b"QUEUED" and self.transaction.opened:
            return None
        if self.transaction.broken and isinstance(reply, hiredis.ReplyError):
            return None
        if self.effect:
            self.effect.failed(may_have_run=True)
        if self.transaction.broken:
            return f"ran outside its transaction, which was refused: {reply!r:.80}"
        return f"wanted QUEUED, got {reply!r:.80}"

    def failed(self, *, may_have_run: bool) -> None:  # noqa: ARG002
        self.transaction.broken = True


class Exec(Operation):
    __slots__ = ("effect", "transaction", "wanted")

    def __init__(
        self,
        world: World,
        transaction: Transaction,
        wanted: list[Any],
        effect: Set | None = None,
    ) -> None:
        super().__init__(world, b"EXEC")
        self.transaction, self.wanted, self.effect = transaction, wanted, effect

    def accept(self, reply: Any) -> str | None:
        if reply == self.wanted and not self.transaction.broken:
            return self.effect.accept(b"OK") if self.effect else None
        if self.transaction.broken and isinstance(reply, hiredis.ReplyError):
            return None  # EXECABORT, EXEC without MULTI: nothing ran
        return f"EXEC wanted {self.wanted!r:.80}, got {reply!r:.80}"

    def failed(self, *, may_have_run: bool) -> None:
        if self.effect:
            self.effect.failed(may_have_run=may_have_run)


class Select(Operation):
    """Where it fails, the owner does not know any more where it is."""

    __slots__ = ("owner",)

    def __init__(self, owner: Owner, db: int) -> None:
        super().__init__(owner.world, b"SELECT", b"%d" % db)
        self.owner = owner

    def accept(self, reply: Any) -> str | None:
        return None if reply == b"OK" else f"SELECT answered {reply!r:.80}"

    def failed(self, *, may_have_run: bool) -> None:  # noqa: ARG002
        self.owner.lose_track()


class SetName(Operation):
    __slots__ = ("owner",)

    def __init__(self, owner: Owner) -> None:
        super().__init__(owner.world, b"CLIENT", b"SETNAME", owner.tag)
        self.owner = owner

    def accept(self, reply: Any) -> str | None:
        self.owner.named = True
        return None if reply == b"OK" else f"SETNAME answered {reply!r:.80}"


class GetName(Operation):
    """The name is connection state, which the proxy carries from one link to the next."""

    __slots__ = ("owner",)

    def __init__(self, owner: Owner) -> None:
        super().__init__(owner.world, b"CLIENT", b"GETNAME")
        self.owner = owner

    def accept(self, reply: Any) -> str | None:
        if reply == self.owner.tag or (reply is None and not self.owner.named):
            return None
        return f"wanted {self.owner.tag!r}, got {reply!r:.80}"


class Hello(Operation):
    __slots__ = ()

    def __init__(self, world: World) -> None:
        super().__init__(world, b"HELLO", b"3")

    def accept(self, reply: Any) -> str | None:
        if isinstance(reply, dict) and reply.get(b"proto") == 3:
            return None
        return f"HELLO 3 answered {reply!r:.80}"


class Owner:
    """One client's keys, and the operations that it can make up."""

    def __init__(self, world: World, number: int, rng: random.Random) -> None:
        self.world = world
        self.tag = b"c%d" % number
        self.random = rng
        self._serial = 0
        #: The connection has been told the owner's name.
        self.named = False
        #: A SELECT failed: keys may be looked for in the wrong database.
        self.lost_track = False
        self._keys = [self._key(n % DATABASES) for n in range(4 * DATABASES)]
        self._count = Count(world, self._name(b"n"))
        makers: list[tuple[Callable[[], list[Operation]], int]] = [
            (self._echo, 180),
            (self._ping, 40),
            (self._get, 240),
            (self._set, 160),
            (self._mget, 80),
            (self._incr, 80),
            (self._inline, 20),
            (self._list, 40),
            (self._hash, 40),
            (self._eval, 10),
            (self._unknown, 8),
            (self._getname, 15),
            (self._blocked, 3),
            (self._multi, 30),
            (self._watch, 8),
            (self._select, 12),
            (self._big, 3),
        ]
        self._makers = [maker for maker, _ in makers]
        self._weights = [weight for _, weight in makers]

    # -- names

    def _name(self, kind: bytes) -> bytes:
        self._serial += 1
        return b"%b:%b%d" % (self.tag, kind, self._serial)

    def _key(self, db: int) -> Key:
        return Key(self.world, b"%b:db%d" % (self._name(b"k"), db), db)

    def _value(self, key: Key) -> bytes:
        self._serial += 1
        return b"%b=%d" % (key.name, self._serial) + b"." * self.random.choice((0, 0, 0, 50, 900))

    def _pick(self, db: int = 0) -> Key:
        return self.random.choice([key for key in self._keys if key.db == db])

    def lose_track(self) -> None:
        self.lost_track = True
        self._count.certain = False
        for key in self._keys:
            key.certain = False

    def renew(self) -> None:
        """New keys in place of the uncertain ones; between two batches."""
        self.lost_track = False
        self._keys = [key if key.certain else self._key(key.db) for key in self._keys]
        if not self._count.certain:
            self._count = Count(self.world, self._name(b"n"))

    # -- operations

    def greeting(self, protocol: int) -> list[Operation]:
        """What a connection begins with."""
        self.named = False
        name = SetName(self)
        return [Hello(self.world), name] if protocol == 3 else [name]

    def batch(self, groups: int) -> list[Operation]:
        chosen = self.random.choices(self._makers, self._weights, k=groups)
        return [operation for make in chosen for operation in make()]

    def _echo(self) -> list[Operation]:
        tag = self._name(b"e")
        return [Exactly(self.world, tag, b"ECHO", tag)]

    def _ping(self) -> list[Operation]:
        tag = self._name(b"p")
        return [Exactly(self.world, tag, b"PING", tag)]

    def _inline(self) -> list[Operation]:
        tag = self._name(b"i")
        operation = Exactly(self.world, tag)
        operation.request = b"ECHO %b\r\n" % tag
        return [operation]

    def _get(self) -> list[Operation]:
        return [Get(self.world, self._pick())]

    def _set(self) -> list[Operation]:
        key = self._pick()
        with_get = self.random.random() < 0.2
        return [Set(self.world, key, self._value(key), with_get=with_get)]

    def _mget(self) -> list[Operation]:
        return [MGet(self.world, [self._pick() for _ in range(self.random.randint(1, 6))])]

    def _incr(self) -> list[Operation]:
        return [IncrBy(self.world, self._count, self.random.randint(1, 1 << 40))]

    def _getname(self) -> list[Operation]:
        return [GetName(self)]

    def _unknown(self) -> list[Operation]:
        tag = self._name(b"u")
        return [Refused(self.world, tag, b"X" + tag)]

    def _eval(self) -> list[Operation]:
        tag = self._name(b"v")
        script = b"return {ARGV[1], KEYS[1]}"
        return [Exactly(self.world, [b"arg", tag], b"EVAL", script, b"1", tag, b"arg")]

    def _blocked(self) -> list[Operation]:
        return [Exactly(self.world, None, b"BLPOP", self._name(b"q"), b"0.02")]

    def _list(self) -> list[Operation]:
        key, name, tag = Temporary(self.world), self._name(b"l"), self._name(b"t")
        return [
            OnTemporary(key, 1, (), b"RPUSH", name, tag),
            OnTemporary(key, [name, tag], (None,), b"BLPOP", name, b"0.02"),
        ]

    def _hash(self) -> list[Operation]:
        key, name = Temporary(self.world), self._name(b"h")
        pairs = [b"f1", self._name(b"t"), b"f2", self._name(b"t")]
        return [
            OnTemporary(key, 2, (), b"HSET", name, *pairs),
            OnTemporary(key, pairs, ([],), b"HGETALL", name, writes=False),
            OnTemporary(key, 1, (0,), b"DEL", name, writes=False),
        ]

    def _multi(self) -> list[Operation]:
        transaction = Transaction()
        tags = [self._name(b"m") for _ in range(self.random.randint(1, 4))]
        return [
            Multi(self.world, transaction),
            *(Queued(self.world, transaction, b"ECHO", tag) for tag in tags),
            Exec(self.world, transaction, tags),
        ]

    def _watch(self) -> list[Operation]:
        transaction, key = Transaction(), self._pick()
        change = Set(self.world, key, self._value(key))
        return [
            Exactly(self.world, b"OK", b"WATCH", key.name),
            Get(self.world, key),
            Multi(self.world, transaction),
            Queued(self.world, transaction, b"SET", key.name, change.value, effect=change),
            Exec(self.world, transaction, [b"OK"], change),
        ]

    def _select(self) -> list[Operation]:
        db = self.random.randrange(1, DATABASES)
        key = self._pick(db)
        return [
            Select(self, db),
            Get(self.world, key),
            Set(self.world, key, self._value(key)),
            Get(self.world, key),
            Select(self, 0),
        ]

    def _big(self) -> list[Operation]:
        key, name = Temporary(self.world), self._name(b"b")
        size = self.random.randint(*(BIGGER if self.random.random() < 0.15 else BIG))
        value = (name * (size // len(name) + 1))[:size]
        return [
            OnTemporary(key, b"OK", (), b"SET", name, value),
            OnTemporary(key, value, (None,), b"GET", name, writes=False),
            OnTemporary(key, 1, (0,), b"DEL", name, writes=False),
        ]
