"""Mapping by pattern: rules that match one field of an identity and build a user name from it.

It runs in the mapper and in `mep map`. It trusts the rules, and no field of an identity. Only `identity` may import it.
"""
