"""The services file: what is accepted, and what a changing or broken one does."""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nexus.errors import ConfigError
from nexus.gateway.discovery import (
    MAX_SERVICES,
    ServiceEntry,
    ServicesFile,
    diff,
    normalise_url,
)
from nexus.net.filememory import FileMemory

# Reading a list of services asks no kernel.
pytestmark = pytest.mark.once

A, B = "http://127.0.0.1:3001", "http://127.0.0.1:3002"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "services.json"


def write(path: Path, *services: dict[str, Any]) -> None:
    path.write_text(json.dumps({"services": services}))


def entries(*pairs: tuple[str, int]) -> tuple[ServiceEntry, ...]:
    return tuple(ServiceEntry(url=url, weight=weight) for url, weight in pairs)


def test_read(path: Path) -> None:
    write(path, {"url": A, "weight": 2}, {"url": B + "/"})
    assert ServicesFile(path).read() == entries((A, 2), (B, 1))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "is empty"),
        (" \n", "is empty"),
        ('{"services": [{"url": "http://127.0', "not JSON"),
        ("services: []", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ("[]", "expected a mapping, got a list"),
        ("{}", "services"),
        ('{"services": []}', "services: expected at least one service"),
        ('{"services": {}}', "services"),
        ('{"services": [{}]}', "url"),
        ('{"services": [{"url": 5}]}', r"services\[0\]\.url: expected text, got 5"),
        ('{"services": [{"url": "http://a", "weigth": 2}]}', "did you mean 'weight'"),
        ('{"services": [{"url": "http://a", "weight": 0}]}', r"services\[0\]\.weight"),
        ('{"services": [{"url": "http://a", "weight": 65536}]}', r"services\[0\]\.weight"),
        ('{"services": [{"url": "http://a", "weight": true}]}', r"services\[0\]\.weight"),
        ('{"services": [{"url": "http://a"}, {"url": "http://A:80/"}]}', r"\[1\]\.url: .*twice"),
        ('{"services": [{"url": "ftp://a"}]}', r"services\[0\]\.url: .*scheme must be http"),
    ],
)  # fmt: skip
def test_broken_files_are_refused_with_place_and_reason(
    path: Path, content: str, message: str
) -> None:
    path.write_text(content)
    with pytest.raises(ConfigError, match=message) as caught:
        ServicesFile(path).read()
    assert caught.value.source == str(path)


def test_files_that_cannot_be_read_or_are_too_large(path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        ServicesFile(path).read()
    path.write_bytes(b" " * ((1 << 20) + 1))
    with pytest.raises(ConfigError, match="larger than 1048576 bytes"):
        ServicesFile(path).read()
    write(path, *({"url": f"http://h{i}"} for i in range(MAX_SERVICES)))
    assert len(ServicesFile(path).read()) == MAX_SERVICES
    write(path, *({"url": f"http://h{i}"} for i in range(MAX_SERVICES + 1)))
    with pytest.raises(ConfigError, match="at most 256 services, got 257"):
        ServicesFile(path).read()


def test_poll_reports_changes_only(path: Path) -> None:
    write(path, {"url": A})
    file = ServicesFile(path)
    file.read()
    assert file.poll() is None
    write(path, {"url": A}, {"url": B})
    assert file.poll() == entries((A, 1), (B, 1))
    assert file.poll() is None
    path.write_text(path.read_text() + "\n\n")  # other bytes, the same list
    assert file.poll() is None
    write(path, {"url": A, "weight": 3}, {"url": B})
    assert file.poll() == entries((A, 3), (B, 1))
    assert file.failures == 0


def test_a_change_within_one_tick_of_the_clock_is_seen(path: Path) -> None:
    write(path, {"url": A})
    stamp = path.stat()
    file = ServicesFile(path)
    file.read()
    write(path, {"url": B})
    os.utime(path, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    assert path.stat().st_size == stamp.st_size
    assert file.poll() == entries((B, 1))


def test_a_broken_file_changes_nothing_and_is_reported_once_per_change(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write(path, {"url": A})
    good = path.read_bytes()
    file = ServicesFile(path)
    file.read()

    def warnings() -> int:
        return sum(record.levelno == logging.WARNING for record in caplog.records)

    with caplog.at_level(logging.INFO, logger="nexus.gateway.discovery"):
        for broken in (good[:20], b"", b'{"services": []}'):
            path.write_bytes(broken)
            before = warnings()
            for _ in range(3):
                assert file.poll() is None
            assert warnings() == before + 1
        path.unlink()
        for _ in range(3):
            assert file.poll() is None
        assert file.failures == warnings() == 4
        path.write_bytes(good)
        assert file.poll() is None  # good again, and the list is the one in force
        assert caplog.records[-1].getMessage() == "services file is good again"
        path.write_bytes(b"{")
        assert file.poll() is None
        write(path, {"url": B})
        assert file.poll() == entries((B, 1))
    assert file.failures == 5


def test_half_written_files_never_empty_the_list(path: Path) -> None:
    write(path, {"url": A, "weight": 2}, {"url": B})
    whole = path.read_bytes()
    file = ServicesFile(path)
    file.read()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        assert file.poll() is None
    path.write_bytes(whole)
    assert file.poll() is None


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        (A, A),
        ("HTTP://LocalHost:8080/", "http://localhost:8080"),
        ("http://a:80", "http://a"),
        ("https://a:443/", "https://a"),
        ("https://a:80", "https://a:80"),
        ("http://service_1.internal.", "http://service_1.internal."),
        ("http://[::1]:3001", "http://[::1]:3001"),
        ("http://[2001:DB8:0:0::1]", "http://[2001:db8::1]"),
        ("http://a/Base/v1/", "http://a/Base/v1"),
    ],
)
def test_urls(url: str, expected: str) -> None:
    assert normalise_url(url) == expected
    assert normalise_url(expected) == expected


@pytest.mark.parametrize(
    "url",
    [
        "", "a", "//a", "127.0.0.1:3001", "http:", "http://", "http:///x", "http://:80", "http://a:",
        "http://a:0", "http://a:65536", "http://a:-1", "http://a:+1", "http://a:1_0", "http://a b",
        "http://a\r\nHost: b", "http://a\x00", "http://ä", "http://-a", "http://a-", "http://a..b",
        "http://a%2fb", "http://1.2.3", "http://256.1.1.1", "http://0x7f.1", "http://[::1",
        "http://[1.2.3.4]", "http://[fe80::1%25eth0]", "http://a?b", "http://a#b", "http://a/?",
        "http://a/../b", "http://a/./b", "http://a//b", "http://a/%2e%2e/b", "http://a\\b",
        "ftp://a", "file:///etc/passwd", "http://" + "a" * 64,
        "http://" + "a." * 130 + "b",
    ],
)  # fmt: skip
def test_urls_that_are_refused(url: str) -> None:
    with pytest.raises(ValueError, match="expected http"):
        normalise_url(url)


def test_a_password_in_a_url_is_not_repeated() -> None:
    with pytest.raises(ValueError, match="user information") as caught:
        normalise_url("ftp://me:hunter22@host?x")
    assert "hunter22" not in str(caught.value)


@given(url=st.text(max_size=40) | st.from_regex(r"http://[a-z0-9.:\[\]@/%-]{0,30}", fullmatch=True))
def test_no_text_breaks_it_and_its_result_is_stable(url: str) -> None:
    try:
        result = normalise_url(url)
    except ValueError:
        return
    assert normalise_url(result) == result


def test_diff() -> None:
    old = entries(("http://a", 1), ("http://b", 1), ("http://c", 1))
    new = entries(("http://d", 1), ("http://c", 4), ("http://a", 1))
    assert diff(old, new) == (
        entries(("http://d", 1)),
        entries(("http://b", 1)),
        entries(("http://c", 4)),
    )
    assert diff(old, old) == ((), (), ())


def test_memory_gives_what_any_worker_put_to_use_last() -> None:
    memory = FileMemory(2)
    assert memory.newest() is None
    memory.write(b"at the start", 1)
    assert memory.newest() == b"at the start"
    for now, (worker, content) in enumerate([(1, b"b"), (0, b"a"), (1, b"c"), (1, b"d")], 2):
        memory.write(content, now, worker)
        assert memory.newest() == content


@pytest.mark.parametrize("at", [0, 8, 12, 16, 40])
def test_memory_survives_a_writer_that_dies_while_writing(at: int) -> None:
    memory = FileMemory(1)
    memory.write(b"x" * 64, 1, 0)
    memory.write(b"y" * 64, 2, 0)
    place = memory._map.find(b"y" * 64) - 16 + at
    memory._map[place] ^= 1
    assert memory.newest() == b"x" * 64
    # The half that is left is what the next one overwrites, not the good one.
    memory.write(b"z" * 64, 3, 0)
    assert memory.newest() == b"z" * 64
    memory._map[place] ^= 1
    assert memory.newest() == b"x" * 64


def test_recovery_needs_something_to_recover(path: Path) -> None:
    memory = FileMemory(1)
    path.write_text("{")
    with pytest.raises(ConfigError, match="not JSON"):
        ServicesFile(path).recover(memory)


@pytest.mark.parametrize("broken", ["{", None])
def test_recovery_reports_once_and_goes_on_polling(path: Path, broken: str | None) -> None:
    memory = FileMemory(1)
    memory.write(b'{"services": [{"url": "http://a"}]}', 1)
    if broken is not None:
        path.write_text(broken)
    file = ServicesFile(path)
    assert file.recover(memory) == entries(("http://a", 1))
    assert file.poll() is None
    assert file.failures == 1
    path.write_text('{"services": [{"url": "http://b"}]}')
    assert file.poll() == entries(("http://b", 1))
    assert file.good == path.read_bytes()


def test_memory_holds_the_largest_file() -> None:
    memory = FileMemory(1)
    content = b"{}" + b" " * ((1 << 20) - 2)
    for now in range(4):
        memory.write(content, now, now % 2 - 1)
    assert memory.newest() == content


def test_unix_sockets() -> None:
    for url in ("unix:/run/app.sock", "unix:///run/app.sock"):
        assert normalise_url(url) == "unix:///run/app.sock"
    for url in (
        "unix:",
        "unix:app.sock",
        "unix:/",
        "unix:///a/",
        "unix:////a",
        "unix:/a b",
        "unix:/a?x",
    ):
        with pytest.raises(ValueError, match="expected unix:///path"):
            normalise_url(url)
