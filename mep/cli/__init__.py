"""The command line `mep`, also installed as `globus-compute-endpoint`.

It runs as root or as the owner, for a moment. It trusts its arguments and the administrator's files, and it prints
foreign text with control characters escaped. No other package may import it.
"""
