"""The endpoint: a root monitor and keepers, an unprivileged manager and mapper. PRIVSEP.md draws it.

Each subfolder is one process, or what several of them share. `mep.root` alone runs as root for long, and trusts
neither of the others. Nothing outside `mep` may import it, but for the checks in `mep.boundary` that name their users.
"""

__version__ = "0.1.0"
