"""Mapping by a directory: one bounded LDAP search for each person, under one deadline.

It runs in the mapper and in `mep map`. It trusts the directory's certificate as the document says, and bounds every
answer. Only `identity` may import it.
"""
