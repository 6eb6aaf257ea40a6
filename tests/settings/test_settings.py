"""Configuration: precedence, clear errors, nothing secret printed."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Annotated

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Meta

from nexus.errors import ConfigError
from nexus.gateway.settings import GatewaySettings
from nexus.settings import (
    MASK,
    RESTART,
    Settings,
    decode,
    dump,
    keep_restart_only,
    load,
    read_yaml,
)

# Reading settings asks no kernel.
pytestmark = pytest.mark.once


def load_text(tmp_path: Path, text: str, environ=None, **flags):
    file = tmp_path / "gateway.yaml"
    file.write_text(text)
    return load(GatewaySettings, service="gateway", file=file, environ=environ or {}, flags=flags)


def test_flag_beats_environment_beats_file_beats_default(tmp_path):
    environ = {"NEXUS_GATEWAY_PORT": "2000", "NEXUS_GATEWAY_RATE_LIMIT__CAPACITY": "20"}
    text = "port: 1000\nrate_limit: {capacity: 5, refill_per_second: 7}\nworkers: 3"
    settings = load_text(tmp_path, text, environ, port=3001)
    assert settings.port == 3001
    assert settings.rate_limit.capacity == 20
    assert settings.rate_limit.refill_per_second == 7
    assert settings.workers == 3
    assert settings.retry.max_attempts == 3


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("rate_limit: {capacity: ten}", "rate_limit.capacity: expected an integer, got 'ten'"),
        ("rate_limit: {capacity: 0}", "rate_limit.capacity: expected an integer >= 1, got 0"),
        ("rate_limit: {capacity: true}", "rate_limit.capacity: expected an integer, got True"),
        ("ratelimit: {}", "ratelimit: unknown setting; did you mean 'rate_limit'?"),
        (
            "rate_limit: {capcity: 3}",
            "rate_limit.capcity: unknown setting; did you mean 'capacity'?",
        ),
        ("rate_limit: 3", "rate_limit: expected a mapping, got 3"),
        (
            "auth: {clients: [{client_id: a}]}",
            "auth.clients[0]: the setting client_secret is required",
        ),
        (
            "auth: {clients: [{client_id: a, secret: b}]}",
            "auth.clients[0].secret: unknown setting; did you mean 'client_secret'?",
        ),
        (
            "balancer: {algorithm: round_robin}",
            (
                "balancer.algorithm: expected one of round-robin, least-conn, weighted, "
                "weighted-smooth, p2c, "
                "got 'round_robin'; did you mean 'round-robin'?"
            ),
        ),
        ("port: 3\nport: 4", "line 2, column 1: the key 'port' is given twice"),
        ("port: [", "line 1, column 8: expected the node content, but found '<stream end>'"),
        ("- 1", "expected a mapping at the top, got a list"),
        (
            "auth: {jwt_secret: '${NOWHERE}'}",
            (
                "auth.jwt_secret: the environment variable NOWHERE is not set "
                "(for a default: ${NOWHERE:-default})"
            ),
        ),
    ],
)
def test_an_error_names_file_path_value_and_expectation(tmp_path, text, message):
    with pytest.raises(ConfigError) as caught:
        load_text(tmp_path, text)
    assert str(caught.value) == f"{tmp_path / 'gateway.yaml'}: {message}"


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        (
            "NEXUS_GATEWAY_RATE_LIMIT__CAPACITY",
            "x",
            "rate_limit.capacity: expected an integer, got 'x'",
        ),
        (
            "NEXUS_GATEWAY_RATELIMIT__CAPACITY",
            "1",
            "ratelimit: unknown setting; did you mean 'rate_limit'?",
        ),
        ("NEXUS_GATEWAY_PORT", "[", "not a YAML value: '['"),
        ("NEXUS_GATEWAY_PORT", "70000", "port: expected an integer <= 65535, got 70000"),
        (
            "NEXUS_GATEWAY_REDIS__URL",
            "http://h",
            (
                "redis.url: expected redis://[user:password@]host:port[/db], rediss://… or "
                "unix:///path, got 'http://h'"
            ),
        ),
    ],
)
def test_an_error_names_the_environment_variable(name, value, message):
    with pytest.raises(ConfigError) as caught:
        load(GatewaySettings, service="gateway", environ={name: value})
    assert str(caught.value) == f"environment variable {name}: {message}"


@pytest.mark.parametrize(
    "text",
    ["log: {level: 2024-13-45}", "auth: &a {x: *a}", "x: " + "[" * 5000, "port: !!int ''"],
)
def test_what_yaml_itself_chokes_on_is_a_config_error(tmp_path, text):
    with pytest.raises(ConfigError, match=r"gateway\.yaml"):
        load_text(tmp_path, text)


@pytest.mark.parametrize(
    ("text", "environ"),
    [
        ("auth: {clients: [{client_id: a, client_secret: hunt3r}]}", {}),
        ("auth: {jwt_secret: 987612345}", {}),
        ("auth: {clients: hunt3r-987612345}", {}),
        ("redis: {url: 'redi://:hunt3r@h:1'}", {}),
        ("", {"NEXUS_GATEWAY_AUTH__CLIENTS": '[{client_secret: "hunt3r987612345}]'}),
        ("", {"NEXUS_GATEWAY_AUTH__CLIENTS": "hunt3r"}),
    ],
)
def test_an_error_never_prints_a_secret(tmp_path, text, environ):
    with pytest.raises(ConfigError) as caught:
        load_text(tmp_path, text, environ)
    assert "hunt3r" not in str(caught.value)
    assert "987612345" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "value"),
    [("NEXUS_GATEWAY_SERVICE_HOST", "10.0.0.1"), ("NEXUS_GATEWAY_PORT", "tcp://10.0.0.1:3000")],
)
def test_service_links_of_kubernetes_are_named(name, value):
    with pytest.raises(ConfigError, match="enableServiceLinks"):
        load(GatewaySettings, service="gateway", environ={name: value})


def test_text_from_the_environment_is_never_read_as_yaml():
    environ = {"NEXUS_GATEWAY_AUTH__JWT_SECRET": "0123456789"}
    settings = load(GatewaySettings, service="gateway", environ=environ)
    assert settings.auth.jwt_secret == "0123456789"


def test_variables_of_other_services_are_left_alone():
    load(GatewaySettings, service="gateway", environ={"NEXUS_CACHEPROXY_WHAT": "1"})


def test_variables_in_the_file(tmp_path):
    text = "auth: {jwt_secret: 'a-${ONE}-${TWO:-2}'}"
    assert load_text(tmp_path, text, {"ONE": "1"}).auth.jwt_secret == "a-1-2"


def test_dump_masks_secrets_and_passwords(tmp_path):
    text = (
        "auth: {jwt_secret: hush-hush, clients: [{client_id: a, client_secret: verysecret}]}\n"
        "redis: {url: 'redis://user:p@ssw0rd@host:1/2'}"
    )
    printed = dump(load_text(tmp_path, text))
    for secret in ("hush-hush", "verysecret", "ssw0rd"):
        assert secret not in printed
    assert printed.count(MASK) == 3
    assert "client_id: a" in printed


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"none\.yaml: cannot be read: No such file"):
        read_yaml(tmp_path / "none.yaml")


def test_a_file_that_is_not_text(tmp_path):
    (tmp_path / "a.yaml").write_bytes(b"a: \xff")
    with pytest.raises(ConfigError, match=r"is not UTF-8 \(byte 3\)"):
        read_yaml(tmp_path / "a.yaml")


def test_an_empty_file_means_the_defaults(tmp_path):
    assert load_text(tmp_path, "") == GatewaySettings()


class Inner(Settings, frozen=True):
    size: Annotated[int, Meta(ge=0)] = 0


class Outer(Settings, frozen=True):
    inner: tuple[Inner, ...] = ()
    name: str | None = None


def test_decode_walks_lists_and_optionals():
    assert decode(Outer, {"inner": [{"size": 1}]}, source="x").inner == (Inner(size=1),)
    with pytest.raises(ConfigError, match=r"x: inner\[1\]\.size: expected an integer >= 0, got -1"):
        decode(Outer, {"inner": [{}, {"size": -1}]}, source="x")
    with pytest.raises(ConfigError, match=r"x: expected a mapping, got 3"):
        decode(Outer, 3, source="x")


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3)
    ),
    max_leaves=8,
)


@given(st.dictionaries(st.sampled_from(["port", "auth", "limits", "retry", "x"]), json_values))
def test_no_document_gives_anything_but_settings_or_a_config_error(tree):
    with contextlib.suppress(ConfigError):
        decode(GatewaySettings, tree, source="x")


class Deep(Settings, frozen=True):
    kept: Annotated[int, RESTART] = 1
    free: int = 1


class Top(Settings, frozen=True):
    port: Annotated[int, Meta(ge=0), RESTART] = 1
    name: str = "a"
    deep: Deep = Deep()
    whole: Annotated[Deep, RESTART] = Deep()
    many: Annotated[tuple[Deep, ...], RESTART] = ()


def test_a_reload_keeps_what_needs_a_restart_at_any_depth() -> None:
    old, fresh = (
        Top(),
        Top(port=2, name="b", deep=Deep(kept=2, free=2), whole=Deep(free=2)),
    )
    kept, names = keep_restart_only(old, fresh)
    assert kept == Top(name="b", deep=Deep(free=2))
    assert names == ["port", "deep.kept", "whole"]
    assert keep_restart_only(old, Top(name="c")) == (Top(name="c"), [])


def test_a_reload_changes_what_it_may_within_a_list_of_the_same_length() -> None:
    old = Top(many=(Deep(), Deep()))
    kept, names = keep_restart_only(old, Top(many=(Deep(free=2), Deep(kept=2, free=3))))
    assert kept == Top(many=(Deep(free=2), Deep(free=3)))
    assert names == ["many[1].kept"]
    for other in ((), (Deep(free=2),)):
        assert keep_restart_only(old, Top(many=other)) == (old, ["many"])
