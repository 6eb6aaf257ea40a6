"""``NEXUS EXPLAIN GET key``: how this client's read would be answered now, and why."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from nexus.cacheproxy.commandeffects import Effect, effect_of
from nexus.cacheproxy.commands import COMMANDS, Kind
from nexus.cacheproxy.local import Subcommand, text_reply
from nexus.clock import monotonic
from nexus.policy.rules import ALWAYS, NEVER
from nexus.wire.resp import encode_command

if TYPE_CHECKING:
    from nexus.cacheproxy.near import Partition
    from nexus.cacheproxy.session import Session
    from nexus.policy.rules import Rule

__all__ = ["ExplainCommand"]


class ExplainCommand:
    """It looks and changes nothing: no counter, no entry, no connection."""

    def subcommands(self) -> dict[bytes, Subcommand]:
        """By lower-case name."""
        what = "How a read would be answered on this connection now, and why."
        return {
            b"explain": Subcommand(self._run, "EXPLAIN <command> [<argument> ...]", what, 3, -1)
        }

    def _run(self, session: Session, args: list[bytes]) -> bytes:
        return text_reply(session, _explain(session, args[2:]))


def _explain(session: Session, command: list[bytes]) -> Iterator[str]:
    name = command[0].decode("latin-1").lower()
    known = COMMANDS.get(name)
    if session.pinned or known is None or known.kind != Kind.SHARED:
        yield "answer:pinned"
        yield (
            "why:this client has a connection to Redis of its own now"
            if session.pinned
            else "why:the command gets a connection of its own, or the proxy's own answer"
        )
        return
    if not session.plane.near_on:
        yield "answer:forwarded"
        yield "why:no policy is in force"
        return
    guard = session.near.core.guard if session.near is not None else None
    if guard is not None and len(command) > 2 and name in ("set", "setex", "psetex"):
        said = guard.explain(session, command[1], monotonic())
        yield "answer:guarded" if said else "answer:forwarded"
        yield f"why:{said or 'this client was not sent to load the key'}"
        return
    effect, _first, last, _step = effect_of(known)
    if effect is not Effect.CACHED or len(command) < 2 or (last != 1 and len(command) > 2):
        yield "answer:forwarded"
        yield f"why:not a pure read of one key (to the near-cache: {effect.name.lower()})"
        return
    if session.near is None:
        session.bind()
    yield from _read(session, session.near, command, name)


def _read(session: Session, partition: Partition, command: list[bytes], name: str) -> Iterator[str]:
    core = partition.core
    number = core.commands.number(name.encode())
    matcher = core.matchers[number]
    rule: Rule | None = None if matcher is None else matcher.first(command[1])
    if rule is None or not rule.enabled:
        yield "answer:forwarded"
        yield "why:no rule of the policy fits" if rule is None else f"why:rule {rule.index} says so"
        return
    yield f"rule:{rule.index} ({rule.pattern})"
    source = partition.source
    if source is None or not source.up:
        yield "answer:forwarded"
        yield f"why:redis does not tell this user of changes: {_refusal(partition)}"
        return
    now = monotonic()
    whole = encode_command([b"x", *command[1:]])
    request = whole[whole.index(b"x\r\n") + 3 :]
    age = now - source.fresh
    if source.tracked:
        yield f"fence_age_ms:{age * 1000:.1f} of {core.staleness * 1000:g}"
    else:
        yield f"mode:ttl-only ({_refusal(partition)})"
    facts = core.table.facts(partition.space, number, request)
    if facts is not None:
        token, reply, expiry, hits = facts
        if now >= expiry:
            yield "answer:miss"
            yield "why:it has expired"
            return
        fresh = source.fresh >= max(now - core.staleness, session.fence_after)
        yield "answer:hit" if fresh else "answer:held"
        yield "why:kept, and the fence is young enough" if fresh else "why:kept; waits for a fence"
        yield f"entry:{token}, {len(reply)} bytes, expires in {expiry - now:.1f} s, hits {hits}"
    elif rule.leased and (why := core.leases.explain(source, number, request, now)):
        yield "answer:held"
        yield f"why:{why}"
    elif core.table.token(partition.space, number, request):
        yield "answer:held"
        yield "why:the same read is on its way to Redis; this one shares its reply"
    else:
        yield "answer:miss"
        yield f"why:{_why_not_kept(partition, rule)}"
    if rule.leased:
        yield f"lease:misses wait for who loads, {rule.lease_wait:g} s at most"
    if rule.fill_guard:
        said = core.guard.explain(session, command[1], now)
        yield f"guard:{said or 'what a late loader SETs is not stored'}"


def _refusal(partition: Partition) -> str:
    owner = None if partition.source is None else partition.source.owner
    return getattr(owner, "refusal", "") or "the connection is being opened"


def _why_not_kept(partition: Partition, rule: Rule) -> str:
    if rule.near == NEVER or not partition.core.keeping:
        return "replies of this rule are not kept"
    if rule.near == ALWAYS:
        return "not asked for since it changed last; the next read is kept"
    return f"kept from {rule.hot_threshold} reads in {rule.hot_window:g} s on"
