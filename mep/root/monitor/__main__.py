"""`python -I -m mep.root.monitor`: see main.py."""

import sys

from mep.boundary import lazy_inspect  # noqa: F401  # before anything imports dataclasses
from mep.root.monitor.main import main

sys.exit(main(sys.argv[1:]))
