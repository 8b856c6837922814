"""`python -I -m mep.manager`, started by the monitor."""

from mep.manager.main import main

main()
