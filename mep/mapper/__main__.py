"""`python -I -m mep.mapper`, started by the monitor."""

from mep.mapper.main import main

main()
