"""No read is older than ``max_staleness``: ``python -m proofs.staleness``.

::

    clients ──► cacheproxy ──► relay ──► redis-server ◄── direct clients
    read and    under proof    stalls,   stopped          write past the proxy,
    write                      cuts,                      and read, too
                               delays

Clients read and write the same keys, through the proxy and past it; every value is unique. Each
read is judged by what the writes allow (:mod:`proofs.registers`): it may not be older than
``max_staleness``, nor past its expiry, nor older than what its connection wrote or read before. The
proof runs once for each staleness and number of workers, and holds if no read is wrong in any.

Writes are SET, SET PX, DEL, UNLINK, GETSET, PEXPIRE, PERSIST, RENAME, EVAL with and without
declared keys, MULTI, FLUSHALL and FLUSHDB, in two databases with the same key names; clients change
between them by SELECT. Reads are GET, GETRANGE and MGET, alone and pipelined behind writes.
Meanwhile Redis is stopped, connections stall, are cut and delayed, most of all those on which the
proxy is told of changes. ``--sabotage`` has the relay swallow what Redis tells there, or answer
with old values: the proof must then fail.
"""

from __future__ import annotations

import asyncio
import random
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from math import inf
from pathlib import Path
from typing import Any, Final

import hiredis

from proofs.client import ClosedError, Connection, encode
from proofs.registers import Judge, Register, Write
from proofs.relay import Pipe, Relay
from proofs.report import Result, conclude, parser_of
from proofs.rig import Proxy, Redis, RigError
from proofs.sabotage import STALE, stale

__all__ = ["MATRIX", "Options", "main", "prove"]

#: (max_staleness in ms, workers) of one proof.
MATRIX: Final = tuple((ms, workers) for workers in (1, 2) for ms in (0, 10, 100))
DATABASES: Final = 2
#: Keys of each database: few, so that each is written and read all the time.
KEYS: Final = 24
#: Seconds within which a batch must be answered: the longest stop or stall, a reconnect, a busy
#: machine.
BATCH_SECONDS: Final = 15.0
#: Share of operations that change something.
WRITES: Final = 0.15
#: Times to live, ms: short enough that many end while somebody reads.
TTL: Final = (30, 400)
#: Everything is kept; times to live are not prolonged, or nobody could say when a value ends.
POLICY: Final = """\
policies:
  - match: GET
    ttl: 60
    near_cache: always
    negative_ttl: 1
    hot: {extend_seconds: 0}
  - match: GETRANGE
    ttl: 60
    near_cache: always
    hot: {extend_seconds: 0}
"""


@dataclass(frozen=True)
class Options:
    operations: int
    seed: int
    matrix: tuple[tuple[int, int], ...] = MATRIX
    clients: int = 48
    direct: int = 8
    sabotage: str = ""
    backend: str = ""
    faults: bool = True


@dataclass
class _World:
    """What the clients of one run share."""

    judge: Judge
    random: random.Random
    wanted: int
    registers: list[list[Register]] = field(default_factory=list)
    #: Registers whose value only one client changes at a time, and what that is.
    belief: dict[Register, Write] = field(default_factory=dict)
    busy: set[Register] = field(default_factory=set)
    uncertain: set[Register] = field(default_factory=set)
    #: FLUSHALL and FLUSHDB on their way: they empty registers of which they know nothing, too.
    flushes: set[_Op] = field(default_factory=set)
    #: (db, register, when) that made room, while batches may be on their way that know them.
    retired: list[tuple[int, Register, float]] = field(default_factory=list)
    serial: int = 0
    reads: int = 0
    writes: int = 0
    kinds: Counter[str] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)
    violations: int = 0
    samples: list[str] = field(default_factory=list)
    #: When each client's batch began; infinite between batches.
    began: list[float] = field(default_factory=list)
    enough: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        for _ in range(DATABASES):
            self.registers.append([Register(b"r%d" % n) for n in range(KEYS)])

    def violation(self, text: str) -> None:
        self.violations += 1
        if len(self.samples) < 20:
            self.samples.append(text)

    def value(self, register: Register) -> bytes:
        self.serial += 1
        return b"%b=%012d" % (register.name, self.serial)

    def renew(self, db: int, index: int) -> None:
        """A register of which something is uncertain makes room for a new one.

        Not while a flush is on its way: it may run after what is first written to the new one.
        """
        if self.flushes:
            return
        self.serial += 1
        old = self.registers[db][index]
        self.registers[db][index] = Register(b"r%d.%d" % (index, self.serial))
        oldest = min(self.began)
        self.retired = [one for one in self.retired if one[2] >= oldest]
        self.retired.append((db, old, time.monotonic()))
        self.uncertain.discard(old)
        self.belief.pop(old, None)

    def counted(self, reads: int, writes: int) -> None:
        self.reads += reads
        self.writes += writes
        if self.reads + self.writes >= self.wanted:
            self.enough.set()


class _Op:
    """One request, and what to do with its reply. ``effects``: the writes that it is."""

    __slots__ = ("effects", "kind", "nothing", "reads", "replies", "request", "select", "takes")

    def __init__(self, kind: str, *args: bytes) -> None:
        self.kind = kind
        self.request = encode(*args)
        #: Number of replies; the last one counts.
        self.replies = 1
        self.effects: list[tuple[Register, Write]] = []
        #: Registers that only this operation may change until it is over.
        self.takes: tuple[Register, ...] = ()
        self.reads: list[Register] = []
        #: Replies that say: nothing was changed.
        self.nothing: Callable[[Any], bool] = _never
        self.select = -1


def _told(register: Register, value: Any, floor: Write | None) -> str:
    """The writes that the verdict is about: when each was sent and known to be over."""

    def one(write: Write) -> str:
        return f"{write.value!r} {write.invoked:.4f} to {write.answered:.4f}"

    own = [one(write) for write in register.writes if write.value == value]
    known = "nothing" if floor is None else one(floor)
    return f"written {', '.join(own) or 'never'}; the connection knew {known}"


def _never(_reply: Any) -> bool:
    return False


def _zero(reply: Any) -> bool:
    return bool(reply == 0)


def _no_such_key(reply: Any) -> bool:
    return isinstance(reply, hiredis.ReplyError) and "no such key" in str(reply)


class _Client:
    """One connection: makes up batches, sends them, has the reads judged."""

    def __init__(self, world: _World, number: int, address: tuple[str, int], direct: bool) -> None:
        self.world = world
        self.number = number
        self.address = address
        self.direct = direct
        self.random = random.Random(world.random.getrandbits(64))
        self.db = 0
        self.protocol = self.random.choice((2, 3))
        self.floors: dict[Register, Write | None] = {}
        self.connection: Connection | None = None
        world.began.append(inf)

    async def run(self) -> None:
        while not self.world.enough.is_set():
            try:
                if self.connection is None:
                    await self._connect()
                await self._batch()
            except (ClosedError, OSError):
                if self.direct:
                    raise RigError("redis closed a direct connection") from None
                self.world.refused["closed"] += 1
                self._close()
                await asyncio.sleep(0.005)
            except TimeoutError:
                self.world.violation(f"a batch was not over after {BATCH_SECONDS:g} s")
                self._close()
        self._close()

    async def _connect(self) -> None:
        self.connection = await Connection.open(*self.address)
        self.floors = {}
        self.db = self.random.randrange(DATABASES)
        async with asyncio.timeout(BATCH_SECONDS):
            if self.protocol == 3:
                await self.connection.ask(b"HELLO", b"3")
            if await self.connection.ask(b"SELECT", b"%d" % self.db) != b"OK":
                raise ClosedError  # refused: Redis is not reachable at the moment

    def _close(self) -> None:
        if self.connection is not None:
            self.connection.close()
            self.connection = None

    async def _batch(self) -> None:
        connection, world = self.connection, self.world
        assert connection is not None  # noqa: S101
        began = world.began[self.number] = time.monotonic()
        batch = self._operations(began)
        judged = 0
        try:
            async with asyncio.timeout(BATCH_SECONDS):
                connection.write(b"".join(op.request for op in batch))
                for op in batch:
                    replies = [await connection.reply() for _ in range(op.replies)]
                    judged += 1
                    self._judge(op, replies, began, time.monotonic())
        finally:
            world.began[self.number] = inf
            for op in batch[judged:]:
                self._lost(op)
            for op in batch:
                world.busy.difference_update(op.takes)
            world.flushes.difference_update(batch)

    # -- replies

    def _judge(self, op: _Op, replies: list[Any], began: float, now: float) -> None:
        reply = replies[-1]
        errors = [one for one in replies if isinstance(one, hiredis.ReplyError)]
        if errors and not op.nothing(reply):
            self._refused(op, errors)
            return
        self.world.kinds[op.kind] += 1
        if op.select >= 0:
            self.db = op.select
        if op.reads:
            values = reply if op.kind == "MGET" else [reply]
            for register, value in zip(op.reads, values, strict=True):
                self._read(register, value, began, now, op.kind)
            return
        if op.nothing(reply):
            for register, write in op.effects:
                register.undo(write)
            return
        for register, write in op.effects:
            write.done(now)
            if register in op.takes:
                self.world.belief[register] = write
            floor = self.floors.get(register)
            if floor is None or write.invoked >= floor.invoked:
                self.floors[register] = write
        self.world.counted(0, len(op.effects))

    def _read(self, register: Register, value: Any, began: float, now: float, kind: str) -> None:
        world = self.world
        if kind == "GETRANGE" and value == b"":
            value = None
        floor = self.floors.get(register)
        wrong, self.floors[register] = world.judge.read(register, value, began, now, floor)
        if wrong is not None:
            way = "direct" if self.direct else f"proxy, RESP{self.protocol}"
            world.violation(
                f"{kind} {register.name!r} ({way}) returned {value!r}, which {wrong}; "
                f"asked at {began:.4f}, answered at {now:.4f}; {_told(register, value, floor)}"
            )
        if register.crowded:
            register.prune(min(now, *world.began) - world.judge.staleness)
        world.counted(1, 0)

    def _refused(self, op: _Op, errors: list[hiredis.ReplyError]) -> None:
        words = [str(error).split(" ", 1)[0] for error in errors]
        self.world.refused[words[0]] += 1
        if set(words) == {"LOADING"} and len(words) == op.replies:  # nothing was sent
            for register, write in op.effects:
                register.undo(write)
            return
        self._lost(op)
        for word, error in zip(words, errors, strict=True):
            if self.direct or word not in ("LOADING", "NEXUSDOWN", "EXECABORT"):
                self.world.violation(f"{op.kind} was answered {error!r:.100}")

    def _lost(self, op: _Op) -> None:
        """It may have run, or may still."""
        if op.effects:
            self.world.uncertain.update(register for register, _ in op.effects)

    # -- operations

    def _operations(self, now: float) -> list[_Op]:
        chance = self.random.random()
        if chance < 0.004:
            return [self._select()]
        if chance < 0.006 and self.direct:
            return [self._flush(now)]
        return [
            self._writing(now) if self.random.random() < WRITES else self._reading()
            for _ in range(self.random.choice((1, 1, 1, 1, 2, 6)))
        ]

    def _reading(self) -> _Op:
        registers = self.world.registers[self.db]
        kind = self.random.choices(("GET", "GETRANGE", "MGET"), (85, 8, 7))[0]
        if kind == "MGET":
            chosen = self.random.sample(registers, 3)
            op = _Op(kind, b"MGET", *(register.name for register in chosen))
            op.reads = chosen
            return op
        # Some keys are read far more often than others.
        register = registers[int(KEYS * self.random.random() ** 2)]
        rest = (b"0", b"-1") if kind == "GETRANGE" else ()
        op = _Op(kind, kind.encode(), register.name, *rest)
        op.reads = [register]
        return op

    def _select(self) -> _Op:
        """On its own: were it refused, what follows would run in the wrong database."""
        db = (self.db + 1) % DATABASES
        op = _Op("SELECT", b"SELECT", b"%d" % db)
        op.select = db
        return op

    def _flush(self, now: float) -> _Op:
        everything = self.random.random() < 0.5
        op = _Op(*("FLUSHALL", b"FLUSHALL") if everything else ("FLUSHDB", b"FLUSHDB"))
        known = [(db, one) for db, all_ in enumerate(self.world.registers) for one in all_]
        known += [(db, one) for db, one, _ in self.world.retired]
        for db, register in known:
            if everything or db == self.db:
                op.effects.append((register, register.begin(None, now)))
        self.world.flushes.add(op)
        return op

    def _writing(self, now: float) -> _Op:
        world, rng = self.world, self.random
        registers = world.registers[self.db]
        index = rng.randrange(KEYS)
        register = registers[index]
        if register in world.uncertain and register not in world.busy:
            world.renew(self.db, index)
            register = registers[index]
        # The first half of the keys is written by anybody at any time. In the other half writes
        # come one after the other: so each may depend on what is there.
        alone = index >= KEYS // 2
        if alone and register in world.busy:
            register, alone = registers[rng.randrange(KEYS // 2)], False
        op = self._conditional(register, now) if alone and rng.random() < 0.4 else None
        if op is None:
            op = self._plain(register, now)
        if alone and not op.takes:
            op.takes = (register,)
        world.busy.update(op.takes)
        return op

    def _plain(self, register: Register, now: float) -> _Op:
        """A write whose effect depends on nothing."""
        world, rng = self.world, self.random
        name, value = register.name, world.value(register)
        kind = rng.choices(
            ("SET", "SET PX", "DEL", "UNLINK", "GETSET", "EVAL", "EVAL undeclared", "MULTI"),
            (40, 16, 8, 2, 4, 6, 6, 8),
        )[0]
        ttl = inf
        if kind == "SET PX":
            milliseconds = rng.randint(*TTL)
            ttl = milliseconds / 1000
            op = _Op(kind, b"SET", name, value, b"PX", b"%d" % milliseconds)
        elif kind in ("DEL", "UNLINK"):
            op = _Op(kind, kind.encode(), name)
        elif kind == "EVAL":
            op = _Op(kind, b"EVAL", b"redis.call('SET',KEYS[1],ARGV[1])", b"1", name, value)
        elif kind == "EVAL undeclared":
            op = _Op(kind, b"EVAL", b"redis.call('SET',ARGV[1],ARGV[2])", b"0", name, value)
        elif kind == "MULTI":
            return self._multi(register, value, now)
        elif kind == "GETSET":
            op = _Op(kind, b"GETSET", name, value)
        else:
            op = _Op(kind, b"SET", name, value)
        new = None if kind in ("DEL", "UNLINK") else value
        op.effects = [(register, register.begin(new, now, ttl))]
        return op

    def _multi(self, register: Register, value: bytes, now: float) -> _Op:
        """Two keys at once."""
        other = self.random.choice(self.world.registers[self.db][: KEYS // 2])
        second = self.world.value(other)
        op = _Op("MULTI", b"MULTI")
        op.request += encode(b"SET", register.name, value)
        op.request += encode(b"SET", other.name, second)
        op.request += encode(b"EXEC")
        op.replies = 4
        op.effects = [(register, register.begin(value, now)), (other, other.begin(second, now))]
        return op

    def _conditional(self, register: Register, now: float) -> _Op | None:
        """A write whose effect depends on what is there; ``None``: that is not known."""
        world, rng = self.world, self.random
        known = world.belief.get(register)
        if known is None or known.value is None or register in world.uncertain:
            return None
        value = known.value
        kind = rng.choice(("PEXPIRE", "PEXPIRE", "PERSIST", "RENAME"))
        if kind == "RENAME":
            other = rng.choice(world.registers[self.db][KEYS // 2 :])
            # A time to live would go with the value, and when it ends is not known exactly.
            free = other is not register and other not in world.busy
            if not free or known.ttl != inf or other in world.uncertain:
                return None
            op = _Op(kind, b"RENAME", register.name, other.name)
            op.nothing = _no_such_key
            op.takes = (register, other)
            op.effects = [
                (register, register.begin(None, now)),
                (other, other.begin(value, now)),
            ]
            return op
        milliseconds = rng.randint(*TTL)
        rest = (b"%d" % milliseconds,) if kind == "PEXPIRE" else ()
        op = _Op(kind, kind.encode(), register.name, *rest)
        op.nothing = _zero
        op.takes = (register,)
        ttl = milliseconds / 1000 if kind == "PEXPIRE" else inf
        op.effects = [(register, register.begin(value, now, ttl))]
        return op


class _Faults:
    """Redis stops, connections stall, are cut and delayed, one after the other."""

    def __init__(self, redis: Redis, relay: Relay, rng: random.Random) -> None:
        self._redis = redis
        self._relay = relay
        self._random = rng
        self.done: Counter[str] = Counter()

    async def run(self, stop: asyncio.Event) -> None:
        """Until ``stop``; leaves everything whole."""
        kinds = {
            "redis stopped": self._stop,
            "tracking connections stalled": lambda: self._stall(tracking=True),
            "some connections stalled": self._stall,
            "tracking connections cut": lambda: self._cut(tracking=True),
            "some connections cut": self._cut,
            "delays": self._delay,
        }
        left: list[str] = []
        while not stop.is_set():
            await self._pause(0.1, 0.4)
            if not left:
                left = list(kinds)
                self._random.shuffle(left)
            kind = left.pop()
            await kinds[kind]()
            self.done[kind] += 1

    async def _pause(self, low: float, high: float) -> None:
        await asyncio.sleep(self._random.uniform(low, high))

    async def _stop(self) -> None:
        self._redis.signal(signal.SIGSTOP)
        await self._pause(0.02, 0.4)
        self._redis.signal(signal.SIGCONT)

    async def _stall(self, *, tracking: bool = False) -> None:
        pipes = self._relay.some(tracking=tracking)
        for pipe in pipes:
            pipe.held = True
        await self._pause(0.02, 0.4)
        for pipe in pipes:
            pipe.release()

    async def _cut(self, *, tracking: bool = False) -> None:
        pipes: list[Pipe] = self._relay.some(tracking=tracking)
        for pipe in pipes:
            pipe.end(reset=self._random.random() < 0.5)

    async def _delay(self) -> None:
        self._relay.delay = 0.02
        await self._pause(0.1, 0.4)
        self._relay.delay = 0.0
        await asyncio.sleep(0.05)  # until what was delayed is through


async def _run(
    options: Options, rng: random.Random, directory: Path, milliseconds: int, workers: int
) -> tuple[_World, dict[str, Any]]:
    """One staleness, one number of workers."""
    wanted = options.operations // len(options.matrix)
    world = _World(Judge(milliseconds / 1000), rng, wanted)
    redis = Redis(directory)
    environ = {"NEXUS_CACHEPROXY_NEAR_CACHE__MAX_STALENESS_MS": str(milliseconds)}
    if options.backend == "pure":
        environ["NEXUS_NO_EXTENSIONS"] = "1"
    proxy = Proxy(directory, environ)
    relay = Relay(redis.host, redis.port, rng, stale(options.sabotage, rng))
    faults = _Faults(redis, relay, rng)
    began = time.monotonic()
    try:
        await redis.start()
        await relay.listen()
        await proxy.start(f"redis://127.0.0.1:{relay.port}", *_arguments(directory, workers))
        stats = await proxy.stats()
        with_proxy = [
            _Client(world, n, (proxy.host, proxy.port), direct=False)
            for n in range(options.clients)
        ]
        past_it = [
            _Client(world, n + options.clients, (redis.host, redis.port), direct=True)
            for n in range(options.direct)
        ]
        await _together(world, [*with_proxy, *past_it], faults if options.faults else None)
        stats = await proxy.stats()
    finally:
        relay.stop()
        await asyncio.sleep(0.05)
        proxy.stop()
        redis.stop()
    return world, {
        "max_staleness_ms": milliseconds,
        "workers": workers,
        "backend": stats["backend"],
        "seconds": round(time.monotonic() - began, 1),
        "reads": world.reads,
        "writes": world.writes,
        "oldest_read_ms": round(world.judge.oldest * 1000, 2),
        "operations": dict(world.kinds),
        "refused": dict(world.refused),
        "faults": dict(faults.done),
        "violations": world.violations,
        "samples": world.samples,
    }


def _arguments(directory: Path, workers: int) -> list[str]:
    policy = directory / "policy.yaml"
    policy.write_text(POLICY)
    return ["--workers", str(workers), "--policy", str(policy)]


async def _together(world: _World, clients: list[_Client], faults: _Faults | None) -> None:
    try:
        async with asyncio.TaskGroup() as tasks:
            for client in clients:
                tasks.create_task(client.run())
            if faults is not None:
                tasks.create_task(faults.run(world.enough))
    except ExceptionGroup as group:
        broken = group.subgroup(RigError)
        raise broken.exceptions[0] if broken is not None else group from None


async def prove(options: Options, directory: Path) -> Result:
    """Run the proof with its own servers, logs in ``directory``."""
    rng = random.Random(options.seed)
    runs: list[dict[str, Any]] = []
    violations = operations = 0
    for number, (milliseconds, workers) in enumerate(options.matrix):
        place = directory / str(number)
        place.mkdir()
        world, numbers = await _run(options, rng, place, milliseconds, workers)
        runs.append(numbers)
        violations += world.violations
        operations += world.reads + world.writes
        print(
            f"max_staleness {milliseconds} ms, {workers} worker(s): "
            f"{world.reads:,} reads, {world.writes:,} writes, {world.violations} wrong",
            file=sys.stderr,
        )
    faults = sum(sum(run["faults"].values()) for run in runs)
    oldest = ", ".join(f"{run['oldest_read_ms']:g} of {run['max_staleness_ms']}" for run in runs)
    return Result(
        proof="staleness",
        seed=options.seed,
        passed=violations == 0,
        summary=(
            f"{operations:,} operations, {faults} faults, {violations} violations; "
            f"oldest read, ms: {oldest}"
        ),
        numbers={"operations": operations, "violations": violations, "runs": runs},
    )


def main(argv: list[str] | None = None) -> int:
    parser = parser_of("staleness", __doc__)
    parser.add_argument("--operations", type=int, default=1_000_000, help="over all runs")
    parser.add_argument("--seed", type=int, default=None, help="of all randomness; printed")
    parser.add_argument("--sabotage", choices=sorted(STALE), default="", help="must fail")
    arguments = parser.parse_args(argv)
    seed = arguments.seed if arguments.seed is not None else random.SystemRandom().getrandbits(32)
    print(f"seed {seed}", file=sys.stderr)
    options = Options(
        arguments.operations, seed, sabotage=arguments.sabotage, backend=arguments.backend
    )
    return conclude(lambda directory: prove(options, directory), arguments.results)


if __name__ == "__main__":
    raise SystemExit(main())
