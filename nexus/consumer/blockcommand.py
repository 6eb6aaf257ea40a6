"""``nexus block list|add|remove``: the block list by hand."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from typing import Any

import redis
from redis.exceptions import RedisError

from nexus.net.settings import REDIS_FORM
from nexus.policy.blocks import CHANNEL, INDEX_KEY, KEY_PREFIX, subject_of
from nexus.redact import mask_password

__all__ = ["main"]


def main(argv: Sequence[str]) -> int:
    """Exit code 0; 1 where Redis cannot be reached or nothing was removed; 2 for a wrong URL."""
    arguments = _parser().parse_args(argv)
    try:
        client: Any = redis.Redis.from_url(arguments.redis, decode_responses=True, socket_timeout=5)
    except ValueError:
        shown = mask_password(repr(arguments.redis))
        print(f"nexus block: --redis: expected {REDIS_FORM}, got {shown}", file=sys.stderr)
        return 2
    try:
        code: int = arguments.run(client, arguments)
        return code
    except (RedisError, OSError) as error:
        print(f"nexus block: Redis: {error}", file=sys.stderr)
        return 1
    finally:
        client.close()


def _subject(text: str) -> str:
    try:
        return subject_of(text)
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"expected an address, or an IPv6 /64, got {text!r}"
        ) from None


def _seconds(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= 31_536_000:
        raise argparse.ArgumentTypeError(f"expected 1 to 31536000 seconds, got {text!r}")
    return int(text)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="nexus block", description="Addresses that every gateway refuses (403)."
    )
    parser.add_argument(
        "--redis",
        default=os.environ.get("NEXUS_REDIS_URL", "redis://127.0.0.1:6379/0"),
        metavar="URL",
        help="Redis of the block list (default: NEXUS_REDIS_URL, else %(default)s)",
    )
    commands = parser.add_subparsers(required=True, metavar="list|add|remove")
    show = commands.add_parser("list", help="what is blocked, for how long, by whom")
    show.add_argument("--json", action="store_true", help="one JSON object per line")
    show.set_defaults(run=_list)
    add = commands.add_parser("add", help="block an address; an IPv6 one blocks its /64")
    add.add_argument("address", type=_subject)
    add.add_argument("--seconds", type=_seconds, default=300, help="default %(default)s")
    add.add_argument("--reason", default="manual", help="kept with the block")
    add.set_defaults(run=_add)
    remove = commands.add_parser("remove", help="unblock an address")
    remove.add_argument("address", type=_subject)
    remove.set_defaults(run=_remove)
    return parser


def _list(client: Any, arguments: argparse.Namespace) -> int:
    for subject in client.zrange(INDEX_KEY, 0, -1):
        pipe = client.pipeline(transaction=True)
        pipe.get(KEY_PREFIX + subject)
        pipe.pttl(KEY_PREFIX + subject)
        value, left = pipe.execute()
        if value is None:
            continue
        about = _about(value)
        seconds = None if left < 0 else round(left / 1000)
        if arguments.json:
            print(json.dumps({"subject": subject, "secondsLeft": seconds, **about}))
        else:
            how = about.get("reason", "")
            until = "no end" if seconds is None else f"{seconds} s"
            print(f"{subject:<24} {until:>8}  {about.get('by', '?')}  {how}".rstrip())
    return 0


def _about(value: str) -> dict[str, Any]:
    try:
        found = json.loads(value)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _add(client: Any, arguments: argparse.Namespace) -> int:
    subject = arguments.address
    seconds, microseconds = client.time()
    value = {
        "by": "operator",
        "reason": arguments.reason,
        "sinceMs": seconds * 1000 + microseconds // 1000,
    }
    pipe = client.pipeline(transaction=True)
    pipe.set(KEY_PREFIX + subject, json.dumps(value), ex=arguments.seconds)
    pipe.zadd(INDEX_KEY, {subject: (seconds + arguments.seconds) * 1000})
    pipe.publish(CHANNEL, subject)
    pipe.execute()
    print(f"{subject} blocked for {arguments.seconds} s")
    return 0


def _remove(client: Any, arguments: argparse.Namespace) -> int:
    subject = arguments.address
    pipe = client.pipeline(transaction=True)
    pipe.delete(KEY_PREFIX + subject)
    pipe.zrem(INDEX_KEY, subject)
    pipe.publish(CHANNEL, subject)
    removed = pipe.execute()[0]
    print(f"{subject} unblocked" if removed else f"{subject} was not blocked")
    return 0 if removed else 1
