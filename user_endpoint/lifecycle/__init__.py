"""Start-up, idling and shutdown of a user endpoint.

It runs in the user endpoint, as the mapped user. It trusts the administrator's set-up commands. Only `user_endpoint`
may import it.
"""
