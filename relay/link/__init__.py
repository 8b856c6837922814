"""The endpoint link: how managers and user endpoints reach the relay.

It runs in the relay's one process. It knows a peer by its CURVE key and trusts none of its messages. `relay.dispatch`
and `relay.server` may import it.
"""
