"""``docs/commands.md``: the command table as a page."""

from __future__ import annotations

from typing import Final

from nexus.cacheproxy.commandeffects import Effect, effect_of
from nexus.cacheproxy.commandgroups import group_of
from nexus.cacheproxy.commands import COMMANDS, Command, Kind

__all__ = ["render"]

_TITLES: Final = {
    Kind.SHARED: "one reply, no connection state: multiplexed",
    Kind.DEDICATED: "slow, blocking or scripted: own connection while replies are outstanding",
    Kind.BLOCK_OPTION: "own connection with the option BLOCK, otherwise multiplexed",
    Kind.WAIT: "own connection, replication offset lifted first",
    Kind.TRANSACTION: "own connection until the transaction is over; whole in the buffer: shared",
    Kind.SESSION: "changes the session: executed by Redis, replayed on later connections",
    Kind.CONTAINER: "decided by the subcommand",
    Kind.SPLICED: "raw bytes both ways from there on, on an own connection",
    Kind.PROBE: "own connection; spliced if Redis accepts it",
    Kind.LOCAL: "answered by the proxy",
    Kind.RESCUE: "own connection, in whatever db, so that it works while Redis is busy",
    Kind.PAUSE: "own connection; while clients are paused, all commands are on own connections",
}


def _near(command: Command) -> str:
    effect = Effect.NONE
    if command.kind in (Kind.SHARED, Kind.BLOCK_OPTION):
        effect = effect_of(COMMANDS[command.name.partition("|")[0]])[0]
    return effect.name.lower() if effect else "-"


def render() -> str:
    """The page."""
    lines = [
        "# Commands",
        "",
        "Generated from `nexus/cacheproxy/commands.py` by `make docs`;",
        "checked against `COMMAND` of the real server in the tests. Commands that are not listed",
        "(modules, newer servers) work too: they are forwarded on a connection of their own.",
        "",
        "| kind | meaning |",
        "|---|---|",
    ]
    lines += [f"| {kind.name.lower()} | {_TITLES[kind]} |" for kind in Kind]
    lines += [
        "",
        "**Near-cache**: what a command on the shared connection means to it. *cached*: a pure",
        "read of one key whose reply may be kept; *reads*, *writes*: of the keys at those places;",
        "*unknown*: nobody can tell which keys, so the client's next hit waits for a fence;",
        "*flushes*: everything is dropped. Replies with `WITHSCORES` or of several keys are never",
        "kept. What runs on a connection of the client's own always counts as unknown.",
    ]
    lines += [
        "",
        "| command | kind | group | arity | keys (first, last, step) | near-cache | flags |",
    ]
    lines += ["|---|---|---|---|---|---|---|"]
    for command in COMMANDS.values():
        keys = f"{command.first_key}, {command.last_key}, {command.key_step}"
        lines.append(
            f"| {command.name.upper().replace('|', ' ')} | {command.kind.name.lower()} "
            f"| {group_of(command.name)} | {command.arity} | {keys if command.first_key else '-'} "
            f"| {_near(command)} | {' '.join(sorted(command.flags))} |"
        )
    lines += ["| NEXUS | local | nexus | -2 | - | - | the proxy's own: `NEXUS HELP` |", ""]
    return "\n".join(lines)
