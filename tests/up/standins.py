"""Plays the services for tests of the orchestration: `standins.py ROLE` with a service's own flags.

As ``standins.py up …`` it is `nexus up` with every service replaced by such a stand-in, which
misbehaves as ``STANDIN_FAULT=ROLE:FAULT`` says: ``exit`` (at once, code 9), ``unready``,
``hanging`` (does not answer whether it is ready), ``deaf`` (ignores SIGTERM), ``mute`` (a consumer
that handles nothing, a gateway that sends no event), ``broken`` (a gateway without products).
``STANDIN_SETTINGS`` is JSON over the gateway's default settings.
"""

from __future__ import annotations

import argparse
import asyncio
import inspect
import json
import os
import re
import signal
import sys
from collections.abc import Callable
from pathlib import Path

#: (request target, head, body) → (status, JSON or text; awaited where it comes later)
Page = Callable[[str, str, bytes], tuple[int, object]]

ROLES = ("gateway", "cacheproxy", "consumer", "kafka", "upstream")


def fault(role: str) -> str:
    who, _, what = os.environ.get("STANDIN_FAULT", "").partition(":")
    return what if who == role else ""


def given_settings() -> dict:
    return json.loads(os.environ.get("STANDIN_SETTINGS", "{}"))


def orchestrate(argv: list[str]) -> int:
    from nexus.demo import up
    from nexus.demo.process import ChildSpec, Stack

    spawn = Stack._spawn

    def spawn_stand_in(self, spec: ChildSpec):
        module = spec.argv[2] if spec.argv[1] == "-m" else ""
        role = module.rpartition(".")[2]
        if role in ROLES:
            argv = (spec.argv[0], "-uS", __file__, role, *spec.argv[3:])
            spec = ChildSpec(spec.name, argv, env=spec.env, ready=spec.ready)
        return spawn(self, spec)

    async def resolve(_argv, _environ, name):
        settings = {
            "rate_limit": {"enabled": True, "capacity": 10},
            "auth": {"enabled": True, "token_ttl_seconds": 3600},
            "envelope": {"enabled": True},
            "kafka": {"enabled": True},
        }
        return settings | given_settings() if name == "gateway" else {}

    Stack._spawn = spawn_stand_in
    up.resolve = resolve
    up.EVENT_SECONDS = float(os.environ.get("STANDIN_EVENT_SECONDS", up.EVENT_SECONDS))
    return up.main(argv)


async def serve(port: int, pages: dict[str, Page]) -> None:
    """HTTP for a client that sends one small request per connection: enough to be asked by."""

    async def handle(reader, writer):
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        target = head.split()[1]
        length = [line for line in head.lower().split("\r\n") if line.startswith("content-length")]
        body = await reader.readexactly(int(length[0].split(":")[1]) if length else 0)
        status, answer = pages[target.partition("?")[0]](target, head, body)
        answer = await answer if inspect.isawaitable(answer) else answer
        text = answer.encode() if isinstance(answer, str) else json.dumps(answer).encode()
        writer.write(
            f"HTTP/1.1 {status} X\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(text)}\r\nConnection: close\r\n\r\n".encode()
            + text
        )
        writer.close()

    await asyncio.start_server(handle, "127.0.0.1", port)


async def play(role: str, argv: list[str]) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--config", type=Path)
    for flag in ("--port", "--admin-port", "--host", "--workers"):
        parser.add_argument(flag)
    flags = parser.parse_args(argv)
    if role == "kafka":
        print("bootstrap=127.0.0.1:9")
        return
    if role == "upstream":
        await serve(int(flags.port), {"/health": lambda *_: (200, {})})
        return
    requests = flags.config.with_name("requests")
    ready = 503 if fault(role) == "unready" else 200
    counts = {"gateway": 0, "consumer": 0}

    def answer_ready(*_):
        hanging = fault(role) == "hanging"
        return ready, asyncio.sleep(30, "at last") if hanging else "so it is"

    def answer_metrics(*_):
        lines = [
            "# TYPE nexus_events_sent_total counter",
            f'nexus_events_sent_total{{topic="t"}} {counts["gateway"]}',
            "# TYPE nexus_consumer_events_total counter",
            f'nexus_consumer_events_total{{topic="t",result="done"}} {counts["consumer"]}',
        ]
        return 200, "\n".join(lines) + "\n"

    pages = {"/ready": answer_ready, "/metrics": answer_metrics}
    await serve(int(flags.admin_port), pages)
    if role == "gateway":
        await serve(int(flags.port), gateway_pages(requests, counts))
    elif role == "cacheproxy":
        upstream = int(re.search(r"redis://127.0.0.1:(\d+)", flags.config.read_text())[1])
        await splice(int(flags.port), upstream)
    elif fault(role) != "mute":
        seen = ""
        while True:
            await asyncio.sleep(0.02)
            now = requests.read_text() if requests.exists() else ""
            if now != seen:
                counts["consumer"] += 1
                seen = now


def gateway_pages(requests: Path, counts: dict[str, int]) -> dict[str, Page]:
    def token(_target, _head, body):
        right = json.loads(body)["client_secret"] == os.environ["NEXUS_CLIENT_SECRET"]
        return (200, {"access_token": "a.b.c"}) if right else (401, {})

    def products(target, head, _body):
        settings = given_settings()
        asked = settings.get("auth", {}).get("enabled", True)
        assert ("Authorization: Bearer a.b.c\r\n" in head) == asked
        if settings.get("kafka", {}).get("enabled", True) and fault("gateway") != "mute":
            requests.write_text(target)
            counts["gateway"] += 1
        data = {"server": "3001", "products": [] if fault("gateway") == "broken" else [1]}
        if not settings.get("envelope", {}).get("enabled", True):
            return 200, data
        return 200, {"data": data, "_meta": {"gateway": "nexus"}}

    return {"/auth/token": token, "/api/products": products}


async def splice(port: int, upstream: int) -> None:
    async def handle(reader, writer):
        async def pump(source, sink):
            while data := await source.read(65_536):
                sink.write(data)
            sink.close()

        there, back = await asyncio.open_connection("127.0.0.1", upstream)
        await asyncio.gather(pump(reader, back), pump(there, writer))

    await asyncio.start_server(handle, "127.0.0.1", port)


async def main(role: str, argv: list[str]) -> None:
    done = asyncio.Event()
    if fault(role) == "deaf":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    else:
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, done.set)
    if fault(role) == "exit":
        print(f"{role} has its reasons")
        raise SystemExit(9)
    playing = asyncio.create_task(play(role, argv))
    waiting = asyncio.create_task(done.wait())
    await asyncio.wait({playing, waiting}, return_when=asyncio.FIRST_COMPLETED)
    if playing.done():
        playing.result()
    await waiting
    # Each reports its end, so that the order is seen.
    print(f"{role} ends")


if __name__ == "__main__":
    role, *rest = sys.argv[1:]
    if role == "up":
        sys.exit(orchestrate(rest))
    asyncio.run(main(role, rest))
