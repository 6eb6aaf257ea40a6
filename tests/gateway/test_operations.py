"""What an operator does to a running gateway, and clients that take no answers."""

from __future__ import annotations

import asyncio
import json
import signal
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import psutil
from gateway_process import GatewayProcess
from gateway_upstream import Upstream
from support.servers import wait_until

Start = Callable[..., GatewayProcess]


def hang_up(gateway: GatewayProcess) -> None:
    gateway.process.send_signal(signal.SIGHUP)


def paths_in(*files: Path) -> list[str]:
    return [
        json.loads(line)["target"]
        for file in files
        if file.exists()
        for line in file.read_text().splitlines()
    ]


def wait_for(condition: Callable[[], bool], seconds: float = 5) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.02)
    return False


def test_logs_are_rotated_under_load_with_workers(
    start_gateway: Start, upstream_a: Upstream, tmp_path: Path
) -> None:
    """As logrotate does it: rename, SIGHUP; with settings that are broken in the end."""
    access, application = tmp_path / "access.log", tmp_path / "app.log"
    gateway = start_gateway(
        [upstream_a.url],
        workers=2,
        access_log={"enabled": True, "path": str(access)},
        log={"format": "json", "path": str(application)},
    )
    processes = [psutil.Process(gateway.process.pid)]
    processes += processes[0].children()
    sent: Counter[str] = Counter()
    done = threading.Event()

    def load(name: str) -> None:
        while not done.is_set():
            path = f"/api/json?{name}-{sent[name]}"
            assert gateway.request(path).status == 200
            sent[name] += 1

    def holds(file: Path) -> bool:
        return any(str(file) == one.path for process in processes for one in process.open_files())

    threads = [threading.Thread(target=load, args=(name,)) for name in "ab"]
    for thread in threads:
        thread.start()
    for number in (1, 2, 3):
        before = sum(sent.values())
        wait_until(lambda least=before + 10: sum(sent.values()) >= least)  # type: ignore[misc]
        gone = [file.rename(f"{file}.{number}") for file in (access, application)]
        if number == 3:
            gateway.config_file.write_text("rate_limits: {}")
        hang_up(gateway)
        # All of them let go of the old files, also those that write nothing.
        wait_until(lambda files=gone: not any(map(holds, files)))  # type: ignore[misc]
    done.set()
    for thread in threads:
        thread.join()
    assert gateway.stop() == 0

    logged = Counter(
        path
        for path in paths_in(access, *(Path(f"{access}.{number}") for number in (1, 2, 3)))
        if path.startswith("/api/")
    )
    assert logged == Counter(f"/api/json?{name}-{n}" for name in "ab" for n in range(sent[name]))
    messages = [
        [json.loads(line)["message"] for line in Path(file).read_text().splitlines()]
        for file in (f"{application}.2", f"{application}.3", application)
    ]
    assert [lines.count("configuration reloaded") for lines in messages] == [1, 1, 0]
    assert sum("keeping the last good one" in line for line in messages[2]) == 1
    assert gateway.output() == ""


def test_a_rotated_log_and_a_new_path_of_it_lose_no_line(
    start_gateway: Start, upstream_a: Upstream, tmp_path: Path
) -> None:
    first, rotated, second = (tmp_path / name for name in ("a.log", "a.log.1", "b.log"))
    gateway = start_gateway([upstream_a.url], access_log={"enabled": True, "path": str(first)})
    sent = []

    def ask_until_lines_are_in(log: Path) -> None:
        def asked() -> bool:
            sent.append(f"/api/json?n={len(sent)}")
            return gateway.request(sent[-1]).status == 200 and bool(paths_in(log))

        assert wait_for(asked)

    ask_until_lines_are_in(first)
    first.rename(rotated)
    hang_up(gateway)
    ask_until_lines_are_in(first)
    gateway.write_config(gateway.config | {"access_log": {"enabled": True, "path": str(second)}})
    hang_up(gateway)
    ask_until_lines_are_in(second)

    def logged() -> list[str]:
        return [path for path in paths_in(rotated, first, second) if path.startswith("/api/json")]

    assert wait_for(lambda: len(logged()) >= len(sent))
    assert logged() == sent


def test_addresses_become_labels_up_to_the_configured_number(
    start_gateway: Start, upstream_a: Upstream
) -> None:
    gateway = start_gateway(
        [upstream_a.url],
        rate_limit={"enabled": True, "capacity": 1, "refill_per_second": 0.01},
        metrics={"max_address_labels": 0},
    )
    statuses = [gateway.request("/api/json").status for _ in range(3)]
    assert statuses == [200, 429, 429]
    assert 'nexus_rate_limit_hits_total{ip="other"} 2' in gateway.metrics()


def test_whoever_was_accepted_before_the_drain_is_still_answered(
    start_gateway: Start, upstream_a: Upstream
) -> None:
    gateway = start_gateway([upstream_a.url], drain_grace_seconds=0)
    client = gateway.client()
    gateway.process.terminate()
    time.sleep(0.3)
    client.send(b"GET /api/json HTTP/1.1\r\nHost: a\r\n\r\n")
    response = client.read()
    assert (response.status, response.value("connection")) == (200, "close")
    client.close()
    assert gateway.process.wait(5) == 0


def test_a_client_that_takes_no_answer_is_cut_off(
    start_gateway: Start, upstream_a: Upstream
) -> None:
    gateway = start_gateway(
        [upstream_a.url],
        envelope={"enabled": False},
        timeouts={"stream_idle": 1, "keep_alive": 1, "head": 1},
    )
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock.connect(("127.0.0.1", gateway.port))
        sock.sendall(b"GET /api/big/50000000 HTTP/1.1\r\nHost: a\r\n\r\n")
        slow = 'nexus_rejections_total{reason="response_too_slow"} 1'
        assert wait_for(lambda: slow in gateway.metrics())


def test_a_slow_but_steady_reader_gets_everything(
    start_gateway: Start, upstream_a: Upstream
) -> None:
    gateway = start_gateway(
        [upstream_a.url], timeouts={"stream_idle": 0.5, "keep_alive": 1, "head": 1}
    )
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
        sock.connect(("127.0.0.1", gateway.port))
        sock.settimeout(5)
        sock.sendall(b"GET /api/big/3000000 HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
        received = 0
        while data := sock.recv(262_144):
            received += len(data)
            time.sleep(0.02)
    assert received > 3_000_000


def test_lb_stats_add_up_over_workers_and_their_replacements(
    start_gateway: Callable[..., GatewayProcess], upstream_a: Upstream, upstream_b: Upstream
) -> None:
    urls = [upstream_a.url, upstream_b.url]
    gateway = start_gateway(urls, workers=3)

    def handled(kind: str = "requestsHandled") -> int:
        return sum(server[kind] for server in gateway.request("/lb-stats").json["servers"])

    for _ in range(60):
        assert gateway.request("/api/json").status == 200
    wait_until(lambda: handled() == 60)
    asked = {handled() for _ in range(20)}
    assert asked == {60}, "whichever worker is asked"
    holding = [gateway.client() for _ in range(6)]
    for client in holding:
        client.send(b"GET /api/hang HTTP/1.1\r\nHost: a\r\n\r\n")
    wait_until(lambda: handled("activeConnections") == 6, 3)
    for client in holding:
        client.close()
    wait_until(lambda: handled("activeConnections") == 0)
    children = psutil.Process(gateway.process.pid).children()
    children[0].kill()
    wait_until(lambda: not children[0].is_running())
    for _ in range(30):
        assert gateway.request("/api/json").status == 200
    wait_until(lambda: handled() >= 96)


def test_rate_limit_is_exact_over_workers(
    start_gateway: Callable[..., GatewayProcess], upstream_a: Upstream
) -> None:
    rate, burst = 40, 60  # the bucket holds what comes back while a busy machine pauses us
    limit = {"enabled": True, "capacity": burst, "refill_per_second": rate}
    gateway = start_gateway([upstream_a.url], workers=3, rate_limit=limit)

    async def ask(end: float, found: Counter[int]) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
        while time.monotonic() < end:
            writer.write(b"GET /api/json HTTP/1.1\r\nHost: a\r\n\r\n")
            head = await reader.readuntil(b"\r\n\r\n")
            found[int(head[9:12])] += 1
            length = head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0]
            await reader.readexactly(int(length))
        writer.close()

    async def all_of_them(seconds: float) -> tuple[Counter[int], float]:
        found: Counter[int] = Counter()
        begin = time.monotonic()
        await asyncio.gather(*(ask(begin + seconds, found) for _ in range(12)))
        return found, time.monotonic() - begin

    found, took = asyncio.run(all_of_them(2.5))
    assert set(found) == {200, 429}
    assert found[429] > found[200], "they asked for far more than the limit"
    # From the first request to the last one, which came before all was answered.
    assert 0.99 * (burst + rate * 2.5) - 2 <= found[200] <= burst + rate * took + 1, (found, took)
