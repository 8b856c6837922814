"""The endpoint: a root monitor and keepers, an unprivileged manager and mapper. PRIVSEP.md draws it."""

__version__ = "0.1.0"
