"""Which person a request comes from: tokens and their hashes.

It runs in the relay's one process. It trusts the store. `relay.api` and `relay.cli` may import it.
"""
