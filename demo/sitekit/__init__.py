"""A whole site on one machine, for the demo, the benchmarks and the acceptance tests.

Uses only what anybody can use: the commands `mep` and `mep-relay`, and the SDK. As root it makes throw-away
accounts; otherwise everything runs as the person who started it. Whatever it makes it records first, so
that the next run can clear up after one that was killed.
"""
