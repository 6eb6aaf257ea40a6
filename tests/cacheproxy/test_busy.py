"""A Redis that is busy with a script or has paused its clients: who waits, who is let through."""

from __future__ import annotations

import signal
from collections.abc import Callable

import pytest

from .proxy import Proxy, Raw, clients_of, encode, eventually

Start = Callable[..., Proxy]


@pytest.fixture
def busy(proxy_factory: Start, redis_factory: Callable[..., object]) -> Proxy:
    """A proxy of a server that calls a script slow after 10 ms."""
    server = redis_factory("--lua-time-limit", "10")
    return proxy_factory(server.url)  # type: ignore[attr-defined]


def _run_for_ever(raw: Raw, asker: Raw) -> None:
    raw.send("EVAL", "while true do end", 0)
    assert eventually(lambda: asker.ask("PING").startswith(b"-BUSY"))


def test_a_script_is_killed_from_another_database(busy: Proxy) -> None:
    with busy.raw() as script, busy.raw() as raw:
        assert raw.ask("SELECT", 9) == b"+OK\r\n"
        _run_for_ever(script, raw)
        assert raw.ask("GET", "k").startswith(b"-BUSY")
        raw.write(encode("SCRIPT", "KILL") + encode("SET", "k", "nine"))
        assert raw.reply() == b"+OK\r\n"
        assert raw.reply().startswith((b"+OK", b"-BUSY"))  # the script dies a moment later
        assert b"killed by user" in script.reply()
        assert eventually(lambda: raw.ask("SET", "k", "nine") == b"+OK\r\n")
        assert raw.ask("SELECT", 0) == b"+OK\r\n"
        assert raw.ask("GET", "k") == b"$-1\r\n"  # nothing ran in the database of the kill


def test_a_transaction_begun_while_busy_is_aborted_as_a_whole(busy: Proxy) -> None:
    with busy.raw() as script, busy.raw() as raw, busy.raw() as killer:
        assert raw.ask("SELECT", 9) == b"+OK\r\n"
        _run_for_ever(script, killer)
        assert raw.ask("MULTI") == b"+OK\r\n"
        assert raw.ask("INCR", "n").startswith(b"-BUSY")
        assert killer.ask("SCRIPT", "KILL") == b"+OK\r\n"
        assert b"killed by user" in script.reply()
        assert raw.ask("INCR", "n") == b"+QUEUED\r\n"
        assert raw.ask("EXEC").startswith(b"-EXECABORT")
        assert raw.ask("GET", "n") == b"$-1\r\n"
        assert raw.ask("PING") == b"+PONG\r\n"


def test_watch_while_busy_is_refused_and_the_client_lives(busy: Proxy) -> None:
    with busy.raw() as script, busy.raw() as raw, busy.raw() as killer:
        assert raw.ask("SELECT", 3) == b"+OK\r\n"
        _run_for_ever(script, killer)
        assert raw.ask("WATCH", "k").startswith((b"-BUSY", b"+OK"))
        assert killer.ask("SCRIPT", "KILL") == b"+OK\r\n"
        assert eventually(lambda: raw.ask("SET", "k", "v") == b"+OK\r\n")


def test_shutdown_closes_the_client_as_redis_does(
    proxy_factory: Start, redis_factory: Callable[..., object]
) -> None:
    server = redis_factory()
    proxy = proxy_factory(server.url)  # type: ignore[attr-defined]
    with proxy.raw() as raw, proxy.raw() as other:
        assert other.ask("PING") == b"+PONG\r\n"
        raw.send("SHUTDOWN", "NOSAVE")
        assert raw.rest() == b""
        assert eventually(lambda: other.ask("PING").startswith(b"-LOADING"))


def test_a_paused_write_holds_up_nobody_elses_reads(proxy: Proxy) -> None:
    with proxy.raw() as raw, proxy.raw() as writer, proxy.raw() as reader:
        for one in (raw, writer, reader):
            assert one.ask("GET", "k") == b"$-1\r\n"
        assert raw.ask("CLIENT", "PAUSE", 60_000, "WRITE") == b"+OK\r\n"
        try:
            writer.send("SET", "k", "v")
            assert writer.silent()
            assert reader.ask("GET", "k") == b"$-1\r\n"
            assert raw.ask("GET", "k") == b"$-1\r\n"
        finally:
            assert raw.ask("CLIENT", "UNPAUSE") == b"+OK\r\n"
        assert writer.reply() == b"+OK\r\n"
        before = int(proxy.stats()["commands_shared"])
        assert reader.ask("GET", "k") == b"$1\r\nv\r\n"
        assert int(proxy.stats()["commands_shared"]) == before + 1


def test_a_pause_that_redis_refuses_changes_nothing(proxy: Proxy) -> None:
    with proxy.raw() as raw:
        assert raw.ask("CLIENT", "PAUSE", 60_000, "NOBODY").startswith(b"-ERR")
        assert raw.ask("CLIENT", "PAUSE", "soon").startswith(b"-ERR")
        before = int(proxy.stats()["commands_shared"])
        assert raw.ask("GET", "k") == b"$-1\r\n"
        assert int(proxy.stats()["commands_shared"]) == before + 1


def test_sync_behind_replayed_state(proxy: Proxy) -> None:
    """Redis refuses SYNC behind a reply that it has not sent: nothing may be replayed in one go."""
    with proxy.raw() as named, proxy.raw() as replica:
        assert named.ask("SELECT", 5) == b"+OK\r\n"  # leaves a warm connection in db 5
        assert named.ask("CLIENT", "SETNAME", "warm") == b"+OK\r\n"
        assert replica.ask("CLIENT", "SETNAME", "replica") == b"+OK\r\n"
        replica.send("SYNC")
        head = replica.sock.recv(65_536)
        while not head.strip(b"\n"):
            head = replica.sock.recv(65_536)
        assert head.lstrip(b"\n").startswith(b"$")


def test_the_name_of_a_client_that_is_gone_is_forgotten(proxy: Proxy, redis_server: object) -> None:
    with proxy.raw() as raw:
        assert raw.ask("CLIENT", "SETNAME", "passing") == b"+OK\r\n"
    url = redis_server.url  # type: ignore[attr-defined]
    assert eventually(lambda: all(client["name"] != "passing" for client in clients_of(url)))


def test_dedicated_connections_are_limited(
    proxy_factory: Start, redis_factory: Callable[..., object]
) -> None:
    server = redis_factory()
    proxy = proxy_factory(
        server.url,  # type: ignore[attr-defined]
        NEXUS_CACHEPROXY_LIMITS__MAX_DEDICATED="2",
    )
    with proxy.raw() as one, proxy.raw() as two, proxy.raw() as three:
        one.send("BLPOP", "a", 0)
        two.send("BLPOP", "b", 0)
        assert eventually(lambda: proxy.stats()["upstream_pinned_connections"] == "2")
        assert three.ask("BLPOP", "c", 1).startswith(b"-NEXUSLIMIT no more dedicated connections")
        assert three.ask("LPUSH", "a", "x") == b":1\r\n"
        assert one.reply() == b"*2\r\n$1\r\na\r\n$1\r\nx\r\n"
        # The connection that is free now serves the next.
        assert three.ask("MULTI") == b"+OK\r\n"
        assert three.ask("EXEC") == b"*0\r\n"
        stats = proxy.stats()
        assert stats["pins_refused"] == "1"
        assert stats["commands_refused"] == "1"
        assert (stats["pins_opened"], stats["pins_reused"]) == ("2", "1")
        assert stats["group_list"] == "shared=1,pinned=2,local=0"


def test_wait_counts_a_real_replica(
    proxy_factory: Start, redis_factory: Callable[..., object]
) -> None:
    primary = redis_factory("--repl-diskless-sync-delay", "0")
    replica = redis_factory("--replicaof", primary.host, str(primary.port))  # type: ignore[attr-defined]
    proxy = proxy_factory(primary.url)  # type: ignore[attr-defined]
    with proxy.raw() as raw:
        assert eventually(lambda: b"state=online" in raw.ask("INFO", "replication"), 15)
        for index in range(20):
            assert raw.ask("SET", "k", index) == b"+OK\r\n"
            # The write went down the shared connection, WAIT goes down a dedicated one.
            assert raw.ask("WAIT", 1, 5_000) == b":1\r\n"
            with Raw(replica.host, replica.port) as direct:  # type: ignore[attr-defined]
                value = str(index).encode()
                assert direct.ask("GET", "k") == b"$%d\r\n%b\r\n" % (len(value), value)


def test_wait_sees_that_a_stopped_replica_has_nothing(
    proxy_factory: Start, redis_factory: Callable[..., object]
) -> None:
    primary = redis_factory("--repl-diskless-sync-delay", "0")
    replica = redis_factory("--replicaof", primary.host, str(primary.port))  # type: ignore[attr-defined]
    proxy = proxy_factory(primary.url)  # type: ignore[attr-defined]
    with proxy.raw() as raw:
        assert eventually(lambda: b"state=online" in raw.ask("INFO", "replication"), 15)
        assert raw.ask("SET", "k", 0) == b"+OK\r\n"
        assert raw.ask("WAIT", 1, 5_000) == b":1\r\n"
        replica.signal(signal.SIGSTOP)  # type: ignore[attr-defined]
        assert raw.ask("SET", "k", 1) == b"+OK\r\n"
        assert raw.ask("WAIT", 1, 100) == b":0\r\n"
        replica.signal(signal.SIGCONT)  # type: ignore[attr-defined]
        assert raw.ask("WAIT", 1, 5_000) == b":1\r\n"
