"""Hot keys: a longer life once in a window, up to the cap; NEXUS HOTKEYS over two workers."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest
import redis

from nexus.cacheproxy.hotkeys import MOST_KEYS, HotBoard, HotKey

from .proxy import Proxy, eventually

POLICY = """\
policies:
  - match: GET
    keys: "short:*"
    hot: {threshold: 2, window_seconds: 0.2, extend_seconds: 1, max_total_seconds: 1.5}
  - match: GET
    keys: "never:*"
    near_cache: never
    hot: {threshold: 3}
  - match: GET
    keys: "fixed:*"
    hot: {extend_seconds: 0}
  - match: GET
    ttl: 60
"""


@pytest.fixture(scope="module")
def hot(
    backend: str, redis_server: object, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Proxy]:
    path = tmp_path_factory.mktemp("hot") / "policy.yaml"
    path.write_text(POLICY)
    url = redis_server.url  # type: ignore[attr-defined]
    proxy = Proxy(url, "--policy", str(path), "--workers", "2", backend=backend)
    yield proxy
    proxy.stop()


@pytest.fixture
def direct(redis_server: object) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(redis_server.url, protocol=2) as client:  # type: ignore[attr-defined]
        client.flushall()
        yield client


def test_ten_reads_make_sixty_seconds_a_hundred_and_eighty(hot: Proxy, direct: redis.Redis):
    direct.set("k", "v", ex=60)
    with hot.raw() as raw:
        for _ in range(9):
            raw.ask("GET", "k")
        time.sleep(0.1)
        assert direct.ttl("k") <= 60
        raw.ask("GET", "k")
        assert eventually(lambda: direct.pttl("k") > 170_000)
        for _ in range(50):
            assert raw.ask("GET", "k") == b"$1\r\nv\r\n"
        time.sleep(0.2)
        # Once in a window.
        assert 170_000 < direct.pttl("k") <= 180_000
    first, last, ends = direct.get("nexus:hot:{k}").split()
    assert first == last
    assert abs(int(ends) - time.time() * 1000 - direct.pttl("k")) < 1000


def test_a_key_without_a_time_to_live_keeps_none(hot: Proxy, direct: redis.Redis):
    direct.set("k2", "v")
    direct.set("fixed:1", "v", ex=60)
    with hot.raw() as raw:
        for _ in range(20):
            raw.ask("GET", "k2")
            raw.ask("GET", "fixed:1")
            raw.ask("GET", "missing")
    time.sleep(0.2)
    assert direct.ttl("k2") == -1
    assert direct.ttl("fixed:1") <= 60
    assert not direct.keys("nexus:hot:*")


def test_a_key_without_a_time_to_live_is_left_alone_until_it_has_one(
    hot: Proxy, direct: redis.Redis
):
    def scripts() -> int:
        return int(direct.info("commandstats").get("cmdstat_eval", {"calls": 0})["calls"])

    direct.set("short:2", "v")
    before = scripts()
    with hot.raw() as raw:
        until = time.monotonic() + 1.5  # seven windows, and an answer between two reads
        while time.monotonic() < until:
            raw.ask("GET", "short:2")
            time.sleep(0.01)
        assert 1 <= scripts() - before <= 3
        direct.set("short:2", "v", px=900)
        while raw.ask("GET", "short:2") != b"$-1\r\n" and not direct.get("nexus:hot:{short:2}"):
            time.sleep(0.01)
        assert direct.get("nexus:hot:{short:2}")


def test_it_dies_at_the_cap(hot: Proxy, direct: redis.Redis):
    direct.set("short:1", "v", px=500)
    began = time.monotonic()
    with hot.raw() as raw:
        while raw.ask("GET", "short:1") != b"$-1\r\n":
            assert time.monotonic() - began < 10
            time.sleep(0.01)
    lived = time.monotonic() - began
    # Without the growth it would have been 0.5 s, without the cap for ever.
    assert 1.3 < lived < 2.5, lived


def test_a_key_that_is_never_kept_is_prolonged_too(hot: Proxy, direct: redis.Redis):
    direct.set("never:1", "v", ex=60)
    with hot.raw() as raw:
        for _ in range(3):
            raw.ask("GET", "never:1")
        assert eventually(lambda: direct.ttl("never:1") > 170)


def test_hotkeys_lists_the_most_read_of_all_workers(hot: Proxy, direct: redis.Redis):
    direct.mset({"never:a": 1, "never:b": 1})

    def shown() -> list[str]:
        with hot.raw() as raw:
            reply = raw.ask("NEXUS", "HOTKEYS", 50).decode()
        return reply.split("\r\n")[1:-2]

    # Connections are spread over both workers.
    raws = [hot.raw() for _ in range(8)]

    def both_are_shown() -> bool:
        # Read again each time: on a busy machine the first reads may be counted as old already.
        for raw in raws:
            for _ in range(40):
                raw.ask("GET", "never:a")
            for _ in range(12):
                raw.ask("GET", "never:b")
        return sum("key=never:" in line for line in shown()) >= 2

    assert eventually(both_are_shown)
    assert eventually(
        lambda: shown()[0].startswith("db=0 reads=") and shown()[0].endswith("key=never:a")
    )
    with hot.raw() as raw:
        one = raw.ask("NEXUS", "HOTKEYS", 1).decode().split("\r\n")[1:-2]
        assert len(one) == 1
        assert raw.ask("NEXUS", "HOTKEYS", "x").startswith(b"-ERR expected a count")
    for raw in raws:
        raw.close()
    assert int(hot.stats()["hot_keys_prolonged"]) >= 2


def test_a_user_of_its_own_is_prolonged_by_the_proxys(hot: Proxy, direct: redis.Redis):
    direct.execute_command("ACL", "SETUSER", "reader", "on", ">pw", "~*", "+get", "+select")
    try:
        direct.set("acl", "v", ex=60)
        with hot.raw() as raw:
            raw.ask("AUTH", "reader", "pw")
            for _ in range(10):
                assert raw.ask("GET", "acl") == b"$1\r\nv\r\n"
            assert eventually(lambda: direct.ttl("acl") > 170)
    finally:
        direct.execute_command("ACL", "DELUSER", "reader")


def test_the_board_adds_up_workers_and_survives_half_of_a_write():
    board = HotBoard(2)
    assert board.read() == []
    board.publish(0, [HotKey(0, b"a", 5, 1), HotKey(1, b"a", 9, 0)])
    board.publish(1, [HotKey(0, b"a", 7, 1), HotKey(0, b"\xff", 1, 0)])
    assert board.read() == [HotKey(0, b"a", 12, 2), HotKey(1, b"a", 9, 0), HotKey(0, b"\xff", 1, 0)]
    board._map[10] ^= 255
    assert board.read() == [HotKey(0, b"a", 7, 1), HotKey(0, b"\xff", 1, 0)]
    board.publish(0, [])
    assert MOST_KEYS == 512
