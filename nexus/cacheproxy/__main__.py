"""``python -m nexus.cacheproxy``."""

from __future__ import annotations

import sys

from nexus.cacheproxy.app import SPEC
from nexus.net.run import main

if __name__ == "__main__":
    sys.exit(main(SPEC, sys.argv[1:]))
