"""``python -m nexus.consumer``."""

import sys

from nexus.consumer.app import SPEC
from nexus.net.run import main

if __name__ == "__main__":
    sys.exit(main(SPEC, sys.argv[1:]))
