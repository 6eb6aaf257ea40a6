"""Invalidating a big tag: ``python -m proofs.tags``.

Two proxies whose near-caches hold the keys of one tag, readers through both and past them. Behind
the reply to ``NEXUS INVALIDATE`` nobody may read a value from before it; and none of the scripts
may keep Redis from others for longer than it may, by Redis's own SLOWLOG. On a machine where others
compute, that clock counts their time, too, so each script is run in several rounds, and what counts
is the shortest of its times. Both kinds of tag: the sorted set that TAG makes, and a plain set.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import statistics
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import uvloop

from proofs.client import Connection, encode
from proofs.report import Result, save
from proofs.rig import Proxy, Redis

__all__ = ["Options", "prove"]

_POLICY: Final = """\
policies:
  - match: GET
    keys: "item:*"
    near_cache: always
    hot: {extend_seconds: 0}
"""
_PORTION: Final = 1000
#: Keys that a reader asks for at once.
_READS: Final = 16


@dataclass(frozen=True)
class Options:
    keys: int = 100_000
    rounds: int = 5
    #: Through each proxy, and directly.
    readers: int = 2
    #: ``tags.atomic_max_members``.
    atomic: int = 5000
    #: Longest that a script may take, milliseconds.
    stall_ms: float = 5.0
    seed: int = 1
    #: The readers are told that all is gone before it is: the proof must fail.
    sabotage: bool = False


@dataclass
class _State:
    """What the readers know. Values are ``generation:number``."""

    #: The last generation whose invalidation has been answered.
    gone: int = 0
    reads: int = 0
    values: int = 0
    stale: list[str] = field(default_factory=list)
    stop: bool = False


async def _reader(
    connection: Connection, where: str, options: Options, rng: random.Random, state: _State
) -> None:
    while not state.stop:
        names = [b"item:%d" % rng.randrange(options.keys) for _ in range(_READS)]
        gone = state.gone
        connection.write(b"".join(encode(b"GET", name) for name in names))
        for name in names:
            value = await connection.reply()
            state.reads += 1
            if value is None:
                continue
            state.values += 1
            if int(value.partition(b":")[0]) <= gone:
                state.stale.append(f"{where} read {name!r} = {value!r} behind the end of {gone}")
        await asyncio.sleep(0.01)


async def _fill(
    direct: Connection, tagging: Connection, options: Options, generation: int, kind: str
) -> None:
    """Tag all keys, then write them."""
    for start in range(0, options.keys, _PORTION):
        numbers = range(start, min(start + _PORTION, options.keys))
        names = [b"item:%d" % number for number in numbers]
        if kind == "set":
            await direct.ask(b"SADD", b"tag:items", *names)
        else:
            await tagging.ask(b"NEXUS", b"TAG", b"items", *names)
        pairs: list[bytes] = []
        for number, name in zip(numbers, names, strict=True):
            pairs += [name, b"%d:%d" % (generation, number)]
        await direct.ask(b"MSET", *pairs)


async def _kept(proxy: Proxy, wanted: int) -> int:
    """Entries of a proxy's near-cache, as soon as they are so many, at the latest in a minute."""
    kept = 0
    for _ in range(1200):
        kept = int((await proxy.stats())["near_entries"])
        if kept >= wanted:
            break
        await asyncio.sleep(0.05)
    return kept


async def _warm(connections: Sequence[Connection], options: Options) -> None:
    """Each proxy keeps all keys, and Redis tracks them for both."""
    for start in range(0, options.keys, _PORTION):
        stop = min(start + _PORTION, options.keys)
        batch = b"".join(encode(b"GET", b"item:%d" % number) for number in range(start, stop))
        for connection in connections:
            connection.write(batch)
        for connection in connections:
            for _ in range(start, stop):
                await connection.reply()


async def _scripts(direct: Connection) -> list[int]:
    """Microseconds of each EVAL since the log was emptied, in order."""
    entries = await direct.ask(b"SLOWLOG", b"GET", b"-1")
    return [entry[2] for entry in reversed(entries) if entry[3][0] == b"EVAL"]


def _worst(rounds: Sequence[Sequence[int]]) -> int:
    """The longest script, each by the shortest of its times."""
    longest: int = max(min(times) for times in zip(*rounds, strict=False))
    return longest


class _Stage:
    """The servers and connections of a run."""

    def __init__(self, options: Options, directory: Path) -> None:
        self.options = options
        self.directory = directory
        self.redis: Final = Redis(directory)
        environ = {"NEXUS_CACHEPROXY_TAGS__ATOMIC_MAX_MEMBERS": str(options.atomic)}
        self.proxies: Final = []
        for name in ("one", "two"):
            (directory / name).mkdir()
            self.proxies.append(Proxy(directory / name, environ))
        self.opened: Final[list[Connection]] = []

    async def start(self) -> None:
        policy = self.directory / "policy.yaml"
        policy.write_text(_POLICY)
        await self.redis.start()
        for proxy in self.proxies:
            url = f"redis://{self.redis.host}:{self.redis.port}"
            await proxy.start(url, "--policy", str(policy))

    async def connect(self, server: Redis | Proxy) -> Connection:
        connection = await Connection.open(server.host, server.port)
        self.opened.append(connection)
        return connection

    def stop(self) -> None:
        for connection in self.opened:
            connection.close()
        for proxy in self.proxies:
            proxy.stop()
        self.redis.stop()


async def _run(stage: _Stage, state: _State) -> dict[str, Any]:
    options = stage.options
    rng = random.Random(options.seed)
    direct = await stage.connect(stage.redis)
    await direct.ask(b"CONFIG", b"SET", b"slowlog-max-len", b"1000000")
    await direct.ask(b"CONFIG", b"SET", b"slowlog-log-slower-than", b"0")
    asking = [await stage.connect(proxy) for proxy in stage.proxies]
    readers: list[asyncio.Task[None]] = []
    places: list[tuple[str, Redis | Proxy]] = [("direct", stage.redis)]
    places += zip(("one", "two"), stage.proxies, strict=True)
    for where, server in places:
        for _ in range(options.readers):
            connection = await stage.connect(server)
            mine = random.Random(rng.random())
            readers.append(asyncio.create_task(_reader(connection, where, options, mine, state)))
    numbers: dict[str, Any] = {"kept": options.keys, "miscounted": 0}
    generation = 0
    for kind in ("zset", "set"):
        times: list[list[int]] = []
        for number in range(options.rounds):
            generation += 1
            await _fill(direct, asking[0], options, generation, kind)
            await _warm(asking, options)
            for proxy in stage.proxies:
                numbers["kept"] = min(numbers["kept"], await _kept(proxy, options.keys * 99 // 100))
            await direct.ask(b"SLOWLOG", b"RESET")
            if options.sabotage:
                state.gone = generation
                await asyncio.sleep(0.05)  # longer than a small invalidation takes
            deleted = await asking[number % 2].ask(b"NEXUS", b"INVALIDATE", b"items")
            state.gone = generation
            numbers["miscounted"] += deleted != options.keys
            times.append(await _scripts(direct))
            await asyncio.sleep(0.1)  # the readers look for what is left
        every = [micros for one in times for micros in one]
        numbers[kind] = {
            "scripts": len(times[0]),
            "median_us": round(statistics.median(every)),
            "longest_us_best_of_rounds": _worst(times),
            "longest_us": max(every),
        }
    state.stop = True
    await asyncio.gather(*readers)
    numbers["left"] = await direct.ask(b"EXISTS", *(b"item:%d" % n for n in range(options.keys)))
    return numbers


async def prove(options: Options, directory: Path) -> Result:
    """Run the proof with its own servers, logs in ``directory``."""
    stage, state = _Stage(options, directory), _State()
    try:
        await stage.start()
        numbers = await _run(stage, state)
    finally:
        stage.stop()
    worst = max(numbers[kind]["longest_us_best_of_rounds"] for kind in ("zset", "set"))
    passed = (
        not state.stale
        and not numbers["miscounted"]
        and not numbers["left"]
        and numbers["kept"] > options.keys * 0.9  # else no near-cache had anything to forget
        and state.values > 0
        and worst < options.stall_ms * 1000
    )
    return Result(
        proof="tags",
        passed=passed,
        summary=f"{2 * options.rounds} invalidations of {options.keys} keys, {state.reads} reads "
        f"beside them, {len(state.stale)} of old values behind the reply; longest script "
        f"{worst / 1000:.1f} ms (best of {options.rounds} rounds), {numbers['left']} keys left",
        seed=options.seed,
        numbers={
            "keys": options.keys,
            "rounds": options.rounds,
            "reads": state.reads,
            "values_read": state.values,
            "stale_reads": len(state.stale),
            "first_stale": state.stale[:5],
            **numbers,
        },
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--keys", type=int, default=Options.keys)
    parser.add_argument("--rounds", type=int, default=Options.rounds)
    parser.add_argument("--stall-ms", type=float, default=Options.stall_ms)
    parser.add_argument("--seed", type=int, default=None, help="random and printed by default")
    parser.add_argument("--sabotage", action="store_true", help="the proof must fail")
    parser.add_argument("--results", type=Path, help="directory of the record")
    given = parser.parse_args()
    seed = given.seed if given.seed is not None else random.SystemRandom().getrandbits(31)
    options = Options(
        given.keys, given.rounds, stall_ms=given.stall_ms, seed=seed, sabotage=given.sabotage
    )
    with tempfile.TemporaryDirectory(prefix="nexus-tags-") as name:
        return save(uvloop.run(prove(options, Path(name))), given.results)


if __name__ == "__main__":
    sys.exit(main())
