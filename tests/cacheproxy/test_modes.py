"""Shared, pinned, spliced: that every kind of command travels as it must, told as scripts."""

from __future__ import annotations

import time

import pytest
from redis.client import Pipeline
from redis.exceptions import ResponseError

from .proxy import Proxy, Raw, clients_of, encode, eventually


def test_plain_commands_share_one_upstream_connection(proxy: Proxy, redis_server: object) -> None:
    raws = [proxy.raw() for _ in range(20)]
    for index, raw in enumerate(raws):
        assert raw.ask("SET", f"k{index}", index) == b"+OK\r\n"
    for index, raw in enumerate(raws):
        assert raw.ask("GET", f"k{index}") == b"$%d\r\n%d\r\n" % (len(str(index)), index)
    connections = len(clients_of(redis_server.url))  # type: ignore[attr-defined]
    before = int(proxy.stats()["commands_shared"])
    raws[0].write(encode("GET", "k0") * 100)
    assert raws[0].replies(100) == [b"$1\r\n0\r\n"] * 100
    assert int(proxy.stats()["commands_shared"]) - before == 100
    assert len(clients_of(redis_server.url)) <= connections  # type: ignore[attr-defined]
    for raw in raws:
        raw.close()


def test_own_answers_keep_the_clients_order(proxy: Proxy) -> None:
    with proxy.raw() as raw:
        raw.write(encode("SET", "a", 1) + encode("NEXUS", "NONE") + encode("GET", "a"))
        raw.write(encode("NEXUS") + encode("NEXUS", "HELP") + encode("PING"))
        assert raw.reply() == b"+OK\r\n"
        assert raw.reply().startswith(b"-ERR unknown subcommand 'NONE'")
        assert raw.reply() == b"$1\r\n1\r\n"
        assert raw.reply().startswith(b"-ERR wrong number of arguments")
        assert b"+NEXUS <subcommand>. Subcommands are:\r\n+HELP" in raw.reply()
        assert raw.reply() == b"+PONG\r\n"


def test_whole_transaction_goes_shared(proxy: Proxy) -> None:
    before = int(proxy.stats()["pins"])
    with proxy.raw() as raw:
        raw.write(encode("MULTI") + encode("INCR", "n") + encode("INCR", "n") + encode("EXEC"))
        assert raw.replies(4) == [b"+OK\r\n", b"+QUEUED\r\n", b"+QUEUED\r\n", b"*2\r\n:1\r\n:2\r\n"]
        assert int(proxy.stats()["pins"]) == before
        raw.write(encode("MULTI") + encode("INCR", "n") + encode("DISCARD") + encode("GET", "n"))
        assert raw.replies(4) == [b"+OK\r\n", b"+QUEUED\r\n", b"+OK\r\n", b"$1\r\n2\r\n"]
    assert int(proxy.stats()["pins"]) == before + 1


def test_transaction_in_steps_is_pinned_and_given_back(proxy: Proxy) -> None:
    with proxy.raw() as raw, proxy.raw() as other:
        assert raw.ask("MULTI") == b"+OK\r\n"
        assert raw.ask("INCR", "n") == b"+QUEUED\r\n"
        assert other.ask("GET", "n") == b"$-1\r\n"
        assert raw.ask("NEXUS", "STATS").startswith(b"-ERR unknown command")
        assert raw.ask("EXEC").startswith(b"-EXECABORT")
        assert raw.ask("MULTI") == b"+OK\r\n"
        assert raw.ask("INCR", "n") == b"+QUEUED\r\n"
        assert raw.ask("EXEC") == b"*1\r\n:1\r\n"
        assert eventually(lambda: proxy.stats()["upstream_pinned_connections"] == "0")


def test_watch_sees_a_foreign_write(proxy: Proxy) -> None:
    with proxy.raw() as raw, proxy.raw() as other:
        assert raw.ask("WATCH", "k") == b"+OK\r\n"
        assert raw.ask("GET", "k") == b"$-1\r\n"
        assert other.ask("SET", "k", 1) == b"+OK\r\n"
        raw.write(encode("MULTI") + encode("SET", "k", 2) + encode("EXEC"))
        assert raw.replies(3) == [b"+OK\r\n", b"+QUEUED\r\n", b"*-1\r\n"]
        assert raw.ask("WATCH", "k") == b"+OK\r\n"
        assert raw.ask("UNWATCH") == b"+OK\r\n"
        assert other.ask("SET", "k", 3) == b"+OK\r\n"
        raw.write(encode("MULTI") + encode("GET", "k") + encode("EXEC"))
        assert raw.replies(3)[2] == b"*1\r\n$1\r\n3\r\n"


def test_exec_without_multi_keeps_the_watch(proxy: Proxy) -> None:
    with proxy.raw() as raw, proxy.raw() as other:
        assert raw.ask("WATCH", "k") == b"+OK\r\n"
        assert raw.ask("EXEC") == b"-ERR EXEC without MULTI\r\n"
        other.ask("SET", "k", 1)
        assert raw.ask("MULTI") == b"+OK\r\n"
        assert raw.ask("EXEC") == b"*-1\r\n"


def test_blocking_pop_blocks_nobody_else(proxy: Proxy) -> None:
    with proxy.raw() as raw, proxy.raw() as other:
        raw.send("BLPOP", "q", 0)
        assert other.ask("PING") == b"+PONG\r\n"
        assert raw.silent()
        assert other.ask("RPUSH", "q", "x") == b":1\r\n"
        assert raw.reply() == b"*2\r\n$1\r\nq\r\n$1\r\nx\r\n"
        assert raw.ask("PING") == b"+PONG\r\n"


def test_commands_before_and_behind_a_blocking_one_keep_order(proxy: Proxy) -> None:
    with proxy.raw() as raw, proxy.raw() as other:
        raw.write(encode("SET", "a", 1) + encode("BLPOP", "q", 0) + encode("GET", "a"))
        assert raw.reply() == b"+OK\r\n"
        assert raw.silent()
        other.ask("RPUSH", "q", "x")
        assert raw.replies(2) == [b"*2\r\n$1\r\nq\r\n$1\r\nx\r\n", b"$1\r\n1\r\n"]


@pytest.mark.parametrize("half", [True, False], ids=["fin", "rst"])
def test_a_blocked_client_that_goes_away_frees_its_connection(
    proxy: Proxy, redis_server: object, half: bool
) -> None:
    url = redis_server.url  # type: ignore[attr-defined]

    def blocked() -> int:
        return sum(c["cmd"] == "blpop" and "b" in c["flags"] for c in clients_of(url))

    raw = proxy.raw()
    raw.send("BLPOP", "nothing", 0)
    assert eventually(lambda: blocked() == 1)
    if half:
        raw.close()
    else:
        raw.sock.setsockopt(1, 13, b"\1\0\0\0\0\0\0\0")  # SO_LINGER 0: RST
        raw.close()
    assert eventually(lambda: blocked() == 0, 2.0)


def test_xread_is_shared_without_block(proxy: Proxy) -> None:
    with proxy.raw() as raw, proxy.raw() as other:
        other.ask("XADD", "s", "1-1", "f", "v")
        before = int(proxy.stats()["pins"])
        assert raw.ask("XREAD", "STREAMS", "s", "0").startswith(b"*1")
        assert int(proxy.stats()["pins"]) == before
        raw.send("XREAD", "BLOCK", "0", "STREAMS", "s", "$")
        assert raw.silent()
        other.ask("XADD", "s", "2-1", "f", "v")
        assert raw.reply().startswith(b"*1")


def test_pubsub(proxy: Proxy) -> None:
    with proxy.raw() as raw, proxy.raw() as other:
        raw.write(encode("GET", "x") + encode("SUBSCRIBE", "c1", "c2") + encode("PING"))
        assert raw.reply() == b"$-1\r\n"
        assert raw.reply() == b"*3\r\n$9\r\nsubscribe\r\n$2\r\nc1\r\n:1\r\n"
        assert raw.reply() == b"*3\r\n$9\r\nsubscribe\r\n$2\r\nc2\r\n:2\r\n"
        assert raw.reply() == b"*2\r\n$4\r\npong\r\n$0\r\n\r\n"
        assert other.ask("PUBLISH", "c2", "hi") == b":1\r\n"
        assert raw.reply() == b"*3\r\n$7\r\nmessage\r\n$2\r\nc2\r\n$2\r\nhi\r\n"
        raw.send("UNSUBSCRIBE")
        assert len(raw.replies(2)) == 2
        assert raw.ask("GET", "x") == b"$-1\r\n"


def test_select_moves_between_pools_in_order(proxy: Proxy) -> None:
    with proxy.raw() as raw, proxy.raw() as other:
        raw.write(encode("SET", "k", 0) + encode("SELECT", 3) + encode("SET", "k", 3))
        raw.write(encode("GET", "k") + encode("SELECT", 0) + encode("GET", "k"))
        assert raw.replies(6) == [b"+OK\r\n"] * 3 + [b"$1\r\n3\r\n", b"+OK\r\n", b"$1\r\n0\r\n"]
        assert other.ask("GET", "k") == b"$1\r\n0\r\n"
        assert raw.ask("SELECT", 99) == b"-ERR DB index is out of range\r\n"
        assert raw.ask("SELECT", "x").startswith(b"-ERR")
        assert raw.ask("GET", "k") == b"$1\r\n0\r\n"
        raw.ask("SELECT", 3)
        assert raw.ask("BLPOP", "q", "0.01") == b"*-1\r\n"
        raw.send("EVAL", "return redis.call('get', 'k')", 0)
        assert raw.reply() == b"$1\r\n3\r\n"


def test_hello_and_reset(proxy: Proxy) -> None:
    with proxy.raw() as raw, proxy.raw() as other:
        assert raw.ask("HELLO", 3, "SETNAME", "me").startswith(b"%7\r\n")
        raw.ask("HSET", "h", "f", "v")
        assert raw.ask("HGETALL", "h") == b"%1\r\n$1\r\nf\r\n$1\r\nv\r\n"
        assert other.ask("HGETALL", "h") == b"*2\r\n$1\r\nf\r\n$1\r\nv\r\n"
        assert raw.ask("GET", "none") == b"_\r\n"
        assert raw.ask("CLIENT", "GETNAME") == b"$2\r\nme\r\n"
        assert raw.ask("NEXUS", "STATS").startswith(b"=")
        assert raw.ask("HELLO", 9).startswith(b"-NOPROTO")
        assert raw.ask("RESET") == b"+RESET\r\n"
        assert raw.ask("HGETALL", "h") == b"*2\r\n$1\r\nf\r\n$1\r\nv\r\n"
        assert raw.ask("CLIENT", "GETNAME") == b"$-1\r\n"


def test_names_do_not_leak_to_the_next_borrower(proxy: Proxy) -> None:
    with proxy.raw() as one, proxy.raw() as two:
        assert one.ask("CLIENT", "SETNAME", "one") == b"+OK\r\n"
        assert two.ask("CLIENT", "GETNAME") == b"$-1\r\n"
        assert one.ask("CLIENT", "GETNAME") == b"$3\r\none\r\n"
        assert two.ask("CLIENT", "SETNAME", "a b").startswith(b"-ERR Client names cannot contain")
        assert two.ask("CLIENT", "GETNAME") == b"$-1\r\n"


def test_client_id_stays_and_is_real(proxy: Proxy, redis_server: object) -> None:
    with proxy.raw() as raw:
        raw.ask("CLIENT", "SETNAME", "pinned-for-life")
        first = raw.ask("CLIENT", "ID")
        assert raw.ask("CLIENT", "ID") == first
        listed = clients_of(redis_server.url)  # type: ignore[attr-defined]
        assert any(
            c["id"] == first[1:-2].decode() and c["name"] == "pinned-for-life" for c in listed
        )


def test_unknown_command_is_answered_by_redis_and_unpins(proxy: Proxy) -> None:
    with proxy.raw() as raw:
        assert raw.ask("NOSUCH", "x") in (
            b"-ERR unknown command 'NOSUCH', with args beginning with: 'x' \r\n",
            b"-ERR unknown command `NOSUCH`, with args beginning with: `x`, \r\n",  # Redis 6.2
        )
        assert raw.ask("CLIENT", "NOSUCH").startswith(b"-ERR")
        assert raw.ask("PING") == b"+PONG\r\n"
        assert eventually(lambda: proxy.stats()["upstream_pinned_connections"] == "0")


def test_http_in_disguise_is_cut_off(proxy: Proxy) -> None:
    """Redis closes on ``POST`` and ``Host:`` (a browser made to talk to it); so do we."""
    with proxy.raw() as raw:
        raw.write(b"POST / HTTP/1.1\r\nHost: x\r\n\r\nFLUSHALL\r\n")
        assert raw.rest() == b""


def test_client_reply_off_and_skip(proxy: Proxy) -> None:
    with proxy.raw() as raw:
        raw.write(encode("CLIENT", "REPLY", "SKIP") + encode("SET", "a", 1) + encode("GET", "a"))
        assert raw.reply() == b"$1\r\n1\r\n"
        raw.write(encode("CLIENT", "REPLY", "OFF") + encode("SET", "a", 2))
        raw.write(encode("CLIENT", "REPLY", "ON") + encode("GET", "a"))
        assert raw.replies(2) == [b"+OK\r\n", b"$1\r\n2\r\n"]


def test_tracking_pushes_reach_the_client(proxy: Proxy) -> None:
    with proxy.raw() as raw, proxy.raw() as other:
        raw.ask("HELLO", 3)
        assert raw.ask("CLIENT", "TRACKING", "ON") == b"+OK\r\n"
        assert raw.ask("GET", "k") == b"_\r\n"
        other.ask("SET", "k", 1)
        assert raw.reply() == b">2\r\n$10\r\ninvalidate\r\n*1\r\n$1\r\nk\r\n"


def test_a_splice_begins_behind_replayed_state(proxy: Proxy) -> None:
    """The replies to the hidden commands that restore name and db must not reach the client."""
    with proxy.raw() as former:
        former.ask("CLIENT", "SETNAME", "former")
        former.ask("SELECT", 5)
    for turn in range(3):
        with proxy.raw() as raw:
            raw.write(encode("CLIENT", "SETNAME", f"n{turn}") + encode("SELECT", turn))
            raw.write(encode("SET", "here", turn) + encode("CLIENT", "ID") + encode("GET", "here"))
            raw.write(encode("CLIENT", "GETNAME"))
            assert raw.replies(3) == [b"+OK\r\n"] * 3
            assert raw.reply().startswith(b":")
            assert raw.replies(2) == [b"$1\r\n%d\r\n" % turn, b"$2\r\nn%d\r\n" % turn]


def test_monitor(proxy: Proxy) -> None:
    with proxy.raw() as raw, proxy.raw() as other:
        assert raw.ask("MONITOR") == b"+OK\r\n"
        other.ask("SET", "seen", 1)
        assert b'"SET" "seen" "1"' in raw.reply()


def test_script_kill_overtakes_a_running_script(proxy: Proxy) -> None:
    with proxy.raw() as runner, proxy.raw() as other:
        other.ask("CONFIG", "SET", "lua-time-limit", 10)
        runner.send("EVAL", "while true do end", 0)
        time.sleep(0.2)
        assert other.ask("PING").startswith(b"-BUSY")
        assert other.ask("SCRIPT", "KILL") == b"+OK\r\n"
        assert b"Script killed" in runner.reply()
        other.ask("CONFIG", "SET", "lua-time-limit", 5000)


def test_wait_counts_what_was_written_before(proxy: Proxy) -> None:
    with proxy.raw() as raw:
        raw.ask("SET", "a", 1)
        assert raw.ask("WAIT", 0, 100) == b":0\r\n"
        raw.write(encode("MULTI") + encode("WAIT", 0, 100) + encode("EXEC"))
        assert raw.replies(3)[2] == b"*1\r\n:0\r\n"


def test_quit_answers_what_came_before(proxy: Proxy) -> None:
    with proxy.raw() as raw:
        raw.write(encode("SET", "a", 1) + encode("QUIT") + encode("SET", "a", 2))
        assert raw.rest() == b"+OK\r\n+OK\r\n"
    with proxy.raw() as raw:
        assert raw.ask("GET", "a") == b"$1\r\n1\r\n"


def test_end_of_input_delivers_what_is_outstanding(proxy: Proxy) -> None:
    for lines, expected in (
        (b"SET a 1\r\nGET a\r\n", b"+OK\r\n$1\r\n1\r\n"),
        (b"MULTI\r\nINCR n\r\nEXEC\r\n", b"+OK\r\n+QUEUED\r\n*1\r\n:1\r\n"),
        (b"SELECT 2\r\nSET a 5\r\nGET a\r\n", b"+OK\r\n+OK\r\n$1\r\n5\r\n"),
        (b"BLPOP nothing 0\r\n", b""),
        (b"EVAL 'return 7' 0\r\nPING\r\n", b":7\r\n+PONG\r\n"),
        (b"", b""),
    ):
        with proxy.raw() as raw:
            raw.write(lines)
            raw.sock.shutdown(1)
            assert raw.rest() == expected, lines


def test_inline_requests(proxy: Proxy) -> None:
    with proxy.raw() as raw:
        raw.write(b'\r\n  SET  "a b" \'it\\\'s\' \r\nGET "a b"\nPING\r\nGET "\\x61 b"\r\n')
        assert raw.replies(4) == [b"+OK\r\n", b"$4\r\nit's\r\n", b"+PONG\r\n", b"$4\r\nit's\r\n"]


@pytest.mark.parametrize(
    "bad",
    [
        b"*x\r\n",
        b"*2147483648\r\n",
        b"*1\r\nx3\r\nfoo\r\n",
        b"*1\r\n\r\nfoo\r\n",
        b"*1\r\n$-1\r\n",
        b"*1\r\n$+3\r\nfoo\r\n",
        b"*1\r\n$03\r\nfoo\r\n",
        b"*1\r\n$536870913\r\n",
        b'SET "a\r\n',
        b'SET "a"b\r\n',
        b"*" + b"1" * 70_000,
        b"*1\r\n$" + b"1" * 70_000,
        b"A" * 70_000,
    ],
    ids=lambda value: repr(value[:16]),
)
def test_protocol_errors_are_those_of_redis(proxy: Proxy, redis_server: object, bad: bytes) -> None:
    server = redis_server
    answers = []
    for port in (server.port, proxy.port):  # type: ignore[attr-defined]
        with Raw("127.0.0.1", port) as raw:
            raw.write(encode("PING") + bad)
            answers.append(raw.rest())
    assert answers[1] == answers[0]
    assert answers[0].startswith(b"+PONG\r\n-ERR Protocol error: ")


def _bump(pipe: Pipeline) -> None:
    pipe.get("n")
    pipe.multi()
    pipe.incr("n")


def test_redis_py_pipeline_transaction_and_watch(proxy: Proxy) -> None:
    for protocol in (2, 3):
        with proxy.client(protocol=protocol, db=1, decode_responses=True) as client:
            client.flushdb()
            with client.pipeline(transaction=False) as pipe:
                for index in range(500):
                    pipe.set(f"k{index}", index)
                    pipe.get(f"k{index}")
                assert pipe.execute()[1::2] == [str(i) for i in range(500)]
            assert client.transaction(_bump, "n") == [1]
            subscriber = client.pubsub()
            subscriber.subscribe("news")
            assert subscriber.get_message(timeout=5)["type"] == "subscribe"
            client.publish("news", "hello")
            assert subscriber.get_message(timeout=5)["data"] == "hello"
            subscriber.close()
            assert client.blpop(["none"], timeout=1) is None
            client.hset("h", mapping={"a": "1"})
            assert client.hgetall("h") == {"a": "1"}
            with pytest.raises(ResponseError):
                client.incr("h")
