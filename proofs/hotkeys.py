"""Counters of hot keys stay within their memory: ``python -m proofs.hotkeys``.

First the kernel alone: ten million distinct keys at the pace of 100 000 a second, one read each,
and among them one key that is read ten times a second. Then the running proxy: a million distinct
keys through it and its near-cache, with one hot key among them. Memory must not grow with the
number of keys, the hot key must be found, and hardly any cold one be taken for hot.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import uvloop

from nexus._speedups import BACKEND
from nexus._speedups.nearcache import Rate
from proofs.client import Connection, encode
from proofs.report import Result, save
from proofs.rig import Proxy, Redis, memory_kib

__all__ = ["Options", "prove"]

_WINDOW: Final = 10.0
_THRESHOLD: Final = 10
#: Distinct keys in a second, as the kernel is told.
_PACE: Final = 100_000
#: Keys in one pipeline.
_BATCH: Final = 500
_POLICY: Final = """\
policies:
  - match: GET
    keys: "key:*"
    ttl: 60
    negative_ttl: 60
"""


@dataclass(frozen=True)
class Options:
    #: Distinct keys: of the kernel alone, and through the proxy.
    keys: int = 10_000_000
    proxied: int = 1_000_000
    #: Growth that is allowed over the last four fifths of the keys, KiB: of the kernel, the proxy.
    kernel_kib: int = 512
    proxy_kib: int = 8192


def _kernel(options: Options) -> dict[str, Any]:
    """Count distinct keys; see the module."""
    rate = Rate(_WINDOW)
    hot = bytearray(b"key:hot")
    every = _PACE // 10
    hot_reads = found = false = warm = 0
    for number in range(options.keys):
        now = 1.0 + number / _PACE
        key = bytearray(b"key:%d" % number)
        if rate.touch(key, 0, len(key), now) >= _THRESHOLD:
            false += 1
        if number % every == 0:
            hot_reads += 1
            found += rate.touch(hot, 0, len(hot), now) >= _THRESHOLD
        if number == options.keys // 5:
            warm = memory_kib(os.getpid())
    return {
        "kernel_growth_kib": memory_kib(os.getpid()) - warm,
        "kernel_hot_reads": hot_reads,
        "kernel_found_hot": found,
        "kernel_false_hot": false,
    }


async def _proxied(options: Options, directory: Path) -> dict[str, Any]:
    """Read distinct keys, of which none is there, through a proxy."""
    redis = Redis(directory)
    proxy = Proxy(directory, {"NEXUS_CACHEPROXY_NEAR_CACHE__MAX_BYTES": "1048576"})
    policy = directory / "policy.yaml"
    policy.write_text(_POLICY)
    try:
        await redis.start()
        await proxy.start(f"redis://{redis.host}:{redis.port}", "--policy", str(policy))
        connection = await Connection.open(proxy.host, proxy.port)
        await connection.ask(b"SET", b"key:hot", b"value", b"EX", b"1000")
        warm = 0
        for start in range(0, options.proxied, _BATCH):
            batch = [b"key:%d" % number for number in range(start, start + _BATCH)]
            connection.write(b"".join(encode(b"GET", key) for key in [*batch, b"key:hot"]))
            for _ in range(_BATCH + 1):
                await connection.reply()
            if not warm and start >= options.proxied // 5:
                warm = memory_kib(proxy.pid)
        listed = b""
        for _ in range(200):  # the list is made once a second
            listed = await connection.ask(b"NEXUS", b"HOTKEYS")
            if b"key=key:hot" in listed:
                break
            await asyncio.sleep(0.05)
        stats = await proxy.stats()
        growth = memory_kib(proxy.pid) - warm
        connection.close()
    finally:
        proxy.stop()
        redis.stop()
    return {
        "proxy_growth_kib": growth,
        "proxy_hottest": listed.decode().splitlines()[:3],
        "near_bytes": int(stats["near_bytes"]),
    }


async def prove(options: Options, directory: Path) -> Result:
    """Run the proof with its own servers, logs in ``directory``."""
    numbers = await asyncio.to_thread(_kernel, options)
    numbers |= await _proxied(options, directory)
    share = numbers["kernel_false_hot"] / options.keys
    passed = (
        numbers["kernel_growth_kib"] <= options.kernel_kib
        and numbers["kernel_found_hot"] >= numbers["kernel_hot_reads"] - _THRESHOLD
        and share < 0.001
        and numbers["proxy_growth_kib"] <= options.proxy_kib
        and "key=key:hot" in "".join(numbers["proxy_hottest"][:1])
        and numbers["near_bytes"] <= 1_048_576
    )
    return Result(
        proof="hotkeys",
        passed=passed,
        summary=f"{options.keys} distinct keys: the counters grew by "
        f"{numbers['kernel_growth_kib']} KiB, {share:.4%} of the cold looked hot, the hot one was "
        f"found; {options.proxied} through the proxy: it grew by {numbers['proxy_growth_kib']} KiB",
        numbers={
            "backend": BACKEND,
            "keys": options.keys,
            "proxied": options.proxied,
            **numbers,
        },
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--keys", type=int, default=Options.keys)
    parser.add_argument("--proxied", type=int, default=Options.proxied)
    parser.add_argument("--results", type=Path, help="directory of the record")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="nexus-hotkeys-") as name:
        result = uvloop.run(prove(Options(given.keys, given.proxied), Path(name)))
        return save(result, given.results)


if __name__ == "__main__":
    sys.exit(main())
