"""No reply is ever crossed or shifted, whatever happens to Redis: ``python -m proofs.crossed``.

::

    owners (many connections) ──► cacheproxy ──► relay ──► redis-server
    tagged operations             under proof    cuts,     killed, stopped,
                                                 delays …  restarted

Each owner sends batches of operations whose replies identify them (:mod:`proofs.operations`), in
RESP2 or RESP3, in random pieces, and sometimes hangs up in the middle. The proof holds when

- every reply is the one to its request;
- the only errors are those that the proxy may give: ``-NEXUSDOWN``, ``-LOADING``, a closed
  connection; without ``--faults``, none at all;
- every batch is answered or refused within a bound;
- service is back soon after every fault;
- in the end the proxy has as many descriptors and connections to Redis as before, and its memory
  has stopped growing.
"""

from __future__ import annotations

import asyncio
import random
import sys
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

import hiredis

from proofs.client import ClosedError, Connection
from proofs.faults import Faults
from proofs.operations import Operation, Owner, World
from proofs.relay import Relay
from proofs.report import Result, conclude, parser_of
from proofs.rig import Proxy, Redis, RigError, memory_kib, open_files
from proofs.sabotage import SABOTAGE, sabotage

__all__ = ["Options", "main", "prove"]

#: Seconds within which a batch must be over. The longest way is a stopped Redis (0.8 s) that is
#: reached by a new connection (the proxy gives up a handshake after 3 s), twice, on a busy machine.
BATCH_SECONDS: Final = 15.0
#: Deepest pipeline.
DEPTH: Final = 40
#: Share of batches after which the owner hangs up without reading.
VANISHING: Final = 0.004
#: KiB that the worker may grow between the first fifth of the operations and the end: room for the
#: allocator's mood over big values. A leak of 50 bytes for each of 10⁶ operations is 39 MiB here.
MOST_GROWTH_KIB: Final = 32_768
#: KiB that the worker may hold at any time: 37 MiB idle, 64 clients, some values of 3 MB in flight.
MOST_PEAK_KIB: Final = 262_144


@dataclass(frozen=True)
class Options:
    operations: int
    seed: int
    faults: bool = False
    connections: int = 64
    sabotage: str = ""
    #: Seconds to wait at the end for links that are kept for reuse (the proxy: 60 s).
    settle: float = 0.0
    backend: str = ""
    #: Bound for one batch; see :data:`BATCH_SECONDS`.
    batch_seconds: float = BATCH_SECONDS


@dataclass
class _Run:
    """One proof in progress."""

    options: Options
    world: World
    proxy: Proxy
    relay: Relay
    redis: Redis
    faults: Faults
    random: random.Random
    enough: asyncio.Event = field(default_factory=asyncio.Event)
    slowest: float = 0.0
    connects: int = 0
    vanished: int = 0
    early_kib: int = 0
    peak_kib: int = 0


# -- one owner


async def _own(run: _Run, owner: Owner) -> None:
    connection: Connection | None = None
    while not run.enough.is_set():
        owner.renew()
        batch = owner.batch(run.random.choice((1, 1, 1, 2, 5, 10, DEPTH)))
        if connection is None:
            try:
                connection = await Connection.open(run.proxy.host, run.proxy.port)
            except OSError as error:
                run.world.violation(f"the proxy takes no connections: {error}")
                await asyncio.sleep(0.1)
                continue
            run.connects += 1
            batch = owner.greeting(run.random.choice((2, 2, 3))) + batch
        if not await _exchange(run, owner, connection, batch) or owner.lost_track:
            connection.close()
            connection = None
    if connection is not None:
        connection.close()


async def _exchange(
    run: _Run, owner: Owner, connection: Connection, batch: list[Operation]
) -> bool:
    """Send ``batch``, judge the replies; whether the connection may be used further."""
    began = time.monotonic()
    judged = 0
    try:
        async with asyncio.timeout(run.options.batch_seconds):
            await _send(run, connection, b"".join(operation.request for operation in batch))
            if run.random.random() < VANISHING:
                run.vanished += 1
                return False
            usable = True
            for operation in batch:
                reply = await connection.reply()
                judged += 1
                usable &= _judge(run.world, owner, operation, reply)
            return usable
    except ClosedError:
        if run.world.faults:
            run.world.failed["closed"] += 1
        else:
            run.world.violation(f"{owner.tag!r}: connection closed without a fault")
        return False
    except TimeoutError:
        waiting = batch[min(judged, len(batch) - 1)].request
        bound = f"{run.options.batch_seconds:g} s"
        run.world.violation(f"{owner.tag!r}: no answer in {bound} to {waiting!r:.80}")
        return False
    finally:
        for operation in batch[judged:]:
            operation.failed(may_have_run=True)
        run.slowest = max(run.slowest, time.monotonic() - began)


async def _send(run: _Run, connection: Connection, data: bytes) -> None:
    """In one piece, or in a few, some turns of the loop or some milliseconds apart."""
    if run.random.random() < 0.8:
        connection.write(data)
        return
    longest = run.random.choice((0.0, 0.0, 0.01))
    cuts = sorted(run.random.sample(range(len(data)), min(4, len(data))))
    for start, end in zip([0, *cuts], [*cuts, len(data)], strict=True):
        connection.write(data[start:end])
        await asyncio.sleep(run.random.random() * longest)


def _judge(world: World, owner: Owner, operation: Operation, reply: Any) -> bool:
    """Whether the connection may be used further."""
    if isinstance(reply, hiredis.ReplyError):
        code = str(reply).partition(" ")[0]
        if code in ("NEXUSDOWN", "LOADING") and world.faults:
            world.failed[code] += 1
            operation.failed(may_have_run=code == "NEXUSDOWN")
            # A name that was not set would be missed later.
            return operation.request.find(b"SETNAME") < 0 and operation.request.find(b"HELLO") < 0
    wrong = operation.accept(reply)
    if wrong is None:
        world.verified += 1
        return True
    world.violation(f"{owner.tag!r}: {operation.request[:60]!r}: {wrong}")
    operation.failed(may_have_run=True)
    return False


# -- the whole


async def _watch(run: _Run) -> None:
    """Stop when there is enough: operations, and every kind of fault."""
    options, world = run.options, run.world
    told = time.monotonic()
    while not run.enough.is_set():
        await asyncio.sleep(0.1)
        run.proxy.check()
        kib = memory_kib(run.proxy.pid)
        run.peak_kib = max(run.peak_kib, kib)
        if not run.early_kib and world.verified >= options.operations / 5:
            run.early_kib = kib
        if world.verified >= options.operations or (options.sabotage and world.violations):
            if not options.faults or run.faults.every_kind_happened or world.violations:
                run.enough.set()
        if time.monotonic() - told > 10:
            told = time.monotonic()
            print(
                f"{world.verified:,} verified, {sum(world.failed.values()):,} refused, "
                f"{sum(run.faults.done.values())} faults, {world.violations} violations, "
                f"{kib // 1024} MiB",
                file=sys.stderr,
            )


async def _wait_for(condition: Any, seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while not await condition():
        if time.monotonic() > deadline:
            return False
        await asyncio.sleep(0.1)
    return True


def _links(stats: dict[str, str]) -> int:
    return int(stats["upstream_shared_connections"]) + int(stats["upstream_warm_connections"])


@dataclass(frozen=True)
class Idle:
    """The proxy before the work: descriptors, links to Redis, and those that stay for ever."""

    files: int
    links: int
    lasting: int


async def _account(run: _Run, idle: Idle) -> dict[str, Any]:
    """Nothing is left of all those clients: every descriptor belongs to a link that is kept."""
    world, proxy = run.world, run.proxy
    seen: dict[str, int] = {}

    async def balanced() -> bool:
        stats = await proxy.stats()
        links = _links(stats)
        seen.update(
            clients=int(stats["clients"]) - 1,
            pinned=int(stats["upstream_pinned_connections"]),
            links=links,
            redis_clients=await run.redis.connections(),
            files=open_files(proxy.pid),
        )
        expected = idle.files + links - idle.links
        return (
            seen["clients"] == 0
            and seen["pinned"] == 0
            and seen["redis_clients"] == links
            # The connection that asked may not be closed yet.
            and expected <= seen["files"] <= expected + 1
        )

    if not await _wait_for(balanced, 10):
        world.violation(f"something is left: {seen}; before: {idle}")
    if run.options.settle:

        async def settled() -> bool:
            return await balanced() and seen["links"] <= idle.lasting

        if not await _wait_for(settled, run.options.settle):
            world.violation(f"not back to what it was: {seen}; before: {idle}")
    return {"before": asdict(idle), "end": seen}


def _judge_memory(run: _Run, end_kib: int) -> None:
    if run.peak_kib > MOST_PEAK_KIB:
        run.world.violation(f"memory peaked at {run.peak_kib} KiB, allowed {MOST_PEAK_KIB}")
    if run.early_kib and end_kib - run.early_kib > MOST_GROWTH_KIB:
        run.world.violation(f"memory grew from {run.early_kib} to {end_kib} KiB")


async def _greet(proxy: Proxy) -> dict[str, str]:
    """``NEXUS STATS`` of a proxy that has met a client of each protocol and is idle again.

    The shared link of each protocol stays open, as the proxy's own user in its own database.
    """
    connection = await Connection.open(proxy.host, proxy.port)
    await connection.ask(b"PING")
    await connection.ask(b"HELLO", b"3")
    await connection.ask(b"PING")
    connection.close()
    await asyncio.sleep(0.3)
    stats = await proxy.stats()
    await asyncio.sleep(0.1)  # the asking connection is closed, too
    return stats


async def prove(options: Options, directory: Path) -> Result:
    """Run the proof with its own servers, logs in ``directory``."""
    rng = random.Random(options.seed)
    world = World(faults=options.faults)
    redis = Redis(directory)
    environ = {"pure": {"NEXUS_NO_EXTENSIONS": "1"}}.get(options.backend, {})
    proxy = Proxy(directory, environ)
    change = sabotage(options.sabotage, rng) if options.sabotage else None
    relay = Relay(redis.host, redis.port, rng, change)
    faults = Faults(world, redis, proxy, relay, rng)
    run = _Run(options, world, proxy, relay, redis, faults, rng)
    began = time.monotonic()
    try:
        await redis.start()
        await relay.listen()
        await proxy.start(f"redis://127.0.0.1:{relay.port}")
        stats = await _greet(proxy)
        idle_kib = memory_kib(proxy.pid)
        idle = Idle(open_files(proxy.pid), _links(stats), int(stats["upstream_shared_connections"]))
        await _work(run)
        relay.sabotage = None
        accounts = await _account(run, idle) if not options.sabotage else {}
        end_kib = memory_kib(proxy.pid)
        _judge_memory(run, end_kib)
    finally:
        # Redis's side first: a proxy in front of a sabotaged one waits for replies that were taken.
        relay.stop()
        await asyncio.sleep(0.05)
        proxy.stop()
        redis.stop()
    return Result(
        proof="crossed",
        seed=options.seed,
        passed=not world.violations,
        summary=(
            f"{world.verified:,} operations verified over {run.connects:,} connections, "
            f"{sum(faults.done.values())} faults, {world.violations} violations"
        ),
        numbers={
            "backend": stats["backend"],
            "seconds": round(time.monotonic() - began, 1),
            "verified": world.verified,
            "refused": dict(world.failed),
            "connections_at_once": options.connections,
            "connections_in_all": run.connects,
            "clients_vanished": run.vanished,
            "faults": dict(faults.done),
            "mid_reply_cuts": relay.mid_reply_cuts,
            "slowest_recovery_seconds": faults.recovery,
            "slowest_batch_seconds": round(run.slowest, 3),
            "memory_kib": {
                "idle": idle_kib,
                "early": run.early_kib,
                "peak": run.peak_kib,
                "end": end_kib,
            },
            "accounts": accounts,
            "violations": world.violations,
            "samples": world.samples,
        },
    )


async def _work(run: _Run) -> None:
    """Owners, faults and the watch, until there is enough; raises :class:`RigError`."""
    try:
        await _work_together(run)
    except ExceptionGroup as group:
        broken = group.subgroup(RigError)
        raise broken.exceptions[0] if broken is not None else group from None


async def _work_together(run: _Run) -> None:
    seeds = [run.random.getrandbits(64) for _ in range(run.options.connections)]
    owners = [Owner(run.world, n, random.Random(seed)) for n, seed in enumerate(seeds)]
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(_watch(run))
        for owner in owners:
            tasks.create_task(_own(run, owner))
        if run.options.faults:
            tasks.create_task(run.faults.run(run.enough))


def main(argv: list[str] | None = None) -> int:
    parser = parser_of("crossed", __doc__)
    parser.add_argument("--operations", type=int, default=100_000, help="verified replies wanted")
    parser.add_argument("--seed", type=int, default=None, help="of all randomness; printed")
    parser.add_argument("--faults", action="store_true", help="break things meanwhile")
    parser.add_argument("--connections", type=int, default=64, help="clients at the same time")
    parser.add_argument("--settle", type=float, default=90.0, help="seconds for idle links to go")
    parser.add_argument("--sabotage", choices=sorted(SABOTAGE), default="", help="must fail")
    arguments = parser.parse_args(argv)
    seed = arguments.seed if arguments.seed is not None else random.SystemRandom().getrandbits(32)
    print(f"seed {seed}", file=sys.stderr)
    options = Options(
        operations=arguments.operations,
        seed=seed,
        faults=arguments.faults,
        connections=arguments.connections,
        sabotage=arguments.sabotage,
        settle=arguments.settle,
        backend=arguments.backend,
    )
    return conclude(lambda directory: prove(options, directory), arguments.results)


if __name__ == "__main__":
    raise SystemExit(main())
