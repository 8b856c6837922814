"""Mapping by a directory: one bounded LDAP search for each person, under one deadline."""
