"""The administrator's files: their options, how they are read safely, and the resolver that checks them.

It runs in the command line and in the resolver, as root or as the owner, for a moment. It trusts the files once
`mep.boundary.file_trust` has accepted them. Only `mep.cli` may import it.
"""
