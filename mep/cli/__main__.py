"""`python -I -m mep.cli`: how the monitor runs the resolver, and root the command line."""

from mep.cli.main import main

main()
