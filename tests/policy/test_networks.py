"""Networks that are let in or kept out, against a naive reading; keys of limits."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nexus.errors import ConfigError
from nexus.policy.limitkeys import ADDRESS, HEADER, KeyPart, parse_key
from nexus.policy.networks import NetworkRules

NETWORKS = st.builds(
    lambda address, length: str(ipaddress.ip_network((address, length), strict=False)),
    st.ip_addresses(v=4, network="10.0.0.0/24").map(str),
    st.integers(24, 32),
)


@given(st.sets(NETWORKS), st.sets(NETWORKS), st.integers(0, 255))
def test_the_longest_match_decides(allow: set[str], deny: set[str], last: int) -> None:
    if allow & deny:
        with pytest.raises(ConfigError, match="both allowed and denied"):
            NetworkRules(allow, deny)
        return
    ip = ipaddress.ip_address(f"10.0.0.{last}")
    every = [(ipaddress.ip_network(n), n in deny) for n in allow | deny]
    matching = [(n.prefixlen, denied) for n, denied in every if ip in n]
    expected = max(matching)[1] if matching else bool(allow)
    rules = NetworkRules(allow, deny)
    assert rules.denied(str(ip)) is expected
    assert rules.denied(f"::ffff:{ip}") is expected


def test_unix_and_what_is_no_address() -> None:
    assert not NetworkRules((), ())
    assert NetworkRules(["10.0.0.0/8"], ()).denied("unix")
    assert not NetworkRules(["10.0.0.0/8", "unix"], ()).denied("unix")
    assert NetworkRules((), ["unix"]).denied("unix")
    assert not NetworkRules((), ["10.0.0.0/8"]).denied("nonsense")
    with pytest.raises(ConfigError, match=r"networks\.deny\[1\]"):
        NetworkRules((), ["10.0.0.0/8", "10.0.0.1/8"])


def test_keys_of_limits() -> None:
    assert parse_key(("address", "header:X-Key")) == (KeyPart(ADDRESS), KeyPart(HEADER, b"x-key"))
    for bad in (
        (),
        ("ip",),
        ("header:",),
        ("header:a b",),
        ("client", "client"),
        ("header:Cookie",),
    ):
        with pytest.raises(ValueError, match=r"expected|twice|no key"):
            parse_key(bad)
