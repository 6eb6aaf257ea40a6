# cython: annotation_typing=False
"""Rules of a policy as the hot path sees them. One source, compiled as ``_rules_c``.

What a rule says is written out as plain numbers when the policy is loaded; looking one up is a test
of a prefix or one look into a table.
"""

from __future__ import annotations

from typing import Any

__all__ = ["ALWAYS", "HOT", "NEVER", "Matcher", "Rule"]

#: When a reply is kept in the near-cache: never, once its key is hot, from the first read on.
NEVER = 0
HOT = 1
ALWAYS = 2

#: Keys whose rule is remembered, by a matcher that has patterns other than prefixes.
MEMO = 8192

# Shapes; the same numbers as in ``glob.py``.
ALL = 0
EXACT = 1
PREFIX = 2
PATTERN = 3


class Rule:
    """One rule, every number in seconds; written once by the loader, read by everybody."""

    def __init__(self, index: int, pattern: str, shape: int, literal: bytes, regex: Any) -> None:
        #: Its place in the file, from 1.
        self.index = index
        #: Its key pattern, as written.
        self.pattern = pattern
        self.shape = shape
        self.literal = literal
        self.regex = regex
        self.enabled = True
        #: ``NEVER``, ``HOT`` or ``ALWAYS``.
        self.near = HOT
        #: Longest life in the near-cache; infinite: no limit of the rule's own.
        self.ttl = float("inf")
        #: Life of a missing key's reply in the near-cache; 0: not kept.
        self.negative_ttl = 0.0
        #: Whether to cache, by time alone, where Redis offers no tracking.
        self.ttl_only = False
        #: A key is hot from this many reads within the window on.
        self.hot_threshold = 10
        self.hot_window = 10.0
        #: What a hot key's time to live grows by (0: nothing), and its longest life after the first
        #: growth.
        self.extend = 120.0
        self.max_total = 3600.0
        #: Whether misses are leased; how long they are held; how long a lease lasts.
        self.leased = False
        self.lease_wait = 1.0
        self.lease_ttl = 10.0
        self.early_refresh = False
        #: Whether what a holder loaded is not stored if somebody wrote the key since its miss.
        self.fill_guard = False
        #: How long after its expiry a value may stand in where Redis or the loader fails; 0: never.
        self.stale_if_error = 0.0
        #: Counts reads within ``hot_window``; whoever puts the rule to use sets it.
        self.rate: Any = None

    def matches(self, key: bytes) -> bool:
        """Whether ``key`` is one of the rule's."""
        if self.shape == PREFIX:
            return key.startswith(self.literal)
        if self.shape == ALL:
            return True
        if self.shape == EXACT:
            return key == self.literal
        return self.regex.fullmatch(key) is not None

    def __repr__(self) -> str:
        return f"<Rule {self.index} {self.pattern}>"


class Matcher:
    """The rules of one command, in the file's order: the first that matches a key applies."""

    def __init__(self, rules: tuple[Rule, ...]) -> None:
        self.rules = rules
        #: The first rule, where it takes every key.
        self.only = rules[0] if rules and rules[0].shape == ALL else None
        #: Key → rule, where matching costs more than looking up.
        self.memo: dict[bytes, Rule | None] | None = None
        if self.only is None and any(rule.shape == PATTERN for rule in rules):
            self.memo = {}

    def first(self, key: bytes) -> Rule | None:
        """The rule that takes ``key``, enabled or not."""
        if self.only is not None:
            return self.only
        memo = self.memo
        if memo is not None and key in memo:
            return memo[key]
        found = None
        for rule in self.rules:
            if rule.matches(key):
                found = rule
                break
        if memo is not None:
            if len(memo) >= MEMO:
                memo.clear()
            memo[key] = found
        return found

    def find(self, key: bytes) -> Rule | None:
        """The rule that applies to ``key``; ``None``: none, or one that is switched off."""
        rule = self.first(key)
        if rule is None or not rule.enabled:
            return None
        return rule
