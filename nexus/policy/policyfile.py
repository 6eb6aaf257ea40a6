"""The policy file: what it may say, and the rule book that is made of it.

.. code-block:: yaml

    policies:
      - match: GET
        keys: "product:*"
        ttl: 60
        tags: ["products"]

The first rule that names a command and fits the key applies, as in a firewall; a rule that an
earlier one leaves no key for is an error, because whoever wrote it wanted something else. Tags are
no decision between rules: a written key joins those of every rule that fits it.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping
from enum import IntEnum
from typing import Annotated, Any, Final, Literal, NamedTuple

from msgspec import Meta

from nexus.errors import ConfigError
from nexus.policy.glob import Glob
from nexus.policy.rules import ALWAYS, HOT, NEVER, Matcher, Rule
from nexus.settings import Settings, decode

__all__ = [
    "HotDefaults",
    "HotSettings",
    "PolicyFile",
    "PolicyRule",
    "Role",
    "RuleBook",
    "StampedeSettings",
    "describe",
    "read_policy",
]

_NEAR: Final = {"never": NEVER, "hot": HOT, "always": ALWAYS}
#: Most rules of one file: the first lookup of a key tries them one after the other.
MAX_RULES: Final = 1000
_PLACEHOLDER: Final = re.compile(r"\{(\d+)\}")


class StampedeSettings(Settings, frozen=True):
    """What many clients do that miss the same key at once."""

    mode: Annotated[
        Literal["none", "lease"],
        Meta(description="`lease`: one of them loads the value, the others wait for it"),
    ] = "none"
    lease_wait_ms: Annotated[
        int, Meta(ge=0, le=600_000, description="longest wait of the others, milliseconds")
    ] = 1000
    lease_ttl_ms: Annotated[
        int,
        Meta(ge=1, le=3_600_000, description="after this an unwritten lease is over, milliseconds"),
    ] = 10_000
    early_refresh: Annotated[
        bool, Meta(description="one client is sent to load shortly before the value expires")
    ] = False
    stale_fill_guard: Annotated[
        bool,
        Meta(
            description="what the loading client then SETs is not stored if somebody else wrote "
            "the key since its miss"
        ),
    ] = False
    stale_if_error_seconds: Annotated[
        float,
        Meta(ge=0, le=86_400, description="an expired value may stand in this long; 0: never"),
    ] = 0.0


class HotSettings(Settings, frozen=True):
    """When a key is hot, and what its time to live grows by then."""

    threshold: Annotated[
        Annotated[int, Meta(ge=1)] | None,
        Meta(description="reads in the window; absent: `near_cache.hot_threshold`"),
    ] = None
    window_seconds: Annotated[
        Annotated[float, Meta(gt=0, le=3600)] | None,
        Meta(description="absent: `near_cache.hot_window_seconds`"),
    ] = None
    extend_seconds: Annotated[
        float, Meta(ge=0, le=86_400, description="added to the time to live; 0: nothing")
    ] = 120.0
    max_total_seconds: Annotated[
        float,
        Meta(gt=0, le=31_536_000, description="life after the first growth, at most"),
    ] = 3600.0


class PolicyRule(Settings, frozen=True):
    """One rule."""

    match: Annotated[
        str | tuple[str, ...], Meta(description="command, or a list: pure reads, or writes")
    ]
    keys: Annotated[str, Meta(description="glob as of Redis: `*`, `?`, `[ab]`, `\\x`")] = "*"
    ttl: Annotated[
        Annotated[float, Meta(ge=0)] | None,
        Meta(
            description="seconds, longest life in the near-cache; 0: none; absent: no limit "
            "but `near_cache.max_entry_ttl_seconds`",
        ),
    ] = None
    enabled: Annotated[bool, Meta(description="false: these keys pass through")] = True
    near_cache: Annotated[
        Literal["hot", "always", "never"],
        Meta(description="kept in the near-cache once hot, from the first read, or never"),
    ] = "hot"
    ttl_only: Annotated[
        bool,
        Meta(description="cache by time alone where Redis refuses tracking: values may be stale"),
    ] = False
    stampede: StampedeSettings = StampedeSettings()
    negative_ttl: Annotated[
        float, Meta(ge=0, le=3600, description="seconds that a missing key is remembered; 0: not")
    ] = 0.0
    hot: HotSettings = HotSettings()
    tags: Annotated[
        tuple[str, ...],
        Meta(
            description="keys written under `keys` join these; `{1}` is the glob's first `*`, "
            "`{0}` the key"
        ),
    ] = ()


class PolicyFile(Settings, frozen=True):
    """The whole file."""

    policies: tuple[PolicyRule, ...]


class Role(IntEnum):
    """What a rule may be about."""

    #: A pure read of one key, whose reply may be kept.
    READ = 0
    #: Stores values: its keys may join tags.
    WRITE = 1


class HotDefaults(NamedTuple):
    """When a key is hot, where a rule does not say."""

    threshold: int = 10
    window_seconds: float = 10.0


class _Tagging(NamedTuple):
    """Keys of these commands (empty: of every write) that fit join these tags."""

    commands: frozenset[str]
    glob: Glob
    templates: tuple[tuple[bytes | int, ...], ...]


class RuleBook:
    """A policy in force. Command names are upper case."""

    __slots__ = ("_matchers", "_taggings", "rules", "settings", "source")

    def __init__(
        self,
        source: str,
        settings: PolicyFile,
        rules: tuple[Rule, ...],
        matchers: dict[str, Matcher],
        taggings: tuple[_Tagging, ...],
    ) -> None:
        self.source: Final = source
        #: As read.
        self.settings: Final = settings
        #: In the file's order, as ``settings.policies``.
        self.rules: Final = rules
        self._matchers: Final = matchers
        self._taggings: Final = taggings

    @property
    def commands(self) -> tuple[str, ...]:
        """Reads that any rule names."""
        return tuple(self._matchers)

    def matcher(self, command: str) -> Matcher | None:
        """The rules of a read; ``None``: it has none."""
        return self._matchers.get(command)

    def rule(self, command: str, key: bytes) -> Rule | None:
        """What applies to a read of ``key``; ``None``: it passes through."""
        matcher = self._matchers.get(command)
        return None if matcher is None else matcher.find(key)

    @property
    def prefixes(self) -> frozenset[bytes] | None:
        """What every key begins with that any rule of a read takes; ``None``: nothing certain."""
        found = {rule.literal for matcher in self._matchers.values() for rule in matcher.rules}
        return None if b"" in found else frozenset(found)

    @property
    def has_tags(self) -> bool:
        """Whether any written key joins a tag."""
        return bool(self._taggings)

    def tags(self, command: str, key: bytes) -> tuple[bytes, ...]:
        """Names of the tags that ``key`` joins when ``command`` writes it; each once."""
        names: dict[bytes, None] = {}
        for tagging in self._taggings:
            if tagging.commands and command not in tagging.commands:
                continue
            parts = tagging.glob.parts(key)
            if parts is None:
                continue
            values = (key, *parts)
            for template in tagging.templates:
                pieces = (values[p] if isinstance(p, int) else p for p in template)
                names[b"".join(pieces)] = None
        return tuple(names)


def read_policy(
    tree: object,
    *,
    source: str,
    roles: Mapping[str, Role],
    hot: HotDefaults = HotDefaults(),  # noqa: B008  (immutable)
) -> RuleBook:
    """The rule book of a parsed file. Raises ``ConfigError`` with the path of what is wrong.

    ``roles``: upper-case name of every command that a rule may name.
    """
    settings = decode(PolicyFile, tree, source=source)
    if len(settings.policies) > MAX_RULES:
        raise ConfigError(
            f"{len(settings.policies)} rules; expected at most {MAX_RULES}",
            source=source,
            path="policies",
        )
    reader = _Reader(source, roles, hot)
    for index, rule in enumerate(settings.policies):
        reader.add(index, rule)
    matchers = {name: Matcher(tuple(rules)) for name, rules in reader.readers.items()}
    return RuleBook(source, settings, tuple(reader.rules), matchers, tuple(reader.taggings))


class _Reader:
    """One pass over the rules, in order."""

    def __init__(self, source: str, roles: Mapping[str, Role], hot: HotDefaults) -> None:
        self._source = source
        self._roles = roles
        self._hot = hot
        self.rules: list[Rule] = []
        self.readers: dict[str, list[Rule]] = {}
        self.taggings: list[_Tagging] = []
        #: Command → what earlier rules took of it.
        self._taken: dict[str, list[tuple[int, Glob]]] = {}

    def add(self, index: int, settings: PolicyRule) -> None:
        names, role = self._commands(index, settings)
        try:
            glob = Glob(settings.keys)
        except ValueError as error:
            raise self._wrong(index, "keys", f"not a glob: {error}") from None
        if role is Role.WRITE:
            self._only_tags(index, settings, names)
        self._guard_has_a_meaning(index, settings, names)
        for name in names:
            self._take(index, name, glob)
        rule = _rule(index + 1, settings, glob, self._hot)
        self.rules.append(rule)
        if role is Role.READ:
            for name in names:
                self.readers.setdefault(name, []).append(rule)
        templates = tuple(
            self._template(index, number, tag, glob) for number, tag in enumerate(settings.tags)
        )
        if templates and settings.enabled:
            commands = frozenset() if role is Role.READ else frozenset(names)
            self.taggings.append(_Tagging(commands, glob, templates))

    def _commands(self, index: int, settings: PolicyRule) -> tuple[list[str], Role]:
        one = isinstance(settings.match, str)
        words = (settings.match,) if isinstance(settings.match, str) else settings.match
        if not words:
            raise self._wrong(index, "match", "expected a command, got an empty list")
        names: list[str] = []
        for number, word in enumerate(words):
            where = "match" if one else f"match[{number}]"
            name = word.strip().upper()
            if name not in self._roles:
                raise self._wrong(index, where, self._unknown(word))
            if name in names:
                raise self._wrong(index, where, f"{name} is named twice")
            names.append(name)
        roles = {self._roles[name] for name in names}
        if len(roles) > 1:
            raise self._wrong(index, "match", "reads and writes need rules of their own")
        return names, roles.pop()

    def _unknown(self, word: str) -> str:
        close = difflib.get_close_matches(word.upper(), self._roles, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        return (
            "expected a pure read of one key (GET, HGETALL, …) or a command that stores "
            f"a value (SET, HSET, …), got {word!r}{hint}"
        )

    def _only_tags(self, index: int, settings: PolicyRule, names: list[str]) -> None:
        plain = PolicyRule(match=settings.match)
        for field in ("near_cache", "ttl_only", "stampede", "negative_ttl", "hot"):
            if getattr(settings, field) != getattr(plain, field):
                raise self._wrong(
                    index, field, f"has no meaning for {names[0]}, which writes; only tags have"
                )
        if settings.ttl:
            raise self._wrong(
                index, "ttl", f"expected 0 for {names[0]}: what is written is not kept"
            )

    def _guard_has_a_meaning(self, index: int, settings: PolicyRule, names: list[str]) -> None:
        stampede = settings.stampede
        if not stampede.stale_fill_guard:
            return
        where = "stampede.stale_fill_guard"
        if stampede.mode != "lease":
            raise self._wrong(index, where, "has no meaning without mode: lease")
        if "GET" not in names:
            raise self._wrong(
                index, where, f"is about what a GET missed and a SET fills, not {names[0]}"
            )

    def _take(self, index: int, name: str, glob: Glob) -> None:
        earlier = self._taken.setdefault(name, [])
        for number, other in earlier:
            if other.covers(glob):
                what = "every key" if other.pattern == "*" else repr(other.pattern)
                raise self._wrong(
                    index,
                    "keys",
                    f"rule {number} ({name}, {what}) comes first and takes all keys of "
                    f"{glob.pattern!r}: put the narrower rule in front of it",
                )
        earlier.append((index + 1, glob))

    def _template(self, index: int, number: int, tag: str, glob: Glob) -> tuple[bytes | int, ...]:
        where = f"tags[{number}]"
        if not tag:
            raise self._wrong(index, where, "expected a name, got nothing")
        pieces: list[bytes | int] = []
        for position, piece in enumerate(_PLACEHOLDER.split(tag)):
            if position % 2 == 0:
                pieces.append(piece.encode())
                continue
            if int(piece) > glob.stars:
                raise self._wrong(
                    index, where, f"{{{piece}}}: the glob {glob.pattern!r} has {glob.stars} '*'"
                )
            pieces.append(int(piece))
        return tuple(piece for piece in pieces if piece != b"")

    def _wrong(self, index: int, where: str, message: str) -> ConfigError:
        return ConfigError(message, source=self._source, path=f"policies[{index}].{where}")


def _rule(index: int, settings: PolicyRule, glob: Glob, hot: HotDefaults) -> Rule:
    rule = Rule(index, glob.pattern, glob.shape, glob.literal, glob.regex)
    rule.enabled = settings.enabled
    rule.near = NEVER if settings.ttl == 0 else _NEAR[settings.near_cache]
    if settings.ttl is not None:
        rule.ttl = settings.ttl
    rule.negative_ttl = settings.negative_ttl
    rule.ttl_only = settings.ttl_only
    own = settings.hot
    rule.hot_threshold = hot.threshold if own.threshold is None else own.threshold
    rule.hot_window = hot.window_seconds if own.window_seconds is None else own.window_seconds
    rule.extend = own.extend_seconds
    rule.max_total = own.max_total_seconds
    stampede = settings.stampede
    rule.leased = stampede.mode == "lease"
    rule.lease_wait = stampede.lease_wait_ms / 1000
    rule.lease_ttl = stampede.lease_ttl_ms / 1000
    rule.early_refresh = stampede.early_refresh
    rule.fill_guard = stampede.stale_fill_guard
    rule.stale_if_error = stampede.stale_if_error_seconds
    return rule


def describe(settings: PolicyRule) -> Iterable[str]:
    """``name=value`` of everything that the rule says beside match and keys."""
    plain = PolicyRule(match=settings.match)
    for field in ("enabled", "ttl", "near_cache", "ttl_only", "negative_ttl", "tags"):
        value: Any = getattr(settings, field)
        if field in ("ttl", "near_cache") or value != getattr(plain, field):
            if value is not None:
                yield f"{field}={_shown(value)}"
    for group in ("stampede", "hot"):
        inner, unset = getattr(settings, group), getattr(plain, group)
        for field in inner.__struct_fields__:
            value = getattr(inner, field)
            if value != getattr(unset, field):
                yield f"{group}.{field}={_shown(value)}"


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:g}"
    return ",".join(value) if isinstance(value, tuple) else str(value)
