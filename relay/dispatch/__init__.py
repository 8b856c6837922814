"""Brings tasks to user endpoints and results back: start requests, delivery, process loss, task records.

It runs in the relay's one process. It trusts the store and the signing key, and no peer of the link. `relay.api` and
`relay.server` may import it.
"""
