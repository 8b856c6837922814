"""The relay: the self-hosted service between people's scripts and the site's endpoints.

It runs as `mep-relay`. It trusts its own state directory; it checks every message of people, managers and user
endpoints. No other package may import it.
"""
