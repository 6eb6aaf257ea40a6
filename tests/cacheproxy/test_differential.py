"""Random programs, random pipelining, random chunks, several clients: proxy against direct.

The programs of different clients use different keys, so that each client's replies are determined
by its own program, however the clients interleave; whatever the proxy mixes up, shows.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
import redis
from hypothesis import given, settings
from hypothesis import strategies as st

from .proxy import Proxy, Raw, encode

Command = tuple[str | bytes | int, ...]
Program = list[Command]

VALUES = st.one_of(st.binary(max_size=40), st.sampled_from([b"", b"1", b"\r\n", b"x" * 3000]))
KEYS = st.integers(0, 3)


def plain(client: str) -> st.SearchStrategy[Command]:
    def key(number: int) -> str:
        return f"{client}:{number}"

    one = KEYS.map(key)
    other = KEYS.map(lambda number: f"{client}:l{number}")
    return st.one_of(
        st.tuples(st.just("SET"), one, VALUES),
        st.tuples(st.just("get"), one),
        st.tuples(st.just("APPEND"), one, VALUES),
        st.tuples(st.just("INCR"), one),
        st.tuples(st.just("DEL"), one),
        st.tuples(st.just("MGET"), one, one, one),
        st.tuples(st.just("RPUSH"), other, VALUES),
        st.tuples(st.just("LRANGE"), other, st.just(0), st.just(-1)),
        st.tuples(st.just("TYPE"), other),
        st.tuples(st.just("ECHO"), VALUES),
        st.tuples(st.just("GET")),
        st.tuples(st.just("NoSuch"), VALUES.filter(lambda v: v.isascii() and v.isalnum())),
        st.just(("CONFIG", "NOSUCH")),
    )


def special(client: str) -> st.SearchStrategy[list[Command]]:
    body = st.lists(plain(client), max_size=3)
    return st.one_of(
        body.map(lambda b: [("MULTI",), *b, ("EXEC",)]),
        body.map(lambda b: [("MULTI",), *b, ("DISCARD",)]),
        body.map(lambda b: [("WATCH", f"{client}:0"), *b, ("MULTI",), *b, ("EXEC",)]),
        body.map(lambda b: [("WATCH", f"{client}:0"), *b, ("UNWATCH",)]),
        st.just([("BLPOP", f"{client}:l0", f"{client}:l1", "0.01")]),
        st.just([("EVAL", "return {ARGV[1], 7}", 0, "v")]),
        st.just([("EVAL", "return redis.call('INCR', KEYS[1])", 1, f"{client}:n")]),
        st.integers(0, 4).map(lambda db: [("SELECT", db)]),
        st.just([("SELECT", "nonsense")]),
        st.just([("CLIENT", "SETNAME", client), ("CLIENT", "GETNAME")]),
        st.just([("CLIENT", "SETNAME", "a b")]),
        st.just([("EXEC",)]),
        st.just([("DISCARD",)]),
        st.just([("MULTI",), ("SELECT", 2), ("EXEC",)]),
        st.just([("MULTI",), ("NoSuch",), ("EXEC",)]),
        st.just([("MULTI", "x"), ("EXEC",)]),
        st.just([("RESET",)]),
        st.just([("CLIENT", "REPLY", "ON")]),
        st.just([("UNSUBSCRIBE", "c")]),
        st.just([("CLIENT", "NOSUCH"), ("CLIENT",), ("SCRIPT", "EXISTS", "ab")]),
        st.just([("HELLO", "2", "SETNAME", "a b")]),
        st.just([("XREAD", "COUNT", 1, "STREAMS", f"{client}:s", 0)]),
        st.just([("XREAD", "BLOCK", 1, "STREAMS", f"{client}:s", 0)]),
        st.just([("WAIT", 0, 1)]),
        st.binary(min_size=70_000, max_size=70_001).map(lambda v: [("SET", f"{client}:big", v)]),
        st.just([("GET", f"{client}:big"), ("STRLEN", f"{client}:big")]),
    )


def program(client: str) -> st.SearchStrategy[Program]:
    step = st.one_of(
        st.lists(plain(client), min_size=1, max_size=6),
        special(client),
    )
    return st.lists(step, min_size=1, max_size=8).map(lambda steps: [c for s in steps for c in s])


def chunks(data: bytes, seed: int) -> list[bytes]:
    rng = random.Random(seed)
    found = []
    while data:
        size = rng.choice((1, 3, 17, 200, 5000, 100_000))
        found.append(data[:size])
        data = data[size:]
        if len(found) > 60:
            found.append(data)
            break
    return found


def run(port: int, commands: Program, seed: int | None) -> list[bytes]:
    """Replies to a program; ``seed`` chops the whole of it up, ``None`` goes step by step."""
    with Raw("127.0.0.1", port) as raw:
        if seed is None:
            return [raw.ask(*c) for c in commands]
        data = b"".join(encode(*c) for c in commands)
        for chunk in chunks(data, seed):
            raw.write(chunk)
        return raw.replies(len(commands))


def in_parallel(jobs: list[Callable[[], list[bytes]]]) -> list[list[bytes]]:
    with ThreadPoolExecutor(len(jobs)) as pool:
        return [future.result(40) for future in [pool.submit(job) for job in jobs]]


@settings(max_examples=int(os.environ.get("NEXUS_TEST_EXAMPLES", "25")))
@given(
    programs=st.tuples(program("a"), program("b"), program("c")),
    seeds=st.tuples(*[st.one_of(st.none(), st.integers(0, 10_000))] * 3),
)
def _differential(
    proxy: Proxy, server: object, programs: tuple[Program, ...], seeds: tuple[int | None, ...]
) -> None:
    expected = []
    _flush(server)
    for commands, seed in zip(programs, seeds, strict=True):
        expected.append(run(server.port, commands, seed))  # type: ignore[attr-defined]
    _flush(server)
    found = in_parallel(
        [
            lambda commands=commands, seed=seed: run(proxy.port, commands, seed)  # type: ignore[misc]
            for commands, seed in zip(programs, seeds, strict=True)
        ]
    )
    for commands, want, got in zip(programs, expected, found, strict=True):
        for command, left, right in zip(commands, want, got, strict=True):
            assert left == right, command
        assert len(got) == len(want)


def _flush(server: object) -> None:
    with redis.Redis.from_url(server.url, protocol=2) as direct:  # type: ignore[attr-defined]
        direct.flushall()


def test_random_programs_give_the_same_bytes(proxy: Proxy, redis_server: object) -> None:
    _differential(proxy, redis_server)


@pytest.mark.parametrize("depth", [1, 16, 300])
def test_no_reply_is_ever_crossed(proxy: Proxy, depth: int) -> None:
    """Every reply carries the tag of its request: clients with and without pins, side by side."""
    rounds = max(2, 600 // depth)

    def client(number: int) -> list[bytes]:
        rng = random.Random(number)
        wrong = []
        with proxy.raw() as raw:
            for turn in range(rounds):
                wanted, data = [], []
                for index in range(depth):
                    tag = f"{number}-{turn}-{index}"
                    way = rng.random()
                    if way < 0.9:
                        data.append(encode("ECHO", tag))
                    elif way < 0.95:
                        data.append(encode("EVAL", "return ARGV[1]", 0, tag))
                    else:
                        data.append(encode("NEXUS", tag))
                        wanted.append(
                            f"-ERR unknown subcommand '{tag}'. Try NEXUS HELP.\r\n".encode()
                        )
                        continue
                    wanted.append(b"$%d\r\n%b\r\n" % (len(tag), tag.encode()))
                raw.write(b"".join(data))
                got = raw.replies(depth)
                wrong += [g for w, g in zip(wanted, got, strict=True) if w != g]
        return wrong

    results = in_parallel([lambda number=number: client(number) for number in range(12)])  # type: ignore[misc]
    assert results == [[]] * 12
