"""Ports and settings of `nexus up`: what is refused before anything starts."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from nexus.demo import preflight
from nexus.demo.preflight import claim_ports, holder_of
from nexus.demo.settings import UpSettings, read_settings
from nexus.errors import ConfigError, ListenError

PORTS = [
    "gateway_port",
    "upstream_a_port",
    "upstream_b_port",
    "gateway_admin_port",
    "consumer_admin_port",
    "redis_port",
    "cacheproxy_port",
    "cacheproxy_admin_port",
]
FREE = dict.fromkeys(PORTS, 0)


@pytest.fixture
def busy():
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        sock.listen(1)
        yield sock.getsockname()[1]


def test_the_defaults_are_the_contracts():
    settings = UpSettings()
    assert [getattr(settings, name) for name in PORTS] == [
        3000,
        3001,
        3002,
        3900,
        3901,
        6379,
        6380,
        6390,
    ]


def test_zero_takes_free_ports_that_differ():
    ports = claim_ports(UpSettings(**FREE))
    assert sorted(ports) == sorted(PORTS)
    assert len(set(ports.values())) == len(PORTS)
    # Below the range that the kernel gives to whoever asks for any port.
    lowest = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    if lowest > 20_100:
        assert all(20_000 <= port < lowest for port in ports.values())


@pytest.mark.parametrize("name", [name for name in PORTS if name != "redis_port"])
def test_a_busy_port_names_itself_its_user_its_holder_and_what_to_change(busy, name):
    with pytest.raises(ListenError) as caught:
        claim_ports(UpSettings(**{**FREE, name: busy}))
    text = str(caught.value)
    assert "\n" not in text
    assert f"port {busy} is in use by " in text
    assert f"pid {os.getpid()}" in text
    assert f"--{name.replace('_', '-')} N" in text
    assert f"NEXUS_UP_{name.upper()}=N make run" in text


def test_a_busy_redis_port_names_the_way_to_use_that_redis(busy):
    with pytest.raises(ListenError) as caught:
        claim_ports(UpSettings(**{**FREE, "redis_port": busy}))
    text = str(caught.value)
    assert f"NEXUS_REDIS_URL=redis://127.0.0.1:{busy} make run" in text
    assert "--redis-port N" in text


def test_a_named_redis_needs_no_port(busy):
    settings = UpSettings(**{**FREE, "redis_port": busy}, redis_url=f"redis://127.0.0.1:{busy}")
    assert "redis_port" not in claim_ports(settings)


def test_every_busy_port_gets_its_line(busy):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen(1)
        second = other.getsockname()[1]
        with pytest.raises(ListenError) as caught:
            claim_ports(UpSettings(**{**FREE, "gateway_port": busy, "upstream_a_port": second}))
    lines = str(caught.value).splitlines()
    assert len(lines) == 2
    assert str(busy) in lines[0]
    assert str(second) in lines[1]


def test_an_address_that_is_not_ours_is_explained():
    with pytest.raises(ListenError, match="the gateway cannot listen on 192\\.0\\.2\\.1"):
        claim_ports(UpSettings(**FREE, gateway_host="192.0.2.1"))


def test_nobody_holds_a_free_port():
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
    assert holder_of(port) == ""


def test_without_room_below_the_kernels_range_the_kernel_chooses(monkeypatch):
    monkeypatch.setattr(preflight, "_first_ephemeral", lambda: 1024)
    assert all(preflight.claim_ports(UpSettings(**FREE)).values())


def test_a_flag_beats_the_environment_which_beats_the_default():
    environ = {"NEXUS_UP_GATEWAY_PORT": "4000", "NEXUS_UP_CACHEPROXY_PORT": "4001"}
    settings, _ = read_settings(["--gateway-port", "5000"], environ)
    assert (settings.gateway_port, settings.cacheproxy_port) == (5000, 4001)
    assert settings.redis_port == 6379


def test_redis_and_kafka_have_short_names_in_the_environment():
    environ = {"NEXUS_REDIS_URL": "redis://h:1", "NEXUS_KAFKA": "k:2"}
    settings, _ = read_settings([], environ)
    assert (settings.redis_url, settings.kafka) == ("redis://h:1", "k:2")
    settings, _ = read_settings(
        ["--kafka", "k:3"], {**environ, "NEXUS_UP_REDIS_URL": "redis://h:4"}
    )
    assert (settings.redis_url, settings.kafka) == ("redis://h:4", "k:3")


def test_free_ports_leaves_the_named_ones():
    settings, _ = read_settings(
        ["--free-ports", "--gateway-port", "5000"], {"NEXUS_UP_REDIS_PORT": "5001"}
    )
    assert (settings.gateway_port, settings.redis_port) == (5000, 5001)
    assert settings.cacheproxy_port == 0


def test_the_port_of_a_redis_that_is_not_started_is_free_for_others():
    argv = ["--redis-url", "redis://h:1", "--gateway-port", "6379"]
    settings, _ = read_settings(argv, {})
    assert settings.gateway_port == 6379


@pytest.mark.parametrize(
    ("argv", "environ", "message"),
    [
        ([], {"NEXUS_UP_GATEWY_PORT": "1"}, "NEXUS_UP_GATEWY_PORT: gatewy_port: unknown setting"),
        ([], {"NEXUS_UP_GATEWAY_PORT": "http"}, "expected an integer, got 'http'"),
        (["--gateway-port", "70000"], {}, "command line: gateway_port: expected"),
        (["--redis-url", "http://x"], {}, "redis_url"),
        (["--gateway-port", "6379"], {}, "6379 is also gateway_port; each needs its own"),
    ],
)
def test_a_wrong_setting_says_where_and_what(argv, environ, message):
    with pytest.raises(ConfigError) as caught:
        read_settings(argv, environ)
    assert message in str(caught.value)
