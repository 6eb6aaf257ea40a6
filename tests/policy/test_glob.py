"""Globs fit what Redis's own ``KEYS`` fits; each is read into its cheapest test."""

from __future__ import annotations

import pytest
import redis
from hypothesis import given
from hypothesis import strategies as st

from nexus.policy.glob import ALL, EXACT, PATTERN, PREFIX, Glob


@pytest.mark.parametrize(
    ("pattern", "shape", "fits", "fits_not"),
    [
        ("*", ALL, [b"", b"a", b"\n\xff"], []),
        ("a", EXACT, [b"a"], [b"", b"aa", b"A", b"a\n"]),
        ("product:*", PREFIX, [b"product:", b"product:\n1"], [b"product", b"xproduct:1"]),
        ("p:**", PREFIX, [b"p:", b"p:x"], [b"p"]),
        ("*:1", PATTERN, [b":1", b"a:1", b":1:1"], [b":1:", b"a"]),
        ("u:*:p:*", PATTERN, [b"u::p:", b"u:1:p:2", b"u:p:p:p:"], [b"u:1:q:2"]),
        ("h?llo", PATTERN, [b"hello", b"h\nllo"], [b"hllo", b"heello"]),
        ("h[ae]llo", PATTERN, [b"hallo", b"hello"], [b"hillo"]),
        ("h[^e]llo", PATTERN, [b"hallo", b"h\nllo"], [b"hello"]),
        ("h[b-a]llo", PATTERN, [b"hallo", b"hbllo"], [b"hcllo"]),
        (r"h\*llo", EXACT, [b"h*llo"], [b"hello"]),
        (r"[\]a]", PATTERN, [b"]", b"a"], [b"\\"]),
        ("é*", PREFIX, ["é1".encode()], [b"e1"]),
    ],
)
def test_patterns(pattern: str, shape: int, fits: list[bytes], fits_not: list[bytes]):
    glob = Glob(pattern)
    assert glob.shape == shape
    assert all(glob.matches(key) for key in fits)
    assert not any(glob.matches(key) for key in fits_not)


@pytest.mark.parametrize("pattern", ["", "a[b", "[]", "a\\", "[^\\x"])
def test_patterns_that_nobody_means_are_refused(pattern: str):
    with pytest.raises(ValueError, match=r"empty|closed|byte|escapes"):
        Glob(pattern)


def test_parts_are_what_the_stars_stand_for():
    assert Glob("user:*:cart:*").parts(b"user:7:cart:a:cart:b") == (b"7", b"a:cart:b")
    assert Glob("*").parts(b"x") == (b"x",)
    assert Glob("a").parts(b"a") == ()
    assert Glob("a*").parts(b"b") is None


@pytest.mark.parametrize(
    ("wide", "narrow", "covers"),
    [
        ("*", "a?[b]*", True),
        ("a*", "ab*", True),
        ("a*", "ab", True),
        ("ab*", "a*", False),
        ("a?", "ab", True),
        ("a?", "abc", False),
        ("a*b", "a*b", True),
        ("a*b", "a*", False),
    ],
)
def test_covers(wide: str, narrow: str, covers: bool):
    assert Glob(wide).covers(Glob(narrow)) is covers


def test_many_stars_take_no_longer_than_the_key():
    # With backtracking over every star this would take years.
    assert not Glob("*a" * 40 + "b").matches(b"a" * 4000)


_ALPHABET = "ab*?[]^-\\"


@given(
    st.lists(
        st.tuples(st.text(_ALPHABET, max_size=8), st.text("ab-]^*\\", min_size=1, max_size=6)),
        max_size=20,
    )
)
def test_redis_agrees(redis_server: object, pairs: list[tuple[str, str]]):
    with redis.Redis.from_url(redis_server.url, protocol=2, db=9) as direct:  # type: ignore[attr-defined]
        for pattern, key in pairs:
            try:
                glob = Glob(pattern)
            except ValueError:
                continue
            direct.flushdb()
            direct.set(key, "1")
            assert glob.matches(key.encode()) == bool(direct.keys(pattern)), (pattern, key)
