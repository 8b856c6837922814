"""A whole site on one machine, for the demo, the benchmarks and the acceptance tests.

Uses public interfaces only: the commands `mep` and `mep-relay`, and the SDK. As root it makes throw-away
accounts; otherwise everything runs as the person who started it. It records accounts and directories before
it makes them, and each process that it starts, so the next run can clear up after a killed one.
"""
