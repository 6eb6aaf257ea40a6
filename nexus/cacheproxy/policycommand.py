"""``NEXUS POLICY``: what is in force, what applies to a key and why, the switch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

from nexus.cacheproxy.local import Subcommand, error_reply, text_reply
from nexus.cacheproxy.permission import if_admin
from nexus.clock import monotonic
from nexus.policy.policyfile import PolicyRule, RuleBook, describe

if TYPE_CHECKING:
    from nexus.cacheproxy.policies import Policies
    from nexus.cacheproxy.session import Session

__all__ = ["PolicyCommand", "rule_lines"]


class PolicyCommand:
    """See the module."""

    def __init__(self, policies: Policies) -> None:
        self._policies: Final = policies

    def subcommands(self) -> dict[bytes, Subcommand]:
        """By lower-case name."""
        return {
            b"policy": Subcommand(
                self._run,
                "POLICY [ON|OFF|[<command>] <key>]",
                "The rules; what applies to a key and why; on or off in all workers.",
                2,
                4,
            )
        }

    def _run(self, session: Session, args: list[bytes]) -> bytes | None:
        if len(args) == 2:
            return text_reply(session, self._all())
        if len(args) == 3 and args[2].lower() in (b"on", b"off"):
            return if_admin(session, lambda: self._switch(args[2].lower() == b"on"))
        book = self._policies.book
        if book is None:
            return error_reply(b"there is no policy: policy_file is not set")
        command = "" if len(args) == 3 else args[2].decode("latin-1").upper()
        return text_reply(session, _explain(book, command, args[-1], self._policies.off))

    def _switch(self, on: bool) -> bytes:
        if self._policies.book is None:
            return error_reply(b"there is no policy to switch: policy_file is not set")
        self._policies.switch(on)
        return b"+OK\r\n"

    def _all(self) -> Iterator[str]:
        policies = self._policies
        if policies.book is None:
            yield "state:none"
            return
        yield f"state:{'off' if policies.off else 'on'}"
        yield f"file:{policies.file}"
        yield f"seconds_in_force:{int(monotonic() - policies.since)}"
        yield f"changes_applied:{policies.applied}"
        yield f"changes_refused:{policies.refused}"
        yield f"error:{policies.error}"
        yield from rule_lines(policies.book)


def rule_lines(book: RuleBook) -> Iterator[str]:
    """The rules in order, one line each, for people."""
    for index, rule in enumerate(book.settings.policies, 1):
        yield f"rule {index}: {_names(rule)} {rule.keys} {' '.join(describe(rule))}".rstrip()


def _names(rule: PolicyRule) -> str:
    return rule.match if isinstance(rule.match, str) else ",".join(rule.match)


def _explain(book: RuleBook, command: str, key: bytes, off: bool) -> Iterator[str]:
    """One line for each command that has rules; ``command`` empty: all of them."""
    if off:
        yield "the policy is off: every command passes through; if it were on:"
    reads = [name for name in book.commands if command in ("", name)]
    for name in reads:
        matcher = book.matcher(name)
        rule = None if matcher is None else matcher.first(key)
        if rule is None:
            yield f"{name}: passes through: none of its rules fits the key"
            continue
        settings = book.settings.policies[rule.index - 1]
        first = f"rule {rule.index} is the first that fits ({settings.keys})"
        if not rule.enabled:
            yield f"{name}: passes through: {first} and says enabled=false"
        else:
            yield f"{name}: {first}: {' '.join(describe(settings))}"
    tags = book.tags(command or "SET", key)
    if tags:
        names = b" ".join(tags).decode("utf-8", "surrogateescape")
        yield f"written by {command or 'SET'} it joins the tags: {names}"
    if command and not reads and not tags:
        yield f"{command}: passes through: no rule names it"
