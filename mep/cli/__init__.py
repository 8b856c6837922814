"""The command line `mep` (also installed as `globus-compute-endpoint`)."""
