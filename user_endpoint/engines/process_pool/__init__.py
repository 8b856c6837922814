"""ProcessPoolEngine: workers forked from a fork server on the user endpoint's own host.

It runs in the user endpoint and in HTEX's worker pools, as the mapped user. It trusts its fork server, and checks every
message of a worker. `user_endpoint.engines` may import it.
"""
