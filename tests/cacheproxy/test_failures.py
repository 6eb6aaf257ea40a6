"""What clients see when something breaks, is slow, is too much, or is told to stop."""

from __future__ import annotations

import contextlib
import re
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import urlopen

import pytest
import redis
from support.requirements import missing
from support.servers import RedisServer, free_port

from .proxy import Proxy, Raw, clients_of, encode, eventually

Start = Callable[..., Proxy]

LOADING = b"-LOADING nexus: upstream is not reachable\r\n"
LOST = b"-NEXUSDOWN upstream lost, the command may have run\r\n"


def test_redis_down_at_start_then_up(
    proxy_factory: Start, redis_factory: Callable[..., object]
) -> None:
    port = free_port()
    proxy = proxy_factory(f"redis://127.0.0.1:{port}")
    with proxy.raw() as raw:
        raw.write(encode("GET", "a") * 3 + encode("NEXUS", "X") + encode("EVAL", "return 1", 0))
        assert raw.replies(3) == [LOADING] * 3
        assert raw.reply().startswith(b"-ERR unknown subcommand")
        assert raw.reply() == LOADING
        assert raw.ask("MULTI") == LOADING
        raw.write(encode("SET", "big", b"x" * 300_000) + encode("PING"))
        assert raw.replies(2) == [LOADING, LOADING]
        redis_factory(port=port)
        up = time.monotonic()
        while raw.ask("PING") != b"+PONG\r\n":
            assert time.monotonic() - up < 5
            time.sleep(0.01)
        assert time.monotonic() - up < 1.5
        assert raw.ask("EVAL", "return 1", 0) == b":1\r\n"


def test_an_outage_is_two_lines_and_ready_tells_it(
    proxy_factory: Start, redis_factory: Callable[..., RedisServer]
) -> None:
    """However many connections notice it: three databases are three shared connections."""
    server = redis_factory()
    proxy = proxy_factory(server.url)

    def ready() -> tuple[int, str]:
        try:
            with urlopen(f"http://127.0.0.1:{proxy.admin_port}/ready", timeout=5) as answer:
                return answer.status, answer.read().decode()
        except HTTPError as error:
            return error.code, error.read().decode()

    assert ready()[0] == 200
    with proxy.raw() as first, proxy.raw() as second, proxy.raw() as third:
        for database, raw in enumerate((first, second, third)):
            assert raw.ask("SELECT", database) == b"+OK\r\n"
            assert raw.ask("PING") == b"+PONG\r\n"
        server.kill()
        assert eventually(lambda: ready()[0] == 503)
        assert '"reason": "redis is away for ' in ready()[1]
        assert first.ask("PING") == LOADING  # it goes on to answer
        server.start()
        assert eventually(lambda: ready()[0] == 200)
        assert eventually(lambda: "redis is back" in proxy.log)
        for raw in (first, second, third):
            assert eventually(lambda raw=raw: raw.ask("PING") == b"+PONG\r\n")
    lines = [line for line in proxy.log.splitlines() if re.search("redis (lost|is)", line)]
    assert ["lost" in line for line in lines] == [True, False], proxy.log


def test_redis_killed_under_load_and_restarted(
    proxy_factory: Start, redis_factory: Callable[..., object]
) -> None:
    server = redis_factory()
    proxy = proxy_factory(server.url)  # type: ignore[attr-defined]
    stop = threading.Event()
    wrong: list[bytes] = []
    seen: set[bytes] = set()

    def work(number: int) -> None:
        with proxy.raw() as raw:
            turn = 0
            while not stop.is_set():
                turn += 1
                tags = [f"{number}-{turn}-{i}" for i in range(8)]
                raw.write(b"".join(encode("ECHO", tag) for tag in tags))
                for tag in tags:
                    got = raw.reply()
                    if got in (LOADING, LOST):
                        seen.add(got)
                    elif got != b"$%d\r\n%b\r\n" % (len(tag), tag.encode()):
                        wrong.append(got)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(6)]
    for thread in threads:
        thread.start()
    for _ in range(3):
        time.sleep(0.3)
        server.kill()  # type: ignore[attr-defined]
        time.sleep(0.2)
        server.start()  # type: ignore[attr-defined]
        with proxy.raw() as raw:
            assert eventually(lambda raw=raw: raw.ask("PING") == b"+PONG\r\n", 1.5)  # type: ignore[misc]
    stop.set()
    for thread in threads:
        thread.join(10)
        assert not thread.is_alive()
    assert not wrong
    assert LOADING in seen
    assert proxy.stats()["clients"] == "1"


def test_outstanding_commands_of_a_killed_redis_fail_clearly(
    proxy_factory: Start, redis_factory: Callable[..., object]
) -> None:
    server = redis_factory()
    proxy = proxy_factory(server.url)  # type: ignore[attr-defined]
    with proxy.raw() as shared, proxy.raw() as blocked, proxy.raw() as watching:
        assert watching.ask("WATCH", "k") == b"+OK\r\n"
        blocked.send("BLPOP", "q", 0)
        url = server.url  # type: ignore[attr-defined]
        assert eventually(lambda: any(c["cmd"] == "blpop" for c in clients_of(url)))
        assert shared.ask("PING") == b"+PONG\r\n"
        server.signal(signal.SIGSTOP)  # type: ignore[attr-defined]
        shared.write(encode("INCR", "a") * 2 + encode("NEXUS", "X"))
        assert shared.silent()
        server.kill()  # type: ignore[attr-defined]
        assert shared.replies(2) == [LOST, LOST]
        assert shared.reply().startswith(b"-ERR unknown subcommand")
        assert blocked.reply() == LOST
        assert watching.rest() == b""  # the WATCH is gone, and a closed connection says so
        server.start()  # type: ignore[attr-defined]
        assert eventually(lambda: blocked.ask("PING") == b"+PONG\r\n", 2)


def test_a_reply_cut_in_the_middle_closes_only_its_client(proxy_factory: Start) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(60)
        accepted: list[socket.socket] = []

        def serve() -> None:
            with contextlib.suppress(OSError):  # the listener is closed in the end
                while True:
                    peer, _ = listener.accept()
                    accepted.append(peer)
                    peer.recv(1000)
                    peer.sendall(b"+PONG\r\n")

        threading.Thread(target=serve, daemon=True).start()
        proxy = proxy_factory(f"redis://127.0.0.1:{listener.getsockname()[1]}")
        assert eventually(lambda: len(accepted) >= 1)
        with proxy.raw() as one, proxy.raw() as two:
            one.send("GET", "a")
            time.sleep(0.1)
            two.send("GET", "b")
            time.sleep(0.1)
            accepted[0].recv(1000)
            accepted[0].sendall(b"$10\r\nhalf")
            time.sleep(0.1)
            accepted[0].close()
            with pytest.raises((EOFError, ConnectionResetError)):
                one.reply()
            assert two.reply() == LOST
    for peer in accepted:
        peer.close()


def test_an_upstream_that_speaks_nonsense_is_dropped(proxy_factory: Start) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(60)

        def serve() -> None:
            with contextlib.suppress(OSError):  # the listener is closed in the end
                while True:
                    peer, _ = listener.accept()
                    peer.recv(1000)
                    peer.sendall(b"+PONG\r\n")
                    peer.recv(1000)
                    peer.sendall(b"?what\r\n")
                    peer.recv(1000)
                    peer.close()

        threading.Thread(target=serve, daemon=True).start()
        proxy = proxy_factory(f"redis://127.0.0.1:{listener.getsockname()[1]}")
        with proxy.raw() as raw:
            assert raw.ask("GET", "a") == LOST
        assert eventually(lambda: "not RESP" in proxy.log)


def test_what_is_behind_a_refused_multi_never_runs(
    proxy_factory: Start, redis_server: object
) -> None:
    proxy = proxy_factory(
        redis_server.url,  # type: ignore[attr-defined]
        NEXUS_CACHEPROXY_LIMITS__MAX_DEDICATED="1",
    )
    with proxy.raw() as hog, proxy.raw() as raw, proxy.raw() as other:
        hog.send("BLPOP", "never", 0)
        assert eventually(lambda: proxy.stats()["upstream_pinned_connections"] == "1")
        # WATCH makes it one that cannot go down the shared connection in one piece.
        raw.write(encode("MULTI") + encode("SET", "torn", "1") + encode("WATCH", "x"))
        assert raw.reply().startswith(b"-NEXUSLIMIT")
        assert raw.rest() == b""
        assert other.ask("EXISTS", "torn") == b":0\r\n"
        # Alone it is an error like any other.
        assert other.ask("MULTI").startswith(b"-NEXUSLIMIT")
        assert other.ask("PING") == b"+PONG\r\n"


def test_big_values_stream_and_block_nobody(proxy: Proxy) -> None:
    size = 24_000_000
    value = bytes(range(256)) * (size // 256)
    with proxy.raw() as raw, proxy.raw() as other:
        data = encode("SET", "big", value)
        raw.write(data[:1_000_000])
        assert other.ask("PING") == b"+PONG\r\n"  # an unfinished SET is in nobody's way
        raw.write(data[1_000_000:] + encode("STRLEN", "big"))
        assert raw.replies(2) == [b"+OK\r\n", b":%d\r\n" % len(value)]
        header = b"$%d\r\n" % len(value)
        assert raw.ask("GET", "big") == header + value + b"\r\n"
        raw.write(encode("GET", "big") + encode("PING"))
        assert raw.replies(2) == [header + value + b"\r\n", b"+PONG\r\n"]
        assert int(proxy.stats()["upstream_pinned_connections"]) >= 1
    worker = _worker(proxy)
    peak = next(
        line for line in Path(f"/proc/{worker}/status").read_text().splitlines() if "VmHWM" in line
    )
    assert int(peak.split()[1]) < 200_000, peak


def _worker(proxy: Proxy) -> int:
    pid = proxy.process.pid
    return int(Path(f"/proc/{pid}/task/{pid}/children").read_text().split()[-1])


def test_a_slow_reader_is_held_back_and_hurts_nobody(proxy: Proxy) -> None:
    with proxy.raw() as slow, proxy.raw() as other:
        other.ask("SET", "v", b"x" * 50_000)
        data = encode("GET", "v") * 2000  # 100 MB of replies
        writer = threading.Thread(target=slow.write, args=(data,))
        writer.start()
        began = time.monotonic()
        for _ in range(50):
            assert other.ask("PING") == b"+PONG\r\n"
        assert time.monotonic() - began < 5
        expected = b"$50000\r\n" + b"x" * 50_000 + b"\r\n"
        for _ in range(2000):
            assert slow.reply() == expected
        writer.join(10)


BIG = 16_000_000
#: Held for a client that reads nothing: socket buffers of the kernel are not the proxy's.
HELD = 8_000_000


def _resident(proxy: Proxy) -> int:
    """Bytes."""
    status = Path(f"/proc/{_worker(proxy)}/status").read_text()
    return int(status.split("VmRSS:")[1].split()[0]) * 1024


def test_a_first_big_reply_is_read_no_faster_than_its_client_reads(
    proxy_factory: Start, redis_factory: Callable[..., RedisServer]
) -> None:
    server = redis_factory()
    proxy = proxy_factory(server.url)
    expected = b"$%d\r\n" % BIG + b"x" * BIG + b"\r\n"
    with proxy.raw() as other:
        other.ask("SET", "big", b"x" * BIG)
        before = _resident(proxy)
        with proxy.raw() as slow:
            slow.send("GET", "big")
            assert eventually(lambda: proxy.stats()["upstream_retired"] == "1")
            # Everybody else is on another connection, and nothing is piling up.
            for number in range(100):
                assert other.ask("ECHO", number) == b"$%d\r\n%d\r\n" % (len(str(number)), number)
            assert _resident(proxy) - before < HELD
            assert slow.reply() == expected
            assert slow.ask("ECHO", "hi") == b"$2\r\nhi\r\n"
        # A client that goes away in the middle: the rest is read and dropped, the link closed.
        with proxy.raw() as gone:
            gone.send("GET", "big")
            assert eventually(lambda: proxy.stats()["upstream_retired"] == "2")
        with redis.Redis.from_url(server.url) as direct:
            # The shared connection, the warm one of the first client, and the asking one.
            assert eventually(lambda: len(direct.client_list()) <= 3)
        assert other.ask("PING") == b"+PONG\r\n"


def test_replies_behind_a_big_one_wait_a_bounded_time(
    proxy_factory: Start, redis_factory: Callable[..., RedisServer]
) -> None:
    server = redis_factory()
    proxy = proxy_factory(server.url)
    with proxy.raw() as slow, proxy.raw() as behind:
        behind.ask("SET", "big", b"x" * BIG)
        slow.ask("PING")
        server.signal(signal.SIGSTOP)
        try:
            slow.send("GET", "big")
            assert eventually(lambda: "shared=1" in proxy.stats()["group_string"])
            behind.send("ECHO", "behind")
            time.sleep(0.1)
        finally:
            server.signal(signal.SIGCONT)
        assert behind.reply() == b"$6\r\nbehind\r\n"
        assert slow.reply() == b"$%d\r\n" % BIG + b"x" * BIG + b"\r\n"


def test_output_limit_closes_the_reader_only(proxy_factory: Start, redis_server: object) -> None:
    proxy = proxy_factory(
        redis_server.url,  # type: ignore[attr-defined]
        NEXUS_CACHEPROXY_LIMITS__OUTPUT_BYTES="1000000",
    )
    with proxy.raw() as slow, proxy.raw() as other:
        other.ask("SET", "v", b"x" * 200_000)
        slow.write(encode("GET", "v") * 200)
        assert eventually(lambda: proxy.stats()["clients_closed_output_limit"] == "1")
        assert other.ask("PING") == b"+PONG\r\n"
        with pytest.raises((EOFError, ConnectionResetError)):
            slow.replies(200)


def test_client_limit(proxy_factory: Start, redis_server: object) -> None:
    proxy = proxy_factory(redis_server.url, NEXUS_CACHEPROXY_LIMITS__MAX_CLIENTS="3")  # type: ignore[attr-defined]
    raws = [proxy.raw() for _ in range(3)]
    assert [raw.ask("PING") for raw in raws] == [b"+PONG\r\n"] * 3
    with proxy.raw() as extra:
        assert extra.rest() == b"-ERR max number of clients reached\r\n"
    raws.pop().close()
    assert eventually(lambda: _pings(proxy))
    for raw in raws:
        raw.close()


def _pings(proxy: Proxy) -> bool:
    with proxy.raw() as raw:
        try:
            return raw.ask("PING") == b"+PONG\r\n"
        except (EOFError, OSError):
            return False


def test_idle_clients_are_closed_blocked_ones_are_not(
    proxy_factory: Start, redis_server: object
) -> None:
    proxy = proxy_factory(redis_server.url, NEXUS_CACHEPROXY_LIMITS__IDLE_TIMEOUT_SECONDS="1")  # type: ignore[attr-defined]
    with proxy.raw() as idle, proxy.raw() as blocked, proxy.raw() as subscribed:
        idle.ask("PING")
        subscribed.ask("SUBSCRIBE", "c")
        blocked.send("BLPOP", "never", 0)
        began = time.monotonic()
        assert idle.rest() == b""
        assert 0.5 < time.monotonic() - began < 6
        assert blocked.silent()
        assert subscribed.silent()


_SPIN = """
local function now() local t = redis.call('TIME') return t[1] + t[2] / 1000000 end
local began = now()
while now() < began + 0.5 do end
return 1
"""


def test_drain_delivers_outstanding_replies(
    proxy_factory: Start, redis_factory: Callable[..., object]
) -> None:
    server = redis_factory()
    proxy = proxy_factory(server.url)  # type: ignore[attr-defined]
    with proxy.raw() as raw, proxy.raw() as sleeper, proxy.raw() as blocked:
        assert raw.ask("SET", "a", 1) == b"+OK\r\n"
        blocked.send("BLPOP", "never", 0)
        assert blocked.silent()
        # Half a second of work; DEBUG SLEEP would need a setting that 6.2 does not have.
        sleeper.send("EVAL", _SPIN, 0)
        time.sleep(0.1)
        raw.write(encode("INCR", "a") * 3)
        time.sleep(0.1)
        proxy.process.send_signal(signal.SIGTERM)
        assert raw.replies(3) == [b":2\r\n", b":3\r\n", b":4\r\n"]
        assert raw.rest() == b""
        assert sleeper.reply() == b":1\r\n"
        assert blocked.rest() == b""
        assert proxy.stop(5) == 0


def test_users_are_kept_apart(proxy_factory: Start, redis_factory: Callable[..., object]) -> None:
    server = redis_factory("--requirepass", "secret")
    with redis.Redis(port=server.port, password="secret") as direct:  # type: ignore[attr-defined]
        direct.execute_command("ACL", "SETUSER", "bob", "on", ">pw", "~bob:*", "+@all")
    proxy = proxy_factory(server.url)  # type: ignore[attr-defined]
    with proxy.raw() as raw, proxy.raw() as bob, proxy.raw() as nobody:
        assert nobody.ask("GET", "a").startswith(b"-NOAUTH")
        assert raw.ask("AUTH", "wrong").startswith(b"-WRONGPASS")
        assert raw.ask("GET", "a").startswith(b"-NOAUTH")
        assert raw.ask("AUTH", "secret") == b"+OK\r\n"
        assert raw.ask("SET", "a", 1) == b"+OK\r\n"
        assert bob.ask("HELLO", 3, "AUTH", "bob", "pw", "SETNAME", "b").startswith(b"%7")
        assert bob.ask("GET", "a").startswith(b"-NOPERM")
        assert bob.ask("SET", "bob:1", 1) == b"+OK\r\n"
        assert bob.ask("ACL", "WHOAMI") == b"$3\r\nbob\r\n"
        assert bob.ask("EVAL", "return redis.call('get', 'bob:1')", 0) == b"$1\r\n1\r\n"
        assert raw.ask("ACL", "WHOAMI") == b"$7\r\ndefault\r\n"
        assert nobody.ask("GET", "a").startswith(b"-NOAUTH")
        assert bob.ask("RESET") == b"+RESET\r\n"
        assert bob.ask("GET", "bob:1").startswith(b"-NOAUTH")
        assert raw.ask("SELECT", 2) == b"+OK\r\n"
        assert raw.ask("GET", "a") == b"$-1\r\n"


def test_url_with_password_db_and_unix_socket(
    proxy_factory: Start, redis_factory: Callable[..., object], tmp_path: Path
) -> None:
    path = tmp_path / "redis.sock"
    server = redis_factory("--requirepass", "p@ss", "--unixsocket", str(path))
    for url in (
        f"redis://:p%40ss@127.0.0.1:{server.port}/2",  # type: ignore[attr-defined]
        f"unix://:p%40ss@{path}?db=2",
    ):
        proxy = proxy_factory(url)
        with proxy.raw() as raw:
            assert raw.ask("SET", "where", "db2") == b"+OK\r\n"
            assert raw.ask("EVAL", "return redis.call('get', 'where')", 0) == b"$3\r\ndb2\r\n"
            assert raw.ask("SELECT", 0) == b"+OK\r\n"
            assert raw.ask("GET", "where") == b"$-1\r\n"
        assert "p@ss" not in proxy.log
        assert "p%40ss" not in proxy.log


def test_tls_upstream(
    proxy_factory: Start, redis_factory: Callable[..., object], tmp_path: Path
) -> None:
    key, certificate = tmp_path / "key.pem", tmp_path / "cert.pem"
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"),
            *("-keyout", str(key), "-out", str(certificate), "-subj", "/CN=127.0.0.1"),
            *("-addext", "subjectAltName=IP:127.0.0.1"),
        ],
        check=True,
        capture_output=True,
    )
    port = free_port()
    try:
        redis_factory(
            *("--tls-port", str(port), "--tls-cert-file", str(certificate)),
            *("--tls-key-file", str(key), "--tls-ca-cert-file", str(certificate)),
            *("--tls-auth-clients", "no"),
        )
    except RuntimeError:
        missing("this redis-server was built without TLS")
    proxy = proxy_factory(f"rediss://127.0.0.1:{port}?ssl_ca_certs={certificate}")
    with proxy.raw() as raw:
        assert raw.ask("SET", "a", b"x" * 200_000) == b"+OK\r\n"
        assert raw.ask("GET", "a") == b"$200000\r\n" + b"x" * 200_000 + b"\r\n"
        raw.write(encode("BLPOP", "none", "0.05") + encode("PING"))
        assert raw.replies(2) == [b"*-1\r\n", b"+PONG\r\n"]
    refused = proxy_factory(f"rediss://127.0.0.1:{port}")
    with refused.raw() as raw:
        assert raw.ask("PING") == LOADING
    assert eventually(lambda: "certificate" in refused.log)


def test_dedicated_connections_are_reused(proxy: Proxy, redis_server: object) -> None:
    before = len(clients_of(redis_server.url))  # type: ignore[attr-defined]
    with proxy.raw() as raw:
        for turn in range(50):
            assert raw.ask("EVAL", "return ARGV[1]", 0, turn).endswith(b"%d\r\n" % turn)
            assert raw.ask("SET", "a", turn) == b"+OK\r\n"
    assert len(clients_of(redis_server.url)) <= before + 2  # type: ignore[attr-defined]
    assert int(proxy.stats()["upstream_warm_connections"]) >= 1


def test_killing_the_shared_connection_heals_at_once(proxy: Proxy) -> None:
    with proxy.raw() as raw:
        assert raw.ask("PING") == b"+PONG\r\n"
        with proxy.raw() as killer:
            killer.send("CLIENT", "KILL", "TYPE", "normal")
            killer.reply()
        assert eventually(lambda: raw.ask("PING") == b"+PONG\r\n", 2)


def test_raw_protocol_error_of_a_streamed_command(proxy: Proxy) -> None:
    with Raw(proxy.host, proxy.port) as raw:
        raw.write(b"*3\r\n$3\r\nSET\r\n$1\r\na\r\n$100000\r\n" + b"x" * 100_000 + b"\r\n")
        assert raw.reply() == b"+OK\r\n"
        raw.write(b"*3\r\n$3\r\nSET\r\n$100000\r\n" + b"x" * 100_000 + b"\r\n$x\r\n")
        assert raw.rest() == b"-ERR Protocol error: invalid bulk length\r\n"


def test_a_server_without_exec_never_queues_other_clients(
    proxy_factory: Start, redis_factory: Callable[..., object]
) -> None:
    server = redis_factory("--rename-command", "EXEC", "")
    proxy = proxy_factory(server.url)  # type: ignore[attr-defined]
    with proxy.raw() as raw, proxy.raw() as other:
        assert other.ask("SET", "a", 1) == b"+OK\r\n"
        # The second MULTI is on its way before the first EXEC is answered: it must not be believed.
        raw.write((encode("MULTI") + encode("INCR", "n") + encode("EXEC")) * 2)
        assert raw.replies(2) == [b"+OK\r\n", b"+QUEUED\r\n"]
        assert re.match(b"-ERR unknown command ['`]EXEC['`]", raw.reply())
        assert raw.replies(3) == [LOST] * 3
        answers = {other.ask("GET", "a") for _ in range(50)}
        assert answers <= {b"$1\r\n1\r\n", LOST}
        assert other.ask("GET", "a") == b"$1\r\n1\r\n"
