"""The Redis script, against a real Redis and a naive model of what it is to decide."""

import uuid

import pytest
import redis as redis_client
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nexus import clock
from nexus.consumer import script
from nexus.consumer.settings import BlockSettings, ConsumerSettings, FlowSettings, SpikeSettings
from nexus.consumer.state import Origin, State
from nexus.errors import UpstreamError
from nexus.net.settings import RedisSettings
from nexus.wire.events import CircuitOpened, RateLimitHit, RequestCompleted

HITS, DONE = "gateway.rate_limit.hit", "gateway.request.completed"


def hit(number, ip, ago_ms=0):
    stamp = clock.iso_utc(clock.wall_ms() - ago_ms)
    return RateLimitHit(emitted_at=stamp, id=f"h-{number}", ip=ip, method="GET", url="/")


def done(number, latency, route="/api/*"):
    return RequestCompleted(
        emitted_at="2026-11-21T10:00:00.000Z",
        id=f"d-{number}",
        method="GET",
        url="/api/x",
        route=route,
        status_code=200,
        latency_ms=latency,
        ip="192.0.2.1",
        worker_id=0,
    )


@pytest.fixture
def plain(redis_server):
    client = redis_client.Redis.from_url(redis_server.url, decode_responses=True)
    client.flushall()
    yield client
    client.close()


@pytest.fixture
async def make(redis_server):
    made = []

    def make(**given):
        state = State(
            ConsumerSettings(
                redis=RedisSettings(url=redis_server.url),
                group=f"g-{uuid.uuid4().hex[:8]}",
                **given,
            )
        )
        made.append(state)
        return state

    yield make
    for state in made:
        await state.close()


async def judge(state, topic, items, committed=0, partition=0):
    events = [(offset, event, None) for offset, event in items]
    answers = await state.judge(topic, partition, committed, events)
    return sorted((a.place, a.what) for a in answers)


async def test_the_fifth_hit_blocks_and_announces(plain, make):
    state = make()
    heard = plain.pubsub(ignore_subscribe_messages=True)
    heard.subscribe("nexus:blocks")
    heard.get_message(timeout=1)
    assert await judge(state, HITS, [(i, hit(i, "192.0.2.7")) for i in range(4)]) == []
    assert plain.keys("nexus:block:*") == []
    assert await judge(state, HITS, [(4, hit(4, "192.0.2.7"))]) == [(0, script.BLOCK)]
    assert 298_000 < plain.pttl("nexus:block:192.0.2.7") <= 300_000
    assert heard.get_message(timeout=2)["data"] == "192.0.2.7"
    heard.close()
    # While it is blocked nothing is counted: the block is not prolonged.
    assert await judge(state, HITS, [(i, hit(i, "192.0.2.7")) for i in range(5, 15)]) == []


async def test_hits_of_more_than_the_window_do_not_add_up(plain, make):
    state = make(block=BlockSettings(hits=3, window_seconds=10))
    events = [hit(1, "192.0.2.7", 25_000), hit(2, "192.0.2.7", 12_000), hit(3, "192.0.2.7", 5000)]
    assert await judge(state, HITS, list(enumerate(events))) == []
    assert await judge(state, HITS, [(3, hit(4, "192.0.2.7", 3000))]) == [(0, script.BLOCK)]


async def test_hits_of_long_ago_make_no_block_now(plain, make):
    state = make()
    old = [(i, hit(i, "192.0.2.7", 400_000)) for i in range(5)]
    assert await judge(state, HITS, old) == []
    assert plain.keys("nexus:block:*") == []


async def test_ipv6_counts_and_blocks_by_64(plain, make):
    state = make()
    answers = await judge(state, HITS, [(i, hit(i, f"2001:db8::{i + 1:x}")) for i in range(5)])
    assert answers == [(4, script.BLOCK)]
    assert plain.keys("nexus:block:*") == ["nexus:block:2001:db8::/64"]


async def test_the_allow_list_and_trusted_proxies_are_never_blocked(plain, make):
    state = make(block=BlockSettings(allow=("10.0.0.0/8",), trusted_proxies=("2001:db8::7/128",)))
    for n, ip in enumerate(["10.1.2.3", "2001:db8::8", "unix"]):
        items = [(n * 10 + i, hit(n * 10 + i, ip)) for i in range(8)]
        assert await judge(state, HITS, items) == []
    assert plain.keys("nexus:block:*") == []
    off = make(block=BlockSettings(enabled=False))
    assert await judge(off, HITS, [(i, hit(i, "192.0.2.9")) for i in range(8)]) == []


async def test_what_is_read_again_changes_nothing_and_gets_the_same_answers(plain, make):
    state = make()
    items = [(i, hit(i, "192.0.2.7")) for i in range(6)]
    events = [(offset, event, None) for offset, event in items]
    first = await state.judge(HITS, 0, 0, events)
    before = {key: plain.dump(key) for key in plain.scan_iter() if ":block:" not in key}
    again = await state.judge(HITS, 0, 0, events)
    assert [a for a in again if a.what != script.REPEATED] == first
    assert [a.what for a in again].count(script.REPEATED) == 5
    after = {key: plain.dump(key) for key in plain.scan_iter() if ":block:" not in key}
    assert after == before
    # Once the group has committed it the verdict is not needed any more.
    await judge(state, HITS, [(6, hit(6, "192.0.2.8"))], committed=6)
    assert [a.what for a in await state.judge(HITS, 0, 6, events[:5])] == [script.REPEATED] * 5


async def test_the_same_id_counts_once_wherever_it_comes(plain, make):
    state = make()
    items = [(i, hit(1, "192.0.2.7")) for i in range(5)]
    assert await judge(state, HITS, items) == [(i, script.DUPLICATE) for i in range(1, 5)]
    assert await judge(state, HITS, items, partition=3) == [(i, script.DUPLICATE) for i in range(5)]


async def test_remembered_ids_are_bounded(plain, make):
    state = make(flow=FlowSettings(remembered_ids=1000))
    for start in range(0, 5000, 500):
        await judge(state, DONE, [(i, done(i, 1.0)) for i in range(start, start + 500)])
    held = [plain.scard(key) for key in plain.keys("*:ids*")]
    assert sum(held) <= 2000
    assert await judge(state, DONE, [(9000, done(4999, 1.0))]) == [(0, script.DUPLICATE)]


async def test_a_replay_of_what_was_done_is_a_duplicate_and_a_dead_letter_is_done_once(plain, make):
    state = make(flow=FlowSettings(remembered_ids=1000))
    await judge(state, HITS, [(i, hit(i, "192.0.2.1")) for i in range(4)])
    for start in range(100, 3100, 500):  # so that the ids are forgotten
        await judge(state, DONE, [(i, done(i, 1.0)) for i in range(start, start + 500)])

    async def replay(at, number, offset, dead):
        event = hit(number, "192.0.2.1")
        origin = Origin(HITS, 0, offset, dead)
        return [a.what for a in await state.judge(HITS, 1, 0, [(at, event, origin)])]

    assert await replay(0, 3, 3, False) == [script.DUPLICATE]
    assert await replay(1, 50, 2, True) == [script.BLOCK]  # the fifth hit
    assert await replay(2, 50, 2, True) == [script.DUPLICATE]


@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.tuples(st.sampled_from("ab"), st.sampled_from([1, 2.5, 10, 31.25, 99, 400]))),
    st.integers(1, 7),
)
async def test_spikes_are_those_of_a_naive_model(make, latencies, step):
    """Compared before inserted, per route, over calls and over every size of batch."""
    state = make(spike=SpikeSettings(factor=3, window=5, min_samples=2))
    windows, wanted = {}, []
    for i, (route, value) in enumerate(latencies):
        window = windows.setdefault(route, [])[-5:]
        if len(window) >= 2 and value > 3 * sum(window) / len(window):
            wanted.append((i, round(sum(window) / len(window), 5), len(window)))
        windows[route].append(value)
    found = []
    for start in range(0, len(latencies), step):
        part = list(enumerate(latencies))[start : start + step]
        events = [(i, done(f"{uuid.uuid4()}", value, route), None) for i, (route, value) in part]
        found += [
            (start + a.place, round(float(a.first), 5), int(a.second))
            for a in await state.judge(DONE, 0, 0, events)
        ]
    assert found == wanted


async def test_no_latency_below_the_floor_is_a_spike(make):
    state = make(spike=SpikeSettings(window=5, min_samples=2, floor_ms=25))
    values = [1.0, 1.0, 24.9, 1.0, 1.0, 25.0]
    events = [(i, done(f"{uuid.uuid4()}", v, "r"), None) for i, v in enumerate(values)]
    assert [a.place for a in await state.judge(DONE, 0, 0, events)] == [5]


async def test_every_opened_circuit_is_an_alert_once(plain, make):
    state = make()
    event = CircuitOpened(
        emitted_at="2026-11-21T10:00:00.000Z", id="c", upstream="http://a:1", method="GET", url="/"
    )
    assert await judge(state, "gateway.circuit.opened", [(0, event), (1, event)]) == [
        (0, script.CIRCUIT),
        (1, script.DUPLICATE),
    ]


async def test_a_log_that_was_made_anew_forgets_its_mark(plain, make):
    state = make()
    await judge(state, HITS, [(700, hit(1, "192.0.2.1"))])
    assert await state.reconcile(HITS, 0, 701) is False
    assert await state.reconcile(HITS, 0, 3) is True
    assert await judge(state, HITS, [(0, hit(2, "192.0.2.1"))]) == []
    assert int(plain.get(plain.keys("*:mark:*")[0])) == 1


async def test_redis_away_is_nobodys_fault():
    state = State(ConsumerSettings(redis=RedisSettings(url="redis://127.0.0.1:1/0")))
    with pytest.raises(UpstreamError):
        await judge(state, HITS, [(0, hit(1, "192.0.2.1"))])
    await state.close()
