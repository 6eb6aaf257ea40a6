"""``python -m nexus`` and the console script ``nexus``."""

from __future__ import annotations

import sys

from nexus.cli import main

__all__ = ["main"]

if __name__ == "__main__":
    sys.exit(main())
