"""`python -I -m mep.root.monitor`: see main.py."""

import sys

from mep.root.monitor.main import main

sys.exit(main(sys.argv[1:]))
