"""The command `mep-sdk`: logins, endpoints, tasks and results for people at a terminal and in shell scripts.

It runs as the person, with the standard library and what the SDK needs anyway. It trusts the relay that the person
names; all text of the relay's passes through mep_wire.text before it reaches a terminal. Its own
modules alone may import it.
"""
