"""``python -m nexus.gateway``."""

from __future__ import annotations

import sys

from nexus.gateway.app import SPEC
from nexus.net.run import main

if __name__ == "__main__":
    sys.exit(main(SPEC, sys.argv[1:]))
