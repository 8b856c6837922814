"""Mapping by pattern: rules that match one field of an identity and build a user name from it."""
