"""No 502 however often upstreams close idle connections: ``python -m proofs.keepalive``.

The race: a proxy takes an idle connection from its pool and sends a request just when the upstream
ends it. Two upstreams (:mod:`proofs.closing`) hang up on idle connections at random moments; N
idempotent requests go through a gateway with the default retry settings, from clients that pause
at random so that connections do rest. Every request must be answered 200. That the race happened
is part of the proof: where the gateway itself has counted none, the run proves nothing and fails.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import uvloop
import yaml

from bench.processes import Process, free_ports
from proofs.report import RESULTS, Result, save

__all__ = ["prove"]

METHODS: Final = (b"GET", b"GET", b"GET", b"HEAD", b"OPTIONS", b"PUT", b"DELETE")
#: Share of requests before which a client rests, and for how long at most: connections of the
#: gateway must become idle for the upstream to close them.
_RESTS: Final = 0.1
_REST_SECONDS: Final = 0.02
#: Seconds for one response; far above three attempts with their backoff.
_TIMEOUT: Final = 30.0


@contextmanager
def _upstream(seed: int) -> Iterator[int]:
    process = subprocess.Popen(
        [sys.executable, "-m", "proofs.closing", "--seed", str(seed)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=Path(__file__).parents[1],
    )
    try:
        yield int(process.stdout.readline())  # type: ignore[union-attr]
    finally:
        process.communicate(timeout=10)


@contextmanager
def _gateway(directory: Path, upstreams: list[int]) -> Iterator[int]:
    port, admin_port = free_ports(2)
    services = [{"url": f"http://127.0.0.1:{u}", "weight": 1} for u in upstreams]
    (directory / "services.json").write_text(json.dumps({"services": services}))
    config = directory / "gateway.yaml"
    config.write_text(
        yaml.safe_dump(
            {
                "host": "127.0.0.1",
                "port": port,
                "admin_port": admin_port,
                "services_file": str(directory / "services.json"),
                "rate_limit": {"enabled": False},
                "auth": {"enabled": False},
                "kafka": {"enabled": False},
                "tracing": {"enabled": False},
                "access_log": {"enabled": False},
            }
        )
    )
    command = ["env", f"PYTHONPATH={Path(__file__).parents[1]}", sys.executable]
    with Process(
        "gateway", [*command, "-m", "nexus.gateway", "--config", str(config)], directory
    ) as p:
        p.wait_for(lambda: asyncio.run(_fetch(port, b"/ready")).startswith(b"HTTP/1.1 200"))
        yield port


async def _fetch(port: int, path: bytes) -> bytes:
    """A whole response, by a connection that is closed behind it."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"GET " + path + b" HTTP/1.1\r\nHost: proof\r\nConnection: close\r\n\r\n")
    data = await reader.read()
    writer.close()
    return data


class _Client:
    """One keep-alive connection that makes its share of the requests."""

    def __init__(self, port: int, rng: random.Random, answers: Counter[str]) -> None:
        self._port = port
        self._rng = rng
        self._answers = answers

    async def run(self, requests: int) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
        try:
            for _ in range(requests):
                if self._rng.random() < _RESTS:
                    await asyncio.sleep(self._rng.uniform(0, _REST_SECONDS))
                method = self._rng.choice(METHODS)
                writer.write(method + b" /api/proof HTTP/1.1\r\nHost: proof\r\n\r\n")
                async with asyncio.timeout(_TIMEOUT):
                    head = await reader.readuntil(b"\r\n\r\n")
                    status = head[9:12].decode()
                    length = re.search(rb"\r\nContent-Length: (\d+)\r\n", head)
                    body = b""
                    if length is not None and method != b"HEAD":
                        body = await reader.readexactly(int(length[1]))
                if status != "200" and body:
                    status += " " + json.loads(body)["reason"]
                elif b"\r\nConnection: close" in head:
                    status = "200 and closed"
                self._answers[status] += 1
        finally:
            writer.close()


def _metric(text: str, name: str) -> int:
    return int(sum(float(v) for v in re.findall(rf"^{name}(?:{{.*}})? (\S+)$", text, re.MULTILINE)))


async def _load(port: int, requests: int, clients: int, seed: int) -> Counter[str]:
    answers: Counter[str] = Counter()
    rng = random.Random(seed)
    shares = [requests // clients + (i < requests % clients) for i in range(clients)]
    async with asyncio.TaskGroup() as group:
        for share in shares:
            group.create_task(_Client(port, random.Random(rng.random()), answers).run(share))
    return answers


def prove(requests: int, seed: int, clients: int = 32) -> Result:
    """Run it and judge."""
    started = time.monotonic()
    with (
        tempfile.TemporaryDirectory(prefix="nexus-keepalive-") as name,
        _upstream(seed) as a,
        _upstream(seed + 1) as b,
        _gateway(Path(name), [a, b]) as port,
    ):
        answers = uvloop.run(_load(port, requests, clients, seed))
        metrics = asyncio.run(_fetch(port, b"/metrics")).decode()
    seconds = time.monotonic() - started
    races = _metric(metrics, "nexus_upstream_keepalive_races_total")
    retries = _metric(metrics, "nexus_retries_total")
    good = answers["200"]
    return Result(
        proof="keepalive",
        passed=good == requests and races > 0,
        summary=f"{good} of {requests} idempotent requests answered 200; "
        f"{races} met an idle connection that was just being closed; {seconds:.0f} s",
        seed=seed,
        numbers={
            "requests": requests,
            "clients": clients,
            "answers": dict(answers),
            "races": races,
            "retries": retries,
            "seconds": round(seconds, 1),
            "extensions": os.environ.get("NEXUS_NO_EXTENSIONS", "") in ("", "0"),
        },
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--requests", type=int, default=1_000_000)
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--seed", type=int, default=None, help="random and printed by default")
    parser.add_argument("--results", type=Path, default=RESULTS, help="directory of the record")
    arguments = parser.parse_args()
    seed = arguments.seed if arguments.seed is not None else random.SystemRandom().getrandbits(31)
    return save(prove(arguments.requests, seed, arguments.clients), arguments.results)


if __name__ == "__main__":
    sys.exit(main())
