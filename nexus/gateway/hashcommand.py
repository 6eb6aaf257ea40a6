"""``nexus hash-secret``: what goes into ``auth.clients[].client_secret`` in a secret's place."""

from __future__ import annotations

import argparse
import getpass
import secrets
import sys
from collections.abc import Sequence

from nexus.gateway.secrethash import hash_secret

__all__ = ["main"]

_MIN_LENGTH = 8


def main(argv: Sequence[str]) -> int:
    """Print the hash of a secret; the exit code."""
    parser = argparse.ArgumentParser(
        prog="nexus hash-secret",
        description="Hash a client secret for the configuration. It is read from the terminal "
        "without echo, or one line of standard input: never from the command line, which others "
        "can see.",
    )
    parser.add_argument(
        "--generate",
        action="store_true",
        help="make a random secret and print it too: first line the secret, second its hash",
    )
    parser.add_argument(
        "--sha256",
        action="store_true",
        help="SHA-256 instead of scrypt: quick, and only good for long random secrets",
    )
    arguments = parser.parse_args(argv)
    if arguments.generate:
        secret = secrets.token_urlsafe(32)
        print(secret)
    else:
        secret = _read()
    if len(secret) < _MIN_LENGTH:
        print(
            f"nexus hash-secret: expected at least {_MIN_LENGTH} characters, got {len(secret)}",
            file=sys.stderr,
        )
        return 2
    print(hash_secret(secret, scrypt=not arguments.sha256))
    return 0


def _read() -> str:
    if sys.stdin.isatty():
        return getpass.getpass("secret: ")
    return sys.stdin.readline().rstrip("\r\n")
