"""Clients and upstreams that people really use: each client against all of the upstreams."""

from __future__ import annotations

import asyncio
import json
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import aiohttp
import httpx
import pytest
import requests
from aiohttp import WSMsgType, web
from gateway_process import BACKENDS, GatewayProcess, check_backend
from support.servers import free_port, wait_until

#: Requests of each client and method: every upstream several times, on kept connections.
ROUNDS = 12
BODY = b"0123456789abcdef" * 12_500
SERVERS = {"uvicorn", "gunicorn", "node", "nginx"}

ASGI = """
import json
async def app(scope, receive, send):
    if scope["type"] != "http":
        return
    size, more = 0, True
    while more:
        event = await receive()
        size += len(event.get("body", b""))
        more = event.get("more_body", False)
    body = json.dumps({"server": "uvicorn", "length": size}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})
"""

WSGI = """
import json
def app(environ, start_response):
    size = len(environ["wsgi.input"].read())
    body = json.dumps({"server": "gunicorn", "length": size}).encode()
    headers = [("Content-Type", "application/json"), ("Content-Length", str(len(body)))]
    start_response("200 OK", headers)
    return [body]
"""

# No Content-Length: chunked.
NODE_SERVER = """
const http = require('http')
http.createServer((request, response) => {
  let size = 0
  request.on('data', piece => { size += piece.length })
  request.on('end', () => {
    response.setHeader('Content-Type', 'application/json')
    response.write('{"server":"node",')
    response.end(`"length":${size}}`)
  })
}).listen(Number(process.argv[2]), '127.0.0.1')
"""

NODE_CLIENT = """
const [url, rounds, size] = [process.argv[2], Number(process.argv[3]), Number(process.argv[4])]
const answers = []
;(async () => {
  for (let i = 0; i < rounds; i++) {
    answers.push(await (await fetch(url)).json())
    const body = new Blob([new Uint8Array(size)])
    const options = i % 2 ? { body } : { body: body.stream(), duplex: 'half' }
    answers.push(await (await fetch(url, { method: 'POST', ...options })).json())
  }
  console.log(JSON.stringify(answers))
})()
"""

NGINX = """
daemon off; worker_processes 1; pid {directory}/nginx.pid; error_log stderr;
events {{ worker_connections 256; }}
http {{
  access_log off; default_type application/json; client_body_temp_path {directory}/body;
  proxy_temp_path {directory}/proxy; fastcgi_temp_path {directory}/fastcgi;
  uwsgi_temp_path {directory}/uwsgi; scgi_temp_path {directory}/scgi;
  server {{ listen 127.0.0.1:{port}; location / {{ return 200 '{{"server":"nginx"}}'; }} }}
}}
"""


@pytest.fixture(scope="module")
def upstreams(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[str]]:
    for tool in ("node", "nginx"):
        if shutil.which(tool) is None:
            pytest.skip(f"{tool} is not installed")
    directory = tmp_path_factory.mktemp("upstreams")
    ports = {name: free_port() for name in sorted(SERVERS)}
    (directory / "asgi.py").write_text(ASGI)
    (directory / "wsgi.py").write_text(WSGI)
    (directory / "server.js").write_text(NODE_SERVER)
    (directory / "nginx.conf").write_text(NGINX.format(directory=directory, port=ports["nginx"]))
    python = [sys.executable, "-m"]
    commands = [
        [*python, "uvicorn", "asgi:app", "--port", str(ports["uvicorn"]), "--log-level", "error"],
        [
            *(*python, "gunicorn", "wsgi:app", "-b", f"127.0.0.1:{ports['gunicorn']}"),
            *("-k", "gthread", "--threads", "8", "--log-level", "error"),
        ],
        ["node", "server.js", str(ports["node"])],
        ["nginx", "-p", str(directory), "-c", str(directory / "nginx.conf")],
    ]
    with ExitStack() as stack:
        for command in commands:
            process = subprocess.Popen(
                command, cwd=directory, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
            )
            stack.callback(process.wait, 10)
            stack.callback(process.send_signal, signal.SIGTERM)
        for port in ports.values():
            wait_until(lambda port=port: _listens(port), 20, f"a server on {port}")
        yield [f"http://127.0.0.1:{port}" for port in ports.values()]


def _listens(port: int) -> bool:
    with socket.socket() as sock:
        return sock.connect_ex(("127.0.0.1", port)) == 0


@pytest.fixture(scope="module", params=BACKENDS)
def gateway(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    upstreams: list[str],
) -> Iterator[GatewayProcess]:
    check_backend(request.param)
    directory = tmp_path_factory.mktemp(f"real-{request.param}")
    slow = {"breaker": {"enabled": False, "timeout_ms": 5000}}
    process = GatewayProcess(directory, request.param, upstreams, slow).start()
    yield process
    assert process.stop() == 0, process.output()
    assert "Traceback" not in process.output(), process.output()


def judge(answers: list[Any], requests_made: int) -> None:
    """Every request was answered by one of them, in the envelope, and each of them was asked."""
    assert len(answers) == requests_made
    found = [answer["data"] for answer in answers]
    assert {data["server"] for data in found} == SERVERS
    assert {data["length"] for data in found if data["server"] != "nginx"} == {0, len(BODY)}


def url_of(gateway: GatewayProcess) -> str:
    return f"http://127.0.0.1:{gateway.port}/api/who"


def test_curl(gateway: GatewayProcess, tmp_path: Path) -> None:
    (tmp_path / "body").write_bytes(BODY)
    urls = [url_of(gateway)] * ROUNDS
    answers = []
    for options in ([], ["--data-binary", f"@{tmp_path / 'body'}", "-H", "Expect: 100-continue"]):
        command = ["curl", "-sS", "-w", "\n%{num_connects}\n", *options, *urls]
        run = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
        lines = run.stdout.splitlines()
        answers += [json.loads(line) for line in lines[::2]]
        # nginx answers before it has read a body: that ends the connection (RFC 9112 §9.6).
        assert sum(map(int, lines[1::2])) <= (1 + ROUNDS // len(SERVERS) if options else 1), lines
    judge(answers, 2 * ROUNDS)


def test_requests(gateway: GatewayProcess) -> None:
    answers = []
    with requests.Session() as session:
        for number in range(ROUNDS):
            answers.append(session.get(url_of(gateway), timeout=10).json())
            body = BODY if number % 2 else iter([BODY[:70_000], BODY[70_000:]])
            answers.append(session.post(url_of(gateway), data=body, timeout=10).json())
    judge(answers, 2 * ROUNDS)


def test_httpx(gateway: GatewayProcess) -> None:
    answers = []
    with httpx.Client(timeout=10) as client:
        for number in range(ROUNDS):
            answers.append(client.get(url_of(gateway)).json())
            body = BODY if number % 2 else iter([BODY[:70_000], BODY[70_000:]])
            answers.append(client.post(url_of(gateway), content=body).json())
    judge(answers, 2 * ROUNDS)


async def test_aiohttp_many_at_once(gateway: GatewayProcess) -> None:
    async with aiohttp.ClientSession() as session:

        async def ask(method: str) -> Any:
            async with session.request(
                method, url_of(gateway), data=BODY if method == "POST" else None
            ) as response:
                return await response.json()

        answers = await asyncio.gather(*(ask(m) for m in ["GET", "POST"] * ROUNDS))
    judge(list(answers), 2 * ROUNDS)


def test_node_fetch(gateway: GatewayProcess, tmp_path: Path) -> None:
    script = tmp_path / "client.js"
    script.write_text(NODE_CLIENT)
    run = subprocess.run(
        ["node", str(script), url_of(gateway), str(ROUNDS), str(len(BODY))],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    judge(json.loads(run.stdout), 2 * ROUNDS)


# ------------------------------------------------------------------ WebSocket, server-sent events


#: When each event was sent.
SENT: web.AppKey[list[float]] = web.AppKey("sent", list)


async def _chat(request: web.Request) -> web.WebSocketResponse:
    socket = web.WebSocketResponse(protocols=("chat",))
    await socket.prepare(request)
    async for message in socket:
        if message.type == WSMsgType.TEXT:
            if message.data == "close":
                await socket.close(code=4001, message=b"as asked")
            else:
                await socket.send_str(f"{request.headers['x-forwarded-for']} {message.data}")
        elif message.type == WSMsgType.BINARY:
            await socket.send_bytes(message.data[::-1])
    return socket


async def _events(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
    await response.prepare(request)
    for number in range(3):
        await response.write(f"data: {number}\n\n".encode())
        request.app[SENT].append(time.monotonic())
        await asyncio.sleep(0.3)
    return response


@pytest.fixture(params=BACKENDS)
async def live(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    """A gateway in front of an aiohttp server: its base URL without scheme, and the app."""
    check_backend(request.param)
    app = web.Application()
    app[SENT] = []
    app.router.add_get("/chat", _chat)
    app.router.add_get("/events", _events)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    port = runner.addresses[0][1]
    process = GatewayProcess(tmp_path, request.param, [f"http://127.0.0.1:{port}"])
    await asyncio.to_thread(process.start)
    yield f"127.0.0.1:{process.port}/api", app
    await runner.cleanup()
    assert await asyncio.to_thread(process.stop) == 0, process.output()


async def test_websocket_of_aiohttp_both_sides(live: Any) -> None:
    base, _ = live
    blob = bytes(range(256)) * 4096
    async with (
        aiohttp.ClientSession() as session,
        session.ws_connect(f"ws://{base}/chat", protocols=("other", "chat"), max_msg_size=0) as ws,
    ):
        assert ws.protocol == "chat"
        for number in range(20):
            await ws.send_str(f"hello {number}")
            assert await ws.receive_str(timeout=5) == f"127.0.0.1 hello {number}"
        await ws.send_bytes(blob)
        assert await ws.receive_bytes(timeout=5) == blob[::-1]
        await ws.ping(b"still there?")
        await ws.send_str("close")
        message = await ws.receive(timeout=5)
        assert (message.type, message.data, message.extra) == (WSMsgType.CLOSE, 4001, "as asked")


async def test_events_come_when_they_are_sent(live: Any) -> None:
    base, app = live
    async with aiohttp.ClientSession() as session, session.get(f"http://{base}/events") as response:
        assert response.headers["Content-Type"] == "text/event-stream"
        seen = [(line, len(app[SENT])) async for line in response.content if line.strip()]
    # Each was here before the next one was sent.
    assert [line for line, _ in seen] == [b"data: 0\n", b"data: 1\n", b"data: 2\n"]
    assert all(sent <= number + 1 for number, (_, sent) in enumerate(seen)), seen
