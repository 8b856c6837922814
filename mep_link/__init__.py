"""The client's side of the relay's CURVE link, ZeroMQ's authentication, and pauses between attempts.

The manager and user endpoints run the client, the relay and the interchange the authentication, and the SDK the pauses.
It trusts the holder of the relay's pinned key to speak the link's messages, and a peer for the key that it has proven.
Only `mep.manager`, `user_endpoint`, `relay.link` and `mep_sdk` may import it; root's processes load none of it.
"""
