"""Process mep-monitor: one poll loop, the permission table, start requests, keepers, status and audit log.

It runs as root (as its owner in single-user mode), one for each endpoint. It trusts the resolved configuration and
the kernel; it does not trust the manager or the mapper. No other package may import it.
"""
