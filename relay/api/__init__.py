"""The relay's HTTP API: routes, bodies, answers and the result stream.

It runs in the relay's one process. It trusts no request. Only `relay.server` and `relay.cli` may import it.
"""
