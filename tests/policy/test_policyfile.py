"""Policy files: the two-line form, the fuller form, what is refused and where it says so."""

from __future__ import annotations

import importlib
import math
from types import ModuleType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nexus._speedups import BACKEND
from nexus.errors import ConfigError
from nexus.policy.glob import Glob
from nexus.policy.policyfile import HotDefaults, Role, RuleBook, describe, read_policy
from nexus.policy.rules import ALWAYS, HOT, NEVER
from nexus.settings import line_of, parse_yaml

ROLES = {"GET": Role.READ, "HGETALL": Role.READ, "SET": Role.WRITE, "HSET": Role.WRITE}

FULL = r"""
policies:
  - match: GET
    keys: "product:*"
    ttl: 60
    enabled: true
    near_cache: always
    stampede: {mode: lease, lease_wait_ms: 1500, lease_ttl_ms: 9000, early_refresh: true,
               stale_fill_guard: true, stale_if_error_seconds: 5}
    negative_ttl: 1
    hot: {threshold: 3, window_seconds: 5, extend_seconds: 60, max_total_seconds: 900}
    tags: ["products", "product-{1}"]
  - match: [SET, HSET]
    keys: "user:*:cart"
    tags: ["carts-{1}", "{0}"]
"""


def book(text: str, hot: HotDefaults | None = None) -> RuleBook:
    return read_policy(
        parse_yaml(text, "p.yaml"), source="p.yaml", roles=ROLES, hot=hot or HotDefaults()
    )


def test_the_two_line_form():
    rules = book(
        "policies:\n"
        "  - match: GET\n    ttl: 60\n    enabled: true\n"
        "  - match: SET\n    ttl: 0\n    enabled: false\n",
        HotDefaults(7, 3.0),
    )
    rule = rules.rule("GET", b"anything")
    assert rule is not None
    assert (rule.near, rule.ttl, rule.leased, rule.negative_ttl) == (HOT, 60.0, False, 0.0)
    assert (rule.hot_threshold, rule.hot_window) == (7, 3.0)
    assert (rule.extend, rule.max_total) == (120.0, 3600.0)
    assert rules.rule("SET", b"anything") is None
    assert rules.rule("HGETALL", b"anything") is None
    assert not rules.has_tags


def test_the_fuller_form():
    rules = book(FULL)
    rule = rules.rule("GET", b"product:7")
    assert rule is not None
    assert (rule.index, rule.near, rule.ttl, rule.negative_ttl) == (1, ALWAYS, 60.0, 1.0)
    assert (rule.leased, rule.lease_wait, rule.lease_ttl) == (True, 1.5, 9.0)
    assert rule.fill_guard
    assert (rule.early_refresh, rule.stale_if_error) == (True, 5.0)
    assert (rule.hot_threshold, rule.hot_window, rule.extend, rule.max_total) == (3, 5, 60, 900)
    assert rules.rule("GET", b"other") is None


def test_a_rule_without_a_ttl_has_no_limit_and_one_of_nought_keeps_nothing():
    rules = book("policies: [{match: GET, keys: a}, {match: GET, keys: b, ttl: 0}]")
    first, second = rules.rule("GET", b"a"), rules.rule("GET", b"b")
    assert first is not None
    assert second is not None
    assert (first.ttl, first.near) == (math.inf, HOT)
    assert second.near == NEVER


def test_the_first_rule_that_fits_applies_even_if_it_is_switched_off():
    rules = book(
        "policies:\n"
        "  - {match: GET, keys: 'product:secret:*', enabled: false}\n"
        "  - {match: GET, keys: 'product:*'}\n"
    )
    assert rules.rule("GET", b"product:secret:1") is None
    rule = rules.rule("GET", b"product:1")
    assert rule is not None
    assert rule.index == 2


def test_a_written_key_joins_the_tags_of_every_rule_that_fits():
    rules = book(FULL)
    assert rules.has_tags
    assert rules.tags("SET", b"product:7") == (b"products", b"product-7")
    assert rules.tags("HSET", b"user:8:cart") == (b"carts-8", b"user:8:cart")
    assert rules.tags("SET", b"x") == ()
    off = book("policies: [{match: GET, keys: 'a*', tags: [t], enabled: false}]")
    assert not off.has_tags


def test_a_write_rules_tags_are_for_its_commands_only():
    rules = book("policies: [{match: SET, keys: 'a*', tags: [t]}]")
    assert rules.tags("SET", b"a1") == (b"t",)
    assert rules.tags("HSET", b"a1") == ()


@pytest.mark.parametrize(
    ("text", "path", "line", "words"),
    [
        ("policies:\n- match: GTE\n", "policies[0].match", 2, "did you mean 'GET'"),
        ("policies:\n- match: [GET, SET]\n", "policies[0].match", 2, "rules of their own"),
        ("policies:\n- match: []\n", "policies[0].match", 2, "empty list"),
        ("policies:\n- match: [GET, get]\n", "policies[0].match[1]", 2, "named twice"),
        ("policies:\n- match: GET\n  ttl: soon\n", "policies[0].ttl", 3, "expected a number"),
        ("policies:\n- match: GET\n  ttl: -1\n", "policies[0].ttl", 3, ">= 0"),
        ("policies:\n- match: GET\n  tll: 1\n", "policies[0].tll", 3, "did you mean 'ttl'"),
        ("policies:\n- match: GET\n  keys: '[a'\n", "policies[0].keys", 3, "not closed"),
        ("policies:\n- match: GET\n  near_cache: hott\n", "policies[0].near_cache", 3, "'hot'"),
        ("policies:\n- match: SET\n  ttl: 5\n", "policies[0].ttl", 3, "expected 0 for SET"),
        ("policies:\n- match: SET\n  negative_ttl: 5\n", "policies[0].negative_ttl", 3, "writes"),
        ("policies:\n- match: SET\n  hot: {threshold: 1}\n", "policies[0].hot", 3, "no meaning"),
        (
            "policies:\n- match: GET\n  stampede:\n    stale_fill_guard: true\n",
            "policies[0].stampede.stale_fill_guard",
            4,
            "without mode: lease",
        ),
        (
            "policies:\n- match: HGETALL\n  stampede: {mode: lease, stale_fill_guard: true}\n",
            "policies[0].stampede.stale_fill_guard",
            3,
            "a GET missed and a SET fills, not HGETALL",
        ),
        (
            "policies:\n- match: GET\n  tags: ['{1}', '{2}']\n",
            "policies[0].tags[1]",
            3,
            "has 1 '*'",
        ),
        ("policies:\n- match: GET\n  tags: ['']\n", "policies[0].tags[0]", 3, "a name"),
        (
            "policies:\n- match: GET\n  hot:\n    threshold: 0\n",
            "policies[0].hot.threshold",
            4,
            ">= 1",
        ),
        (
            "policies:\n- match: GET\n- match: GET\n  keys: a*\n",
            "policies[1].keys",
            4,
            "rule 1 (GET, every key) comes first",
        ),
        ("policies:\n- keys: a\n", "policies[0]", 2, "match is required"),
        ("rules: []\n", "rules", 1, "unknown setting"),
        ("{}", "", 0, "policies is required"),
    ],
)
def test_what_is_wrong_is_named_with_place_and_expectation(
    text: str, path: str, line: int, words: str
):
    with pytest.raises(ConfigError) as caught:
        book(text)
    assert caught.value.path == path
    assert words in str(caught.value)
    assert line_of(text, path) == line


def test_describe_says_what_differs():
    rules = book(FULL)
    shown = " ".join(describe(rules.settings.policies[0]))
    assert shown == (
        "ttl=60 near_cache=always negative_ttl=1 tags=products,product-{1} stampede.mode=lease "
        "stampede.lease_wait_ms=1500 stampede.lease_ttl_ms=9000 stampede.early_refresh=true "
        "stampede.stale_fill_guard=true "
        "stampede.stale_if_error_seconds=5 hot.threshold=3 hot.window_seconds=5 "
        "hot.extend_seconds=60 hot.max_total_seconds=900"
    )


def sides() -> list[ModuleType]:
    names = ["_rules_py"] + (["_rules_c"] if BACKEND == "compiled" else [])
    return [importlib.import_module(f"nexus.policy.{name}") for name in names]


def matcher_of(side: Any, patterns: list[str]) -> Any:
    rules = []
    for index, pattern in enumerate(patterns, 1):
        glob = Glob(pattern)
        rule = side.Rule(index, glob.pattern, glob.shape, glob.literal, glob.regex)
        rule.enabled = index % 3 != 0
        rules.append(rule)
    return side.Matcher(tuple(rules))


@given(
    st.lists(st.sampled_from(["a*", "ab*", "*b", "a?c", "abc", "b*c*", "*"]), max_size=5),
    st.lists(st.text("abc", max_size=5).map(str.encode), max_size=20),
)
def test_matchers_find_what_trying_every_rule_finds(patterns: list[str], keys: list[bytes]):
    for side in sides():
        matcher = matcher_of(side, patterns)
        for key in keys * 2:  # the second time from its memory
            fitting = [i for i, p in enumerate(patterns, 1) if Glob(p).matches(key)]
            first = matcher.first(key)
            assert (first.index if first else None) == (fitting[0] if fitting else None)
            found = matcher.find(key)
            enabled = fitting and fitting[0] % 3 != 0
            assert (found.index if found else None) == (fitting[0] if enabled else None)


def test_a_matchers_memory_is_bounded():
    for side in sides():
        matcher = matcher_of(side, ["*b"])
        for number in range(20_000):
            matcher.find(b"%d" % number)
        assert len(matcher.memo) <= 8192
