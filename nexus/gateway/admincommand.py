"""``nexus admin``: look into a running gateway and act on it, through its admin listener."""

from __future__ import annotations

import argparse
import json
import os
import sys
import urllib.error
import urllib.request
from collections.abc import Sequence
from typing import Any, Final

__all__ = ["main"]

#: Command → path of the action.
_ACTIONS: Final = {
    "drain": ("upstreams/drain", "take an upstream out of rotation; requests under way finish"),
    "enable": ("upstreams/enable", "use it again"),
    "weight": ("upstreams/weight", "give it another weight; 0: that of the service list"),
    "open": ("breakers/open", "open its breaker until it is closed by hand"),
    "close": ("breakers/close", "close its breaker; it decides itself again"),
}
_SECONDS: Final = 10


def main(argv: Sequence[str]) -> int:
    """Returns the exit code: 0 done, 1 refused or not reached, 2 misused."""
    parser = argparse.ArgumentParser(
        prog="nexus admin", description="Look into a running gateway and act on it."
    )
    parser.add_argument(
        "--url", default="http://127.0.0.1:3900", help="admin listener (default: %(default)s)"
    )
    parser.add_argument(
        "--token",
        default=os.environ.get("NEXUS_ADMIN_TOKEN", ""),
        help="admin.token of the gateway; better in the environment, NEXUS_ADMIN_TOKEN",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    commands.add_parser("state", help="all that it knows now, as JSON")
    for name, (_, what) in _ACTIONS.items():
        command = commands.add_parser(name, help=what)
        command.add_argument("upstream", metavar="URL", help="as in the service list")
        if name == "weight":
            command.add_argument("weight", type=int)
    revoke = commands.add_parser(
        "revoke", help="end all tokens that a client or subject was given, on all gateways"
    )
    whose = revoke.add_mutually_exclusive_group(required=True)
    whose.add_argument("--client", metavar="ID", help="client id")
    whose.add_argument("--subject", metavar="SUB", help="subject of a provider's tokens")
    revoke.add_argument("--issuer", metavar="ISS", help="provider; without: tokens of our own")
    given = parser.parse_args(argv)
    body: dict[str, Any] | None = None
    path = "/admin/state"
    if given.command == "revoke":
        path = "/admin/auth/revoke"
        named = {"of_client": given.client, "of_subject": given.subject, "issuer": given.issuer}
        body = {name: value for name, value in named.items() if value}
    elif given.command != "state":
        path = "/admin/" + _ACTIONS[given.command][0]
        body = {"url": given.upstream}
        if given.command == "weight":
            body["weight"] = given.weight
    return _send(given.url.rstrip("/") + path, given.token, body)


def _send(url: str, token: str, body: dict[str, Any] | None) -> int:
    data = None if body is None else json.dumps(body).encode()
    try:
        request = urllib.request.Request(url, data)  # noqa: S310  (the operator's own URL)
    except ValueError as error:
        print(f"nexus admin: {error}", file=sys.stderr)
        return 2
    request.add_header("Content-Type", "application/json")
    if token:
        request.add_header("Authorization", f"Bearer {token}")
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, timeout=_SECONDS) as reply:
            print(json.dumps(json.load(reply), indent=2))
    except urllib.error.HTTPError as error:
        try:
            why = json.load(error)["error"]
        except (ValueError, KeyError, TypeError):
            why = error.reason
        print(f"nexus admin: {error.code}: {why}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"nexus admin: {url} cannot be reached: {error}", file=sys.stderr)
        return 1
    return 0
