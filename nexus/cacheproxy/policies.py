"""The policy in force in one worker: its file, its switch, and who is told of changes.

::

    policy.yaml ─ look() every tick, SIGHUP ─► RuleBook ─┐
    NEXUS POLICY OFF|ON ─► PolicyBoard (shared memory) ──┴─► Policies.current ─► listeners

Without a policy file, or switched off, ``current`` is ``None``: every command passes through.
"""

from __future__ import annotations

import logging
import mmap
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Final

from nexus.cacheproxy.commandeffects import Effect, effect_of
from nexus.cacheproxy.commands import COMMANDS
from nexus.cacheproxy.tagging import STORING
from nexus.clock import monotonic, monotonic_ns
from nexus.errors import ConfigError
from nexus.net.filememory import MAX_FILE_BYTES, FileMemory
from nexus.policy.policyfile import HotDefaults, Role, RuleBook, read_policy
from nexus.settings import line_of, parse_yaml

if TYPE_CHECKING:
    from nexus.cacheproxy.settings import CacheproxySettings

__all__ = ["Policies", "PolicyBoard", "check_policy", "roles"]

log = logging.getLogger("nexus.cacheproxy.policy")

#: Told of the new book, or of ``None``.
Listener = Callable[["RuleBook | None"], None]


def roles() -> dict[str, Role]:
    """What a rule may be about: pure reads of one key, and writes that store values."""
    found = {}
    for name in COMMANDS:
        if "|" not in name:
            if effect_of(COMMANDS[name])[0] == Effect.CACHED:
                found[name.upper()] = Role.READ
            elif name in STORING:
                found[name.upper()] = Role.WRITE
    return found


def check_policy(settings: CacheproxySettings) -> RuleBook | None:
    """The policy that ``settings`` name, read now; raises ``ConfigError``. ``None``: none."""
    if not settings.policy_file:
        return None
    path = Path(settings.policy_file)
    return _parse(_load(path), str(path), _defaults(settings))


def _defaults(settings: CacheproxySettings) -> HotDefaults:
    near = settings.near_cache
    return HotDefaults(near.hot_threshold, near.hot_window_seconds)


def _load(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            content = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"cannot be read: {error.strerror}", source=str(path)) from None
    if len(content) > MAX_FILE_BYTES:
        raise ConfigError(f"is larger than {MAX_FILE_BYTES} bytes", source=str(path))
    return content


def _parse(content: bytes, source: str, hot: HotDefaults) -> RuleBook:
    """Raises ``ConfigError`` that names the line, where the text is YAML at all."""
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(f"is not UTF-8 (byte {error.start})", source=source) from None
    try:
        return read_policy(parse_yaml(text, source), source=source, roles=roles(), hot=hot)
    except ConfigError as error:
        line = line_of(text, error.path)
        if not line:
            raise
        where = f"{source}:{line}"
        raise ConfigError(error.reason, source=where, path=error.path) from None


class PolicyBoard:
    """What the workers of one cacheproxy must agree on; made before the first fork."""

    def __init__(self, workers: int) -> None:
        self.memory: Final = FileMemory(workers)
        self._map: Final = mmap.mmap(-1, mmap.PAGESIZE)

    @property
    def off(self) -> bool:
        """Whether ``NEXUS POLICY OFF`` holds."""
        return self._map[0] != 0

    def switch(self, on: bool) -> None:
        """One byte: nobody can see half of it."""
        self._map[0] = 0 if on else 1


class Policies:
    """See the module."""

    def __init__(self, board: PolicyBoard, worker: int) -> None:
        self._board: Final = board
        self._worker: Final = worker
        self._path: Path | None = None
        self._hot = HotDefaults()
        #: What the file held at the last look, or why it could not be read.
        self._seen: bytes | str | None = None
        #: The last good one, also while it is switched off.
        self.book: RuleBook | None = None
        #: In force: what every command is judged by.
        self.current: RuleBook | None = None
        #: Called with ``current`` whenever that changed.
        self.listeners: Final[list[Listener]] = []
        #: What is wrong with the file now; empty: nothing.
        self.error = ""
        #: When the book came into force, seconds of the monotonic clock.
        self.since = 0.0
        #: Changes of the file that were put to use, and that were not.
        self.applied = 0
        self.refused = 0

    @property
    def file(self) -> str:
        """The policy file; empty: there is none."""
        return "" if self._path is None else str(self._path)

    @property
    def off(self) -> bool:
        """Whether the policy is switched off, in all workers."""
        return self._board.off

    def configure(self, settings: CacheproxySettings) -> None:
        """Take over file name and defaults, and read the file.

        A file that is broken at this worker's start gives way to what the others have in force;
        where there is nothing such, the error is raised.
        """
        path = Path(settings.policy_file) if settings.policy_file else None
        hot = _defaults(settings)
        if path == self._path and hot == self._hot:
            self.look()
            return
        if path is None:
            self._path, self._hot, self._seen, self.error = None, hot, None, ""
            self._use(None)
            return
        try:
            content = _load(path)
            book = _parse(content, str(path), hot)
        except ConfigError as error:
            good = self._board.memory.newest() if self._path is None else None
            if good is None:
                raise
            self._path, self._hot = path, hot
            self._use(_parse(good, str(path), hot))
            self._refuse(error)
            return
        self._path, self._hot, self._seen, self.error = path, hot, content, ""
        self.book = None
        self._accept(content, book)

    def look(self) -> None:
        """Apply what changed: the file (its content, whatever its time stamp), or the switch."""
        if self._path is not None:
            self._look_at_file(self._path)
        if self._board.off == (self.current is not None) and self.book is not None:
            self._use(self.book)

    def switch(self, on: bool) -> None:
        """Switch the policy on or off: here now, in the other workers at their next look."""
        self._board.switch(on)
        self._use(self.book)

    def _look_at_file(self, path: Path) -> None:
        try:
            content = _load(path)
        except ConfigError as error:
            if self._seen != str(error):
                self._seen = str(error)
                self._refuse(error)
            return
        if content == self._seen:
            return
        self._seen = content
        try:
            book = _parse(content, str(path), self._hot)
        except ConfigError as error:
            self._refuse(error)
            return
        if self.error:
            log.info("policy file is good again", extra={"file": str(path)})
        self.error = ""
        self._accept(content, book)

    def _accept(self, content: bytes, book: RuleBook) -> None:
        self._board.memory.write(content, monotonic_ns(), self._worker)
        if self.book is not None and book.settings == self.book.settings:
            return  # another comment, or good again
        self.applied += 1
        self.since = monotonic()
        self._use(book)
        log.info("policy in force", extra={"file": book.source, "rules": len(book.rules)})

    def _refuse(self, error: ConfigError) -> None:
        self.error = str(error)
        self.refused += 1
        log.error("policy file is broken, the last good one stays in force: %s", error)

    def _use(self, book: RuleBook | None) -> None:
        self.book = book
        current = None if self._board.off else book
        if current is self.current:
            return
        self.current = current
        for listener in self.listeners:
            listener(current)
