"""`python -I -m mep.monitor`: see main.py."""

import sys

from mep.monitor.main import main

sys.exit(main(sys.argv[1:]))
