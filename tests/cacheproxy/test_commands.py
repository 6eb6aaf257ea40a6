"""The command table against the real server, and the page made from it."""

from __future__ import annotations

from typing import Any

import pytest
import redis

from nexus.cacheproxy.commandgroups import GROUPS, group_of, groups
from nexus.cacheproxy.commands import COMMANDS, ONLY_6_2, ONLY_NEWER, Kind, kinds


def _rows(url: str) -> dict[str, tuple[int, frozenset[str], int, int, int]]:
    """``COMMAND`` of the server, subcommands included, parsed without any client's opinion."""
    with redis.Redis.from_url(url, protocol=2, decode_responses=True) as direct:
        connection = direct.connection_pool.get_connection()
        connection.send_command("COMMAND")
        reply: list[Any] = connection.read_response()
        direct.connection_pool.release(connection)
    found = {}

    def add(row: list[Any]) -> None:
        found[row[0]] = (row[1], frozenset(row[2]), row[3], row[4], row[5])
        for sub in row[9] if len(row) > 9 else []:
            add(sub)

    for row in reply:
        add(row)
    return found


def test_table_agrees_with_the_server(redis_server: object) -> None:
    url = redis_server.url  # type: ignore[attr-defined]
    with redis.Redis.from_url(url, protocol=2) as direct:
        version = direct.info("server")["redis_version"]
    rows = _rows(url)
    if not str(version).startswith("7.0."):
        assert {n for n in rows if "|" not in n} - set(COMMANDS) == set()
        pytest.skip(f"flags and arity are those of Redis 7.0; this is {version}")
    assert set(rows) == set(COMMANDS) - ONLY_6_2 - ONLY_NEWER
    for name, row in rows.items():
        mine = COMMANDS[name]
        assert (mine.arity, mine.flags, mine.first_key, mine.last_key, mine.key_step) == row, name


def test_kinds_follow_from_the_flags() -> None:
    """What blocks or speaks to subscribers must never stand in the way of others."""
    for command in COMMANDS.values():
        if "blocking" in command.flags:
            assert command.kind in (Kind.DEDICATED, Kind.BLOCK_OPTION, Kind.WAIT), command.name
        if command.kind == Kind.SHARED:
            assert "pubsub" not in command.flags or command.name.startswith(("pub", "spub"))
            assert "movablekeys" not in command.flags or not command.name.startswith(("eval", "fc"))


def test_every_name_fits_the_scanner() -> None:
    table = kinds()
    assert all(0 < len(name) <= 32 and name == name.lower() for name in table)
    assert table[b"get"] == Kind.SHARED
    assert table[b"client"] == Kind.CONTAINER
    assert table[b"nexus"] == Kind.LOCAL


def test_groups_are_those_of_the_server(redis_server: object) -> None:
    with redis.Redis.from_url(
        redis_server.url,  # type: ignore[attr-defined]
        protocol=2,
        decode_responses=True,
    ) as direct:
        if not str(direct.info("server")["redis_version"]).startswith("7.0."):
            pytest.skip("COMMAND DOCS of Redis 7.0 is the reference")
        connection = direct.connection_pool.get_connection()
        connection.send_command("COMMAND", "DOCS")
        reply: list[Any] = connection.read_response()
        direct.connection_pool.release(connection)
    for name, pairs in zip(reply[::2], reply[1::2], strict=True):
        assert group_of(name) == dict(zip(pairs[::2], pairs[1::2], strict=True))["group"], name


def test_every_name_has_a_group() -> None:
    assert {name for name in COMMANDS if group_of(name) == "other"} == set()
    assert set(groups()) <= set(kinds())
    assert len(GROUPS) <= 32  # what the scanner can count
