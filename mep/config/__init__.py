"""The administrator's files: their allowed content, reading them safely, and resolving them for the monitor.

It runs in the command `mep` and in the resolver, a short-lived child of the monitor. It trusts a file only after
`mep.boundary.file_trust` has checked it. Only `mep.cli` may import it.
"""
