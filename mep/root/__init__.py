"""Everything that runs as root for longer than a command, and nothing else.

Each subfolder is one root process, or what several of them share. They trust the resolved configuration, which
root's own resolver made, and the kernel; they read no byte from the network. Only `mep.cli` may import from here,
and only from `account`.
"""
